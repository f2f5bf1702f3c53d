"""Answers on which published graders err: substrings, lost signs, random credit, first digits, prefixes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reverse.errors import DataError, RequestError
from reverse.grading import (
    KINDS,
    PRESETS,
    AnswerFormat,
    AnswerKey,
    answer_key,
    extract_answer,
    find_final_answer,
    grade,
)

ABC = ("3", "4", "5")
WORDS = ("cat", "caterpillar", "a black cat")
NUMBER, CHOICE, YES = (
    AnswerKey("number", ("5",)),
    AnswerKey("choice", ("B",), ABC),
    AnswerKey("yes_no", ("yes",)),
)
CASES = [
    # a letter inside of a word, or an article, is not a letter of an option
    ("choice", ("A",), ABC, "A good question, but I cannot say.", "unknown"),
    ("choice", ("B",), ABC, "Because it is hard to see", "unknown"),
    ("choice", ("C",), ABC, "Cannot be determined", "unknown"),
    ("choice", ("A",), ABC, "I do not know", "unknown"),
    ("choice", ("B",), ABC, "", "unknown"),
    ("choice", ("B",), ABC, "E", "unknown"),
    # two options give no credit, an option that is denied is not named
    ("choice", ("B",), ABC, "B or C", "unknown"),
    ("choice", ("B",), ABC, "(A) or (B)", "unknown"),
    ("choice", ("B",), ABC, "not (A) but (B)", "right"),
    ("choice", ("A",), ABC, "not (A) but (B)", "wrong"),
    ("choice", ("B",), ABC, "It is option B, not option C.", "right"),
    ("choice", ("C",), ABC, "It is option B, not option C.", "wrong"),
    # the text of an option is read as words, the longest first
    ("choice", ("A",), WORDS, "It is a caterpillar.", "wrong"),
    ("choice", ("B",), WORDS, "It is a caterpillar.", "right"),
    ("choice", ("C",), WORDS, "I see a black cat there.", "right"),
    ("choice", ("A",), WORDS, "I see a black cat there.", "wrong"),
    ("choice", ("4",), ABC, "4", "right"),
    ("choice", ("4",), ABC, "The answer is 4.", "right"),
    ("choice", ("B",), ABC, "<think>A? No, C.</think> B", "right"),
    ("choice", ("C",), ABC, "<think>A? No, C.</think> B", "wrong"),
    ("choice", ("B",), ABC, "Answer: C\nWait. Answer: B", "right"),
    # signs, percents, separators and units
    ("number", ("5",), (), "-5", "wrong"),
    ("number", ("-5",), (), "5", "wrong"),
    ("number", ("-5",), (), "The answer is −5.", "right"),
    ("number", ("5",), (), "Answer: 15", "wrong"),
    ("number", ("15",), (), "Answer: 5", "wrong"),
    ("number", ("1",), (), "There are 10 of them: Answer: 10", "wrong"),
    ("number", ("1200",), (), "1,200", "right"),
    ("number", ("1",), (), "1,200", "wrong"),
    ("number", ("0.5",), (), "50", "wrong"),
    ("number", ("0.5",), (), "50%", "right"),
    ("number", ("5",), (), "3 to 5", "unknown"),
    ("number", ("5",), (), "Answer: 3 or 5", "unknown"),
    ("number", ("5",), (), "Answer: 5, since 2 + 3 = 5", "right"),
    ("number", ("5",), (), "Answer: 5 out of 8", "right"),
    ("number", ("8",), (), "Answer: 5 out of 8", "wrong"),
    ("number", ("5",), (), "no idea", "unknown"),
    ("number", ("5",), (), "Answer:", "unknown"),
    ("number", ("5",), (), "Step 1: 7 - 2 = 5.", "right"),
    ("number", ("5",), (), "2021-05-05", "unknown"),
    ("number", ("0.333",), (), "1/3", "wrong"),
    ("number", ("3",), (), "1/0", "unknown"),
    ("number", ("7",), (), r"\boxed{7}", "right"),
    ("number", ("7",), (), r"\boxed{\frac{14}{2}}", "right"),
    ("number", ("7",), (), "<answer>7</answer> <think>8</think>", "right"),
    ("number", ("7",), (), "<answer>6</answer><reflection>no</reflection><answer>7</answer>", "right"),
    # yes and no
    ("yes_no", ("yes",), (), "Not yes.", "unknown"),
    ("yes_no", ("yes",), (), "yesterday", "unknown"),
    ("yes_no", ("no",), (), "I know it.", "unknown"),
    ("yes_no", ("no",), (), "nothing", "unknown"),
    ("yes_no", ("yes",), (), "yes or no", "unknown"),
    ("yes_no", ("yes",), (), "", "unknown"),
    ("yes_no", ("no",), (), "No, yes is not right.", "right"),
    # texts and sets
    ("text", ("cat",), (), "caterpillar", "wrong"),
    ("text", ("cat",), (), "not a cat", "wrong"),
    ("text", ("10",), (), "100", "wrong"),
    ("text", ("red",), (), "red and blue", "wrong"),
    ("text", ("New York",), (), "New York City", "wrong"),
    ("set", ("red, blue",), (), "red", "wrong"),
    ("set", ("red, blue",), (), "red, blue, green", "wrong"),
    ("set", ("red, blue",), (), "", "unknown"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "answers", "choices", "text", "verdict"), CASES)
def test_cases(
    kind: str, answers: tuple[str, ...], choices: tuple[str, ...], text: str, verdict: str
) -> None:
    """Substrings, lost signs and random credit make a model look better than it is."""
    found = grade(text, AnswerKey(kind, answers, choices))
    assert found.verdict == verdict and found.reason


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=200), kind=st.sampled_from([kind for kind in KINDS if kind != "latex"]))
def test_any_text_is_graded(text: str, kind: str) -> None:
    """An odd answer would end a run of hours, or equal answers would not get one vote."""
    key = AnswerKey(kind, ("5",) if kind != "yes_no" else ("yes",), ABC if kind == "choice" else ())
    found = grade(text, key)
    assert found.verdict in ("right", "wrong", "unknown")
    assert (found.extracted is None) == (found.verdict == "unknown")
    again = extract_answer(text, key.format)
    assert again == found.extracted
    if again is not None and kind in ("choice", "yes_no"):
        assert extract_answer(again, key.format) == again


def test_long_and_nested_texts_take_no_time() -> None:
    """A megabyte of brackets or digits in an answer would stop a run."""
    for piece in (
        "<answer>",
        r"\boxed{",
        "1,",
        "(A) ",
        "not ",
        "<think>",
        "1 ",
        "answer is ",
        "-",
        "B or ",
        "１",
    ):
        for kind in ("number", "choice", "text", "yes_no", "set"):
            key = AnswerKey(
                kind,
                ("yes" if kind == "yes_no" else "A",) if kind != "number" else ("1",),
                ABC if kind == "choice" else (),
            )
            assert grade(piece * 10_000, key).verdict


def test_keys_are_checked() -> None:
    """A key without an answer would grade everything wrong."""
    for wrong in ((), ("",), (" ",)):
        with pytest.raises(RequestError, match="right answers"):
            AnswerKey("number", wrong)
    with pytest.raises(RequestError, match="one of number, choice"):
        AnswerFormat("digits")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="2 to 26 options"):
        AnswerKey("choice", ("A",), ("only",))
    for key in (
        AnswerKey("choice", ("E",), ABC),
        AnswerKey("number", ("many",)),
        AnswerKey("yes_no", ("maybe",)),
    ):
        found = grade({"choice": "A", "number": "4", "yes_no": "yes"}[key.kind], key)
        assert found.verdict == "unknown" and "the key" in found.reason


def mathvista(kind: str, answer: str, **fields: object) -> dict[str, object]:
    """A row of MathVista."""
    form = "multi_choice" if fields.get("choices") else "free_form"
    return {
        "question_type": form,
        "answer_type": kind,
        "answer": answer,
        "precision": None,
        "unit": None,
        **fields,
    }


def tabmwp(
    kind: str, answer: str, choices: list[str] | None = None, unit: str | None = None
) -> dict[str, object]:
    """A row of TabMWP."""
    return {"answer": answer, "choices": choices, "unit": unit, "ans_type": kind}


NUMERICAL = {"final_answer": ["0.5"], "answer_type": "Numerical", "error": "1e-2", "unit": None}
HOW_LONG = {
    "question_type": "multi-choice",
    "question": "How long?\nChoices:\nA:3cm\nB:4cm\nC:5cm",
    "answer": "B",
}
ROWS = [
    ("tabmwp", tabmwp("integer_number", "1,250", unit="$"), "$1250", "$125"),
    ("tabmwp", tabmwp("boolean_text", "yes", ["yes", "no"]), "Yes", "no"),
    ("tabmwp", tabmwp("other_text", "3/4"), "0.75", "3"),
    ("chartqa", {"label": "14.2"}, "14.5", "15.5"),
    ("chartqa", {"label": "2014"}, "2014", "2015"),
    ("chartqa", {"label": "Yes"}, "yes", "no"),
    ("chartqa", {"label": "[Japan, Korea]"}, "Korea and Japan", "Japan"),
    ("clevr-math", {"label": 4}, "There are 4.", "14"),
    ("geoqa", {"choices": ["30°", "60°", "90°"], "label": 1}, "B", "C"),
    ("geoqa", {"choices": ["30", "60", "90"], "answer": "C"}, "90", "30"),
    ("mathvista", mathvista("text", "blue", choices=["red", "blue"]), "(B)", "A"),
    ("mathvista", mathvista("float", "2.6", precision=1.0), "2.63", "2.7"),
    ("mathvista", mathvista("integer", "7"), "7", "70"),
    ("mathvista", mathvista("list", "[1, 2]"), "[2, 1]", "[1]"),
    ("mathverse", HOW_LONG, "B", "3cm"),
    ("mathverse", {"question_type": "free-form", "question": "How long?", "answer": "12"}, "12", "21"),
    ("mathvision", {"options": ["1", "2"], "answer": "B"}, "2", "1"),
    ("mathvision", {"options": [], "answer": "18"}, "18", "81"),
    ("olympiadbench", NUMERICAL, "0.505", "0.52"),
    ("mmk12", {"answer": "$-3$"}, "-3", "3"),
    ("mmmu", {"question_type": "multiple-choice", "options": "['one', 'two']", "answer": "B"}, "B", "A"),
    ("mmmu", {"question_type": "open", "options": "[]", "answer": "['8', 'eight']"}, "8.05", "9"),
    ("mmstar", {"question": "What?\nOptions: A: cat, B: dog, C: cow, D: pig", "answer": "C"}, "cow", "dog"),
    ("ai2d", {"options": ["leaf", "root"], "answer": "1"}, "root", "leaf"),
    ("mmbench", {"A": "x", "B": "y", "C": float("nan"), "D": None, "answer": "A"}, "x", "B"),
    ("scienceqa", {"choices": ["ice", "steam"], "answer": 0}, "A", "steam"),
    ("aokvqa", {"choices": ["ball", "bat"], "correct_choice_idx": 1}, "bat", "A"),
    ("vcr", {"answer_choices": [["He", "runs"], ["She", [0], "sits"]], "answer_label": 1}, "B", "A"),
]


@pytest.mark.parametrize(("preset", "row", "right", "wrong"), ROWS)
def test_presets(preset: str, row: dict[str, object], right: str, wrong: str) -> None:
    """A benchmark's own rows would be read as another kind of answer."""
    key = answer_key(preset, row)
    assert grade(right, key).verdict == "right" and grade(wrong, key).verdict == "wrong"


def test_presets_name_what_is_missing() -> None:
    """A file of another benchmark would end in a bare KeyError."""
    assert {preset for preset, *_ in ROWS} == set(PRESETS)
    with pytest.raises(DataError, match="needs the field"):
        answer_key("vcr", {"answer": 1})
    with pytest.raises(DataError, match="choose one of ai2d"):
        answer_key("gqa", {})
    with pytest.raises(DataError, match="lists no options"):
        answer_key("mmstar", {"question": "What?", "answer": "A"})


def test_where_answers_stand() -> None:
    """A box, a tag or a marker would be missed, and a number of the reasoning graded."""
    assert find_final_answer(r"so \boxed{\frac{1}{2}} holds") == (r"\frac{1}{2}", True)
    assert find_final_answer("<CONCLUSION>B") == ("B", True)
    assert find_final_answer("Answer: 3\nAnswer: 4. It is four.") == ("4.", True)
    assert find_final_answer("just this") == ("just this", False)
