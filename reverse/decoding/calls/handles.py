"""What a caller holds while the engine works: a mailbox, and a handle for each request.

handle = engine.submit(Request("kitchen.png"))
for event in handle: ...          # as the answer is made
result = handle.result()          # waits for it; handle.cancel() ends it
"""

from __future__ import annotations

import os
import queue
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from reverse.decoding.events import Event
from reverse.decoding.request import Request
from reverse.decoding.result import Result
from reverse.decoding.worker import ModelWorker
from reverse.errors import BackendError

__all__ = ["Ended", "FinalText", "Handle", "Mailbox"]


@dataclass(frozen=True, slots=True)
class FinalText:
    """Text of an answer that is never taken back, and its ids without tags."""

    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A request is over: `result` or `error` of its handle is set."""


Item = Event | FinalText | Ended


class Mailbox:
    """What the engine tells one caller, in order: pairs of a handle and an item.

    Args: `branches` and `sequences`: how many answers, and with their candidates how many sequences, this
    caller wants side by side; `in_background`: decoding goes on while nobody waits. Otherwise the engine
    rests then, so that the caller may do with the model what it likes.
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
        """The next item; None if the mailbox was closed. Raises TimeoutError, RuntimeError after a fork."""
        if self._process != os.getpid():  # nobody writes to this copy of it, so reading would wait for ever
            raise BackendError(
                f"this answer was begun in process {self._process}, and this is {os.getpid()}, forked from "
                "it: read it there, or ask anew here"
            )
        try:
            return self._items.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError(f"there is no news of the answer within {timeout} seconds") from None

    @property
    def is_empty(self) -> bool:
        return self._items.empty()

    def give_up(self, handles: Sequence[Handle], worker: ModelWorker) -> None:
        """Cancel what is not finished, wait until all that it held is free, and close."""
        for handle in handles:
            handle.cancel()
        if self._process == os.getpid() and not worker.is_current:  # who never waits for itself
            while any(not handle.is_done for handle in handles):
                self.get()
        self.close()

    def close(self) -> None:
        """Nobody reads any more; who is reading gets None."""
        self.is_closed = True
        self.is_waiting = False
        self._items.put(None)

    @contextmanager
    def waiting(self, worker: ModelWorker) -> Iterator[None]:
        """The caller waits for its answers: the engine works. Afterwards no step is under way for it."""
        self.is_waiting = True
        worker.notify()
        try:
            yield
        finally:
            if not self.in_background:
                self.is_waiting = False
                worker.finish_step()


class Handle:
    """A request that was submitted.

    Iterating yields its events (`Append`, `Retract`, `Commit`, `Finish`) where they were asked for;
    `result()` waits for the answer. Dropping a handle does not cancel it.
    """

    def __init__(
        self, request: Request, row: int, mailbox: Mailbox, cancel: Callable[[], None], **wants: bool
    ):
        self.request, self.row, self.mailbox = request, row, mailbox
        self.wants_events = wants.get("events", False)
        self.wants_text = wants.get("text", False)
        self.prompt_ids: tuple[int, ...] = ()  # once it is prepared
        self.has_begun = False  # it is being decoded
        self.is_done = self.is_cancelled = False
        self.error: BaseException | None = None
        self._result: Result | None = None
        self._cancel = cancel

    def cancel(self) -> None:
        """Give the request up: all that it holds is free within a step."""
        if not self.is_done:
            self.is_cancelled = True
            self._cancel()

    def result(self, timeout: float | None = None) -> Result:
        """The answer. Raises its error, RuntimeError if it was cancelled, TimeoutError."""
        while not self.is_done and self.mailbox.get(timeout) is not None:
            pass
        return self.peek_result()

    @property
    def has_result(self) -> bool:
        return self._result is not None

    def peek_result(self) -> Result:
        """The answer, which must have been finished. Raises its error, RuntimeError if there is none."""
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
    def finish(self, result: Result) -> None:
        self._result, self.is_done = result, True
        self.mailbox.put(self, Ended())

    def end_cancelled(self) -> None:
        self.is_done = True
        self.mailbox.put(self, Ended())

    def fail(self, error: BaseException) -> None:
        chain: BaseException | None = error
        while chain is not None:
            traceback.clear_frames(chain.__traceback__)  # pictures and caches
            chain = chain.__cause__ or chain.__context__
        self.error, self.is_done = error, True
        self.mailbox.put(self, Ended())

    def tell(self, item: Item) -> None:
        self.mailbox.put(self, item)
