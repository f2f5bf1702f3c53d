"""Streams of final text, which is never taken back.

    for piece in reverse.stream(model, processor, "kitchen.png", "Describe this image."):
        print(piece, end="", flush=True)

Text that may still be rewound is held back; the setting `commit` decides how far a rewind may go. The pieces
joined are `result.text`. The engine decodes ahead of the reader, from the first piece that is read until the
stream is closed or garbage-collected.
"""

from __future__ import annotations

import os
import queue
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from reverse.decoding.backends.protocol import OutOfMemory
from reverse.decoding.calls.failures import name_request
from reverse.decoding.calls.handles import Ended, FinalText, Handle, check_same_process
from reverse.decoding.engine import Engine
from reverse.decoding.request import Request
from reverse.errors import BackendError, RequestError

__all__ = ["TextStream"]


class _End:
    """The last item of a channel: the answer or an error."""

    def __init__(self, result: Any, error: BaseException | None = None):
        self.result, self.error = result, error


class Channel:
    """A sink that passes text from the thread of `generate(stream=...)` to the reader's thread."""

    def __init__(self) -> None:
        self.items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.closed = False
        self._ended = False

    def begin(self, prompt: Sequence[int]) -> None:
        if self._ended:
            raise RequestError("this TextStream holds an answer already: make a new one for each answer")

    def write(self, ids: Sequence[int], text: str) -> None:
        if text:
            self.items.put(text)

    def done(self, result: Any) -> None:
        self._ended = True
        self.items.put(_End(result))

    def fail(self, error: BaseException) -> None:
        self._ended = True
        self.items.put(_End(None, error))

    def close(self) -> None:
        self.closed = True


class _Requests:
    """The requests of a stream. They are submitted when the first item is read."""

    def __init__(
        self, engine: Engine, requests: Sequence[Request], branches: int, events: bool, single: bool
    ):
        self.engine, self.requests, self.events, self.single = engine, requests, events, single
        candidates = requests[0].config.candidates if requests else 1
        self.mailbox = engine.open_mailbox(branches, branches * candidates, in_background=True)
        self.handles: list[Handle] = []

    def next(self) -> Any:
        """Wait for the next event, piece of text or end."""
        if not self.handles:
            self.handles = [
                self.engine.submit_to(self.mailbox, request, row=i, events=self.events, text=not self.events)
                for i, request in enumerate(self.requests)
            ]
        while not all(handle.is_done for handle in self.handles) or not self.mailbox.is_empty:
            found = self.mailbox.get()
            if found is None:
                return _End(None)
            handle, item = found
            if isinstance(item, FinalText):
                if item.text:
                    return item.text
            elif not isinstance(item, Ended):
                return item
            elif handle.error is not None:
                return _End(None, self._make_error(handle))
        results = [handle.peek_result() for handle in self.handles if handle.has_result]
        return _End(results[0] if self.single and results else results)

    def _make_error(self, handle: Handle) -> BaseException:
        error = handle.error
        assert error is not None
        if isinstance(error, OutOfMemory):
            import torch

            error = torch.OutOfMemoryError(str(error))
        single = self.single or not isinstance(error, Exception)
        return error if single else name_request(error, handle.row)  # type: ignore[arg-type]

    def cancel(self) -> None:
        for handle in self.handles:
            handle.cancel()

    def close(self) -> None:
        """Cancel unfinished requests and wait until their memory is free."""
        self.mailbox.give_up(self.handles, self.engine.worker)


class TextStream:
    """An iterator over the final text of one answer. `result` is set when it is exhausted.

    Pass it as `stream=` and iterate in another thread, or use `reverse.stream()`. Closing it, leaving its
    `with` block or dropping the last reference ends decoding of that answer with the next token.
    """

    def __init__(self) -> None:
        self.channel = Channel()
        self._requests: _Requests | None = None
        self._end: _End | None = None
        self._process = os.getpid()
        self._finalizer = weakref.finalize(self, self.channel.close)

    @classmethod
    def from_requests(
        cls, engine: Engine, requests: Sequence[Request], branches: int, events: bool, single: bool
    ) -> TextStream:
        """Return a stream over requests that the engine answers in the background."""
        stream = cls()
        stream._requests = _Requests(engine, requests, branches, events, single)
        weakref.finalize(stream, stream._requests.cancel)
        return stream

    @property
    def result(self) -> Any:
        """The answer. Raises BackendError before the stream is exhausted."""
        if self._end is None or self._end.error is not None or self._end.result is None:
            raise BackendError("the stream has no result yet: iterate it to its end first")
        return self._end.result

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._end is not None or self.channel.closed:
            raise StopIteration
        check_same_process(self._process)
        try:
            item = self.channel.items.get() if self._requests is None else self._requests.next()
        except BaseException:
            if self._requests is not None:
                self._requests.close()
            raise
        if not isinstance(item, _End):
            return item
        self._end = item
        if self._requests is not None:
            self._requests.close()
        if item.error is not None:
            raise item.error
        raise StopIteration

    def close(self) -> None:
        """End decoding and wait until its memory is free."""
        self.channel.close()
        if self._requests is not None:
            self._requests.close()

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
