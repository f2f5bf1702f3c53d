"""What the engine asks of a policy: after every segment an action, and the answer as it stands then.

A policy owns one answer. It is shown one segment at a time (what was decoded up to a closing tag, the end of
the text, a stop or the length limit) and returns what to do next. Then `policy.answer.ids` is what the answer
is, and the engine makes the sequence's tokens agree with it.

A policy of one's own needs `answer`, `masks_tags`, `begin` and `next`, and no tensors: see docs/decoding.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from reverse.decoding.config import ResamplingConfig
from reverse.tokens.spans import TokenIds

__all__ = [
    "Action",
    "Answer",
    "Attempt",
    "Continue",
    "Finish",
    "Policy",
    "PolicyFactory",
    "Rewind",
    "Segment",
    "Span",
]

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """What was decoded since the end of the answer."""

    ids: Ids  # new ids, the closing tag or end-of-text id included
    end: Literal["phrase", "eos", "length", "stop"]  # what ended it; "stop": a stop string or criterion
    p: float | None = None  # p(</UN>) where the phrase closed (raw softmax); None where none closed
    sentence_ends: Ids = ()  # lengths of prefixes of `ids` that end a sentence, ascending
    stop: bool = False  # a stop fell inside the phrase: the answer ends with it, once it is accepted
    seconds: float = 0.0  # spent on this answer so far
    unused: int = 0  # tokens of other candidates that were dropped since the segment before


@dataclass(frozen=True, slots=True)
class Continue:
    """Decode on from the end of `policy.answer.ids`."""

    temperature: float
    attempt: int = 0  # rejections so far: a part of the key of the noise
    temperature_after_accept: float = 0.0  # of the segment after the next one, once its phrase is accepted
    max_tokens: int | None = None  # of the next segment; None: what the answer's limit leaves
    hints: tuple[Ids, ...] | None = None  # phrases that the prompt is to name as rejected; None: as before


@dataclass(frozen=True, slots=True)
class Rewind:
    """Decode anew from position `to`, which is the length of `policy.answer.ids`.

    Several temperatures ask for so many candidates side by side. Candidate i is attempt `attempt + i`; they
    are shown to the policy in this order, for as long as it goes on asking for the next of them.
    """

    to: int
    temperatures: tuple[float, ...]
    attempt: int
    hints: tuple[Ids, ...] | None = None  # phrases that the prompt is to name as rejected; None: as before
    temperature_after_accept: float = 0.0
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """The answer is complete."""

    reason: Literal["eos", "length", "stop", "dropped", "exhausted", "malformed"]


Action = Continue | Rewind | Finish


@dataclass(frozen=True, slots=True)
class Span:
    """A phrase of the answer: positions of its `<SPAN>` and one past its closing tag, and its p."""

    start: int
    end: int
    p: float | None
    accepted: bool


@dataclass(frozen=True, slots=True)
class Attempt:
    """One rejection, for the trace."""

    kind: Literal["rejected", "unclosed", "malformed"]
    phrase: Ids
    p: float | None
    at: int  # position in the answer where the segment began
    to: int  # position that was gone back to
    temperature: float  # at which the segment was decoded
    level: int = 0  # sentences gone back at this place before this attempt
    discarded: int = 0  # tokens lost; negative where a longer text was restored than had been decoded


@dataclass(slots=True)
class Answer:
    """The ids that a policy has accepted, and what is known of them."""

    ids: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    committed_length: int = 0  # nothing before this position will ever be taken back
    resolved: bool | None = True  # False: a suspect phrase was kept or cut off; None: nothing was checked
    max_length: int | None = None  # ids that the context has room for, which the engine says
    unchanged_length: int = 0  # ids before it are those that a reader saw when it last set this

    def append(self, ids: Ids) -> None:
        """Add ids that belong to no phrase that was judged."""
        self.ids.extend(ids)

    def append_phrase(self, ids: Ids, span_token: int, p: float | None, accepted: bool) -> None:
        """Add ids that end with a phrase, which begins at the first `span_token` among them."""
        opened = len(self.ids) + ids.index(span_token)
        self.ids.extend(ids)
        self.spans.append(Span(opened, len(self.ids), p, accepted))

    def cut(self, to: int) -> None:
        """Keep the first `to` ids and the phrases that end within them."""
        del self.ids[to:]
        self.spans = [span for span in self.spans if span.end <= to]
        self.unchanged_length = min(self.unchanged_length, to)


class Policy(Protocol):
    """Decides after every segment of one answer; ids and probabilities, no tensors.

    The engine acts on the returned actions and reads `answer`, nothing else.
    """

    answer: Answer
    masks_tags: bool  # tags that would be malformed are never chosen

    def begin(self) -> Continue:
        """How the first segment is decoded."""

    def next(self, segment: Segment) -> Action:
        """Take in what was decoded and say what to do. Raises ValueError if p is no probability."""


# Called with (config, tags, max_new_tokens, temperature).
PolicyFactory = Callable[[ResamplingConfig, TokenIds, int, float], Policy]
