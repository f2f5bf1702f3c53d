"""Every step of a rationale is checked: true ones pass, wrong ones are found with the right kind of error."""

import re

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from reverse.data.drafts.draft_record import DraftRecord, tag_segments
from reverse.data.scenes.object_names import make_plural
from reverse.data.scenes.reasoning import (
    ReasoningQuestion,
    make_reasoning_picture,
    make_reasoning_questions,
    make_verified_draft,
    verify_caption,
    verify_rationale,
    write_rationale,
    write_reasoning_caption,
)
from reverse.data.scenes.reasoning.reasoning_annotator import write_places, write_step
from reverse.data.scenes.reasoning.reasoning_charts import BAR_COLOURS
from reverse.data.scenes.reasoning.reasoning_scenes import COUNTED_NAMES
from reverse.data.scenes.scene import SPLITS
from reverse.tokens.spans import remove_tags

many = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
COWS = ReasoningQuestion(
    "q", "scene", "diff", "What is the difference between the numbers of cows and cakes?",
    ("cow", "cake"), {"cow": 4, "cake": 3, "dog": 2},
)  # fmt: skip
TABLE = ReasoningQuestion(
    "q",
    "table",
    "sum",
    "How many cows and cakes are there together?",
    ("cow", "cake"),
    {"cow": 12, "cake": 3},
)
BARS = ReasoningQuestion("q", "chart", "count", "How high is the red bar?", ("red",), {"red": 7, "blue": 9})


@st.composite
def questions(draw):
    picture = make_reasoning_picture(draw(st.sampled_from(SPLITS)), draw(st.integers(0, 20_000)))
    return draw(st.sampled_from(make_reasoning_questions(picture)))


def steps_of(text, question):
    """(text, verdict, error) of each step."""
    return [
        (text[segment.start : segment.end], segment.verdict, segment.error)
        for segment in verify_rationale(text, question)
        if segment.kind == "step"
    ]


@many
@given(questions())
def test_true_rationales_are_right(question):
    """A verifier that rejects truth would leave nothing to train on."""
    draft = make_verified_draft(question, write_rationale(question, question.truth))
    assert draft.steps_are_right() and draft.verdict == "right"
    assert draft.answer is not None
    steps = [segment for segment in draft.segments if segment.kind == "step"]
    phrases = [segment for segment in draft.segments if segment.kind == "phrase"]
    assert len(steps) == len(phrases) == draft.text.count("Step ") + 1
    assert all(draft.text[phrase.start] == " " for phrase in phrases)


@many
@given(questions(), st.data())
def test_wrong_readings_are_found_and_what_follows_from_them_is_right(question, data):
    """Resampling would go back to a step that is sound, past the one where the error was made."""
    name = data.draw(st.sampled_from(question.names))
    right = question.truth.get(name, 0)
    wrong = data.draw(st.integers(0, 25).filter(lambda value: value != right))
    assume(question.kind != "left" or wrong >= question.amount)
    text = write_rationale(question, {**question.truth, name: wrong})
    kind = "object" if right == 0 else "count" if question.picture_kind == "scene" else "reading"
    *steps, answer = steps_of(text, question)
    at = question.names.index(name)
    assert [step[1:] for step in steps] == [
        ("wrong", kind) if number == at else ("right", "") for number in range(len(steps))
    ]
    is_right = answer[0] == f"Answer: {question.answer}"
    assert answer[1:] == (("right", "") if is_right else ("wrong", kind))


@many
@given(questions(), st.data())
def test_other_objects_are_found(question, data):
    """A model that reads another object, though rightly, answers another question."""
    others = BAR_COLOURS if question.picture_kind == "chart" else COUNTED_NAMES
    other = data.draw(st.sampled_from([name for name in others if name not in question.names]))
    name = data.draw(st.sampled_from(question.names))
    value = question.truth.get(name, 0)
    step = write_step(question.picture_kind, name, value)
    text = write_rationale(question, question.truth)
    assert step in text
    text = text.replace(step, write_step(question.picture_kind, other, value), 1)
    at = question.names.index(name)
    assert [step[1:] for step in steps_of(text, question)][at] == ("wrong", "object")


