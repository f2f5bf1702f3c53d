"""Who reads the final text of an answer: a `TextStream`, or a streamer as transformers has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from reverse.decoding.result import Result
from reverse.errors import RequestTypeError

__all__ = ["Sink", "propagate_errors_to", "sinks_of"]


class Sink(Protocol):
    """Takes the final text of one answer."""

    closed: bool  # nobody listens any more: the answer may end

    def begin(self, prompt: Sequence[int]) -> None:
        """The prompt's ids, before anything else."""

    def write(self, ids: Sequence[int], text: str) -> None:
        """More of the answer: ids without tags, and their clean text."""

    def done(self, result: Result) -> None:
        """The answer is complete, and all of it was written."""

    def fail(self, error: BaseException) -> None:
        """There will be no more."""


class _Streamer:
    """A sink for an object with the interface of transformers' streamers, `put(ids)` and `end()`."""

    closed = False

    def __init__(self, streamer: Any):
        self.streamer = streamer
        self._has_begun = False

    def begin(self, prompt: Sequence[int]) -> None:
        self._has_begun = True
        self.streamer.put(torch.tensor(prompt))  # as `model.generate()` does: `skip_prompt` counts on it

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


def sinks_of(stream: Any) -> list[Sink]:
    """The sinks behind `stream=`: None, one, or a list of them. Raises TypeError for what is no stream."""
    if stream is None:
        return []
    return [_sink_of(one) for one in (stream if isinstance(stream, (list, tuple)) else [stream])]


@contextmanager
def propagate_errors_to(sinks: Sequence[Sink]) -> Iterator[None]:
    """Let those who wait for the end of a stream know of an error."""
    try:
        yield
    except BaseException as error:
        for sink in sinks:
            sink.fail(error)
        raise


def _sink_of(stream: Any) -> Sink:
    channel = getattr(stream, "channel", stream)
    if all(hasattr(channel, name) for name in ("begin", "write", "done", "fail", "closed")):
        return channel
    if hasattr(stream, "put") and hasattr(stream, "end"):
        return _Streamer(stream)
    raise RequestTypeError(
        f"stream must be a reverse.TextStream or have put() and end() as transformers' streamers do, got "
        f"{type(stream).__name__}: try stream=TextStreamer(processor.tokenizer, skip_prompt=True)"
    )
