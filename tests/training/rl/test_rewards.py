"""Rewards: the published numbers, and that no preset but the reproduction pays for erring first."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reverse.errors import RequestError
from reverse.grading import AnswerKey
from reverse.training.rl.attempt_text import is_readable, read_attempt
from reverse.training.rl.rewards import (
    PRESETS,
    compute_rewards,
    find_outcome,
    find_preset,
    sum_rewards,
)

KEY = AnswerKey("number", ("3",))
BROKEN = AnswerKey("number", ("several",))
CASES = ("right_to_right", "wrong_to_right", "wrong_to_wrong", "right_to_wrong")


def write(first, final, think="one and two", reflection="Count again", again="so it is", schema="tarta"):
    head = f"<think>{think}</think>\n<answer>{first}</answer>\n<reflection>{reflection}</reflection>"
    middle = f"\n<think>{again}</think>" if schema == "tarta" else ""
    return f"{head}{middle}\n<answer>{final}</answer>"


def write_case(case, **parts):
    first, final = ("3" if each == "right" else "4" for each in case.split("_to_"))
    return write(first, final, **parts)


def pay(text, preset, key=KEY, *, length=True):
    rewards = compute_rewards(text, key, PRESETS[preset])
    return sum_rewards({name: value for name, value in rewards.items() if length or name != "length"})


@pytest.mark.parametrize(
    ("preset", "amounts", "single"),
    [("paper", (1.5, 1.25, 0.75, 1.0), 1.0), ("upstream", (1.25, 1.5, 0.5, 0.75), 0.0),
     ("default", (1.5, 1.35, 0.25, 0.0), 1.25), ("plain", (1.0, 1.0, 0.0, 0.0), 1.0)],
)  # fmt: skip
def test_presets_pay_what_they_say(preset, amounts, single):
    """A reproduction would train on other rewards than those of the paper or the released code."""
    assert [pay(write_case(case), preset, length=False) for case in CASES] == pytest.approx(list(amounts))
    one = "<think>one and two</think><answer>3</answer>"
    assert pay(one, preset) == pytest.approx(single)
    sft = write("3", "3", schema="taranswer")
    assert read_attempt(sft).schema == "taranswer"
    assert (pay(sft, "upstream") == 0) and pay(sft, "paper", length=False) == pytest.approx(1.0)


words = st.lists(st.sampled_from(["two", "dogs", "7", "cups", "no", ","]), min_size=1, max_size=120).map(
    " ".join
)


@given(st.data(), st.sampled_from(["tarta", "taranswer"]))
def test_the_default_order_holds_for_all_lengths(data, schema):
    """The length term would pay more for an error that is mended than for a right first answer."""
    paid = []
    for case in CASES:
        think, reflection, again = (data.draw(words) for _ in range(3))
        text = write_case(case, think=think, reflection=reflection, again=again, schema=schema)
        paid.append(pay(text, "default"))
    kept, fixed, stayed, broke = paid
    assert kept > fixed > stayed >= broke


def without_tag(text, tag):
    return text.replace(tag, "", 1)


MALFORMED = {
    "no think": lambda text: without_tag(without_tag(text, "<think>"), "</think>"),
    "unclosed think": lambda text: without_tag(text, "</think>"),
    "unclosed first answer": lambda text: without_tag(text, "</answer>"),
    "unclosed reflection": lambda text: without_tag(text, "</reflection>"),
    "unclosed last answer": lambda text: text.removesuffix("</answer>"),
    "empty thinking": lambda text: text.replace("one and two", ""),
    "empty reflection": lambda text: text.replace("Count again", ""),
    "text outside": lambda text: f"Well: {text}",
    "the tokens of phrases": lambda text: text.replace("two", "<SPAN>two</CN>"),
    "capital tags": lambda text: text.replace("answer>", "ANSWER>"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_the_default_order_holds_without_the_grammar(kind):
    """A completion that lacks a tag would earn more by erring first."""
    kept, fixed, stayed, broke = (pay(MALFORMED[kind](write_case(case)), "default") for case in CASES)
    assert kept > fixed > stayed >= broke
    follows = kind in ("the tokens of phrases", "capital tags")
    earned = compute_rewards(MALFORMED[kind](write_case("right_to_right")), KEY, PRESETS["default"])["format"]
    assert earned == (0.25 if follows else 0.0)


def test_one_answer_is_never_better_than_keeping_it():
    """The model would unlearn to reflect, or learn to leave the grammar."""
    for right, texts in {
        True: ("<think>a</think><answer>3</answer>", "<answer>3", "So it is 3.", "Answer: 3"),
        False: ("<think>a</think><answer>4</answer>", "<answer></answer>", "", "Hm.", "4 or 5", "<think>"),
    }.items():
        for text in texts:
            amount = pay(text, "default")
            assert amount == (1.25 if right else 0.0), text
            assert amount < pay(write_case("right_to_right"), "default")
            assert find_outcome(text, KEY) == ("right" if right else "wrong")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_gold_answer_that_cannot_be_read_pays_nobody(preset):
    """The released code grants a full reward where it cannot read the right answer."""
    assert is_readable(KEY) and not is_readable(BROKEN)
    rewards = compute_rewards(write("several", "several"), BROKEN, PRESETS[preset])
    for name in ("first_answer", "final_answer", "reflection"):
        assert rewards[name] is None
    assert rewards["format"] == PRESETS[preset].format
    for kind, answer, choices in [
        ("choice", "B", ("cat", "dog")), ("choice", "dog", ("cat", "dog")), ("yes_no", "yes", ()),
        ("text", "red mug", ()), ("set", "red, green", ()), ("latex", r"\frac{1}{2}", ()),
    ]:  # fmt: skip
        assert is_readable(AnswerKey(kind, (answer,), choices)), kind


def test_the_length_term_is_the_papers():
    """Padding would be paid, or a short first half would be a reward of its own."""
    text = write(
        "3", "3", think=" ".join(["a"] * 39), reflection=" ".join(["b"] * 20), again=" ".join(["c"] * 19)
    )
    attempt = read_attempt(text)
    assert (attempt.first_length, attempt.length) == (40, 80)
    for preset in ("paper", "upstream", "default"):
        assert compute_rewards(text, KEY, PRESETS[preset])["length"] == pytest.approx(0.1)
    longer = text.replace("c c", " ".join(["c"] * 22), 1)  # 20 more: L = T_max
    assert read_attempt(longer).length == 100
    assert compute_rewards(longer, KEY, PRESETS["paper"])["length"] == pytest.approx(0.1 * 2.718281828**-1)
    assert compute_rewards(text, AnswerKey("number", ("9",)), PRESETS["default"])["length"] == 0
    short = write("3", "3", think="a")
    assert compute_rewards(short, KEY, PRESETS["default"])["length"] == 0


def test_a_reflection_must_say_something():
    """Saying the first thinking once more would earn the paper's reward for reflecting."""
    said = compute_rewards(write("3", "3"), KEY, PRESETS["paper"])["reflection"]
    copied = compute_rewards(write("3", "3", reflection="one and two"), KEY, PRESETS["paper"])["reflection"]
    assert said == pytest.approx(0.5) and copied == pytest.approx(0.25)


pieces = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "<reflection>",
        "</reflection>",
        "3",
        "4",
        "x",
        "<SPAN>",
        "\n",
    ]
)


@given(st.lists(pieces, max_size=24).map("".join), st.sampled_from(sorted(PRESETS)))
def test_any_text_has_a_bounded_reward(text, preset):
    """A strange completion would end the run, or outweigh all others."""
    for key, rewards in itertools.product((KEY, BROKEN), [compute_rewards(text, KEY, PRESETS[preset])]):
        assert -0.5 <= sum_rewards(rewards) <= 1.85
        assert all(
            value is None or value == value for value in compute_rewards(text, key, PRESETS[preset]).values()
        )
    best = PRESETS["default"]
    assert pay(text, "default") <= best.format + best.first + best.final + best.fixed + best.length


def test_a_preset_that_is_unknown_is_refused():
    """A misspelt name would train on other rewards."""
    with pytest.raises(RequestError, match=r"paper, upstream, default, plain, got 'papr'"):
        find_preset("papr")
