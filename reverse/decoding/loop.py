"""The loop between policies and a backend: segments in, rewinds out, one policy a row, rows come and go.

    loop = Loop(backend, source, decode, verifier)
    while not loop.done:
        for request, result in loop.step():         # those that finished in this step
            ...

The source hands over requests, ready to be prefilled, as rows become free. A backend that runs out of memory
loses nothing but time: every row is put back and fewer go on side by side.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from reverse.decoding.backend import Backend, Draw, OutOfMemory, Prefill, RowFault, Run, does_not_fit
from reverse.decoding.policy import Finish, Policy, Rewind, Segment
from reverse.decoding.rewriting import HintWriter
from reverse.decoding.sentences import sentence_ends, token_pieces
from reverse.decoding.stopping import Stops
from reverse.decoding.trace import Result, build_result
from reverse.decoding.verifier import Verifier

__all__ = ["Loop", "Request", "Source"]

_CONTEXT = 16  # ids before a segment that sentence ends may look back at


@dataclass(slots=True)
class _Round:
    """Segments that are decoded side by side after one text; nearly always there is one."""

    text: list[int] | None  # of the row where they begin; None: its prompt, as it was admitted
    draws: list[Draw]
    prefix: list[int]  # the answer where they begin
    runs: dict[int, Run] = field(default_factory=dict)  # ended and not yet shown to the policy
    next: int = 0  # the candidate that is judged next
    forwards: int = 0


@dataclass(slots=True)
class Request:
    """One row: its prompt's ids, its policy and its seed."""

    prompt: Sequence[int]
    policy: Policy
    seed: int = 0
    hints: HintWriter | None = None  # None: the prompt is never rewritten
    context: int | None = None  # ids that the model can take; the oldest hints give way to it
    name: Any = None  # by which the source knows it
    on_token: Callable[[int, int, float], None] | None = None  # (candidate, id, p): may still be taken back
    on_action: Callable[[Policy, bool], None] | None = (
        None  # (policy, finished): `policy.ids` is the answer now
    )
    on_finish: Callable[[Result], None] | None = None
    stops: Callable[[Sequence[int]], bool] | None = None  # shown the answer so far: does it end here?
    _round: _Round | None = None
    _hinted: tuple[int, Sequence[int]] = (0, ())  # how many rejected phrases the hint is of, and its ids
    _eos: frozenset[int] = frozenset()
    _seconds: list[float] = field(default_factory=list)
    _since: float = 0.0
    _began: float = 0.0
    _generated: int = 0
    _unused: int = 0
    _forwards: int = 0

    def text(self, decode: Callable[[list[int]], str]) -> list[int]:
        """The whole row: prompt, with hints where there are rejected phrases, and answer."""
        prompt = list(self.prompt)
        if self.hints is not None and self.policy.rejected:
            if self._hinted[0] != len(self.policy.rejected):  # phrases are only ever added
                self._hinted = (len(self.policy.rejected), self._hint(self.hints, decode))
            at = self.hints.insert_at(prompt)
            prompt[at:at] = self._hinted[1]
        return prompt + self.policy.ids

    def _hint(self, writer: HintWriter, decode: Callable[[list[int]], str]) -> list[int]:
        """Ids of the hint, as many of the last phrases as the context has room for."""
        phrases = [decode(list(ids)) for ids in self.policy.rejected]
        hint = writer.ids(phrases)
        room = None if self.context is None else self.context - len(self.prompt) - self.policy.max_new_tokens
        while room is not None and hint and len(hint) > room:
            phrases = phrases[-writer.limit :][1:]
            hint = writer.ids(phrases)
        return hint

    def draws(self, temperatures: Sequence[float]) -> list[Draw]:
        """One draw a temperature, numbered as the attempts that they stand for."""
        policy, prefix = self.policy, list(self.policy.ids)
        return [
            Draw(
                policy.room,
                temperature,
                self.seed,
                len(prefix),
                policy.total + i,
                policy.base_temperature,
                self._stops_after(prefix),
                self.on_token,
            )
            for i, temperature in enumerate(temperatures)
        ]

    def _stops_after(self, prefix: list[int]) -> Callable[[Sequence[int]], bool] | None:
        if isinstance(self.stops, Stops):
            return self.stops.after(prefix)
        return None if self.stops is None else partial(_after, self.stops, prefix)

    def tell(self, finished: bool) -> None:
        if self.on_action is not None:
            self.on_action(self.policy, finished)


