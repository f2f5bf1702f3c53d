"""Split a completion that answers, reflects and answers again into parts, for rewards.

    attempt = read_attempt("<think>2 + 1</think><answer>3</answer>")
    attempt.schema, attempt.answers     # ('single', ('3',))

The grammar is SRPO's (arXiv 2506.01713, §3): think, answer, reflection, think, answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from reverse.grading import AnswerKey, grade
from reverse.tokens import remove_tags

__all__ = ["AttemptText", "Schema", "count_pieces", "find_verdicts", "is_readable", "read_attempt"]

Schema = Literal["tarta", "taranswer", "single", "other"]
_TAG = re.compile(r"<(/?)(think|answer|reflection)>", re.IGNORECASE)
_PIECE = re.compile(r"\w+|[^\w\s]")
_SCHEMAS: dict[tuple[str, ...], Schema] = {
    ("think", "answer", "reflection", "think", "answer"): "tarta",
    ("think", "answer", "reflection", "answer"): "taranswer",
    ("think", "answer"): "single",
}


@dataclass(frozen=True)
class AttemptText:
    """The parts of a completion, without the three tokens."""

    text: str
    schema: Schema  # "other": a tag is missing, a part is empty, or text stands outside of the tags
    thinks: tuple[str, ...]
    answers: tuple[str, ...]  # contents of the answer tags; an unclosed one ends at the next tag
    reflections: tuple[str, ...]
    first_length: int  # pieces of the first think and answer
    length: int  # pieces of all parts

    @property
    def final(self) -> str:
        """The answer that counts: the last one, or the whole text if no answer is tagged."""
        return self.answers[-1] if self.answers else self.text

    @property
    def first(self) -> str:
        """The first answer, or the whole text if no answer is tagged."""
        return self.answers[0] if self.answers else self.text


def read_attempt(text: str) -> AttemptText:
    """Split a completion into its parts. Every text can be read."""
    text = remove_tags(text)
    marks = list(_TAG.finditer(text))
    parts: list[tuple[str, str]] = []
    outside = text[: marks[0].start()] if marks else text
    is_closed = True
    for number, mark in enumerate(marks):
        end = marks[number + 1].start() if number + 1 < len(marks) else len(text)
        content, name = text[mark.end() : end].strip(), mark[2].lower()
        if mark[1]:
            is_closed = is_closed and number > 0 and _opens(marks[number - 1], name)
            outside += content
        else:
            parts.append((name, content))
            is_closed = is_closed and number + 1 < len(marks) and _closes(marks[number + 1], name)
    follows = is_closed and not outside.strip() and all(content for _, content in parts)
    by_name = {
        name: tuple(content for each, content in parts if each == name)
        for name in ("think", "answer", "reflection")
    }
    return AttemptText(
        text=text.strip(),
        schema=_SCHEMAS.get(tuple(name for name, _ in parts), "other") if follows else "other",
        thinks=by_name["think"],
        answers=by_name["answer"],
        reflections=by_name["reflection"],
        first_length=_find_first_length(parts),
        length=count_pieces(" ".join(content for _, content in parts)) if parts else count_pieces(text),
    )


def count_pieces(text: str) -> int:
    """Count the words and marks of a text, without a tokenizer."""
    return sum(1 for _ in _PIECE.finditer(text))


def is_readable(key: AnswerKey) -> bool:
    """Whether the right answer can be read as its kind, so that answers can be compared with it."""
    return any(grade(f"Answer: {answer}", key).verdict == "right" for answer in key.answers)


def find_verdicts(attempt: AttemptText, key: AnswerKey) -> tuple[bool, bool]:
    """Return whether the first and the final answer are right; an answer that cannot be read is not right."""
    final = grade(attempt.final, key).verdict == "right"
    if len(attempt.answers) < 2:
        return final, final
    return grade(attempt.first, key).verdict == "right", final


def _find_first_length(parts: list[tuple[str, str]]) -> int:
    names = [name for name, _ in parts]
    if "answer" not in names:
        return 0
    return count_pieces(" ".join(content for _, content in parts[: names.index("answer") + 1]))


def _opens(mark: re.Match[str], name: str) -> bool:
    return not mark[1] and mark[2].lower() == name


def _closes(mark: re.Match[str], name: str) -> bool:
    return bool(mark[1]) and mark[2].lower() == name
