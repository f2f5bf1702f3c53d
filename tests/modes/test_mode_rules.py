"""The rules of every mode, on scripted outcomes: acceptance, gates, fallbacks, budgets."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from reverse.decoding.asks import Conversation, Generate
from reverse.errors import RequestError
from reverse.grading import AnswerFormat
from reverse.modes import Auto, Budget, Plain, Refine, Reflect, Resample, Select, SelfCorrect, Tree
from tests.modes.driving import Driver, Say, script

NUMBER: dict[str, Any] = {"answer_format": AnswerFormat("number")}


def roles(outcome):
    return [(draft.role, draft.answer, draft.accepted) for draft in outcome.result.drafts]


# ------------------------------------------------------------------ self_correct
def test_a_second_turn_corrects_the_first():
    """The question would be asked anew, or the correction not be returned."""
    driver = script("Answer: 3", "Answer: 4")
    found = driver.run(SelfCorrect(**NUMBER))
    assert found.result.answer == "4" and found.result.text == "Answer: 4"
    assert roles(found) == [("first", "3", False), ("correction", "4", True)]
    assert driver.asked[1][1].startswith("How many?Answer: 3|Check")


@pytest.mark.parametrize(("gate", "asked"), [(0.6, 2), (0.5, 1), (0.4, 1), (None, 2)])
def test_the_gate_of_a_correction(gate, asked):
    """Sure answers would be corrected, or doubtful ones not; at the gate itself an answer is sure enough."""
    driver = script(Say("3", 0.5), Say("4", 0.2))
    driver.run(SelfCorrect(gate=gate, **NUMBER))
    assert len(driver.asked) == asked


def test_equal_answers_end_the_rounds():
    """Rounds would go on that change nothing."""
    assert len(script("3", "4", "4", "5").run(SelfCorrect(rounds=3, **NUMBER)).result.drafts) == 3
    again = SelfCorrect(rounds=3, stop_when_same=False, **NUMBER)
    assert len(script("3", "4", "4", "5").run(again).result.drafts) == 4
    assert len(script("3").run(SelfCorrect(rounds=0, **NUMBER)).result.drafts) == 1


def test_the_most_confident_round_is_accepted():
    """A correction that makes things worse would be returned."""
    said = (Say("3", 0.9), Say("4", 0.2), Say("5", 0.3))
    found = script(*said).run(SelfCorrect(rounds=2, accept="confidence", **NUMBER))
    assert found.result.answer == "3" and [draft.accepted for draft in found.result.drafts] == [
        True,
        False,
        False,
    ]


def test_the_model_judges_the_rounds():
    """`judge` would take the last round."""
    found = script("Answer: 3", "Answer: 4", "Answer: 3").run(SelfCorrect(accept="judge", **NUMBER))
    assert found.result.answer == "3" and found.result.drafts[-1].role == "judge"


def test_the_model_judges_conclusions():
    """Of answers in stages the reasoning would be compared, or a round without a conclusion be chosen."""
    three = "<REASONING>1+2</REASONING><CONCLUSION>3</CONCLUSION>"
    four = "<REASONING>2+2</REASONING><CONCLUSION>4</CONCLUSION>"
    mode = SelfCorrect(schema="cot4", accept="judge", rounds=2, **NUMBER)
    driver = script(three, four, "It is 9.", "Answer: 3")
    found = driver.run(mode)
    assert found.result.answer == "3" and found.result.text == three
    shown = driver.asked[-1][1]
    assert sorted(shown.split("given:\n")[1].splitlines()[:2]) in (
        ["Answer 1: 3", "Answer 2: 4"],
        ["Answer 1: 4", "Answer 2: 3"],
    )
    assert "9" not in shown and [draft.role for draft in found.result.drafts][-1] == "judge"
    outside = script(three, four, "It is 9.", "Answer: 9").run(mode)
    assert outside.result.answer in ("3", "4")
    alone = script(three, "no", "no")
    assert alone.run(mode).result.answer == "3" and len(alone.asked) == 3  # nothing to choose from
    assert script("no", "no", "hm").run(mode).result.answer is None
    spent = SelfCorrect(schema="cot4", accept="judge", rounds=1, budget=Budget(max_calls=2), **NUMBER)
    assert script(three, four, "Answer: 3").run(spent).result.answer == "4"  # no call is left for the judge


def test_a_stage_is_checked_again_as_it_was_corrected():
    """Further rounds would check the first version, and so repeat the same question."""
    numbers = itertools.count()
    driver = Driver(
        lambda ask, prompt: Say(f"<{ask.until[0][2:-1]}>{next(numbers)}{ask.until[0]}", end="stop")
    )
    driver.run(SelfCorrect(schema="cot4", position="stage", rounds=2))
    assert len(driver.asked) == 12 and "<SUMMARY>1</SUMMARY>|Check" in driver.asked[2][1]
    driver = Driver(lambda ask, prompt: Say(f"<{ask.until[0][2:-1]}>x{ask.until[0]}", end="stop"))
    driver.run(SelfCorrect(schema="cot4", position="stage", rounds=3))
    assert len(driver.asked) == 8  # equal stages end the rounds


def test_stages_are_read_and_malformed_rounds_passed_over():
    """A correction without a conclusion would replace a good answer."""
    good = "<REASONING>2+2</REASONING><CONCLUSION>4</CONCLUSION>"
    found = script(good, "I am not sure.").run(SelfCorrect(schema="cot4", **NUMBER))
    assert found.result.answer == "4" and [draft.malformed for draft in found.result.drafts] == [False, True]
    both = script("nothing", "none").run(SelfCorrect(schema="cot4", **NUMBER))
    assert both.result.answer is None and both.result.text == "none"


def test_stages_are_corrected_in_their_place():
    """The next stage would be written behind the wrong one, or the turn lose a part."""

    def answer(ask, prompt):
        stage = ask.until[0][2:-1]
        if prompt.endswith("|"):
            return Say(f"<{stage}>right</{stage}>", end="stop")
        return Say(f"<{stage}>wrong</{stage}>", end="stop")

    driver = Driver(answer)
    found = driver.run(SelfCorrect(schema="cot4", position="stage"))
    stages = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")
    assert found.result.text == "".join(f"<{stage}>right</{stage}>" for stage in stages)
    assert found.result.answer == "right" and len(driver.asked) == 8
    assert driver.asked[2][1] == "How many?<SUMMARY>right</SUMMARY>"


# ------------------------------------------------------------------ refine
def test_refine_shows_the_last_answer_in_a_fresh_conversation():
    """The model would judge nothing, or go on inside its own turn."""
    driver = script("Answer: 3", "Answer: 4", "Answer: 4")
    found = driver.run(Refine(rounds=3, instruction="{question} You said: {answer} Mend it.", **NUMBER))
    assert driver.asked[1][1] == "How many? You said: Answer: 3 Mend it."
    assert driver.asked[2][1] == "How many? You said: Answer: 4 Mend it." and len(driver.asked) == 3
    assert roles(found)[-1] == ("refinement", "4", True)
    chat = Conversation(
        "x.png", [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]}]
    )
    driver = script("3", "4")
    driver.run(Refine(**NUMBER), chat)
    assert "{'type': 'image'}" in driver.asked[1][1] and "A previous answer: 3" in driver.asked[1][1]


# ------------------------------------------------------------------ reflect
TURN = "<think>a</think><answer>3</answer><reflection>b</reflection><think>c</think><answer>4</answer>"


def test_the_last_answer_of_a_reflection_counts():
    """The first, unreflected answer would be returned."""
    found = script(TURN).run(Reflect(**NUMBER))
    assert found.result.answer == "4" and not found.result.drafts[0].malformed
    twice = TURN + "</reflection></answer><think></think><answer><reflection>"
    assert script(twice).run(Reflect(**NUMBER)).result.drafts[0].malformed
    short = TURN.replace("<think>c</think>", "")
    assert script(short).run(Reflect(**NUMBER)).result.drafts[0].malformed
    assert not script(short).run(Reflect(schema="taranswer", **NUMBER)).result.drafts[0].malformed
    one = script("<think>a</think><answer>3</answer>").run(Reflect(**NUMBER))
    assert one.result.answer == "3" and one.result.drafts[0].malformed
    none = script("It is 7.").run(Reflect(**NUMBER))
    assert none.result.answer == "7" and none.result.drafts[0].malformed


@pytest.mark.parametrize(("confidence", "asked"), [(0.9, 1), (0.7, 1), (0.69, 2)])
def test_a_sure_first_answer_ends_a_reflection(confidence, asked):
    """The second half would be decoded for nothing."""
    half = TURN.index("</answer>") + len("</answer>")
    driver = script(
        Say(TURN[:half], confidence, "stop"), Say(TURN[half + len("<reflection>") :], 0.9, "stop")
    )
    found = driver.run(Reflect(gate=0.7, **NUMBER))
    assert len(driver.asked) == asked and found.result.answer == ("3" if asked == 1 else "4")
    if asked == 2:
        assert driver.asked[1][1].endswith("</answer>\n<reflection>")
        assert found.result.text == TURN.replace("<reflection>", "\n<reflection>")


def test_further_reflections_while_the_answer_is_doubtful():
    """`rounds` would be ignored, or go on for ever."""
    part = Say("<think>x</think><answer>5</answer>", 0.1, "stop")
    driver = script(part)
    assert len(driver.run(Reflect(gate=0.7, rounds=3, **NUMBER)).result.drafts) == 4
    with pytest.raises(RequestError, match="needs a gate"):
        Reflect(rounds=2)


# ------------------------------------------------------------------ select
SAMPLES = (Say("3", 0.9), Say("4", 0.4), Say("4", 0.5), Say("5", 0.6))


@pytest.mark.parametrize(("judge", "answer"), [("best", "3"), ("vote", "4"), ("weighted", "3")])
def test_judges_of_samples(judge, answer):
    """A vote would count confidences, or the best be the most frequent."""
    found = script(*SAMPLES).run(Select(n=4, judge=judge, **NUMBER))
    assert found.result.answer == answer and len(found.result.drafts) == 4
    assert sum(draft.accepted for draft in found.result.drafts) == 1


def test_ties_and_samples_without_an_answer():
    """A sample that says nothing would win the vote."""
    tie = script(Say("3", 0.2), Say("4", 0.8)).run(Select(n=2, judge="vote", **NUMBER))
    assert tie.result.answer == "4"
    blank = script(Say("", 0.9), Say("hm", 0.9), Say("4", 0.1)).run(Select(n=3, judge="vote", **NUMBER))
    assert blank.result.answer == "4"
    none = script(Say("", 0.1), Say("hm", 0.9)).run(Select(n=2, judge="vote", **NUMBER))
    assert none.result.answer is None and none.result.text == "hm"


def test_the_model_selects_among_distinct_answers():
    """Duplicates would be shown, or what is not a candidate be taken."""
    driver = script(*SAMPLES, "Answer: 5")
    found = driver.run(Select(n=4, judge="self", **NUMBER))
    assert found.result.answer == "5" and found.result.text == "5"
    shown = driver.asked[4][1]
    assert shown.count("Answer 1") == 1 and "Answer 3" in shown and "Answer 4" not in shown
    outside = script(*SAMPLES, "Answer: 17").run(Select(n=4, judge="self", **NUMBER))
    assert outside.result.answer == "4"  # the vote
    same = script("3", "3").run(Select(n=2, judge="self", **NUMBER))
    assert len(same.result.drafts) == 2  # nothing to ask


def test_a_tournament_of_groups():
    """More candidates than the model was trained with would be shown at once."""
    answers = [Say(str(i), 0.5) for i in range(10, 17)]
    driver = Driver(
        lambda ask, prompt: answers.pop(0) if answers else Say("Answer: 16" if "16" in prompt else "?")
    )
    found = driver.run(Select(n=7, judge="self", group=3, permutations=2, **NUMBER))
    assert found.result.answer == "16"
    assert all("Answer 4" not in prompt for _, prompt in driver.asked)


def test_answers_without_phrases_are_scored_by_likelihood():
    """Checkpoints without the three tokens would have no confidence."""
    likelihoods = iter((-2.0, -0.1, -1.0))
    driver = script(Say("3", None), Say("4", None), Say("5", None))
    driver.follow = lambda ask, source, follow=driver.follow: (  # type: ignore[method-assign]
        [next(likelihoods)] if type(ask).__name__ == "Score" else follow(ask, source)
    )
    assert driver.run(Select(n=3, **NUMBER)).result.answer == "4"


# ------------------------------------------------------------------ tree
def test_the_tree_keeps_the_best_beams_and_ends():
    """Bad beginnings would be extended, or chains that have ended."""

    def answer(ask: Generate, prompt: str) -> Say:
        depth = prompt.count(".")
        if depth == 2:
            return Say("end", next(confidences))
        return Say(f"{next(letters)}.", next(confidences), "stop")

    letters = itertools.cycle("abcdef")
    confidences = itertools.cycle((0.9, 0.1, 0.5, 0.2))
    driver = Driver(answer)
    found = driver.run(Tree(beams=2, branch=2, finished=4, pick="top"))
    prompts = [prompt for _, prompt in driver.asked[4:]]
    assert all(prompt.startswith(("How many?a.", "How many?c.")) for prompt in prompts)
    assert found.result.text.endswith("end") and found.result.text.count(".") == 2
    assert driver.released and all(draft.role == "chain" for draft in found.result.drafts)


def test_a_tree_whose_branches_die_goes_back():
    """An empty step everywhere would be an error, or an endless loop."""
    steps = iter([Say("x.", 0.9, "stop"), Say("y.", 0.1, "stop")])
    driver = Driver(lambda ask, prompt: next(steps, Say("", None, "stop")))
    assert driver.run(Tree(beams=1, branch=2, depth=5)).result.text == "x."
    assert [prompt for _, prompt in driver.asked[2:]] == ["How many?x."] * 2 + ["How many?y."] * 2
    assert Driver(lambda ask, prompt: Say("", None, "stop")).run(Tree()).result.text == ""
    endless = Driver(lambda ask, prompt: Say("a.", 0.5, "stop"))
    assert endless.run(Tree(beams=1, branch=1, depth=3)).result.text == "a.a.a."


@pytest.mark.parametrize("score", [float("nan"), None, "high"])
def test_a_scorer_must_return_a_number(score):
    """Texts would be kept in any order, without a word."""
    with pytest.raises(RequestError, match="finite number"):
        script("a.").run(Tree(scorer=lambda outcome: score))


def test_a_tree_draws_what_it_keeps_by_seed():
    """The same seed would give other answers."""

    def texts(seed: int) -> str:
        letters = itertools.cycle("abcdefgh")
        driver = Driver(lambda ask, prompt: Say(f"{next(letters)}.", 0.5, "stop"))
        return driver.run(Tree(beams=2, branch=4, depth=4, tau=0.5, seed=seed)).result.text

    assert texts(1) == texts(1) and len({texts(seed) for seed in range(8)}) > 1


# ------------------------------------------------------------------ auto, budgets, nesting
def test_auto_samples_only_where_it_is_doubtful():
    """A sure answer would cost eight."""
    assert len(script(Say("3", 0.9)).run(Auto(**NUMBER)).result.drafts) == 1
    found = script(Say("3", 0.3), Say("4", 0.5)).run(Auto(n=5, batch=2, **NUMBER))
    assert len(found.result.drafts) == 5 and found.result.answer == "4"


@pytest.mark.parametrize("mode", [SelfCorrect, Refine, Reflect, Select, Tree, Auto])
@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_budget_of_calls(mode, calls):
    """A mode would ask on when its budget is used up."""
    more = {"rounds": 3, "stop_when_same": False} if mode in (SelfCorrect, Refine) else {}
    more = {"gate": 1.0, "rounds": 9} if mode is Reflect else more
    more = {"judge": "self", "n": 9} if mode is Select else more
    more = {"beams": 1, "branch": 1} if mode is Tree else more
    counter = itertools.count(10)
    driver = Driver(lambda ask, prompt: Say(f"{next(counter)}.", 0.1, "stop"))
    found = driver.run(mode(budget=Budget(max_calls=calls), **more))
    assert len(driver.asked) <= calls and found.result.drafts


def test_a_budget_of_tokens():
    """A request would cost more than it may by more than one ask."""
    driver = script(Say("3", 0.1, tokens=60), Say("4", 0.1, tokens=60))
    driver.run(Auto(budget=Budget(max_tokens_total=100), batch=1, **NUMBER))
    assert len(driver.asked) == 2
    driver = script(Say("3", 0.1, tokens=60))
    driver.run(SelfCorrect(rounds=3, stop_when_same=False, budget=Budget(max_tokens_total=100)))
    assert len(driver.asked) == 2


@pytest.mark.parametrize(
    ("mode", "settings", "message"),
    [
        (SelfCorrect, {"rounds": 4}, "at most 3"), (SelfCorrect, {"position": "stage"}, "schema='cot4'"),
        (SelfCorrect, {"accept": "best"}, "last, confidence"),
        (SelfCorrect, {"gate": 0}, r"gate must lie in \(0, 1\]"),
        (SelfCorrect, {"schema": "x"}, "cot4"), (Refine, {"rounds": 0}, "rounds"),
        (Refine, {"instruction": "x"}, "question"),
        (Reflect, {"schema": "x"}, "tarta"), (Select, {"judge": "x"}, "best, vote"),
        (Select, {"n": 0}, "n must"),
        (Select, {"confidence": "x"}, "confidence must"), (Select, {"instruction": "x"}, "candidates"),
        (Tree, {"beams": 0}, "beams"), (Tree, {"tau": -1}, "tau"), (Tree, {"scorer": "x"}, "scorer"),
        (Tree, {"pick": "x"}, "pick"),
        (Auto, {"n": 0}, "n must"), (Auto, {"batch": 0}, "batch must"),
        (Auto, {"gate": None}, "needs a gate"),
        (SelfCorrect, {"gate": "0.5"}, "gate must"), (SelfCorrect, {"gate": True}, "gate must"),
        (Tree, {"tau": "x"}, "tau must"), (Tree, {"tau": float("nan")}, "tau must"),
        (Tree, {"beams": 99, "branch": 99}, "beams times branch"), (Select, {"n": 10**9}, "at most 4096"),
        (Select, {"temperature": -1}, "temperature must"),
        (Select, {"temperature": "hot"}, "temperature must"),
        (Auto, {"top_p": 2}, "top_p must"), (Tree, {"top_k": -1}, "top_k must"),
        (Select, {"seed": "a"}, "seed"),
        (Select, {"inner": "selct"}, "got 'selct'"), (Refine, {"inner": 3}, "mode must be a name"),
        (Select, {"inner": SelfCorrect}, "mode must be a name"), (Refine, {"instruction": None}, "a text"),
        (SelfCorrect, {"budget": {"max_calls": 1}}, "must be a Budget"),
        (Select, {"answer_format": "number"}, "must be an AnswerFormat"),
        (Refine, {"stop_when_same": "no"}, "True or False"), (Plain, {"keep_phrases": "no"}, "True or False"),
        (Resample, {"policy": 3}, "policy must"), (Reflect, {"schema": []}, "tarta"),
        (Reflect, {"inner": "select"}, r"Select\(inner=Reflect"), (Tree, {"inner": Select()}, "in parts"),
        (SelfCorrect, {"schema": "cot4", "position": "stage", "inner": "refine"}, "in parts"),
        (SelfCorrect, {"schema": "cot4", "position": "stage", "accept": "judge"}, "leave accept out"),
        (Budget, {"max_seconds": "x"}, "max_seconds"), (Budget, {"max_seconds": True}, "max_seconds"),
        (Budget, {"max_calls": 0}, "max_calls"), (Budget, {"max_seconds": 0}, "max_seconds"), (Auto,
        {"gate": 2}, "gate"),
    ],
)  # fmt: skip
def test_settings_are_checked(mode, settings, message):
    """A wrong setting would show in hours, or never."""
    with pytest.raises(RequestError, match=message):
        mode(**settings)


def test_refine_cannot_go_on_from_an_answer():
    """It would show the model half of a conversation."""
    node = script("3").run(Plain()).node
    with pytest.raises(RequestError, match="self_correct"):
        script("3").run(Refine(), node)
    assert script("3").run(Resample(), node).result.text == "3"


# ------------------------------------------------------------------ equal answers
CHOOSING = [
    *(Select(n=3, judge=judge, **NUMBER) for judge in ("best", "vote", "weighted", "value")),
    Select(n=4, judge="self", **NUMBER),
    Auto(n=3, batch=2, gate=0.9, **NUMBER),
    *(
        Tree(beams=1, branch=3, tau=0.0, depth=1, pick=pick, **NUMBER)
        for pick in ("top", "vote", "weighted", "select")
    ),
]


def name_mode(mode):
    return f"{mode.name} {getattr(mode, 'judge', '') or getattr(mode, 'pick', '')}"


@pytest.mark.parametrize("mode", CHOOSING, ids=name_mode)
@pytest.mark.parametrize("rounding", itertools.permutations((0.0, 0.03, -0.03)))
def test_rounding_does_not_choose_between_equal_answers(mode, rounding):
    """A loop that was killed would end with other files: rounding depends on the batch of an answer."""
    said = [Say("Answer: 3", 0.5 + each) for each in rounding]
    if getattr(mode, "judge", "") == "self":
        said.append(Say("Answer: 4", 0.3))  # so that the model is asked
    found = script(*said, "Answer: 3").run(mode)
    assert found.result.answer == "3"
    assert [i for i, draft in enumerate(found.result.drafts) if draft.accepted] == [0]


@pytest.mark.parametrize("rounding", itertools.permutations((0.0, 0.03, -0.03)))
def test_rounding_does_not_decide_what_the_model_is_shown(rounding):
    """The candidates would stand in another order, and the model choose another one."""
    said = [Say("Answer: 3", 0.5 + rounding[0]), Say("Answer: 4", 0.5)]
    said += [Say("Answer: 3", 0.5 + each) for each in rounding[1:]]
    driver = script(*said, "Answer: 4")
    driver.run(Select(n=4, judge="self", **NUMBER))
    shown = script(*(Say(each.text, 0.5) for each in said), "Answer: 4")
    shown.run(Select(n=4, judge="self", **NUMBER))
    assert driver.asked[-1][1] == shown.asked[-1][1]


@pytest.mark.parametrize("rounding", itertools.permutations((0.0, 0.03)))
def test_rounding_does_not_choose_between_equal_rounds(rounding):
    """The accepted round would be another one after a kill."""
    said = [
        Say("Answer: 5", 0.1),
        Say("Answer: 3", 0.2),
        *(Say("Answer: 3", 0.5 + each) for each in rounding),
    ]
    mode = Refine(rounds=3, accept="confidence", stop_when_same=False, **NUMBER)
    found = script(*said).run(mode)
    assert [draft.accepted for draft in found.result.drafts] == [False, False, True, False]