@many
@given(questions(), st.integers(1, 30), st.booleans())
def test_wrong_arithmetic_is_found(question, by, also_the_answer):
    """Half of all errors would be taught as right."""
    assume(question.kind in ("sum", "total", "diff", "left"))
    text = write_rationale(question, question.truth)
    head, result = text.rsplit(" = ", 1)[0], int(question.answer) + by
    text = f"{head} = {result}. Answer: {result if also_the_answer else question.answer}"
    *steps, calculation, answer = steps_of(text, question)
    assert all(step[1] == "right" for step in steps)
    assert calculation[1:] == ("wrong", "arithmetic")
    assert answer[1:] == (("wrong", "arithmetic") if also_the_answer else ("right", ""))


@pytest.mark.parametrize(
    "question, text, verdicts",
    [
        (COWS, "Step 1: there are 4 cows. Step 2: there are 3 cakes. Step 3: 4 + 3 = 7. Answer: 7",
         ["right", "right", "arithmetic", "arithmetic"]),  # not what is asked
        (COWS, "Step 1: there are 4 cows. Step 2: there are 3 cakes. Step 3: 3 - 4 = -1. Answer: -1",
         ["right", "right", "arithmetic", "arithmetic"]),
        (COWS, "Step 1: there are 5 cows. Step 2: there are 3 cakes. Step 3: 4 - 3 = 1. Answer: 1",
         ["count", "right", "arithmetic", "right"]),  # not the numbers that were read
        (COWS, "Step 1: there are 5 cows. Step 2: there are 3 cakes. Step 3: 5 - 3 = 2. Answer: 2",
         ["count", "right", "right", "count"]),
        (COWS, "Step 1: there are 4 cows. Step 2: there are 2 dogs. Answer: 1", ["right", "object", "right"]),
        (COWS, "Step 1: there are 4 unicorns. Answer: 1", ["object", "right"]),
        (COWS, "Step 1: there are no cows. Answer: 3", ["count", "count"]),
        (COWS, "there are 4 cows.there are 3 cakes.Step 9:4 - 3 = 1.\nanswer:1", ["right"] * 4),
        (COWS, "Step 1: 5 - 3 = 2. Answer: 2", ["count", "count"]),  # nothing was read
        (COWS, "Step 1: 4 - 3 = 1. Answer: 1", ["right", "right"]),
        (COWS, "Step 1: there are some cows. Answer: 2", ["unknown", "count"]),
        (COWS, "Answer: cows", ["unknown"]),
        (COWS, "Answer:", []),
        (COWS, "", []),
        (TABLE, "Step 1: there are 3 cows. Step 2: there are 3 cakes. Step 3: 3 + 3 = 6. Answer: 6",
         ["reading", "right", "right", "reading"]),
        (TABLE, "Step 1: there are 12 cows. Step 2: there are 3 cakes. Step 3: 3 + 12 = 15. Answer: 15.",
         ["right"] * 4),
        (TABLE, "Step 1: there are 12 cows. Step 2: there are 3 cakes. Answer: 14",
         ["right", "right", "arithmetic"]),
        (BARS, "Step 1: the red bar is 8. Answer: 8", ["reading", "reading"]),
        (BARS, "Step 1: the blue bar is 9. Answer: 9", ["object", "object"]),
        (BARS, "Step 1: there are 7 cows. Answer: 7", ["object", "right"]),
        (BARS, "Step 1: the red bar is 7.5. Answer: 7.5", ["unknown", "reading"]),
    ],
)  # fmt: skip
def test_kinds_of_errors(question, text, verdicts):
    """A table of error types would count errors in the wrong column."""
    assert [error or verdict for _, verdict, error in steps_of(text, question)] == verdicts


@many
@given(questions(), st.data())
def test_rationales_that_point_are_verified(question, data):
    """Reflections look again before they read: where they point must be checked, too."""
    text = write_rationale(question, question.truth, points=True)
    draft = make_verified_draft(question, text)
    assert draft.steps_are_right() and draft.verdict == "right"
    name = data.draw(st.sampled_from(question.names))
    at = 2 * question.names.index(name)
    places = question.places[name]
    other = "11 11" if question.picture_kind == "scene" else places.replace(places[-1], "9")
    first = write_places(question.picture_kind, name, places)
    assert steps_of(text, question)[at] == (f"Step {at + 1}: {first}.", "right", "")
    wrong = text.replace(first, write_places(question.picture_kind, name, other), 1)
    assert steps_of(wrong, question)[at][1:] == ("wrong", "place")
    assert [step[1] for step in steps_of(wrong, question)].count("wrong") == 1


