"""What the user gets back: the text, its phrases, every attempt and what it all cost.

result = reverse.generate(model, processor, images="kitchen.png", prompt="Describe this image.")
print(result.text, result.resolved); json.dumps(result.to_dict())
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from reverse.decoding.policies.policy import Answer
from reverse.decoding.text.answer_text import read_answer
from reverse.tokens.spans import break_tags

if TYPE_CHECKING:
    from reverse.decoding.branch import AnswerRules

__all__ = ["Phrase", "Result", "TraceEntry", "Usage", "build_result"]


@dataclass(frozen=True, slots=True)
class Phrase:
    """A phrase of the answer: `text == result.text[start:end]`; p at its acceptance (None: never read)."""

    text: str
    start: int
    end: int
    p_un: float | None
    status: Literal["accepted", "unresolved"]


@dataclass(frozen=True, slots=True)
class TraceEntry:
    """One attempt that was taken back."""

    kind: Literal["rejected", "unclosed", "malformed"]
    phrase: str
    p_un: float | None
    at: int  # token position in the answer where the segment began
    rewound_to: int  # token position that was gone back to
    temperature: float  # of the rejected segment
    level: int  # sentences gone back at this place before
    tokens: int  # lost; usage.discarded also counts unused candidates and what the end cut off
    seconds: float


@dataclass(frozen=True, slots=True)
class Usage:
    kept: int  # tokens of the answer
    discarded: int  # tokens that were generated and taken back
    forwards: int  # model calls this row took part in
    seconds: float
    unused: int = 0  # of the discarded ones: of candidates that came after the one that was taken


@dataclass(frozen=True, slots=True)
class Result:
    """One answer. `resolved`: True, False where a phrase stayed suspect, None with checking off.

    Phrases come from the ids. A tag that the model spelled in ordinary tokens is text, and stands in
    `text`, `tagged` and the trace with a blank after its `<`: `< SPAN>`. So `parse_tags(tagged)` gives `text`
    and `phrases`.
    """

    text: str  # clean, no tags
    tagged: str  # the same with its tags
    phrases: tuple[Phrase, ...]
    resolved: bool | None
    finish_reason: str  # eos, length, stop, dropped, exhausted, malformed
    trace: tuple[TraceEntry, ...]
    usage: Usage
    ids: tuple[int, ...]  # the answer's ids, tags and end of text included

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def build_result(
    answer: Answer,
    rules: AnswerRules,
    finish_reason: str,
    *,
    attempt_seconds: Sequence[float],
    generated: int,
    forwards: int,
    seconds: float,
    unused: int = 0,
) -> Result:
    """A finished answer as a Result.

    Args: `rules` give decode, tags and eos; `attempt_seconds[i]` belongs to `answer.attempts[i]`; `generated`
    counts the tokens that the policy was shown, `unused` those of candidates that it was not.
    """
    ids = list(answer.ids)
    shown = ids[:-1] if ids and ids[-1] in rules.eos else ids
    read = read_answer(rules.decode, shown, rules.tags)
    spans = {span.end: span for span in answer.spans}  # by one past their closing tag
    phrases = []
    for phrase in read.phrases:
        span = spans.get(phrase.closing + 1)
        # With checking on, what the policy never judged would not be accepted by it.
        accepted = span.accepted if span else phrase.confident and answer.resolved is None
        status: Literal["accepted", "unresolved"] = "accepted" if accepted else "unresolved"
        p = span.p if span else None
        phrases.append(Phrase(phrase.text, phrase.start, phrase.end, p, status))
    trace = tuple(
        TraceEntry(
            attempt.kind,
            break_tags(rules.decode(list(attempt.phrase)).strip()),
            attempt.p,
            attempt.at,
            attempt.to,
            attempt.temperature,
            attempt.level,
            attempt.discarded,
            spent,
        )
        for attempt, spent in zip(answer.attempts, attempt_seconds, strict=True)
    )
    usage = Usage(len(ids), generated + unused - len(ids), forwards, seconds, unused)
    return Result(
        read.text, read.tagged, tuple(phrases), answer.resolved, finish_reason, trace, usage, tuple(ids)
    )
