"""Links, tree values, and training files of all systems from drafts of any origin."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reverse.data.drafts.draft_links import add_links, find_preference
from reverse.data.drafts.draft_record import DraftLink, DraftRecord, DraftSegment, GoldAnswer, RecordedDraft
from reverse.data.drafts.formats import FORMATS
from reverse.data.drafts.published_format import ExportTexts
from reverse.data.drafts.tree_values import find_prefix_values, find_step_ends, find_tree_values


def draft(text, verdict="right", **more):
    return RecordedDraft(text=text, verdict=verdict, answer=text[-1:], judged_by="grading", **more)


def record_of(*drafts, links=(), **more):
    gold = GoldAnswer(kind="number", answers=("3",))
    return DraftRecord(
        id="q", question="How many?", images=("1.png",), gold=gold, drafts=drafts, links=links, **more
    )


SAMPLED = record_of(
    draft("Two. Answer: 2", "wrong"), draft("One and two. Answer: 3"), draft("Answer: 4", "wrong"),
    draft("Three. Answer: 3"), draft("Perhaps 3", "unknown"),
)  # fmt: skip


def test_links_take_the_newest_drafts():
    """R3V would refine towards what an old model said, or show the model an answer that is unknown."""
    links = add_links(SAMPLED).links
    assert [(link.kind, sorted(link.drafts)) for link in links] == [
        ("refine", [2, 3]), ("select", [1, 2, 3]), ("select", [0, 2, 3]), ("prefer", [2, 3]),
    ]  # fmt: skip
    assert links[0].drafts == (2, 3) and links[3].drafts == (3, 2)
    assert add_links(SAMPLED, seed=1).links == add_links(SAMPLED, seed=1).links
    orders = {add_links(SAMPLED, seed=seed).links[1].drafts for seed in range(20)}
    assert len(orders) > 1


def test_known_links_are_kept():
    """A loop that runs again would double its training set."""
    known = DraftLink(kind="refine", drafts=(0, 1))
    again = add_links(record_of(*SAMPLED.drafts, links=(known,)))
    assert [link for link in again.links if link.kind == "refine"] == [known]
    assert add_links(again) == again


def test_without_a_right_and_a_wrong_draft_there_is_nothing_to_link():
    """A question that is always solved would teach a correction of what is right."""
    assert not add_links(record_of(draft("Answer: 3"), draft("So 3"))).links
    assert not add_links(record_of(draft("Answer: 3"), draft(" ", "wrong"))).links


def test_a_preference_may_want_right_steps():
    """Pairs by the answer alone are the ones that gained nothing."""
    steps = (DraftSegment(start=0, end=3, kind="step", verdict="right"),)
    record = record_of(draft("Two 3", segments=steps), draft("By luck 3"), draft("4", "wrong"))
    assert find_preference(record).drafts == (1, 2)
    assert find_preference(record, with_right_steps=True).drafts == (0, 2)


def tree_value_by_definition(chains):
    """The values of modes.md by plain recursion over tuples of steps."""
    nodes = {chain[:n] for chain, _ in chains for n in range(1, len(chain) + 1)}
    ends = {chain for chain, is_right in chains if is_right}

    def left(node):
        below = [end for end in ends if end[: len(node)] == node]
        return min((len(end) - len(node) for end in below), default=None)

    def value(node):
        if not node:
            return Fraction(0)
        above = value(node[:-1])
        m, is_reachable = left(node), left(node) is not None
        ancestor = node
        while m is None:
            ancestor = ancestor[:-1]
            m = left(ancestor)
        return max(above + (1 - above) * (1 if is_reachable else -1) / (m + 1), Fraction(0))

    return {" ".join(node): value(node) for node in nodes} if ends else {}


STEPS = st.lists(st.sampled_from(["A cat.", "B dog.", "C cow."]), min_size=1, max_size=4).map(tuple)


@given(st.lists(st.tuples(STEPS, st.booleans()), min_size=1, max_size=6))
def test_tree_values_follow_their_definition(chains):
    """The value head would learn other values than the search is made for."""
    drafts = [draft(" ".join(steps), "right" if is_right else "wrong") for steps, is_right in chains]
    found = {each.text: each.value for each in find_tree_values(record_of(*drafts))}
    expected = tree_value_by_definition(chains)
    assert found.keys() == expected.keys()
    assert all(abs(found[text] - value) < 1e-12 for text, value in expected.items())


def test_a_right_chain_alone_rises_evenly_and_a_dead_end_falls():
    """The published example: k/K along the right chain, and 0.5 for the wrong end beside its last step."""
    right, wrong = "A cat. B dog. C cow.", "A cat. B dog. D owl."
    found = find_tree_values(record_of(draft(right), draft(wrong, "wrong")))
    assert [round(each.value, 3) for each in found] == [0.333, 0.667, 1.0, 0.5]
    assert find_tree_values(record_of(draft(wrong, "wrong"))) == []


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("It costs 1.50. Answer: 3", ["It costs 1.50.", "It costs 1.50. Answer: 3"]),
        ("Step 1: a\nStep 2: b", ["Step 1: a", "Step 1: a\nStep 2: b"]),
        ("1. Add 2. Then 3.\nAnswer: 5", ["1. Add 2.", "1. Add 2. Then 3.", "1. Add 2. Then 3.\nAnswer: 5"]),
        ("It is 24. Step 1. Go", ["It is 24.", "It is 24. Step 1.", "It is 24. Step 1. Go"]),
        ("one", ["one"]), ("  ", []), ("", []), ("End.", ["End."]),
        ("Really? Yes.\n\n", ["Really?", "Really? Yes."]),
    ],
)  # fmt: skip
def test_steps_end_at_sentences_and_lines(text, steps):
    """A decimal point would end a step, or a step would be counted that is empty."""
    assert [text[:end].strip() for end in find_step_ends(draft(text))] == steps


def test_recorded_values_come_before_the_tree():
    """Values that a head or a search gave would be replaced."""
    steps = (
        DraftSegment(start=0, end=6, kind="step", value=0.25),
        DraftSegment(start=7, end=13, kind="step"),
    )
    found = find_prefix_values(record_of(draft("A cat. B dog.", segments=steps)))
    assert [(each.text, each.value) for each in found] == [("A cat.", 0.25)]


def test_r3v_files_from_any_drafts():
    """What was sampled could not be trained on by R3V's own trainer."""
    items = FORMATS["r3v"].items(add_links(SAMPLED), ExportTexts(refine="Mend.", select="Choose."))
    asked = [item["conversations"][0]["value"] for item in items]
    told = [item["conversations"][1]["value"] for item in items]
    assert asked[0] == "How many?" and told[0] == "Three. Answer: 3"
    assert asked[1] == "How many?\nModel's prediction:\nAnswer: 4\nMend." and told[1] == "Three. Answer: 3"
    assert asked[2].endswith("\nChoose.") and "Model's prediction 3:" in asked[2] and told[2:] == ["3", "3"]
    assert {item["image"] for item in items} == {"1.png"}
    again = [FORMATS["r3v"].parse(item) for item in items]
    assert [[link.kind for link in record.links] for record in again] == [
        [],
        ["refine"],
        ["select"],
        ["select"],
    ]
    (pair,) = FORMATS["r3v-dpo"].items(add_links(SAMPLED))
    assert (pair["chosen"], pair["rejected"]) == ("Three. Answer: 3", "Answer: 4")
    assert len(FORMATS["r3v-results"].items(SAMPLED)) == 5


