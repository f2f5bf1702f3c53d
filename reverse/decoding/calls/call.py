"""One call of `generate()` or `generate_many()`: it submits requests to the engine and yields their results.

call = Call(engine, branches=8, candidates=1)
for index, result in call.answer(jobs): ...
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from reverse.decoding.asks import Node
from reverse.decoding.backends.protocol import OutOfMemory
from reverse.decoding.calls.failures import FailedRequest, add_results, name_request
from reverse.decoding.calls.handles import Ended, FinalText, Handle, Mailbox
from reverse.decoding.calls.sinks import Sink, propagate_errors_to
from reverse.decoding.engine import Engine
from reverse.decoding.events import Event
from reverse.decoding.preparing.preparing import CallerOptions
from reverse.decoding.request import Request
from reverse.decoding.result import Result
from reverse.decoding.scheduling.worker import ModelWorker

__all__ = ["Call", "Interrupted", "Job"]

OnError = Literal["now", "later", "yield"]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while answers were made.

    `results` maps indices of requests to the results that were finished and not handed out yet.
    """

    def __init__(self, results: dict[int, Result]):
        super().__init__(f"interrupted with {len(results)} answers finished: they are in .results")
        self.results = results


@dataclass(frozen=True, slots=True)
class Job:
    """The request number `index` of a call, and what the caller gave for it."""

    index: int
    request: Request
    given: Any = None
    source: Node | None = None  # with `options`, replaces the conversation of the request
    options: CallerOptions | None = None


