"""Build the question that a model is asked, and its right answer, from the parts in question files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from reverse.data.drafts.draft_record import DraftRecord, GoldAnswer
from reverse.errors import DataError
from reverse.grading.answer_key import AnswerKey
from reverse.grading.presets import answer_key
from reverse.grading.yes_no_in_answers import read_yes_no

__all__ = [
    "ask",
    "check_index",
    "find_gold",
    "find_rationale",
    "guess_gold",
    "make_rationale",
    "plain_question",
    "right_index",
    "say_gold",
]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LONGEST_NUMBER = 40  # characters
_NUMBER = re.compile(r"[-+]?\$?(?:\d[\d,]*)?\.?\d+%?")


def ask(question: str, *, context: str = "", unit: str = "", choices: Sequence[str] = ()) -> str:
    """Return a question with its context and options. Options get the letters that grading uses.

    >>> ask("Which is larger?", choices=("a cat", "a whale"))
    'Which is larger?\\nA. a cat\\nB. a whale'
    """
    lines = [context] if context.strip() else []
    lines.append(f"{question} (in {unit})" if unit.strip() else question)
    lines += [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join(lines)


def plain_question(record: DraftRecord) -> str:
    """Return the question as its file holds it, if the record's question is still built from it; else the
    record's.
    """
    parts = record.source.get("asked")
    if not isinstance(parts, dict) or not isinstance(parts.get("question"), str):
        return record.question
    context, unit, choices = (parts.get(key) for key in ("context", "unit", "choices"))
    whole = ask(
        parts["question"],
        context=context if isinstance(context, str) else "",
        unit=unit if isinstance(unit, str) else "",
        choices=choices if isinstance(choices, list) else (),
    )
    return parts["question"] if whole == record.question else record.question


def find_gold(preset: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the right answer of a row by a preset of `reverse.grading`. Raises what `answer_key` raises."""
    key = answer_key(preset, row)
    return _as_values(key)


def guess_gold(answer: str, choices: Sequence[str] = ()) -> dict[str, Any] | None:
    """Make a right answer of which only the text is known; None if it is blank."""
    if not answer.strip():
        return None
    if len(choices) >= 2:
        return _as_values(AnswerKey("choice", (answer,), tuple(choices)))
    if len(answer) <= LONGEST_NUMBER and _NUMBER.fullmatch(answer.strip()):
        return _as_values(AnswerKey("number", (answer,)))
    return _as_values(AnswerKey("yes_no" if read_yes_no(answer) else "text", (answer,)))


def say_gold(record: DraftRecord) -> str:
    """Return the first right answer as text; "" if it is not known."""
    return record.gold.answers[0] if record.gold is not None and record.gold.answers else ""


def right_index(gold: GoldAnswer | None) -> int | None:
    """Return the index of the right option; None if there is none."""
    if gold is None or not gold.answers:
        return None
    answer = gold.answers[0]
    if answer in gold.choices:
        return gold.choices.index(answer)
    index = LETTERS.find(answer) if len(answer) == 1 else -1
    return index if 0 <= index < len(gold.choices) else None


def check_index(value: Any, choices: Sequence[str], key: str, first: int = 0) -> int | None:
    """Check an index into the options, counted from `first`; None for null.

    Raises DataError for other values.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not first <= value < len(choices) + first:
        wanted = f"a number from {first} to {len(choices) + first - 1}"
        raise DataError(f"{key!r} must be {wanted}, got {value!r:.40}")
    return value - first


def make_rationale(text: str) -> dict[str, Any]:
    """Make the draft of a rationale that the authors of a data set wrote."""
    return {
        "text": text,
        "role": "rationale",
        "made_by": "annotator",
        "verdict": "right",
        "judged_by": "human",
    }


def find_rationale(record: DraftRecord) -> str:
    """Return the text of the first rationale, or "" if there is none."""
    return next((draft.text for draft in record.drafts if draft.role == "rationale"), "")


def _as_values(key: AnswerKey) -> dict[str, Any]:
    values: dict[str, Any] = {"kind": key.kind, "answers": key.answers}
    if key.choices:
        values["choices"] = key.choices
    if key.tolerance:
        values["tolerance"] = key.tolerance
    if key.unit:
        values["unit"] = key.unit
    return values