def test_sco_files_from_any_drafts():
    """SCo could only be trained on pairs that were never verified."""
    (item,) = FORMATS["sco"].items(add_links(SAMPLED), ExportTexts(self_correct="Again."))
    assert [turn["value"] for turn in item["conversations"]] == [
        "<image>\nHow many?", "Answer: 4", "Again.", "Three. Answer: 3",
    ]  # fmt: skip
    unverified = record_of(draft("Answer: 3"), draft("Answer: 3", "unknown", role="correction", parent=0))
    assert FORMATS["sco"].items(unverified) == []


def reflected(*, text="With it three. Answer: 3"):
    return record_of(
        draft("I see two.\nAnswer: 2", "wrong", role="first"),
        RecordedDraft(text="One is hidden.", role="reflection", parent=0),
        draft(text, role="correction", parent=1).model_copy(update={"answer": "3"}),
    )


def test_srpo_files_from_any_drafts():
    """SRPO's cold start and its prompts could not be written."""
    (item,) = FORMATS["srpo-sft"].items(reflected())
    assert item["messages"][2]["content"] == (
        "<think>I see two.</think>\n<answer>2</answer>\n"
        "<reflection>One is hidden.</reflection>\n<answer>3</answer>"
    )
    assert item["images"] == ["1.png"] and item["messages"][0]["role"] == "system"
    (item,) = FORMATS["srpo-sft-tarta"].items(reflected(text="With it three.\nAnswer: 3"))
    assert item["messages"][2]["content"].endswith("<think>With it three.</think>\n<answer>3</answer>")
    assert FORMATS["srpo-sft"].parse(item).links[0].kind == "reflect"
    (prompt,) = FORMATS["srpo-rl"].items(SAMPLED)
    assert isinstance(prompt["message"], str) and FORMATS["srpo-rl"].parse(prompt).question == "How many?"
    assert FORMATS["srpo-rl"].items(SAMPLED.model_copy(update={"gold": None})) == []
    (prompt,) = FORMATS["srpo-verl"].items(SAMPLED)
    assert prompt == {"problem": "<image>How many?", "answer": "3", "images": ["1.png"]}


def test_tsst_files_from_any_drafts():
    """TSST's policy would be trained on any right chain, or its value model on none."""
    chains = record_of(
        draft("A. B. Answer: 3", value=0.2), draft("A. C. Answer: 3", value=0.9),
        draft("A. D.", "wrong", value=1.0),
    )  # fmt: skip
    (item,) = FORMATS["tsst-policy"].items(chains)
    assert item["conversations"][1]["value"] == "A. C. Answer: 3"
    rows = FORMATS["tsst-value"].items(chains)
    assert [row["conversations"][1]["value"] for row in rows][:2] == ["A.", "A. B."]
    assert len({row["id"] for row in rows}) == len(rows) == 6
    (beam,) = FORMATS["tsst-beam"].items(chains)
    assert [chain["correct"] for chain in beam["result"]] == [True, True, False]
