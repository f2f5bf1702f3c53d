"""Handles of submitted requests, and the mailbox through which the engine answers a caller.

handle = engine.submit(Request("kitchen.png"))
for event in handle: ...          # as the answer is made
result = handle.result()          # waits for it; handle.cancel() ends it
"""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from reverse.background_threads import would_wait_forever
from reverse.decoding.calls.failures import clear_frames
from reverse.decoding.events import Event
from reverse.decoding.request import Request
from reverse.decoding.result import Result
from reverse.decoding.scheduling.worker import ModelWorker
from reverse.errors import BackendError

__all__ = ["Ended", "FinalText", "Handle", "Mailbox", "check_same_process"]


def check_same_process(process: int) -> None:
    """Raise BackendError in a fork of `process`, where nobody writes to what is read."""
    if process != os.getpid():
        raise BackendError(
            f"this answer was begun in process {process}, and this is {os.getpid()}, forked from it: read it "
            "there, or ask again here"
        )


@dataclass(frozen=True, slots=True)
class FinalText:
    """Final text of an answer, and its ids without tags."""

    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A request has ended: its handle has a result or an error, or it was cancelled."""


Item = Event | FinalText | Ended


class Mailbox:
    """A queue from the engine to one caller, of pairs of a handle and an item.

    Args: `branches` is the number of answers to decode side by side, `sequences` their number with
    candidates; `in_background`: decoding continues while the caller does not wait. Otherwise the engine
    pauses then, and the caller may use the model.
    """

    def __init__(self, branches: int, sequences: int, in_background: bool = False):
        self.branches, self.sequences = branches, sequences
        self.is_waiting = in_background
        self.in_background = in_background
        self.is_closed = False
        self._items: queue.SimpleQueue[tuple[Handle, Item] | None] = queue.SimpleQueue()
        self._process = os.getpid()

    def put(self, handle: Handle, item: Item) -> None:
        if not self.is_closed:
            self._items.put((handle, item))

    def get(self, timeout: float | None = None) -> tuple[Handle, Item] | None:
        """Return the next item, or None if the mailbox was closed. Raises TimeoutError, BackendError."""
        check_same_process(self._process)
        if would_wait_forever() and self._items.empty():
            raise BackendError(
                "the answer is not finished, and Python exits: wait for it before the script ends"
            )
        try:
            return self._items.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError(f"the answer was not ready within {timeout} seconds: wait longer") from None

    @property
    def is_empty(self) -> bool:
        return self._items.empty()

    def give_up(self, handles: Sequence[Handle], worker: ModelWorker) -> None:
        """Cancel unfinished requests, wait until their memory is free, and close."""
        for handle in handles:
            handle.cancel()
        is_decoded = self._process == os.getpid() and not would_wait_forever()
        if is_decoded and not worker.is_current:  # which would wait for itself
            while any(not handle.is_done for handle in handles):
                self.get()
        self.close()

    def close(self) -> None:
        """Stop taking items. A waiting reader gets None."""
        self.is_closed = True
        self.is_waiting = False
        self._items.put(None)

    @contextmanager
    def waiting(self, worker: ModelWorker) -> Iterator[None]:
        """Let the engine decode while the caller waits. Afterwards no step is under way."""
        self.is_waiting = True
        worker.notify()
        try:
            yield
        finally:
            if not self.in_background:
                self.is_waiting = False
                worker.finish_step()


class Handle:
    """A submitted request.

    Iterating yields its events (`Append`, `Retract`, `Commit`, `Complete`) if it was submitted with events;
    `result()` waits for the answer. Dropping a handle does not cancel the request.
    """

    def __init__(
        self,
        request: Request,
        row: int,
        mailbox: Mailbox,
        cancel: Callable[[], None],
        *,
        events: bool = False,
        text: bool = False,
    ):
        self.request, self.row, self.mailbox = request, row, mailbox
        self.wants_events, self.wants_text = events, text
        self.prompt_ids: tuple[int, ...] = ()  # set when the prompt is prepared
        self.has_begun = False
        self.is_done = self.is_cancelled = False
        self.error: BaseException | None = None
        self._result: Result | None = None
        self._cancel = cancel

    def cancel(self) -> None:
        """Cancel the request. Its memory is free within one step."""
        if not self.is_done:
            self.is_cancelled = True
            self._cancel()

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the answer. Raises its error, BackendError if it was cancelled, or TimeoutError."""
        while not self.is_done and self.mailbox.get(timeout) is not None:
            pass
        return self.peek_result()

    @property
    def has_result(self) -> bool:
        return self._result is not None

    def peek_result(self) -> Result:
        """Return the finished answer. Raises its error, or BackendError if there is no answer."""
        if self.error is not None:
            raise self.error
        if self._result is None:
            why = "was cancelled: it has no result" if self.is_cancelled else "is not finished: wait for it"
            raise BackendError(f"the request {why}")
        return self._result

    def __iter__(self) -> Iterator[Any]:
        while (found := self.mailbox.get()) is not None and not isinstance(found[1], Ended):
            yield found[1]
        if self.error is not None:
            raise self.error

    # ------------------------------------------------------------------ called by the engine's thread
    def finish(self, result: Result | None) -> None:
        """End with a result, or with None if the request was cancelled."""
        self._result, self.is_done = result, True
        self.mailbox.put(self, Ended())

    def fail(self, error: BaseException) -> None:
        clear_frames(error)
        self.error, self.is_done = error, True
        self.mailbox.put(self, Ended())

    def put(self, item: Item) -> None:
        self.mailbox.put(self, item)
