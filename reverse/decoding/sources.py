"""Where the loop's requests come from: rows that were prepared together, or an iterable read as room appears.

Batch(requests, prefill)                          # the drop-in: model.generate() prepared them
Stream(jobs, prepare, window=32)                  # generate_many(): pictures are opened when a row is free
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from reverse.decoding import _hf
from reverse.decoding.backend import OutOfMemory, Prefill
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


class Stream:
    """Requests from an iterable that may have no end: read, opened and encoded only as rows become free.

    Args: `prepare` turns jobs into requests (in their order, `name` the job) and their Prefill; with a
    `window`, no job is handed over that comes `window` or more after the oldest unfinished one; `patient`
    keeps what goes wrong with a job in `error` and takes none after it, so that those before can be finished.
    """

    def __init__(
        self,
        jobs: Iterator[Job],
        prepare: Callable[[list[Job]], tuple[list[Request], Prefill]],
        window: int | None = None,
        patient: bool = False,
    ):
        self.jobs, self.prepare, self.window, self.patient = jobs, prepare, window, patient
        self.error: Exception | None = None
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
            while self.error is None and len(self._ahead) < n and (job := next(self.jobs, None)) is not None:
                self._ahead.append(job)
        except Exception as error:
            self._failed(error)

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
        except OutOfMemory:
            raise
        except Exception as error:
            if len(jobs) > 1 and self.patient:
                return self.take(1)  # which of them is at fault
            self._ahead.clear()
            self._failed(error)
            return None
        for job in jobs:  # only now: memory may have run out
            self._ahead.popleft()
            self._open.add(job.index)
        return made

    def _failed(self, error: Exception) -> None:
        if not self.patient:
            raise error
        self.error = self.error or error

    def again(self, requests: list[Request]) -> Prefill:
        return self.prepare([request.name for request in requests])[1]
