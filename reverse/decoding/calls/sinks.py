"""Sinks take the final text of an answer: a `TextStream`, or a streamer as of transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from reverse.decoding.result import Result
from reverse.errors import RequestTypeError

__all__ = ["Sink", "make_sinks", "propagate_errors_to"]


class Sink(Protocol):
    """Takes the final text of one answer."""

    closed: bool  # nobody reads any more, so the answer may end

    def begin(self, prompt: Sequence[int]) -> None:
        """Take the ids of the prompt, before anything else."""

    def write(self, ids: Sequence[int], text: str) -> None:
        """Take more of the answer: ids without tags, and their clean text."""

    def done(self, result: Result) -> None:
        """Take the result after all of its text was written."""

    def fail(self, error: BaseException) -> None:
        """Take the error that ends the answer."""


class _Streamer:
    """The sink of an object with `put(ids)` and `end()`, as streamers of transformers have."""

    closed = False

    def __init__(self, streamer: Any):
        self.streamer = streamer
        self._has_begun = False

    def begin(self, prompt: Sequence[int]) -> None:
        self._has_begun = True
        self.streamer.put(torch.tensor(prompt))  # as `model.generate()` does, for `skip_prompt`

    def write(self, ids: Sequence[int], text: str) -> None:
        if ids:
            self.streamer.put(torch.tensor(ids))

    def done(self, result: Result) -> None:
        self._has_begun = False  # a streamer may be used again
        self.streamer.end()

    def fail(self, error: BaseException) -> None:
        if self._has_begun:
            self._has_begun = False
            self.streamer.end()


def make_sinks(stream: Any) -> list[Sink]:
    """Return the sinks of `stream=`: None, one stream, or a list. Raises RequestTypeError."""
    if stream is None:
        return []
    return [_make_sink(one) for one in (stream if isinstance(stream, (list, tuple)) else [stream])]


@contextmanager
def propagate_errors_to(sinks: Sequence[Sink]) -> Iterator[None]:
    """Pass an error on to sinks whose readers wait for the end of the stream."""
    try:
        yield
    except BaseException as error:
        for sink in sinks:
            sink.fail(error)
        raise


def _make_sink(stream: Any) -> Sink:
    channel = getattr(stream, "channel", stream)
    if all(hasattr(channel, name) for name in ("begin", "write", "done", "fail", "closed")):
        return channel
    if hasattr(stream, "put") and hasattr(stream, "end"):
        return _Streamer(stream)
    raise RequestTypeError(
        f"stream must be a reverse.TextStream or have put() and end() as transformers' streamers do, got "
        f"{type(stream).__name__}: try stream=TextStreamer(processor.tokenizer, skip_prompt=True)"
    )
