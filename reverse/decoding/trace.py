"""What the user gets back: the text, its phrases, every attempt and what it all cost.

result = reverse.generate(model, processor, images="kitchen.png", prompt="Describe this image.")
print(result.text, result.resolved); json.dumps(result.to_dict())
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from reverse.decoding.answer_text import read_answer
from reverse.decoding.policy import Policy
from reverse.tokens.spans import break_tags

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
    `text`, `tagged` and the trace with a blank after its `<`: `< SPAN>`. So `parse(tagged)` gives `text`
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
    policy: Policy,
    decode: Callable[[list[int]], str],
    eos: frozenset[int],
    finish_reason: str,
    seconds: list[float],
    generated: int,
    forwards: int,
    total_seconds: float,
    unused: int = 0,
) -> Result:
    """Turn a finished policy into a Result; `seconds[i]` belongs to `policy.attempts[i]`."""
    ids = list(policy.ids)
    shown = ids[:-1] if ids and ids[-1] in eos else ids
    read = read_answer(decode, shown, policy.tags)
    spans = {span.end: span for span in policy.answer.spans}  # by one past their closing tag
    phrases = []
    for phrase in read.phrases:
        span = spans.get(phrase.closing + 1)
        # With checking on, what the policy never judged would not be accepted by it.
        accepted = span.accepted if span else phrase.confident and not policy.checking
        status: Literal["accepted", "unresolved"] = "accepted" if accepted else "unresolved"
        p = span.p if span else None
        phrases.append(Phrase(phrase.text, phrase.start, phrase.end, p, status))
    trace = tuple(
        TraceEntry(
            a.kind,
            break_tags(decode(list(a.phrase)).strip()),
            a.p,
            a.at,
            a.to,
            a.temperature,
            a.level,
            a.discarded,
            spent,
        )
        for a, spent in zip(policy.attempts, seconds, strict=True)
    )
    usage = Usage(len(ids), generated + unused - len(ids), forwards, total_seconds, unused)
    return Result(
        read.text, read.tagged, tuple(phrases), policy.resolved, finish_reason, trace, usage, tuple(ids)
    )
