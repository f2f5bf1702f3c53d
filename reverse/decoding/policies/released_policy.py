"""The algorithm of the published code (its state of January 2026), with its deviations from the paper.

    policy = ReleasedPolicy(ResamplingConfig.released(threshold=0.003), TokenIds(5, 6, 7), 1024, full_stop=13)
    policy.begin()                                                  # Continue(temperature=0.0, ...)
    policy.next(Segment((11, 5, 12, 6), end="phrase", p=0.9))       # Continue: judged when the call ends
    policy.next(Segment((2,), end="eos"))                           # Rewind(to=0, temperatures=(0.05,), ...)

The published code calls `generate()` again and again. A *call* decodes to the end of the text or to
`max_new_tokens`; its text is judged when it ends, and a suspect phrase discards the rest of the call. After
a rejection a *retry* is judged at its first closing tag. The numbers R1 to R9 in this file are those of the
list in `ResamplingConfig.released()`; `benchmarks/fidelity.py` compares both on random scripts.

The caller is responsible for everything outside one answer: the text of hints (the published one has a
false-premise sentence for LLaVA), the second question after a blank answer, and the clean-up of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

__all__ = ["FORMAT_ERROR", "ReleasedPolicy"]

FORMAT_ERROR = "format error"  # the published code hints this text after a call with malformed tags

End = Literal["phrase", "eos", "length", "stop"]


@dataclass(frozen=True, slots=True)
class _Rejection:
    """Why a call is rejected."""

    kind: Literal["rejected", "unclosed", "malformed"]
    phrase: Ids = ()
    p: float | None = None
    kept: int = 0  # ids of the call that stay: up to the closing tag before the phrase


class ReleasedPolicy:
    """Decodes one answer as the published code does.

    It uses these settings: `threshold`, `local_attempts` (K), `max_attempts` (N, calls of `generate()`),
    `temperature_step`, `temperature_rise`, `hints`, `open_ended` and the budgets `max_seconds` and
    `max_extra_tokens`, which the published code does not have.

    Args:
        config: settings, with the threshold filled in.
        tags: ids of the three tokens.
        max_new_tokens: the most ids that one call may decode; an answer may hold N times as many.
        temperature: T0.
        full_stop: id of the token "."; None if the vocabulary has none.
        decode: the text of ids without special tokens. It tells blank text from text, equal phrases from
            others, and which tokens hold a full stop; without it ids are compared.
        format_error: ids of the text `FORMAT_ERROR`; () keeps format errors out of the hints.
        blank_answer: ids that replace a blank answer; () keeps it blank. It belongs to the second question.
        max_answer_tokens: the most ids that the answer may hold in all (the context ends); None: no limit.
    """

    masks_tags = False

    def __init__(
        self,
        config: ResamplingConfig,
        tags: TokenIds,
        max_new_tokens: int,
        temperature: float = 0.0,
        *,
        full_stop: int | None = None,
        decode: Callable[[Sequence[int]], str] | None = None,
        format_error: Ids = (),
        blank_answer: Ids = (),
        max_answer_tokens: int | None = None,
    ):
        for name, limit in (("max_new_tokens", max_new_tokens), ("max_answer_tokens", max_answer_tokens)):
            if limit is not None and limit < 1:
                raise RequestError(f"{name} must be at least 1, got {limit}")
        self.config, self.tags = config, tags
        self.max_new_tokens, self.max_answer_tokens = max_new_tokens, max_answer_tokens
        self.full_stop, self.decode = full_stop, decode
        self.format_error, self.blank_answer = format_error, blank_answer
        self.threshold = check_threshold(config)
        self.base_temperature = self.temperature = temperature
        self.answer = Answer()
        self.calls = 0  # calls of generate() that have ended
        self.verified_length = 0  # ids before it are accepted; after it stands what this call has said
        self.is_retry = False  # the call before this one was rejected
        self.local_failures = 0
        self.level = 0  # how often the answer was cut at a sentence end since a phrase was accepted
        self._tag_ids = frozenset(tags)
        self._closings: list[tuple[int, float]] = []  # of this call: index of the closing tag, its p
        self._hints: list[Ids] = []
        self._hinted: list[str | Ids] = []  # what each hint is compared by
        self.budget = AttemptBudget(config)

    @property
    def is_exhausted(self) -> bool:
        """Whether no further call is made."""
        return self.budget.is_used_up or self.calls >= self.config.max_attempts

    @property
    def remaining(self) -> int:
        """Number of further ids that the current or next call may decode."""
        length, room = len(self.answer.ids), self.max_new_tokens + self.verified_length
        for most in (self.max_answer_tokens, self.answer.max_length):
            room = room if most is None else min(room, most)
        return room - length

    def begin(self) -> Continue:
        return self._go_on()

    def next(self, segment: Segment) -> Action:
        check_segment(segment, len(self.answer.ids), self.remaining, needs_p=True)
        self._append(segment)
        self.budget.discarded += segment.unused
        if segment.end != "phrase":
            return self._end_call(segment, segment.end)
        if segment.stop:
            return self._end_call(segment, "stop")
        if self.is_retry:
            return self._end_call(segment, "phrase")
        return self._go_on() if self.remaining else self._end_call(segment, "length")

    # ------------------------------------------------------------------ one call
    def _append(self, segment: Segment) -> None:
        answer = self.answer
        answer.append(segment.ids)
        if segment.end != "phrase" or segment.p is None:
            return
        last = len(answer.ids) - 1
        self._closings.append((last - self.verified_length, segment.p))
        earlier_tags = (i for i in range(last - 1, -1, -1) if answer.ids[i] in self._tag_ids)
        start = next(earlier_tags, None)
        if start is not None and answer.ids[start] == self.tags.span:
            # A sampled </UN> is accepted if p allows it (R4).
            answer.spans.append(Span(start, last + 1, segment.p, segment.p <= self.threshold))

    def _end_call(self, segment: Segment, end: End) -> Action:
        """Judge the text after the last accepted text."""
        self.calls += 1
        rejection = self._find_format_error() or self._find_suspect()
        self._closings = []
        if rejection is None:
            return self._accept(segment, end)
        self._reject(segment, rejection)
        if self.is_exhausted:
            return self._give_up()
        self._commit()
        return self._rewind()

    def _find_format_error(self) -> _Rejection | None:
        """Return a rejection if tags are malformed: the n-th `<SPAN>` and closing tag are a pair (R7)."""
        ids, tags = self.answer.ids, self.tags
        opened = [i for i, token in enumerate(ids) if token == tags.span]
        closed = [i for i, token in enumerate(ids) if token in tags.closing]
        if not opened:
            return None  # a closing tag alone is not an error
        if any(start > end for start, end in zip(opened, closed, strict=False)) or len(opened) < len(closed):
            return _Rejection("malformed")
        return _Rejection("unclosed") if len(opened) > len(closed) else None  # the length limit too (R6)

    def _find_suspect(self) -> _Rejection | None:
        """Return a rejection of the first suspect phrase of this call, or None.

        The n-th `<SPAN>` and closing tag are a pair, even if the accepted text was cut inside a phrase.
        """
        call = tuple(self.answer.ids[self.verified_length :])
        opened = (i for i, token in enumerate(call) if token == self.tags.span)
        kept = 0
        for start, (end, p) in zip(opened, self._closings, strict=False):
            if p > self.threshold:
                return _Rejection("rejected", call[start + 1 : end], p, kept)
            kept = end + 1
        return None

    # ------------------------------------------------------------------ accepting
    def _accept(self, segment: Segment, end: End) -> Action:
        answer = self.answer
        is_last = end == "stop" or not self.is_retry
        if end == "phrase" and len(answer.ids) in (self.max_answer_tokens, answer.max_length):
            end, is_last = "length", True
        if end != "phrase" and is_last:
            answer.resolved = all(span.accepted for span in answer.spans)
            return self._finish(end, self._cut_untagged(end))
        if end != "phrase":  # the last id is taken for the end of the text, which it mostly is (R8)
            answer.cut(len(answer.ids) - 1)
            self.budget.discarded += 1
        self.is_retry, self.local_failures, self.level = False, 0, 0
        self.temperature = self.base_temperature
        self.verified_length = len(answer.ids)
        self.budget.update(segment.seconds)
        if self.is_exhausted:  # calls are counted, so an acceptance may be the last of them (R2)
            return self._give_up()
        self._commit()
        return self._go_on() if end == "phrase" else self._rewind()

    def _cut_untagged(self, end: End) -> Ids:
        """Cut an answer without phrases before its first `</UN>`; return the answer without its EOS."""
        ids = self.answer.ids
        if self.tags.span not in ids and self.tags.un in ids:
            self.answer.cut(ids.index(self.tags.un))
            return tuple(ids)
        return tuple(ids[:-1]) if end == "eos" else tuple(ids)

    def _go_on(self) -> Continue:
        return Continue(self.temperature, self.calls, self.base_temperature, self.remaining)

    # ------------------------------------------------------------------ rewinding
    def _reject(self, segment: Segment, rejection: _Rejection) -> None:
        """Cut the call before its first suspect phrase; a format error discards the whole call (R3)."""
        answer, at, length = self.answer, self.verified_length, len(self.answer.ids)
        level, temperature = self.level, self.temperature
        self.is_retry = True
        self.local_failures += 1
        rise = self.base_temperature + self.config.temperature_rise
        self.temperature = min(temperature + self.config.temperature_step, rise)
        phrase, kind, p = rejection.phrase, rejection.kind, rejection.p
        if kind == "rejected" or self.format_error:
            ids = phrase if kind == "rejected" else self.format_error
            key = self._lower_text(ids)
            if key not in self._hinted:
                self._add_hint(ids, key)
        if self.local_failures >= self.config.local_attempts:
            self._go_back_a_sentence()
        else:
            answer.cut(at + rejection.kept)
        self.verified_length = len(answer.ids)
        discarded = length - len(answer.ids)
        self.budget.discarded += discarded
        self.budget.update(segment.seconds)
        to = len(answer.ids)
        answer.attempts.append(Attempt(kind, phrase, p, at, to, temperature, level, discarded))

    def _go_back_a_sentence(self) -> None:
        """Cut the accepted text after its last token "." (R9), or to the start, and hint what was cut.

        It is the same "." again if nothing else was accepted since (R1), and the temperature stays raised.
        Where nothing was accepted, the text before the call's first phrase is hinted.
        """
        ids = self.answer.ids
        if self.verified_length == 0:
            to, cut = 0, tuple(ids[: ids.index(self.tags.span)])
            key = self._lower_text(cut)
        else:
            to = self._find_last_full_stop(self.verified_length)
            cut = self._remove_tags(ids[to : self.verified_length])
            key = self._decode_text(cut)
        if key:
            self._add_hint(cut, key)
        self.answer.cut(to)
        self.local_failures = 0
        self.level += 1

    def _add_hint(self, ids: Ids, key: str | Ids) -> None:
        self._hints.append(self._remove_tags(ids))
        self._hinted.append(key)

    def _find_last_full_stop(self, end: int) -> int:
        """Position after the last token "." before `end`, or 0."""
        ids = self.answer.ids
        return next((i + 1 for i in range(end - 1, -1, -1) if ids[i] == self.full_stop), 0)

    def _rewind(self) -> Rewind:
        shown = tuple(self._hints[-self.config.hints :]) if self.config.hints else ()
        to = len(self.answer.ids)
        return Rewind(to, (self.temperature,), self.calls, shown, self.base_temperature, self.remaining)

    # ------------------------------------------------------------------ the end
    def _give_up(self) -> Finish:
        """End with the verified text only; for an open-ended question only with its whole sentences (R5)."""
        answer = self.answer
        answer.resolved = False
        if self.config.open_ended:
            ids = answer.ids
            to = next((i + 1 for i in range(len(ids) - 1, -1, -1) if self._holds_full_stop(ids[i])), 0)
            closes_phrase = to < len(ids) and ids[to] in self.tags.closing
            answer.cut(to + closes_phrase)
        return self._finish("exhausted", tuple(answer.ids))

    def _finish(self, reason: Literal["eos", "length", "stop", "exhausted"], said: Ids) -> Finish:
        answer = self.answer
        if self.blank_answer and self._is_blank(said):
            answer.cut(0)
            answer.append(self.blank_answer)
        self.verified_length = answer.committed_length = len(answer.ids)
        return Finish(reason)

    def _commit(self) -> None:
        """Commit the text up to the last ".", which no rejection can take back."""
        ids = self.answer.ids
        end = self._find_last_full_stop(len(ids))
        if self.tags.span not in ids[:end] and self.tags.un in ids[:end]:
            end = ids.index(self.tags.un)  # an answer without phrases is cut there
        if self.blank_answer and self._is_blank(ids[:end]):
            return
        self.answer.committed_length = max(self.answer.committed_length, end)

    # ------------------------------------------------------------------ text
    def _remove_tags(self, ids: Sequence[int]) -> Ids:
        return tuple(token for token in ids if token not in self._tag_ids)

    def _decode_text(self, ids: Sequence[int]) -> str | Ids:
        return tuple(ids) if self.decode is None else self.decode(ids).strip()

    def _lower_text(self, ids: Ids) -> str | Ids:
        text = self._decode_text(ids)
        return text.lower() if isinstance(text, str) else text

    def _is_blank(self, ids: Sequence[int]) -> bool:
        return not self._decode_text(self._remove_tags(ids))

    def _holds_full_stop(self, token: int) -> bool:
        return token == self.full_stop if self.decode is None else "." in self.decode([token])
