"""A branch is one answer while it is decoded: its policy and the segments under way.

It works on ids only; the scheduler calls the backend. The policy holds all that must survive when memory runs
out or a thread is interrupted. Everything else is computed again from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

from reverse.decoding.asks import Node
from reverse.decoding.backends.protocol import SegmentOutput, SegmentParams
from reverse.decoding.events import EventEmitter
from reverse.decoding.policies.policy import Action, Continue, Finish, Policy, Rewind, Segment
from reverse.decoding.result import Result, Usage, build_result
from reverse.decoding.text.hints import HintWriter
from reverse.decoding.text.incremental_detokenizer import split_into_pieces
from reverse.decoding.text.sentence_ends import find_sentence_ends
from reverse.decoding.text.stopping import Stops
from reverse.decoding.verifier import Verifier
from reverse.tokens.spans import TokenIds

if TYPE_CHECKING:
    import torch

__all__ = ["AnswerRules", "Branch", "Decision"]

_CONTEXT = 16  # ids before a segment that sentence ends are found with
_Process = Callable[[Sequence[int], "torch.Tensor"], "torch.Tensor"]  # (answer so far, scores) -> scores


@dataclass(frozen=True, slots=True)
class AnswerRules:
    """Settings of decoding that all answers behind a prompt share."""

    decode: Callable[[list[int]], str]  # tags included
    tags: TokenIds
    verifier: Verifier
    max_new_tokens: int
    eos: frozenset[int] = frozenset()
    seed: int = 0
    top_k: int = 0
    top_p: float = 1.0
    hints: HintWriter | None = None  # None: hints are never written
    context: int | None = None  # context length of the model; the oldest hints are left out to keep to it
    process: _Process | None = None  # the caller's logits processors
    placeholder: int | None = None  # the id that stands for a picture's features
    processor_names: str = ""  # their classes, for errors


@dataclass(slots=True)
class _Round:
    """Segments that are decoded side by side after the same text: one, or the candidates of a rewind."""

    text: list[int]  # ids before the segments: prompt, hints and answer
    length: int  # of the answer before the segments
    params: list[SegmentParams]
    sequences: list[int] = field(default_factory=list)  # of the first segments, as many as were started
    ended: dict[int, SegmentOutput] = field(default_factory=dict)  # by index; not yet given to the policy
    failed: dict[int, Exception] = field(default_factory=dict)  # by index; errors of segments
    is_begun: bool = False
    counts: list[int] = field(default_factory=list)  # tokens of each segment
    next: int = 0  # index of the segment that is judged next
    forwards: int = 0

    def rest(self) -> _Round:
        """Return a round of the segments that were not judged, with the same noise."""
        left = self.params[self.next :]
        return _Round(self.text, self.length, left, counts=[0] * len(left))


@dataclass(frozen=True, slots=True)
class Decision:
    """The next action of a branch, the sequence that it was decided on, and the sequences to release."""

    action: Action
    sequence: int
    others: tuple[int, ...]


class Branch:
    """One answer that is decoded as the continuation of a node.

    Args: `order` (number of the request, then of the ask): the lowest goes first; `path` of the noise;
    `until` as of `Generate`; `stops` end the answer; `emitter` emits its events; `keeps_cache`: the sequence
    is kept for turns that continue the answer.
    """

    def __init__(
        self,
        node: Node,
        policy: Policy,
        rules: AnswerRules,
        *,
        order: tuple[int, ...] = (),
        path: tuple[int, ...] = (),
        until: Literal["end", "sentence"] = "end",
        stops: Stops | None = None,
        emitter: EventEmitter | None = None,
        keeps_cache: bool = False,
    ):
        self.node, self.policy, self.rules, self.order, self.path = node, policy, rules, order, path
        self.until, self.stops, self.emitter, self.keeps_cache = until, stops, emitter, keeps_cache
        self.result: Result | None = None
        self.error: BaseException | None = None
        self._hints: tuple[tuple[int, ...], ...] = ()
        self._hint_ids: Sequence[int] = ()
        self._sentence_ended = False  # the segment ends one token after a sentence
        self.began = self._since = 0.0
        self._seconds: list[float] = []  # of each attempt
        self._generated = self._unused = self._forwards = 0
        self._unused_since = 0  # those of the last round, for the policy
        if rules.context is not None:
            policy.answer.max_length = rules.context - len(node.ids)
        self.round = self._plan(policy.begin())

    # ------------------------------------------------------------------ the next round
    def _plan(self, action: Continue | Rewind) -> _Round:
        rules, length = self.rules, len(self.policy.answer.ids)
        if action.hints is not None and action.hints != self._hints:
            self._hints = action.hints
            self._hint_ids = self._write_hints(action.hints)
        at = self.node.hint_at
        prompt = list(self.node.ids)
        if self._hint_ids and at is not None:
            prompt[at:at] = self._hint_ids
        text = prompt + self.policy.answer.ids
        most = rules.max_new_tokens - length if action.max_tokens is None else action.max_tokens
        if rules.context is not None:
            most = min(most, max(1, rules.context - len(text)))
        temperatures = action.temperatures if isinstance(action, Rewind) else (action.temperature,)
        params = [
            self._make_params(action, most, length, i, temperature)
            for i, temperature in enumerate(temperatures)
        ]
        return _Round(text, length, params, counts=[0] * len(params))

    def _make_params(
        self, action: Continue | Rewind, most: int, length: int, i: int, temperature: float
    ) -> SegmentParams:
        rules = self.rules
        prefix = self.policy.answer.ids[:]
        return SegmentParams(
            max_tokens=most,
            tags=rules.tags,
            eos=rules.eos,
            temperature=temperature,
            temperature_after_accept=action.temperature_after_accept,
            top_k=rules.top_k,
            top_p=rules.top_p,
            score=rules.verifier.score,
            masks_tags=self.policy.masks_tags,
            merges_closing_tags=getattr(self.policy, "merges_closing_tags", False),
            seed=rules.seed,
            path=self.path,
            position=length,
            attempt=action.attempt + i,
            should_stop=self._make_stop_rule(prefix),
            process=None if rules.process is None else partial(_process_after, rules.process, prefix),
        )

    def _make_stop_rule(self, prefix: list[int]) -> Callable[[Sequence[int]], bool] | None:
        stops = self.stops.after(prefix) if self.stops is not None else None
        if self.until != "sentence":
            return stops
        self._sentence_ended = False

        def should_stop(segment: Sequence[int]) -> bool:
            if stops is not None and stops(segment):  # a stop string has priority
                return True
            self._sentence_ended = self._ends_sentence(prefix, segment)
            return self._sentence_ended

        return should_stop

    def _ends_sentence(self, prefix: list[int], segment: Sequence[int]) -> bool:
        """Return whether a sentence ends just before the last token, outside a phrase."""
        if self.rules.tags.span in segment:  # a closing tag would have ended the segment
            return False
        return len(segment) - 1 in self._find_sentence_ends(prefix, tuple(segment))

    def _find_sentence_ends(self, prefix: list[int], ids: tuple[int, ...]) -> tuple[int, ...]:
        decode, tags = self.rules.decode, self.rules.tags
        context = prefix[-_CONTEXT:]
        pieces = split_into_pieces(decode, ids, context)
        before = decode([token for token in context if token not in tags])
        return find_sentence_ends(pieces, before, ids=ids, tags=tags)

    def _write_hints(self, hints: Sequence[Sequence[int]]) -> Sequence[int]:
        """Return the ids of a hint with as many of the last phrases as the context has room for."""
        writer, rules = self.rules.hints, self.rules
        if writer is None:
            return ()
        phrases = [rules.decode(list(ids)) for ids in hints]
        hint = writer.ids(phrases)
        if rules.context is None:
            return hint
        room = rules.context - len(self.node.ids) - rules.max_new_tokens
        while hint and len(hint) > room:
            phrases = phrases[-writer.limit :][1:]
            hint = writer.ids(phrases)
        return hint

    # ------------------------------------------------------------------ results of a round
    def begin(self) -> None:
        """Start the clock when the first segment is about to be decoded."""
        if not self.began:
            self.began = self._since = time.perf_counter()

    def take_token(self, i: int, token: int, p: float, segment: SegmentOutput | None) -> None:
        """Take in a token of the i-th segment of the round."""
        self.round.counts[i] += 1
        if segment is not None:
            self.round.ended[i] = segment
            self.round.forwards = max(self.round.forwards, segment.forwards)  # they are shared
        if self.emitter is not None:
            self.emitter.token(i, token, p)

    def judge(self) -> Decision | None:
        """Give ended segments to the policy in the order of attempts; None while it waits for the next.

        Raises the error of a segment that could not be decoded when it is that segment's turn.
        """
        policy, round = self.policy, self.round
        while (output := round.ended.pop(round.next, None)) is not None:
            attempts = len(policy.answer.attempts)
            now = time.perf_counter()
            prefix = policy.answer.ids[:] if len(round.params) > 1 else []
            action = policy.next(self._make_segment(output, now - self.began))
            self._unused_since = 0
            self._generated += len(output.ids)
            if len(policy.answer.attempts) > attempts:
                self._seconds.append(now - self._since)
            self._since = now
            judged, round.next = round.next, round.next + 1
            matches = isinstance(action, Rewind) and self._next_candidate_matches(action, prefix)
            if matches and round.next < len(round.sequences):
                self._report(False)
                continue
            self._forwards += round.forwards
            unused = sum(round.counts[round.next :])
            self._unused += unused
            self._unused_since = unused
            self._report(isinstance(action, Finish))
            others = tuple(sequence for i, sequence in enumerate(round.sequences) if i != judged)
            decision = Decision(action, round.sequences[judged], others)
            if isinstance(action, Finish):
                self._finish(action.reason)
            elif matches:  # no room for the rest, which must not change the answer
                self.round = round.rest()
            else:
                self.round = self._plan(action)
            return decision
        if round.next in round.failed:
            raise round.failed[round.next]
        return None

    @property
    def is_under_way(self) -> bool:
        """Whether the backend decodes the next segment, which has not ended."""
        return self.round.is_begun and self.round.next not in self.round.ended

    def _next_candidate_matches(self, action: Rewind, prefix: list[int]) -> bool:
        """Return whether the next segment has the place, attempt and temperature that the policy asks for."""
        round = self.round
        if round.next >= len(round.params) or action.to != round.length:
            return False
        params = round.params[round.next]
        asked = (action.attempt, action.temperatures[0])
        return (params.attempt, params.temperature) == asked and self.policy.answer.ids == prefix

    def _make_segment(self, output: SegmentOutput, seconds: float) -> Segment:
        answer = self.policy.answer.ids
        ids, ps, closed = output.ids, output.ps, output.end == "phrase"
        if output.end == "stop" and self._sentence_ended:
            ids, ps = ids[:-1], ps[:-1]  # the look-ahead token is sampled again with its own key
        ends = self._find_sentence_ends(answer, output.ids)
        ends = tuple(end for end in ends if end <= len(ids))
        p = self.rules.verifier.read_phrase(ids, ps) if closed else None
        stop = closed and self.stops is not None and self.stops([*answer, *ids])
        return Segment(ids, output.end, p, ends, stop, seconds, self._unused_since)

    def restart(self) -> None:
        """Decode the rest of the round again with the same noise, because its sequences are lost."""
        round = self.round
        self._forwards += round.forwards
        self.round = round.rest()
        self._report(False)

    def _report(self, finished: bool) -> None:
        if self.emitter is not None:
            self.emitter.action(self.policy.answer, finished)

    # ------------------------------------------------------------------ the end
    def _finish(self, reason: str) -> None:
        answer, rules, kept = self.policy.answer, self.rules, len(self.policy.answer.ids)
        seconds, discarded = time.perf_counter() - self.began, self._generated + self._unused - kept
        usage = Usage(kept, discarded, self._forwards, seconds, self._unused)
        self.result = build_result(
            answer, reason, usage, self._seconds, decode=rules.decode, tags=rules.tags, eos=rules.eos
        )
        if self.emitter is not None:
            self.emitter.finish(self.result)

    def make_answer_node(self) -> Node:
        """Return the node after the answer, without a final EOS."""
        ids = self.policy.answer.ids
        if ids and ids[-1] in self.rules.eos:
            ids = ids[:-1]
        assert self.result is not None
        return self.node.add_answer(ids, self.result)


def _process_after(
    process: _Process, prefix: list[int], segment: Sequence[int], scores: torch.Tensor
) -> torch.Tensor:
    return process([*prefix, *segment], scores)
