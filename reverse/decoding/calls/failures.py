"""Failed requests, which `generate_many(on_error="yield")` yields in place of results.

for result in reverse.generate_many(model, processor, requests, on_error="yield"):
    if isinstance(result, reverse.FailedRequest):
        print(result.index, result.error)
"""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass
from typing import Any

from reverse.decoding.result import Result

_ROW = re.compile(r"\b(prompt|chat) 0\b")  # of a batch of one, whose index would only confuse

__all__ = ["FailedRequest", "add_results", "clear_frames", "name_request"]


@dataclass(frozen=True, slots=True)
class FailedRequest:
    """A request without an answer, and its error."""

    index: int  # of the request, counted from 0
    request: Any  # as it was given
    error: Exception  # its message names the request


def clear_frames(error: BaseException) -> None:
    """Free the pictures and caches that the frames of an error hold."""
    chain: BaseException | None = error
    while chain is not None:
        traceback.clear_frames(chain.__traceback__)
        chain = chain.__cause__ or chain.__context__


def name_request(error: Exception, index: int) -> Exception:
    """Put `request 3: ` before the message of an error, whose type stays the same."""
    clear_frames(error)
    message = _ROW.sub(r"its \1", str(error), count=1)
    if message.startswith(f"request {index} ") or f"request {index}: " in message:
        return error
    if isinstance(error, OSError) and error.strerror is not None:
        error.strerror = f"request {index}: {error.strerror}"
    elif len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (f"request {index}: {message}",)
    else:  # its arguments are not messages, such as an errno
        named = ValueError(f"request {index}: {type(error).__name__}: {message}")
        named.__cause__ = error
        return named
    return error


def add_results(error: BaseException, results: dict[int, Result]) -> None:
    """Add finished results, by index, to the `results` of an error that ends a call."""
    error.results = getattr(error, "results", {}) | results  # type: ignore[attr-defined]
