"""When to accept a phrase, when to go back, how far, and when to give up: ids and probabilities, no tensors.

The policy owns a row's answer. It is shown one segment at a time (what was decoded up to a closing tag,
the end of the text, a stop or the length limit) and says what to do next; `policy.ids` is then what the
answer is, and whoever drives it makes the model's cache agree. The same object drives every backend.

    policy = Policy(ResamplingConfig(threshold=0.003), TokenIds(span=5, cn=6, un=7), max_new_tokens=64)
    policy.next(Segment(ids=(11, 5, 12, 7), end="phrase", p=0.9))   # Rewind(to=0, temperature=0.1, ...)

Source: arXiv 2504.13169 §3.3 and Algorithm 1, with these differences: sentence ends are checkpoints too,
escalation moves one sentence further each time instead of once, and a phrase that cannot be mended is
kept and marked instead of cutting the answer (`on_exhausted`).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal

from reverse.decoding.config import ResamplingConfig
from reverse.tokens.spans import TokenIds

__all__ = ["Attempt", "Continue", "Finish", "Policy", "Rewind", "Segment", "Span"]

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """What was decoded since the end of the accepted answer."""

    ids: Ids  # new ids, the closing tag or end-of-text id included
    end: Literal["phrase", "eos", "length", "stop"]  # what ended it; "stop": a stop string or criterion
    p: float | None = None  # p(</UN>) where the phrase closed (raw softmax); None where none closed
    sentence_ends: Ids = ()  # lengths of prefixes of `ids` that end a sentence, ascending
    stop: bool = False  # a stop fell inside the phrase: the answer ends with it, once it is accepted


@dataclass(frozen=True, slots=True)
class Continue:
    """Decode on from the end of `policy.ids`."""

    temperature: float


@dataclass(frozen=True, slots=True)
class Rewind:
    """Decode anew from position `to`, which is the length of `policy.ids`."""

    to: int
    temperature: float
    hints: tuple[Ids, ...]  # every rejected phrase so far, in order
    candidates: int = 1


@dataclass(frozen=True, slots=True)
class Finish:
    reason: Literal["eos", "length", "stop", "dropped", "exhausted", "malformed"]


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
    level: int  # sentences gone back at this place before this attempt
    discarded: int  # tokens lost; negative where a longer text was restored than had been decoded


@dataclass(slots=True)
class _Answer:
    """The accepted ids and all that is known about positions in them."""

    ids: list[int]
    spans: list[Span]
    sentence_ends: list[int]

    def copy(self) -> _Answer:
        return _Answer(self.ids[:], self.spans[:], self.sentence_ends[:])

    def cut(self, to: int) -> None:
        del self.ids[to:]
        self.spans = [s for s in self.spans if s.end <= to]
        self.sentence_ends = [e for e in self.sentence_ends if e <= to]


@dataclass(frozen=True, slots=True)
class _Candidate:
    before: _Answer  # the answer up to the checkpoint before the phrase
    segment: Segment  # from there to the phrase's end


class Policy:
    """Retrospective resampling of one answer.

    Args: `config` with its threshold filled in; `tags` the ids of the three tokens; `max_new_tokens` the
    most ids the answer may hold; `temperature` T0; `checking=False` accepts everything (plain decoding).
    """

    def __init__(
        self,
        config: ResamplingConfig,
        tags: TokenIds,
        max_new_tokens: int,
        temperature: float = 0.0,
        checking: bool = True,
    ):
        if config.threshold is None and checking:
            raise ValueError("the policy needs a threshold: pass ResamplingConfig(threshold=...), try 0.003")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        self.config, self.tags, self.max_new_tokens, self.checking = config, tags, max_new_tokens, checking
        self.base_temperature = self.temperature = temperature
        self.answer = _Answer([], [], [])
        self.rejected: list[Ids] = []  # R: ordered, no repeats
        self.attempts: list[Attempt] = []  # the trace
        self.local = 0  # k
        self.total = 0  # n
        self.level = 0  # ℓ
        self.discarded = 0  # ids taken back so far; candidates that nobody looked at may be added to it
        self.floor = 0  # nothing before this position will ever be taken back
        self.unchanged = 0  # ids before it stand as when a watcher last set it to the answer's length
        self.resolved: bool | None = True if checking else None
        self._stuck_at = -1  # where K failures happened last
        self._target: int | None = None  # where the last escalation went
        self._candidates: list[_Candidate] = []
        self._spent = 0.0  # seconds
        self._out = config.max_seconds == 0 or config.max_extra_tokens == 0  # a budget is used up, for good

    @property
    def ids(self) -> list[int]:
        return self.answer.ids

    @property
    def room(self) -> int:
        """How many more ids the answer may take."""
        return self.max_new_tokens - len(self.ids)

    @property
    def exhausted(self) -> bool:
        """Nothing is resampled any more: N attempts were made, or a budget is used up."""
        return self._out or self.total >= self.config.max_attempts

    def upcoming(self, m: int) -> tuple[float, ...]:
        """Temperatures of the next attempts, at most `m`, if each but the last fails: at least one.

        They stop where the policy would do something else than try this place again (K, N).
        """
        count = min(m, self.config.local_attempts - self.local, self.config.max_attempts - self.total)
        temperatures = [self.temperature]
        while len(temperatures) < count:
            temperatures.append(self._raised(temperatures[-1]))
        return tuple(temperatures)

    # ------------------------------------------------------------------ the table
    def next(self, segment: Segment, spent: float = 0.0) -> Continue | Rewind | Finish:
        """Take in what was decoded and say what to do; `spent` seconds have gone into this answer.

        Raises ValueError where p is no probability.
        """
        self._spent = spent
        p = segment.p
        if p is not None and not 0.0 <= p <= 1.0:
            raise ValueError(
                f"p(</UN>) is {p} at answer position {len(self.ids) + len(segment.ids) - 1}: the model's "
                "logits are not finite; check the weights and try dtype=float32"
            )
        if not segment.ids or len(segment.ids) > self.room:
            raise ValueError(f"a segment holds 1 to {self.room} ids here, got {len(segment.ids)}")
        if not self.checking:
            return self._pass(segment)
        opened = segment.ids.count(self.tags.span)
        if segment.end == "phrase":
            if opened != 1 or p is None:
                return self._keep(segment) if self.exhausted else self._fail(segment, "malformed")
            if self._suspect(segment):
                return self._keep(segment) if self.exhausted else self._fail(segment, "rejected")
            return self._accept(segment, accepted=True)
        if opened == 0:  # outside a phrase: what remains is plain text
            self._append(segment)
            return Finish(segment.end)
        if segment.end in ("length", "stop"):
            self._advance(segment)
            return Finish(segment.end)
        return self._keep(segment) if self.exhausted else self._fail(segment, "unclosed")

    def _suspect(self, segment: Segment) -> bool:
        assert self.config.threshold is not None and segment.p is not None
        return segment.p > self.config.threshold or segment.ids[-1] == self.tags.un

    def _pass(self, segment: Segment) -> Continue | Finish:
        if segment.end == "phrase" and segment.ids.count(self.tags.span) == 1:
            self._append(segment, accepted=segment.ids[-1] == self.tags.cn)
        else:
            self._append(segment)
        self.floor = len(self.ids)  # unchecked text is never taken back
        return self._go_on(segment.stop) if segment.end == "phrase" else Finish(segment.end)

    # ------------------------------------------------------------------ accepting
    def _accept(self, segment: Segment, accepted: bool) -> Continue | Finish:
        self._append(segment, accepted)
        self.local, self.temperature = 0, self.base_temperature
        if len(self.ids) > self._stuck_at:
            self.level, self._stuck_at, self._target = 0, -1, None
        self._candidates = [c for c in self._candidates if len(c.before.ids) >= len(self.ids)]
        self._look_at_budgets()
        self._commit()
        return self._go_on(segment.stop)

    def _go_on(self, stop: bool) -> Continue | Finish:
        if stop:
            return Finish("stop")
        return Continue(self.temperature) if self.room > 0 else Finish("length")

    def _append(self, segment: Segment, accepted: bool | None = None) -> None:
        """Grow the answer; with `accepted` given, the segment's end closes a phrase."""
        start = len(self.ids)
        self.ids.extend(segment.ids)
        self.answer.sentence_ends.extend(start + e for e in segment.sentence_ends)
        if accepted is not None:
            opened = start + segment.ids.index(self.tags.span)
            self.answer.spans.append(Span(opened, len(self.ids), segment.p, accepted))

    def _keep(self, segment: Segment) -> Continue | Finish:
        """A suspect phrase after the last attempt was used up."""
        self.resolved = False
        if segment.ids.count(self.tags.span) != 1:
            return Finish("malformed")
        if self.config.on_exhausted == "best":
            return self._accept(self._closed(segment), accepted=False)
        if self.config.on_exhausted == "drop":
            self._advance(segment)
            return Finish("dropped")
        return Finish("exhausted")

    def _closed(self, segment: Segment) -> Segment:
        """The segment with `</CN>` as its last id, so that the text can go on."""
        ids = (*segment.ids[:-1], self.tags.cn)
        return Segment(ids, "phrase", segment.p, segment.sentence_ends, segment.stop)

    def _commit(self) -> None:
        """Move the floor: text before it is final, for streaming and for the reach of escalation."""
        here, before = self._checkpoint(), 0
        if self.exhausted:
            before = len(self.ids)  # nothing is resampled any more
        elif self.config.commit == "answer":
            return
        elif self.config.commit == "phrase":
            before = self.answer.spans[-1].end if self.answer.spans else 0
        else:
            i = bisect_left(self.answer.sentence_ends, here)
            before = self.answer.sentence_ends[i - 1] if i else 0
        if before > self.floor:
            self.floor = before
            if self._candidates:
                head = self.ids[: self.floor]
                self._candidates = [c for c in self._candidates if c.before.ids[: self.floor] == head]

    # ------------------------------------------------------------------ going back
    def _checkpoint(self) -> int:
        last = self.answer.spans[-1].end if self.answer.spans else 0
        if self.config.sentence_checkpoints and self.answer.sentence_ends:
            last = max(last, self.answer.sentence_ends[-1])
        return last

    def _advance(self, segment: Segment) -> Segment:
        """Take the segment's whole sentences into the answer, as its latest checkpoint; return the rest."""
        opened = segment.ids.index(self.tags.span) if self.tags.span in segment.ids else len(segment.ids)
        ends = [e for e in segment.sentence_ends if e <= opened] if self.config.sentence_checkpoints else []
        if not ends:
            return segment
        self._append(Segment(segment.ids[: ends[-1]], "length", None, tuple(ends)))
        self._commit()
        return Segment(segment.ids[ends[-1] :], segment.end, segment.p, (), segment.stop)

    def _fail(
        self, segment: Segment, kind: Literal["rejected", "unclosed", "malformed"]
    ) -> Continue | Rewind | Finish:
        at, temperature, level = len(self.ids), self.temperature, self.level
        opened = segment.ids.count(self.tags.span)
        phrase: Ids = segment.ids[segment.ids.index(self.tags.span) + 1 : -1] if opened == 1 else ()
        rest = self._advance(segment)
        if opened == 1:  # a phrase that `on_exhausted` could still choose
            self._candidates.append(_Candidate(self.answer.copy(), rest))
        if kind == "rejected" and phrase and phrase not in self.rejected:
            self.rejected.append(phrase)
        self.total += 1
        self.local += 1
        self.temperature = self._raised(self.temperature)
        said, before = at + len(segment.ids), self.discarded
        self.discarded = before + said - len(self.ids)
        self._look_at_budgets()
        action = self._after_failure()
        to = len(self.ids) if isinstance(action, Rewind) else min(at, len(self.ids))
        discarded = said - len(self.ids)  # an escalation and a restored candidate included
        self.discarded = before + discarded
        self.attempts.append(Attempt(kind, phrase, segment.p, at, to, temperature, level, discarded))
        return action

    def _after_failure(self) -> Continue | Rewind | Finish:
        if self.exhausted:
            return self._give_up()
        if self.local >= self.config.local_attempts:
            target = self._escalation()
            if target is None:
                return self._give_up()
            self._stuck_at = max(self._stuck_at, len(self.ids))
            self._target = target
            self.answer.cut(target)
            self.unchanged = min(self.unchanged, target)
            self.level += 1
            self.local = 0
            if self.config.escalation_resets:
                self.temperature = self._raised(self.base_temperature)
        return self._rewind()

    def _look_at_budgets(self) -> None:
        seconds, tokens = self.config.max_seconds, self.config.max_extra_tokens
        used_up = seconds is not None and self._spent >= seconds
        self._out = self._out or used_up or (tokens is not None and self.discarded >= tokens)

    def _rewind(self) -> Rewind:
        return Rewind(len(self.ids), self.temperature, tuple(self.rejected), self.config.candidates)

    def _raised(self, temperature: float) -> float:
        config = self.config
        return min(temperature + config.temperature_step, self.base_temperature + config.temperature_rise)

    def _escalation(self) -> int | None:
        """The next sentence end to go back to, further than the last time, or None where there is none."""
        limit = len(self.ids) if self._target is None else min(len(self.ids), self._target)
        i = bisect_left(self.answer.sentence_ends, limit)
        target = self.answer.sentence_ends[i - 1] if i else 0
        tokens = self.config.max_extra_tokens
        if tokens is not None and self.discarded + len(self.ids) - target > tokens:
            return None
        return target if self.floor <= target < len(self.ids) else None

    def _give_up(self) -> Continue | Rewind | Finish:
        """Stuck, or out of attempts: `on_exhausted` decides for this phrase."""
        if self.config.on_exhausted == "verified_prefix" and not self.exhausted:
            self.local = 0  # the published code tries the same place until N is used up
            return self._rewind()
        self.resolved = False
        if self.config.on_exhausted == "drop":
            return Finish("dropped")
        if self.config.on_exhausted == "verified_prefix":
            return Finish("exhausted")
        if not self._candidates:  # every attempt was malformed beyond mending
            return Finish("malformed")
        longest = max(len(c.before.ids) for c in self._candidates)
        best = min(
            (c for c in self._candidates if len(c.before.ids) == longest),
            key=lambda c: 2.0 if c.segment.p is None else c.segment.p,
        )
        self.answer = best.before.copy()
        self.unchanged = min(self.unchanged, self.floor)
        return self._accept(self._closed(best.segment), accepted=False)