def _after(stops: Callable[[Sequence[int]], bool], prefix: list[int], run: Sequence[int]) -> bool:
    return stops([*prefix, *run])


class Source(Protocol):
    """Where requests come from. A method that raises OutOfMemory must be ready to be asked again."""

    def look(self, n: int) -> None:
        """Read ahead for the next `take(n)`, if that may take long: the model is not locked meanwhile."""

    def take(self, n: int) -> tuple[list[Request], Prefill] | None:
        """At most `n` new requests; None where there are none, or none for now while others are decoded."""

    def again(self, requests: list[Request]) -> Prefill:
        """The prompts of requests that were admitted before."""


class Loop:
    """Decodes what a source hands over, as many rows side by side as the backend has slots.

    `decode` turns ids into text, tags included. `lock` is held during a step, so that threads with a model
    in common take turns.
    """

    def __init__(
        self,
        backend: Backend,
        source: Source,
        decode: Callable[[list[int]], str],
        verifier: Verifier,
        lock: Any = None,
    ):
        self.backend, self.source, self.decode, self.verifier = backend, source, decode, verifier
        self.lock = lock if lock is not None else threading.RLock()
        self.limit = backend.slots  # rows side by side; halved where memory runs out
        self.rows: dict[int, Request] = {}
        self.done = False
        self.finished: list[tuple[Request, Result]] = []  # and not yet returned by a step
        self.failed: list[tuple[Request, Exception]] = []  # whoever drives the loop clears it
        self._waiting: deque[Request] = deque()  # were admitted before and lost their place

    def step(self) -> list[tuple[Request, Result]]:
        """Admit what fits and decode until segments end; returns the requests that finished.

        A request that cannot go on, or alone does not fit into memory, goes to `failed`. Raises OutOfMemory
        where not even one request could be taken in, and whatever source and backend raise.
        """
        self.source.look(self.limit - len(self.rows))
        with self.lock:
            asked, message, slots = 0, None, self.backend.slots
            try:
                while asked := min(self.backend.free(), self.limit - len(self.rows)):
                    if not self._admit(asked):
                        break
                asked = 0
                self.done = not self.rows
                self._act(self.backend.extend())
            except RowFault as fault:
                self._fail(self.rows.pop(fault.row), fault, fault.row)
            except OutOfMemory as error:
                message = str(error)  # the error itself would keep the tensors of its frames alive
            if message is not None:
                self._halve(len(self.rows) + asked, message, self.backend.slots < slots)
            ready, self.finished = self.finished, []
            return ready

    def close(self) -> None:
        """Let every row go."""
        with self.lock:
            for row in list(self.rows):
                self.backend.finish(row)
            self.rows.clear()
            self._waiting.clear()
            self.done = True
            self.backend.close()

    # ------------------------------------------------------------------ rows come and go
    def _admit(self, n: int) -> bool:
        if self._waiting:
            requests = [self._waiting[i] for i in range(min(n, len(self._waiting)))]
            batch = self.source.again(requests)
        else:
            new = self.source.take(n)
            if new is None:
                return False
            requests, batch = new
            self._waiting.extend(requests)  # until they have a row: admission may fail
            for request in requests:
                request._round = _Round(None, request.draws([request.policy.temperature]), [])
                request._began = request._since = time.perf_counter()
        rows = self.backend.admit(batch)
        for row, request in zip(rows, requests, strict=True):
            self._waiting.popleft()
            self.rows[row] = request
            request._eos = batch.eos
            assert request._round is not None
            self._begin(row, request, request._round)
        return True

    def _begin(self, row: int, request: Request, round: _Round) -> None:
        request._round = round
        if round.text is not None:
            self.backend.rewind(row, round.text)
        if len(round.draws) > 1:
            self.backend.fork(row, round.draws)
        else:
            self.backend.start(row, round.draws[0])

    def _fail(self, request: Request, error: Exception, row: int | None = None) -> None:
        """Give up a request, whose row is not among `rows` any more."""
        self.failed.append((request, error))
        if row is not None:
            self.backend.finish(row)

    def _halve(self, rows: int, message: str, smaller: bool) -> None:
        """Put every row back, to be prefilled with the text it had; half as many go on side by side.

        A single row may try again where the backend has become `smaller`.
        """
        if rows <= 1 and not smaller:
            error = does_not_fit(message)
            if self.rows:
                row, request = self.rows.popitem()
                self._fail(request, error, row)
            elif self._waiting:
                self._fail(self._waiting.popleft(), error)
            else:
                raise error
            return
        self.limit = max(1, rows // 2)
        for row, request in reversed(self.rows.items()):
            self.backend.finish(row)
            held = request._round
            assert held is not None
            # Candidates that were judged stay judged; the rest is drawn again from the same noise.
            request._round = _Round(held.text, held.draws[held.next :], held.prefix)
            request._forwards += held.forwards
            self._waiting.appendleft(request)
            request.tell(False)
        self.rows.clear()

    # ------------------------------------------------------------------ segments
    def _act(self, ended: list[tuple[int, int, Run]]) -> None:
        for row, candidate, run in ended:
            round = self.rows[row]._round
            assert round is not None
            round.runs[candidate] = run
            round.forwards = max(round.forwards, run.forwards)  # candidates share their forwards
        for row in dict.fromkeys(row for row, _, _ in ended):
            self._judge(row, self.rows[row])

    def _judge(self, row: int, request: Request) -> None:
        """Show the policy what ended, in the order of the attempts, and do what it says."""
        policy, round = request.policy, request._round
        assert round is not None
        while (run := round.runs.pop(round.next, None)) is not None:
            attempts = len(policy.attempts)
            now = time.perf_counter()
            segment = self._segment(request, run)
            action = policy.next(segment, spent=now - request._began)
            request._generated += len(run.ids)
            if len(policy.attempts) > attempts:
                request._seconds.append(now - request._since)
            request._since = now
            judged, round.next = round.next, round.next + 1
            if isinstance(action, Rewind) and self._sister_stands_for(policy, round):
                request.tell(False)
                continue
            forked, unused = len(round.draws) > 1, sum(len(r.ids) for r in round.runs.values())
            request._forwards += round.forwards
            request.tell(isinstance(action, Finish))
            if isinstance(action, Finish):
                try:
                    unused += self.backend.adopt(row, judged) if forked else 0
                finally:  # the answer is whole, whatever becomes of the others
                    request._unused += unused
                    policy.discarded += unused
                    self._finish(row, request, action.reason)
                return
            temperatures: Sequence[float] = (policy.temperature,)
            if isinstance(action, Rewind) and action.candidates > 1:
                temperatures = policy.upcoming(action.candidates)
            # From here on the row stands where the policy does: memory may run out in what follows.
            request._round = _Round(request.text(self.decode), request.draws(temperatures), list(policy.ids))
            if forked:
                unused += self.backend.adopt(row, judged)
                request._unused += unused
                policy.discarded += unused  # they count against its budget
            self._begin(row, request, request._round)
            return

    def _sister_stands_for(self, policy: Policy, round: _Round) -> bool:
        """Whether the next candidate is what the policy now asks for: same place, attempt and temperature."""
        if round.next >= len(round.draws):
            return False
        draw = round.draws[round.next]
        wanted = (policy.total, policy.temperature)
        return (draw.attempt, draw.temperature) == wanted and policy.ids == round.prefix

    def _finish(self, row: int, request: Request, reason: str) -> None:
        self.backend.finish(row)
        del self.rows[row]
        result = build_result(
            request.policy,
            self.decode,
            request._eos,
            reason,
            request._seconds,
            request._generated,
            request._forwards,
            time.perf_counter() - request._began,
            request._unused,
        )
        self.finished.append((request, result))
        if request.on_finish is not None:
            request.on_finish(result)

    def _segment(self, request: Request, run: Run) -> Segment:
        policy, decode = request.policy, self.decode
        context = policy.ids[-_CONTEXT:]
        pieces = token_pieces(decode, run.ids, context)
        before = decode([token for token in context if token not in policy.tags])
        ends = sentence_ends(pieces, before, ids=run.ids, tags=policy.tags)
        closed = run.end == "phrase"
        p = self.verifier.of_phrase(run.ids, run.ps) if closed else None
        stop = closed and request.stops is not None and request.stops([*policy.ids, *run.ids])
        return Segment(run.ids, run.end, p, ends, stop)
