"""Where the loop's requests come from: rows that were prepared together, or an iterable read as room appears.

Batch(requests, prefill)                          # the drop-in: model.generate() prepared them
Stream(jobs, prepare, window=32)                  # generate_many(): pictures are opened when a row is free
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from reverse.decoding import _hf
from reverse.decoding.backend import OutOfMemory, Prefill, does_not_fit
from reverse.decoding.failures import FailedRequest, name_request
from reverse.decoding.loop import Request

__all__ = ["Batch", "Job", "Stream"]


class Batch:
    """Requests whose prompts stand in one Prefill, in its order; where memory is short, they go in parts."""

    def __init__(self, requests: list[Request], prefill: Prefill, image_token: int | None = None):
        self.requests, self.prefill, self.image_token = requests, prefill, image_token
        for place, request in enumerate(requests):
            request.name = place
        self._taken = 0

    def look(self, n: int) -> None:
        """All of them are here."""

    def take(self, n: int) -> tuple[list[Request], Prefill] | None:
        requests = self.requests[self._taken : self._taken + n]
        if not requests:
            return None
        self._taken += len(requests)
        return requests, self.again(requests)

    def again(self, requests: list[Request]) -> Prefill:
        if len(requests) == len(self.requests):
            return self.prefill
        return _hf.rows_of(self.prefill, [request.name for request in requests], self.image_token)


@dataclass(frozen=True, slots=True)
class Job:
    """A question before it is tokenised."""

    index: int
    images: Any
    prompt: Any
    seed: int
    second: bool = False  # asked again, with the false-premise instruction
    request: Any = None  # as the caller gave it


class Stream:
    """Requests from an iterable that may have no end: read, opened and encoded only as rows become free.

    Args: `jobs` yields Job, and FailedRequest for what is none; `prepare` turns jobs into requests (in their
    order, `name` the job) and their Prefill; with a `window`, no job is handed over that comes `window` or
    more after the oldest unfinished one. `on_error` says what becomes of a job that goes wrong: "now" raises;
    "later" keeps the error in `error` and takes no job after it, so that those under way can be finished;
    "yield" adds it to `failures` and goes on, unless it is the model that fails. `several`: errors say which
    of the requests it is.
    """

    def __init__(
        self,
        jobs: Iterator[Job | FailedRequest],
        prepare: Callable[[list[Job]], tuple[list[Request], Prefill]],
        window: int | None = None,
        on_error: Literal["now", "later", "yield"] = "now",
        several: bool = True,
    ):
        self.jobs, self.prepare, self.window, self.on_error = jobs, prepare, window, on_error
        self.error: Exception | None = None
        self.failures: list[FailedRequest] = []  # whoever drives the loop clears it
        self.several = several
        self._ahead: deque[Job] = deque()  # read and not handed over
        self._open: set[int] = set()  # indices handed over and not finished

    def ask_again(self, job: Job) -> None:
        """Put a job before all others."""
        self._ahead.appendleft(job)

    def finished(self, job: Job) -> None:
        self._open.discard(job.index)

    def look(self, n: int) -> None:
        """Read jobs: whoever makes them may take long, or ask the model something in between."""
        try:
            while self.error is None and len(self._ahead) + len(self.failures) < n:
                job = next(self.jobs, None)
                if job is None:
                    break
                if isinstance(job, FailedRequest):
                    self._add_failure(job)
                else:
                    self._ahead.append(job)
        except Exception as error:  # of the caller's iterable, which is at its end now
            if self.on_error == "now":
                raise
            self.error = self.error or error

    def take(self, n: int) -> tuple[list[Request], Prefill] | None:
        if self.window is not None and self._open:
            furthest = min(self._open) + self.window
        else:
            furthest = None
        jobs = [self._ahead[i] for i in range(min(n, len(self._ahead)))]
        jobs = [job for job in jobs if furthest is None or job.index < furthest]
        if not jobs:
            return None
        try:
            made = self.prepare(jobs)
        except OutOfMemory as error:
            if self.on_error == "now" or len(jobs) > 1 or self._open:
                raise  # fewer at once may fit
            self._ahead.popleft()
            self.fail(jobs[0], does_not_fit(str(error)))
            return self.take(n)
        except Exception as error:
            if len(jobs) > 1:
                return self.take(len(jobs) // 2)  # which of them is at fault
            self._ahead.popleft()
            self.fail(jobs[0], error)
            return self.take(n)
        for job in jobs:  # only now: memory may have run out
            self._ahead.popleft()
            self._open.add(job.index)
        return made

    def fail(self, job: Job, error: Exception) -> None:
        """Give up a job that was handed over, or was about to be."""
        self._open.discard(job.index)
        self._add_failure(FailedRequest(job.index, job.request, error))

    def _add_failure(self, failure: FailedRequest) -> None:
        error = failure.error
        if isinstance(error, OutOfMemory):
            error = torch.OutOfMemoryError(str(error))
        if self.several:
            error = name_request(error, failure.index)
        if self.on_error == "now":
            raise error
        # Whatever a forward pass raises is likely to be raised by the next one, too.
        if self.on_error == "yield" and (
            isinstance(error, torch.OutOfMemoryError) or not isinstance(error, RuntimeError)
        ):
            self.failures.append(replace(failure, error=error))
            return
        before = [job for job in self._ahead if job.index < failure.index]  # as much under way as any
        self._ahead = deque(before)
        self.error = self.error or error

    def again(self, requests: list[Request]) -> Prefill:
        return self.prepare([request.name for request in requests])[1]
