"""The result of a request: the text, its phrases, every attempt and the usage.

result = reverse.generate(model, processor, images="kitchen.png", prompt="Describe this image.")
print(result.text, result.resolved); json.dumps(result.to_dict())
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from reverse.decoding.policies.policy import Answer
from reverse.decoding.text.answer_text import read_answer
from reverse.tokens.spans import TokenIds, break_tags

__all__ = ["Draft", "Phrase", "Result", "TraceEntry", "Usage", "build_result"]


@dataclass(frozen=True, slots=True)
class Phrase:
    """A phrase of the answer: `text == result.text[start:end]`.

    `p_un` is p(`</UN>`) when the phrase was accepted, None if it was never read.
    """

    text: str
    start: int
    end: int
    p_un: float | None
    status: Literal["accepted", "unresolved"]


@dataclass(frozen=True, slots=True)
class TraceEntry:
    """One rejected attempt."""

    kind: Literal["rejected", "unclosed", "malformed"]
    phrase: str
    p_un: float | None
    at: int  # token position in the answer where the segment began
    rewound_to: int  # token position that decoding went back to
    temperature: float  # of the rejected segment
    level: int  # number of sentences that earlier attempts at this place went back
    tokens: int  # discarded; usage.discarded also counts unused candidates and the cut at the end
    seconds: float


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer cost. That of a mode counts everything that it and its inner modes generated.

    What is decoded once more because memory ran out is not counted.
    """

    kept: int  # tokens of the answer
    discarded: int  # tokens that were generated and taken back, and those of all other drafts
    forwards: int  # forward passes that each draft took part in, added up; drafts side by side share passes
    seconds: float  # from the first forward pass to the end
    unused: int = 0  # discarded tokens of candidates after the accepted one


@dataclass(frozen=True, slots=True)
class Draft:
    """One answer that a mode made on the way to its result.

    `role` says what it was for: sample, first, correction, refinement, reflection, judge, chain. `malformed`
    marks a text that does not follow the form that the mode expects.
    """

    role: str
    text: str
    answer: str | None  # extracted and in normal form; None if the text gives none
    confidence: float  # in [0, 1]
    tokens: int  # generated, discarded ones included
    seconds: float
    accepted: bool = False
    malformed: bool = False
    phrases: tuple[Phrase, ...] = ()  # of `text`


@dataclass(frozen=True, slots=True)
class Result:
    """One answer. `resolved` is False if a phrase stayed suspect, and None with checking off.

    Phrases are read from the ids. If the model spells a tag in ordinary tokens, it is text: `text`, `tagged`
    and the trace show it with a blank after its `<`, as `< SPAN>`. So `parse_tags(tagged)` gives `text` and
    `phrases`.
    """

    text: str  # clean, no tags
    tagged: str  # the same with its tags
    phrases: tuple[Phrase, ...]
    resolved: bool | None
    finish_reason: str  # eos, length, stop, dropped, exhausted, malformed
    trace: tuple[TraceEntry, ...]
    usage: Usage
    ids: tuple[int, ...]  # the answer's ids, tags and end of text included
    answer: str | None = None  # the final answer that a mode extracted
    drafts: tuple[Draft, ...] = ()  # every answer that a mode made; of single answers none

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def build_result(
    answer: Answer,
    finish_reason: str,
    usage: Usage,
    attempt_seconds: Sequence[float],
    *,
    decode: Callable[[list[int]], str],
    tags: TokenIds,
    eos: frozenset[int],
) -> Result:
    """Build the Result of a finished answer.

    Args: `attempt_seconds[i]` belongs to `answer.attempts[i]`; `decode` maps ids to text with tags.
    """
    shown = answer.ids[:-1] if answer.ids and answer.ids[-1] in eos else answer.ids
    read = read_answer(decode, shown, tags)
    spans = {span.end: span for span in answer.spans}
    phrases = []
    for phrase in read.phrases:
        span = spans.get(phrase.closing + 1)
        # With checking on, a phrase that the policy never judged counts as unresolved.
        is_accepted = span.accepted if span else phrase.confident and answer.resolved is None
        status: Literal["accepted", "unresolved"] = "accepted" if is_accepted else "unresolved"
        phrases.append(Phrase(phrase.text, phrase.start, phrase.end, span.p if span else None, status))
    trace = tuple(
        TraceEntry(
            attempt.kind,
            break_tags(decode(list(attempt.phrase)).strip()),
            attempt.p,
            attempt.at,
            attempt.to,
            attempt.temperature,
            attempt.level,
            attempt.discarded,
            seconds,
        )
        for attempt, seconds in zip(answer.attempts, attempt_seconds, strict=True)
    )
    ids = tuple(answer.ids)
    return Result(read.text, read.tagged, tuple(phrases), answer.resolved, finish_reason, trace, usage, ids)
