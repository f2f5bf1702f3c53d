"""Answer keys: the kind of a question's answer, its options, and the right answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from reverse.errors import RequestError

__all__ = ["KINDS", "LONGEST", "AnswerFormat", "AnswerKey", "Grade", "Kind"]

Kind = Literal["number", "choice", "yes_no", "text", "set", "latex"]
KINDS: tuple[str, ...] = get_args(Kind)
LONGEST = 100_000  # characters of an answer that are read


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """The form that an answer to a question takes. It is known without the right answer.

    Args:
        kind: how answers are read and compared.
        choices: texts of the options A, B, C, … of a `choice` question.
        unit: unit that a number is asked in; an answer may leave it out.
    """

    kind: Kind = "text"
    choices: tuple[str, ...] = ()
    unit: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise RequestError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r:.80}")
        if self.kind == "choice" and not 2 <= len(self.choices) <= 26:
            raise RequestError(f"a choice needs 2 to 26 options, got {len(self.choices)}: give choices=(...)")


@dataclass(frozen=True, slots=True)
class AnswerKey:
    """The right answers of a question.

    Args:
        kind: how answers are read and compared.
        answers: right answers; any of them counts. Of a `choice`: the letter or the text of an option. Of a
            `set`: one answer, its members with commas between them.
        choices: texts of the options of a `choice` question.
        tolerance: relative tolerance of a number, 0.05 for 5 %.
        absolute: absolute tolerance of a number.
        unit: unit that a number is asked in.

    Raises RequestError if there is no right answer, or if it does not fit the kind.
    """

    kind: Kind
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    tolerance: float = 0.0
    absolute: float = 1e-6
    unit: str = ""

    def __post_init__(self) -> None:
        AnswerFormat(self.kind, self.choices, self.unit)
        if not self.answers or not all(isinstance(each, str) and each.strip() for each in self.answers):
            raise RequestError(f"a key needs right answers that are texts, got {self.answers!r:.80}")
        if not (self.tolerance >= 0 and self.absolute >= 0):
            raise RequestError(f"tolerances must be at least 0, got {self.tolerance} and {self.absolute}")

    @property
    def format(self) -> AnswerFormat:
        """The form of the answer, without the right answers."""
        return AnswerFormat(self.kind, self.choices, self.unit)


@dataclass(frozen=True, slots=True)
class Grade:
    """A verdict on one answer, why it was given, and the answer that was read (None if there is none)."""

    verdict: Literal["right", "wrong", "unknown"]
    reason: str
    extracted: str | None = None
