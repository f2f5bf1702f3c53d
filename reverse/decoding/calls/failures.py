"""Requests that cannot be answered: what `generate_many(on_error="yield")` hands out in their place.

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

_ROW = re.compile(r"\b(prompt|chat) 0\b")  # the one row of a batch of one: two numbers would be a riddle

__all__ = ["FailedRequest", "add_results", "name_request"]


@dataclass(frozen=True, slots=True)
class FailedRequest:
    """A request that has no answer, and why."""

    index: int  # of the request, counted from 0
    request: Any  # as it was given
    error: Exception  # its message names the request


def name_request(error: Exception, index: int) -> Exception:
    """Put `request 3: ` before an error's message; its type stays. Frees what its frames hold."""
    chain: BaseException | None = error
    while chain is not None:
        traceback.clear_frames(chain.__traceback__)  # pictures and caches
        chain = chain.__cause__ or chain.__context__
    message = str(error)
    message = _ROW.sub(r"its \1", message, count=1)
    if message.startswith(f"request {index} ") or f"request {index}: " in message:
        return error
    if isinstance(error, OSError) and error.strerror is not None:
        error.strerror = f"request {index}: {error.strerror}"
    elif len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (f"request {index}: {message}",)
    else:  # the arguments mean something to its type, such as an errno
        named = ValueError(f"request {index}: {type(error).__name__}: {message}")
        named.__cause__ = error
        return named
    return error


def add_results(error: BaseException, results: dict[int, Result]) -> None:
    """Let an error that ends a call hold the answers that were finished, by index, in `results`."""
    error.results = getattr(error, "results", {}) | results  # type: ignore[attr-defined]