def test_phrases_keep_the_space_before_them():
    """Tags between a space and its word would give other tokens than the base model learned."""
    text = "Step 1: there are 5 cows. Step 2: there are 3 cakes. Step 3: 5 - 3 = 2. Answer: 2"
    assert tag_segments(text, verify_rationale(text, COWS)) == (
        "Step 1: there are<SPAN> 5 cows</UN>. Step 2: there are<SPAN> 3 cakes</CN>. "
        "Step 3:<SPAN> 5 - 3 = 2</CN>. Answer:<SPAN> 2</UN>"
    )
    text = "Step 1: the red bar is 7. Answer: 7"
    assert tag_segments(text, verify_rationale(text, BARS)) == (
        "Step 1: the red bar is<SPAN> 7</CN>. Answer:<SPAN> 7</CN>"
    )


PIECES = st.sampled_from([
    "Step 1: ", "Step 99999: ", "there are ", "there is ", "4 cows", "3 cakes", "1 cow", "the red bar is ",
    "7", ". ", ".", "\n", " ", "4 - 3 = 1", "4 + 3 = ", "8", " > ", "the most is ", "Answer: ", "Answer:",
    "answer :", "A", "yes", "99999999999999999999", "is even", "-", "=", "é", "\x00", "½", "٣", "<SPAN>",
    "!?", "4.5",
])  # fmt: skip


@many
@given(st.one_of(st.lists(PIECES, max_size=40).map("".join), st.text(max_size=200)), questions())
def test_any_text_is_verified(text, question):
    """A malformed sample of a model would stop the verification of a hundred thousand others."""
    draft = make_verified_draft(question, text)
    DraftRecord(id="q", question=question.text, drafts=(draft,))  # checks the places of segments
    if "<" not in text:
        assert remove_tags(tag_segments(text, draft.segments)) == text
    for segment in draft.segments:
        assert segment.start < segment.end and (segment.error != "") == (segment.verdict == "wrong")
        assert segment.kind == "step" or segment.verdict != "unknown" or "nswer" in text


@pytest.mark.parametrize(
    "piece",
    [
        "there are 4 cows. ",
        "4 + ",
        "a",
        " ",
        ".",
        "Answer: ",
        "there are 4 " + "cow " * 9,
        "Step 1: ",
        "\n",
        "9",
    ],
)
def test_long_texts_are_bounded(piece):
    """A model that never ends would take minutes, or fill the memory with segments."""
    segments = verify_rationale(piece * (200_000 // len(piece)), COWS)
    assert len(segments) <= 2 * 256 + 2


@many
@given(st.integers(0, 5000))
def test_captions_are_verified(index):
    """Captions of the base could not be tagged."""
    picture = make_reasoning_picture("val", index)
    caption = write_reasoning_caption(picture)
    segments = verify_caption(caption, picture)
    assert len(segments) == 2 * len(picture.truth) and all(each.verdict == "right" for each in segments)
    name, value = next(iter(picture.truth.items()))
    wrong = write_reasoning_caption(picture, picture.truth | {name: value + 1})
    assert [each.verdict for each in verify_caption(wrong, picture)[:2]] == ["wrong", "wrong"]
    if picture.kind != "chart":
        absent = next(each for each in COUNTED_NAMES if each not in picture.truth)
        said = f"There are 2 {make_plural(absent)}."
        assert {each.error for each in verify_caption(said, picture)} == {"object"}


def test_names_of_all_forms_are_read():
    """A plural that is not known would make a true step wrong."""
    for name in COUNTED_NAMES:
        question = ReasoningQuestion("q", "scene", "count", "?", (name,), {name: 3})
        text = write_rationale(question, {name: 3})
        assert re.search(r"there are 3 \w+", text) and steps_of(text, question)[0][1] == "right"
        single = ReasoningQuestion("q", "scene", "count", "?", (name,), {name: 1})
        assert steps_of(write_rationale(single, {name: 1}), single)[0][1] == "right"
