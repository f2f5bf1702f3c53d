"""Retrospective resampling: accept a phrase, or rewind and decode it again, until attempts are used up.

    policy = ResamplePolicy(ResamplingConfig(threshold=0.003), TokenIds(5, 6, 7), max_new_tokens=64)
    policy.next(Segment(ids=(11, 5, 12, 7), end="phrase", p=0.9))   # Rewind(to=0, temperatures=(0.1,), ...)

Source: arXiv 2504.13169 §3.3 and Algorithm 1, with these differences: sentence ends are rewind points too,
each escalation goes one sentence further back, and a phrase that stays suspect is kept and marked instead of
cutting the answer (`on_exhausted`).
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
    AttemptBudget,
    Continue,
    Finish,
    Ids,
    Rewind,
    Segment,
    Span,
    check_segment,
    check_threshold,
)
from reverse.errors import RequestError
from reverse.tokens.spans import TokenIds

__all__ = ["ResamplePolicy"]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A rejected phrase that `on_exhausted` may choose, and the answer before it."""

    ids: list[int]
    spans: list[Span]
    sentence_ends: list[int]
    segment: Segment  # from there to the phrase's end


class ResamplePolicy:
    """Retrospective resampling of one answer.

    Args: `config` with a threshold; `tags` the ids of the three tokens; `max_new_tokens` the most ids of the
    answer; `temperature` T0 of the paper; `sentence_rewind_points=False`: rewinds go back to a closing tag or
    the start only, as published.
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
        self.threshold = check_threshold(config)
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
        self._stuck_at = -1  # where K failures happened last
        self._target: int | None = None  # where the last escalation went
        self._candidates: list[_Candidate] = []
        self.budget = AttemptBudget(config)

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing is resampled any more: N attempts were made, or the budget is used up."""
        return self.budget.is_used_up or self.rejections >= self.config.max_attempts

    def begin(self) -> Continue:
        hints = tuple(self.rejected)
        return Continue(self.temperature, self.rejections, self.base_temperature, hints=hints)

    def next_temperatures(self, m: int) -> tuple[float, ...]:
        """Return the temperatures of the next 1 to `m` attempts, if each but the last fails.

        K and N limit their number.
        """
        left = self.config.max_attempts - self.rejections
        count = min(m, self.config.local_attempts - self.local_failures, left)
        temperatures = [self.temperature]
        while len(temperatures) < count:
            temperatures.append(self._raise_temperature(temperatures[-1]))
        return tuple(temperatures)

    def next(self, segment: Segment) -> Action:
        answer = self.answer.ids
        check_segment(segment, len(answer), self.max_new_tokens - len(answer))
        self.budget.discarded += segment.unused
        opened = segment.ids.count(self.tags.span)
        if segment.end == "phrase":
            if opened != 1 or segment.p is None:
                return self._keep(segment) if self.is_exhausted else self._fail(segment, "malformed")
            if self._is_suspect(segment):
                return self._keep(segment) if self.is_exhausted else self._fail(segment, "rejected")
            return self._accept(segment, accepted=True)
        if opened == 0:  # the rest is text without phrases
            self._append(segment)
            return Finish(segment.end)
        if segment.end in ("length", "stop"):
            self._take_sentences(segment)
            return Finish(segment.end)
        return self._keep(segment) if self.is_exhausted else self._fail(segment, "unclosed")

    def _is_suspect(self, segment: Segment) -> bool:
        assert segment.p is not None
        return segment.p > self.threshold or segment.ids[-1] == self.tags.un

    # ------------------------------------------------------------------ accepting
    def _accept(self, segment: Segment, accepted: bool) -> Continue | Finish:
        self._append(segment, accepted)
        length = len(self.answer.ids)
        self.local_failures, self.temperature = 0, self.base_temperature
        if length > self._stuck_at:
            self.level, self._stuck_at, self._target = 0, -1, None
        self._candidates = [c for c in self._candidates if len(c.ids) >= length]
        self.budget.update(segment.seconds)
        self._commit()
        if segment.stop:
            return Finish("stop")
        return self.begin() if length < self.max_new_tokens else Finish("length")

    def _append(self, segment: Segment, accepted: bool | None = None) -> None:
        """Add a segment to the answer; with `accepted`, it ends with a phrase."""
        start = len(self.answer.ids)
        self.sentence_ends.extend(start + end for end in segment.sentence_ends)
        if accepted is None:
            self.answer.append(segment.ids)
        else:
            self.answer.append_phrase(segment.ids, self.tags.span, segment.p, accepted)

    def _keep(self, segment: Segment) -> Continue | Finish:
        """Decide on a suspect phrase after the last attempt."""
        self.answer.resolved = False
        if segment.ids.count(self.tags.span) != 1:
            return Finish("malformed")
        if self.config.on_exhausted == "best":
            return self._accept(self._close_segment(segment), accepted=False)
        self._take_sentences(segment)
        return Finish("dropped")

    def _close_segment(self, segment: Segment) -> Segment:
        """Return the segment with `</CN>` as its last id, so that the answer can go on."""
        ids = (*segment.ids[:-1], self.tags.cn)
        return Segment(ids, "phrase", segment.p, segment.sentence_ends, segment.stop, segment.seconds)

    def _commit(self) -> None:
        """Commit text, which is then streamed and out of reach of escalation."""
        answer, here, before = self.answer, self._find_last_rewind_point(), 0
        if self.is_exhausted:
            before = len(answer.ids)
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

    # ------------------------------------------------------------------ rewinding
    def _find_last_rewind_point(self) -> int:
        last = self.answer.spans[-1].end if self.answer.spans else 0
        if self.sentence_rewind_points and self.sentence_ends:
            last = max(last, self.sentence_ends[-1])
        return last

    def _take_sentences(self, segment: Segment) -> Segment:
        """Add the segment's complete sentences to the answer; return the rest of the segment."""
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
        if opened == 1:
            spans, ends = self.answer.spans[:], self.sentence_ends[:]
            self._candidates.append(_Candidate(ids[:], spans, ends, rest))
        if kind == "rejected" and phrase and phrase not in self.rejected:
            self.rejected.append(phrase)
        self.rejections += 1
        self.local_failures += 1
        self.temperature = self._raise_temperature(self.temperature)
        budget, length = self.budget, at + len(segment.ids)
        before = budget.discarded
        budget.discarded = before + length - len(ids)
        self.budget.update(segment.seconds)
        action = self._decide_after_failure(segment)
        ids = self.answer.ids
        to = len(ids) if isinstance(action, Rewind) else min(at, len(ids))
        discarded = length - len(ids)  # escalation and a restored candidate included
        budget.discarded = before + discarded
        attempt = Attempt(kind, phrase, segment.p, at, to, temperature, level, discarded)
        self.answer.attempts.append(attempt)
        return action

    def _decide_after_failure(self, segment: Segment) -> Continue | Rewind | Finish:
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
            self.temperature = self._raise_temperature(self.base_temperature)
        temperatures = self.next_temperatures(self.config.candidates)
        hints = tuple(self.rejected)
        return Rewind(len(self.answer.ids), temperatures, self.rejections, hints, self.base_temperature)

    def _raise_temperature(self, temperature: float) -> float:
        config = self.config
        return min(temperature + config.temperature_step, self.base_temperature + config.temperature_rise)

    def _find_escalation(self) -> int | None:
        """Return the sentence end before the last escalation's, or None if it cannot be reached."""
        length = len(self.answer.ids)
        limit = length if self._target is None else min(length, self._target)
        i = bisect_left(self.sentence_ends, limit)
        target = self.sentence_ends[i - 1] if i else 0
        tokens = self.config.max_extra_tokens
        if tokens is not None and self.budget.discarded + length - target > tokens:
            return None
        return target if self.answer.committed_length <= target < length else None

    def _give_up(self, segment: Segment) -> Continue | Finish:
        """Let `on_exhausted` decide on a phrase without further attempts."""
        self.answer.resolved = False
        if self.config.on_exhausted == "drop":
            return Finish("dropped")
        if not self._candidates:  # every attempt was malformed
            return Finish("malformed")
        longest = max(len(c.ids) for c in self._candidates)
        best = min(
            (c for c in self._candidates if len(c.ids) == longest),
            key=lambda c: 2.0 if c.segment.p is None else c.segment.p,
        )
        answer = self.answer
        answer.ids, answer.spans, self.sentence_ends = best.ids[:], best.spans[:], best.sentence_ends[:]
        answer.unchanged_length = min(answer.unchanged_length, answer.committed_length)
        return self._accept(self._close_segment(best.segment), accepted=False)