class Call:
    """The requests of one call.

    Args: `branches` answers are decoded side by side, each with `candidates`; `sinks` one per request, or
    none; `events` is called with every event; `names_requests`: errors name the index of their request.
    """

    def __init__(
        self,
        engine: Engine,
        branches: int,
        candidates: int = 1,
        *,
        sinks: Sequence[Sink] = (),
        events: Callable[[Event], None] | None = None,
        names_requests: bool = True,
    ):
        self.engine, self.branches, self.sinks, self.events = engine, branches, sinks, events
        self.names_requests = names_requests
        self.mailbox = engine.open_mailbox(branches, branches * candidates)
        # An interrupt may come before or in `close`.
        weakref.finalize(self, _abandon, self.mailbox, engine.worker)
        self._jobs: Iterator[Job | FailedRequest] | None = None  # None: all jobs were read
        self._open: dict[Handle, Job] = {}  # submitted, not ended
        self._ready: deque[tuple[int, Result | FailedRequest]] = deque()  # ended, not handed out
        self._read = 0  # number of jobs that were read
        self._begun: set[int] = set()  # indices of sinks
        self._on_error: OnError = "now"
        self._error: Exception | None = None

    def _submit(self, job: Job) -> Handle:
        sink = self.sinks[job.index] if self.sinks else None
        return self.engine.submit_to(
            self.mailbox,
            job.request,
            row=job.index,
            events=self.events is not None,
            text=sink is not None,
            has_left=None if sink is None else lambda: sink.closed,
            source=job.source,
            options=job.options,
        )

    def answer(
        self, jobs: Iterator[Job | FailedRequest], window: int | None = None, on_error: OnError = "now"
    ) -> Generator[tuple[int, Result | FailedRequest], None, None]:
        """Answer jobs and yield (index, Result) as they finish.

        With a `window`, only jobs less than `window` after the oldest unfinished one are begun. `on_error`:
        "now" raises the error of a job at once; "later" cancels the jobs after it and raises when those
        before it are finished; "yield" yields a FailedRequest and continues, unless the model itself fails.
        The error that is raised holds finished results in `results`, by index.
        """
        self._jobs, self._on_error, self._error = jobs, on_error, None
        ready = self._ready
        try:
            with propagate_errors_to(self.sinks):
                self._begin_jobs(window)  # before the engine starts, so that they are prefilled together
                while True:
                    with self.mailbox.waiting(self.engine.worker):
                        while not ready:
                            self._begin_jobs(window)
                            if ready or not self._open:
                                break
                            self._receive()
                    if not ready:
                        break
                    while ready:
                        yield ready.popleft()
                if self._error is not None:
                    raise self._error
        except KeyboardInterrupt:
            self.close()
            raise Interrupted(self._collect_finished()) from None
        except Exception as error:
            add_results(error, self._collect_finished())
            raise
        finally:
            self.close()

    def close(self) -> None:
        """Cancel unfinished requests and wait until their memory is free."""
        self.mailbox.give_up(list(self._open), self.engine.worker)
        self.engine.worker.notify()  # an interrupt may have left a request that is in no list

    def _collect_finished(self) -> dict[int, Result]:
        """Return the results that were not handed out."""
        found = {job.index: handle for handle, job in self._open.items() if handle.is_done}
        results = {i: handle.peek_result() for i, handle in found.items() if handle.has_result}
        return results | {i: result for i, result in self._ready if isinstance(result, Result)}

    # ------------------------------------------------------------------ submitting
    def _begin_jobs(self, window: int | None) -> None:
        """Submit jobs ahead, so that the next ones are ready when an answer is finished."""
        while self._jobs is not None and len(self._open) + len(self._ready) < 2 * self.branches:
            oldest = min((job.index for job in self._open.values()), default=self._read)
            if window is not None and self._read >= oldest + window:
                return
            try:
                job = next(self._jobs, None)
            except Exception as error:  # raised by the caller's iterable, which ends with it
                if self._on_error == "now":
                    raise
                self._error, self._jobs = self._error or error, None
                return
            if job is None:
                self._jobs = None
                return
            self._read += 1
            if isinstance(job, FailedRequest):
                self._add_failure(job)
                continue
            try:
                self._open[self._submit(job)] = job
            except (TypeError, ValueError) as error:
                self._add_failure(FailedRequest(job.index, job.given, error))

    # ------------------------------------------------------------------ receiving
    def _receive(self) -> None:
        """Wait for one item of the mailbox and handle it."""
        found = self.mailbox.get()
        if found is None:
            return
        handle, item = found
        if isinstance(item, Ended):
            job = self._open.pop(handle)
            if handle.error is not None:
                self._add_failure(FailedRequest(job.index, job.given, _to_exception(handle.error)))
            elif handle.has_result:
                result = handle.peek_result()
                self._ready.append((job.index, result))
                if self.sinks:
                    self.sinks[job.index].done(result)
        elif isinstance(item, FinalText):
            self._write(handle, item)
        elif self.events is not None:
            self.events(item)

    def _write(self, handle: Handle, item: FinalText) -> None:
        sink = self.sinks[handle.row]
        if handle.row not in self._begun:
            self._begun.add(handle.row)
            sink.begin(handle.prompt_ids)
        sink.write(item.ids, item.text)

    def _add_failure(self, failure: FailedRequest) -> None:
        error = failure.error
        if isinstance(error, OutOfMemory):
            error = torch.OutOfMemoryError(str(error))
        if self.names_requests:
            error = name_request(error, failure.index)
        if self._on_error == "now":
            raise error
        # The next forward pass is likely to raise the same error.
        if self._on_error == "yield" and (
            isinstance(error, torch.OutOfMemoryError) or not isinstance(error, RuntimeError)
        ):
            self._ready.append((failure.index, replace(failure, error=error)))
            return
        self._error, self._jobs = self._error or error, None
        for handle, job in list(self._open.items()):
            if job.index > failure.index:
                handle.cancel()


def _abandon(mailbox: Mailbox, worker: ModelWorker) -> None:
    """Cancel the requests of a call that was garbage-collected."""
    mailbox.close()
    worker.poke()


def _to_exception(error: BaseException) -> Exception:
    """Return an error of the worker's thread as an Exception; SystemExit would end the caller's thread."""
    if isinstance(error, Exception):
        return error
    found = RuntimeError(f"decoding was ended by {type(error).__name__}: {error}")
    found.__cause__ = error
    return found
