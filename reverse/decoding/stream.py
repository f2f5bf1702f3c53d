"""Text that comes while it is made and is never taken back.

    for piece in reverse.stream(model, processor, "kitchen.png", "Describe this image."):
        print(piece, end="", flush=True)

How far behind the stream is, `commit` decides: what may still be rewound is held back, exactly. The pieces
joined are `result.text`. Decoding runs in a thread of its own, which begins with the first piece asked for
and ends, a token later, when the stream is closed or forgotten.
"""

from __future__ import annotations

import os
import queue
import threading
import traceback
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from reverse.decoding.calls import prepare_call
from reverse.decoding.trace import Result

__all__ = ["TextStream", "stream"]


class _End:
    """The last item of a channel: the answer or answers, or why there are none."""

    def __init__(self, result: Any, error: BaseException | None = None):
        self.result, self.error = result, error


class _Closed(Exception):
    """Raised in the decoding thread where nobody listens to its events any more."""


class Channel:
    """From the thread that decodes to the one that reads; knows neither. A sink, see `events.Sink`."""

    def __init__(self) -> None:
        self.items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.closed = False
        self._ended = False

    def begin(self, prompt: Sequence[int]) -> None:
        if self._ended:
            raise ValueError("this TextStream has told an answer already: make a new one for each")

    def final(self, ids: Sequence[int], text: str) -> None:
        if text:
            self.items.put(text)

    def event(self, event: Any) -> None:
        if self.closed:
            raise _Closed
        self.items.put(event)

    def done(self, result: Any) -> None:
        self._ended = True
        self.items.put(_End(result))

    def fail(self, error: BaseException) -> None:
        self._ended = True
        self.items.put(_End(None, error))

    def close(self) -> None:
        self.closed = True


class TextStream:
    """An iterator over the final text of one answer; `result` is there when it is exhausted.

    Hand it over as `stream=` and iterate in another thread, or let `reverse.stream()` do both. Closing it,
    leaving its `with` block or dropping the last reference ends decoding of that answer with the next token.
    """

    def __init__(self) -> None:
        self.channel = Channel()
        self._end: _End | None = None
        self._thread: threading.Thread | None = None
        self._process = os.getpid()
        self._finalizer = weakref.finalize(self, self.channel.close)

    @property
    def result(self) -> Any:
        """The answer. Raises RuntimeError before the stream is exhausted."""
        if self._end is None or self._end.error is not None or self._end.result is None:
            raise RuntimeError("the stream has no result yet: iterate it to its end first")
        return self._end.result

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._end is not None or self.channel.closed:
            raise StopIteration
        if self._process != os.getpid():  # nobody writes to this copy of it, so reading would wait for ever
            raise RuntimeError(
                f"the stream was begun in process {self._process}, and this is {os.getpid()}, forked from "
                "it: read it there, or begin one here"
            )
        if self._thread is not None and self._thread.ident is None:
            self._thread.start()
        item = self.channel.items.get()
        if not isinstance(item, _End):
            return item
        self._end = item
        self._wait()
        if item.error is not None:
            raise item.error
        raise StopIteration

    def close(self) -> None:
        """End decoding and wait until all that it held is free."""
        self.channel.close()
        self._wait()

    def _wait(self) -> None:
        thread = self._thread
        if thread is not None and thread.ident is not None and thread is not threading.current_thread():
            thread.join()

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def stream(
    model: Any,
    processor: Any,
    images: Any = None,
    prompt: Any = "Describe this image.",
    *,
    events: bool = False,
    **kwargs: Any,
) -> TextStream:
    """`generate()` as an iterator over pieces of text that will not be taken back.

    With `events=True` it yields every `Append`, `Retract`, `Commit` and `Finish` instead, and `prompt` and
    `images` may be lists. Other arguments are those of `generate()`. Arguments that are wrong are refused at
    once; an error of decoding is raised where the stream is read.
    """
    reader = TextStream()
    channel = reader.channel
    where = {"events": channel.event} if events else {"stream": _Unended(channel)}

    call = prepare_call(model, processor, images, prompt, **where, **kwargs)

    def work() -> None:
        try:
            result: Result | list[Result] = call()
        except _Closed:
            pass
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # they hold the cache, and the reader keeps the error
            channel.fail(error)
        else:
            channel.done(result)

    reader._thread = threading.Thread(target=work, name="reverse-stream", daemon=True)
    return reader


class _Unended:
    """A channel whose end is told by the thread, after all that it held is free."""

    def __init__(self, channel: Channel):
        self._channel = channel
        self.begin, self.final = channel.begin, channel.final

    @property
    def closed(self) -> bool:
        return self._channel.closed

    def done(self, result: Any) -> None:
        pass

    def fail(self, error: BaseException) -> None:
        pass
