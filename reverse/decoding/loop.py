"""The loop between policies and a backend: segments in, rewinds out, one policy a row.

outcomes = resample(backend, requests, text)      # list of Result, in the order of the requests
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from reverse.decoding.backend import Backend, Draw, Run
from reverse.decoding.policy import Finish, Policy, Segment
from reverse.decoding.rewriting import HintWriter
from reverse.decoding.sentences import sentence_ends, token_pieces
from reverse.decoding.trace import Result, build_result
from reverse.decoding.verifier import Verifier

__all__ = ["Request", "resample"]

_CONTEXT = 16  # ids before a segment that sentence ends may look back at


@dataclass(slots=True)
class Request:
    """One row: its prompt's ids, its policy and its seed."""

    prompt: Sequence[int]
    policy: Policy
    seed: int = 0
    hints: HintWriter | None = None  # None: the prompt is never rewritten
    context: int | None = None  # ids that the model can take; the oldest hints give way to it
    _seconds: list[float] = field(default_factory=list)
    _since: float = 0.0
    _began: float = 0.0
    _generated: int = 0
    _forwards: int = 0

    def text(self, decode: Callable[[list[int]], str]) -> list[int]:
        """The whole row: prompt, with hints where there are rejected phrases, and answer."""
        prompt = list(self.prompt)
        if self.hints is not None and self.policy.rejected:
            phrases = [decode(list(ids)) for ids in self.policy.rejected]
            hint = self.hints.ids(phrases)
            room = None if self.context is None else self.context - len(prompt) - self.policy.max_new_tokens
            while room is not None and hint and len(hint) > room:
                phrases = phrases[-self.hints.limit :][1:]
                hint = self.hints.ids(phrases)
            at = self.hints.insert_at(prompt)
            prompt[at:at] = hint
        return prompt + self.policy.ids

    def draw(self) -> Draw:
        policy = self.policy
        return Draw(policy.room, policy.temperature, self.seed, len(policy.ids), policy.total)


def resample(
    backend: Backend,
    requests: Sequence[Request],
    decode: Callable[[list[int]], str],
    verifier: Verifier,
    eos: frozenset[int],
) -> list[Result]:
    """Decode every request to its end. `decode` turns ids into text, tags included."""
    results: list[Result | None] = [None] * len(requests)
    now = time.perf_counter()
    for row, request in enumerate(requests):
        request._began = request._since = now
        backend.start(row, request.draw())
    while ended := backend.extend():
        for row, run in ended:
            request = requests[row]
            reason = _take(request, run, decode, verifier)
            if reason is None:
                backend.rewind(row, request.text(decode))
                backend.start(row, request.draw())
            else:
                backend.finish(row)
                results[row] = build_result(
                    request.policy,
                    decode,
                    eos,
                    reason,
                    request._seconds,
                    request._generated,
                    request._forwards,
                    time.perf_counter() - request._began,
                )
    return [r for r in results if r is not None]


def _take(request: Request, run: Run, decode: Callable[[list[int]], str], verifier: Verifier) -> str | None:
    """Show a segment to the row's policy; returns the reason when the answer is finished."""
    policy = request.policy
    attempts = len(policy.attempts)
    action = policy.next(_segment(policy, run, decode, verifier))
    now = time.perf_counter()
    request._generated += len(run.ids)
    request._forwards += run.forwards
    if len(policy.attempts) > attempts:
        request._seconds.append(now - request._since)
    request._since = now
    return action.reason if isinstance(action, Finish) else None


def _segment(policy: Policy, run: Run, decode: Callable[[list[int]], str], verifier: Verifier) -> Segment:
    context = policy.ids[-_CONTEXT:]
    pieces = token_pieces(decode, run.ids, context)
    ends = sentence_ends(pieces, decode(context) if context else "")
    p = verifier.of_phrase(run.ids, run.ps) if run.end == "phrase" else None
    return Segment(run.ids, run.end, p, ends)
