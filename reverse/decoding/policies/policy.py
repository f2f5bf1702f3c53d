"""The protocol of policies: after every segment of an answer a policy returns the next action.

A policy owns one answer. It receives one segment at a time (the ids up to a closing tag, the end of the text,
a stop or the length limit) and returns what to do next. The engine then sets the sequence's tokens to
`policy.answer.ids`.

Your own policy needs `answer`, `masks_tags`, `begin` and `next`, and no tensors: see docs/engine.md. With
`merges_closing_tags = True` the model never chooses `</UN>`: `</CN>` has the probability of both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from reverse.decoding.config import ResamplingConfig
from reverse.errors import RequestError
from reverse.tokens.spans import TokenIds

__all__ = [
    "Action",
    "Answer",
    "Attempt",
    "AttemptBudget",
    "Continue",
    "Finish",
    "Policy",
    "PolicyFactory",
    "Rewind",
    "Segment",
    "Span",
    "check_segment",
    "check_threshold",
]

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """The ids decoded after the end of the answer."""

    ids: Ids  # with the closing tag or EOS
    end: Literal["phrase", "eos", "length", "stop"]  # "stop": a stop string or criterion
    p: float | None = None  # p(</UN>) of the phrase that ends it (raw softmax), or None
    sentence_ends: Ids = ()  # lengths of prefixes of `ids` that end with a sentence, ascending
    stop: bool = False  # a stop fell inside the phrase: the answer ends once it is accepted
    seconds: float = 0.0  # spent on this answer so far
    unused: int = 0  # tokens of candidates dropped since the previous segment


@dataclass(frozen=True, slots=True)
class Continue:
    """Continue after the end of `policy.answer.ids`."""

    temperature: float
    attempt: int = 0  # rejections so far, a part of the key of the noise
    temperature_after_accept: float = 0.0  # of the segment after the next one
    max_tokens: int | None = None  # of the next segment; None: up to the limit of the answer
    hints: tuple[Ids, ...] | None = None  # rejected phrases for the prompt; None: as before


@dataclass(frozen=True, slots=True)
class Rewind:
    """Decode again from position `to`, which is the length of `policy.answer.ids`.

    Several temperatures request as many candidates side by side. Candidate i is attempt `attempt + i`; the
    policy receives them in this order, as long as it returns the Rewind that matches the next candidate.
    """

    to: int
    temperatures: tuple[float, ...]
    attempt: int
    hints: tuple[Ids, ...] | None = None  # rejected phrases for the prompt; None: as before
    temperature_after_accept: float = 0.0
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """The answer is complete."""

    reason: Literal["eos", "length", "stop", "dropped", "exhausted", "malformed"]


Action = Continue | Rewind | Finish


@dataclass(frozen=True, slots=True)
class Span:
    """A phrase of the answer, from its `<SPAN>` to one past its closing tag, with its p."""

    start: int
    end: int
    p: float | None
    accepted: bool


@dataclass(frozen=True, slots=True)
class Attempt:
    """A rejection, for the trace."""

    kind: Literal["rejected", "unclosed", "malformed"]
    phrase: Ids
    p: float | None
    at: int  # position in the answer where the segment began
    to: int  # position that decoding went back to
    temperature: float  # at which the segment was decoded
    level: int = 0  # sentences that earlier attempts at this place went back
    discarded: int = 0  # tokens; negative if a longer text was restored


@dataclass(slots=True)
class Answer:
    """The accepted ids of an answer, their phrases and the attempts."""

    ids: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    committed_length: int = 0  # no later rewind goes back before it
    resolved: bool | None = True  # False: a phrase stayed suspect; None: unchecked
    max_length: int | None = None  # room in the context, set by the engine
    unchanged_length: int = 0  # ids before it have not changed since the events emitted them

    def append(self, ids: Ids) -> None:
        """Add ids without a judged phrase."""
        self.ids.extend(ids)

    def append_phrase(self, ids: Ids, span_token: int, p: float | None, accepted: bool) -> None:
        """Add ids that end with a phrase, which begins at their first `span_token`."""
        opened = len(self.ids) + ids.index(span_token)
        self.ids.extend(ids)
        self.spans.append(Span(opened, len(self.ids), p, accepted))

    def cut(self, to: int) -> None:
        """Keep the first `to` ids and the phrases that end within them."""
        del self.ids[to:]
        self.spans = [span for span in self.spans if span.end <= to]
        self.unchanged_length = min(self.unchanged_length, to)


class AttemptBudget:
    """The limits `max_seconds` and `max_extra_tokens` of a configuration, and what an answer has used."""

    def __init__(self, config: ResamplingConfig):
        self.config = config
        self.discarded = 0  # ids taken back so far, those of unused candidates included
        self.is_used_up = config.max_seconds == 0 or config.max_extra_tokens == 0  # for good

    def update(self, seconds: float) -> None:
        """Check the limits after `seconds` of decoding."""
        most_seconds, most_tokens = self.config.max_seconds, self.config.max_extra_tokens
        self.is_used_up |= most_seconds is not None and seconds >= most_seconds
        self.is_used_up |= most_tokens is not None and self.discarded >= most_tokens


def check_threshold(config: ResamplingConfig) -> float:
    """Return the threshold of a configuration. Raises RequestError if it is None."""
    if config.threshold is None:
        raise RequestError("the policy needs a threshold: pass ResamplingConfig(threshold=...), try 0.003")
    return config.threshold


def check_segment(segment: Segment, position: int, room: int, needs_p: bool = False) -> None:
    """Raise RequestError if the segment at `position` exceeds `room`, or its p is not a probability."""
    is_missing = segment.p is None and needs_p and segment.end == "phrase"
    if is_missing or (segment.p is not None and not 0.0 <= segment.p <= 1.0):
        raise RequestError(
            f"p(</UN>) is {segment.p} at answer position {position + len(segment.ids) - 1}, and must be a "
            "probability at every closing tag: if it is NaN, the model's logits are not finite; check the "
            "weights and try dtype=float32"
        )
    if not segment.ids or len(segment.ids) > room:
        raise RequestError(f"a segment holds 1 to {room} ids here, got {len(segment.ids)}")


class Policy(Protocol):
    """Decides after every segment of one answer; ids and probabilities, no tensors.

    The engine acts on the returned actions and reads `answer`, nothing else.
    """

    answer: Answer
    masks_tags: bool  # tags that would be malformed are never chosen

    def begin(self) -> Continue:
        """Return how the first segment is decoded."""

    def next(self, segment: Segment) -> Action:
        """Take in a segment and return the next action. Raises RequestError if p is not a probability."""


# (config, tags, max_new_tokens, temperature) -> policy
PolicyFactory = Callable[[ResamplingConfig, TokenIds, int, float], Policy]
