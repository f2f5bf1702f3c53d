"""Retrospective resampling: when to accept a phrase, when to go back, how far, and when to give up.

    policy = ResamplePolicy(ResamplingConfig(threshold=0.003), TokenIds(5, 6, 7), max_new_tokens=64)
    policy.next(Segment(ids=(11, 5, 12, 7), end="phrase", p=0.9))   # Rewind(to=0, temperatures=(0.1,), ...)

Source: arXiv 2504.13169 §3.3 and Algorithm 1, with these differences: sentence ends are rewind points too,
escalation moves one sentence further each time instead of once, and a phrase that cannot be mended is
kept and marked instead of cutting the answer (`on_exhausted`).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal

from reverse.decoding.config import ResamplingConfig
from reverse.decoding.policies.policy import (
    Action,
    Answer,
    Attempt,
    Continue,
    Finish,
    Ids,
    Rewind,
    Segment,
    Span,
)
from reverse.errors import RequestError
from reverse.tokens.spans import TokenIds

__all__ = ["ResamplePolicy"]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A rejected phrase that `on_exhausted` may still choose, and the answer before it."""

    ids: list[int]
    spans: list[Span]
    sentence_ends: list[int]
    segment: Segment  # from there to the phrase's end


class ResamplePolicy:
    """Retrospective resampling of one answer.

    Args: `config` with its threshold filled in; `tags` the ids of the three tokens; `max_new_tokens` the most
    ids that the answer may hold; `temperature` T0 of the paper; `sentence_rewind_points=False`: a rewind
    stops after `</CN>` or at the start only, as published.
    """

    masks_tags = True

    def __init__(
        self,
        config: ResamplingConfig,
        tags: TokenIds,
        max_new_tokens: int,
        temperature: float = 0.0,
        sentence_rewind_points: bool = True,
    ):
        if config.threshold is None:
            raise RequestError(
                "the policy needs a threshold: pass ResamplingConfig(threshold=...), try 0.003"
            )
        if max_new_tokens < 1:
            raise RequestError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        self.config, self.tags, self.max_new_tokens = config, tags, max_new_tokens
        self.sentence_rewind_points = sentence_rewind_points
        self.base_temperature = self.temperature = temperature
        self.answer = Answer()
        self.sentence_ends: list[int] = []  # positions in the answer
        self.rejected: list[Ids] = []  # R of the paper: ordered, no repeats
        self.local_failures = 0  # k
        self.rejections = 0  # n
        self.level = 0  # ℓ
        self.discarded = 0  # ids taken back so far, of unused candidates too
        self._stuck_at = -1  # where K failures happened last
        self._target: int | None = None  # where the last escalation went
        self._candidates: list[_Candidate] = []
        self._out_of_budget = config.max_seconds == 0 or config.max_extra_tokens == 0  # for good

    @property
    def is_exhausted(self) -> bool:
        """Nothing is resampled any more: N attempts were made, or a budget is used up."""
        return self._out_of_budget or self.rejections >= self.config.max_attempts

    def begin(self) -> Continue:
        hints = tuple(self.rejected)
        return Continue(self.temperature, self.rejections, self.base_temperature, hints=hints)

    def next_temperatures(self, m: int) -> tuple[float, ...]:
        """Temperatures of the next attempts, at most `m`, if each but the last fails: at least one.

        They stop where the policy would do something else than try this place again (K, N).
        """
        left = self.config.max_attempts - self.rejections
        count = min(m, self.config.local_attempts - self.local_failures, left)
        temperatures = [self.temperature]
        while len(temperatures) < count:
            temperatures.append(self._raised(temperatures[-1]))
        return tuple(temperatures)

    # ------------------------------------------------------------------ the table
    def next(self, segment: Segment) -> Action:
        self._check(segment)
        self.discarded += segment.unused
        opened = segment.ids.count(self.tags.span)
        if segment.end == "phrase":
            if opened != 1 or segment.p is None:
                return self._keep(segment) if self.is_exhausted else self._fail(segment, "malformed")
            if self._is_suspect(segment):
                return self._keep(segment) if self.is_exhausted else self._fail(segment, "rejected")
            return self._accept(segment, accepted=True)
        if opened == 0:  # outside a phrase: what remains is plain text
            self._append(segment)
            return Finish(segment.end)
        if segment.end in ("length", "stop"):
            self._take_sentences(segment)
            return Finish(segment.end)
        return self._keep(segment) if self.is_exhausted else self._fail(segment, "unclosed")

    def _check(self, segment: Segment) -> None:
        ids, p, room = self.answer.ids, segment.p, self.max_new_tokens - len(self.answer.ids)
        if p is not None and not 0.0 <= p <= 1.0:
            raise RequestError(
                f"p(</UN>) is {p} at answer position {len(ids) + len(segment.ids) - 1}: the model's "
                "logits are not finite; check the weights and try dtype=float32"
            )
        if not segment.ids or len(segment.ids) > room:
            raise RequestError(f"a segment holds 1 to {room} ids here, got {len(segment.ids)}")

    def _is_suspect(self, segment: Segment) -> bool:
        assert self.config.threshold is not None and segment.p is not None
        return segment.p > self.config.threshold or segment.ids[-1] == self.tags.un

    # ------------------------------------------------------------------ accepting
    def _accept(self, segment: Segment, accepted: bool) -> Continue | Finish:
        self._append(segment, accepted)
        length = len(self.answer.ids)
        self.local_failures, self.temperature = 0, self.base_temperature
        if length > self._stuck_at:
            self.level, self._stuck_at, self._target = 0, -1, None
        self._candidates = [c for c in self._candidates if len(c.ids) >= length]
        self._check_budgets(segment.seconds)
        self._commit()
        if segment.stop:
            return Finish("stop")
        return self.begin() if length < self.max_new_tokens else Finish("length")

    def _append(self, segment: Segment, accepted: bool | None = None) -> None:
        """Grow the answer; with `accepted` given, the segment's end closes a phrase."""
        start = len(self.answer.ids)
        self.sentence_ends.extend(start + end for end in segment.sentence_ends)
        if accepted is None:
            self.answer.append(segment.ids)
        else:
            self.answer.append_phrase(segment.ids, self.tags.span, segment.p, accepted)

    def _keep(self, segment: Segment) -> Continue | Finish:
        """A suspect phrase after the last attempt was used up."""
        self.answer.resolved = False
        if segment.ids.count(self.tags.span) != 1:
            return Finish("malformed")
        if self.config.on_exhausted == "best":
            return self._accept(self._closed(segment), accepted=False)
        self._take_sentences(segment)
        return Finish("dropped")

    def _closed(self, segment: Segment) -> Segment:
        """The segment with `</CN>` as its last id, so that the text can go on."""
        ids = (*segment.ids[:-1], self.tags.cn)
        return Segment(ids, "phrase", segment.p, segment.sentence_ends, segment.stop, segment.seconds)

    def _commit(self) -> None:
        """Make text final, for streaming and for the reach of escalation."""
        answer, here, before = self.answer, self._last_rewind_point(), 0
        if self.is_exhausted:
            before = len(answer.ids)  # nothing is resampled any more
        elif self.config.commit == "answer":
            return
        elif self.config.commit == "phrase":
            before = answer.spans[-1].end if answer.spans else 0
        else:
            i = bisect_left(self.sentence_ends, here)
            before = self.sentence_ends[i - 1] if i else 0
        if before > answer.committed_length:
            answer.committed_length = before
            if self._candidates:
                head = answer.ids[:before]
                self._candidates = [c for c in self._candidates if c.ids[:before] == head]

    # ------------------------------------------------------------------ going back
    def _last_rewind_point(self) -> int:
        last = self.answer.spans[-1].end if self.answer.spans else 0
        if self.sentence_rewind_points and self.sentence_ends:
            last = max(last, self.sentence_ends[-1])
        return last

    def _take_sentences(self, segment: Segment) -> Segment:
        """Take the segment's whole sentences into the answer, as its latest rewind point; return the rest."""
        opened = segment.ids.index(self.tags.span) if self.tags.span in segment.ids else len(segment.ids)
        ends = [e for e in segment.sentence_ends if e <= opened] if self.sentence_rewind_points else []
        if not ends:
            return segment
        self._append(Segment(segment.ids[: ends[-1]], "length", None, tuple(ends)))
        self._commit()
        rest = segment.ids[ends[-1] :]
        return Segment(rest, segment.end, segment.p, (), segment.stop, segment.seconds)

    def _fail(
        self, segment: Segment, kind: Literal["rejected", "unclosed", "malformed"]
    ) -> Continue | Rewind | Finish:
        ids, temperature, level = self.answer.ids, self.temperature, self.level
        at, opened = len(ids), segment.ids.count(self.tags.span)
        phrase: Ids = segment.ids[segment.ids.index(self.tags.span) + 1 : -1] if opened == 1 else ()
        rest = self._take_sentences(segment)
        if opened == 1:  # a phrase that `on_exhausted` could still choose
            spans, ends = self.answer.spans[:], self.sentence_ends[:]
            self._candidates.append(_Candidate(ids[:], spans, ends, rest))
        if kind == "rejected" and phrase and phrase not in self.rejected:
            self.rejected.append(phrase)
        self.rejections += 1
        self.local_failures += 1
        self.temperature = self._raised(self.temperature)
        length, before = at + len(segment.ids), self.discarded
        self.discarded = before + length - len(ids)
        self._check_budgets(segment.seconds)
        action = self._after_failure(segment)
        ids = self.answer.ids
        to = len(ids) if isinstance(action, Rewind) else min(at, len(ids))
        discarded = length - len(ids)  # an escalation and a restored candidate included
        self.discarded = before + discarded
        attempt = Attempt(kind, phrase, segment.p, at, to, temperature, level, discarded)
        self.answer.attempts.append(attempt)
        return action

    def _after_failure(self, segment: Segment) -> Continue | Rewind | Finish:
        if self.is_exhausted:
            return self._give_up(segment)
        if self.local_failures >= self.config.local_attempts:
            target = self._find_escalation()
            if target is None:
                return self._give_up(segment)
            self._stuck_at = max(self._stuck_at, len(self.answer.ids))
            self._target = target
            self.answer.cut(target)
            self.sentence_ends = [end for end in self.sentence_ends if end <= target]
            self.level += 1
            self.local_failures = 0
            self.temperature = self._raised(self.base_temperature)
        temperatures = self.next_temperatures(self.config.candidates)
        hints = tuple(self.rejected)
        return Rewind(len(self.answer.ids), temperatures, self.rejections, hints, self.base_temperature)

    def _check_budgets(self, seconds: float) -> None:
        most, tokens = self.config.max_seconds, self.config.max_extra_tokens
        is_late = most is not None and seconds >= most
        too_many = tokens is not None and self.discarded >= tokens
        self._out_of_budget = self._out_of_budget or is_late or too_many

    def _raised(self, temperature: float) -> float:
        config = self.config
        return min(temperature + config.temperature_step, self.base_temperature + config.temperature_rise)

    def _find_escalation(self) -> int | None:
        """The next sentence end to go back to, further than the last time, or None where there is none."""
        length = len(self.answer.ids)
        limit = length if self._target is None else min(length, self._target)
        i = bisect_left(self.sentence_ends, limit)
        target = self.sentence_ends[i - 1] if i else 0
        tokens = self.config.max_extra_tokens
        if tokens is not None and self.discarded + length - target > tokens:
            return None
        return target if self.answer.committed_length <= target < length else None

    def _give_up(self, segment: Segment) -> Continue | Finish:
        """Stuck, or out of attempts: `on_exhausted` decides for this phrase."""
        self.answer.resolved = False
        if self.config.on_exhausted == "drop":
            return Finish("dropped")
        if not self._candidates:  # every attempt was malformed beyond mending
            return Finish("malformed")
        longest = max(len(c.ids) for c in self._candidates)
        best = min(
            (c for c in self._candidates if len(c.ids) == longest),
            key=lambda c: 2.0 if c.segment.p is None else c.segment.p,
        )
        answer = self.answer
        answer.ids, answer.spans, self.sentence_ends = best.ids[:], best.spans[:], best.sentence_ends[:]
        answer.unchanged_length = min(answer.unchanged_length, answer.committed_length)
        return self._accept(self._closed(best.segment), accepted=False)
