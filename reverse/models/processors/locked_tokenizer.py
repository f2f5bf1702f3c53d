"""One thread at a time in a tokenizer.

The tokenizers of the Rust library raise "Already borrowed" where a thread changes their padding, which a call
may do, while another thread is encoding.
"""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager
from typing import Any

__all__ = ["LockedTokenizer", "encoding"]

_lock = threading.RLock()  # of all tokenizers: a text is encoded in about a millisecond


def encoding() -> AbstractContextManager[Any]:
    """What to hold while a tokenizer encodes: `with encoding(): tokenizer(...)`."""
    return _lock


class LockedTokenizer:
    """A tokenizer that is called by one thread at a time; everything else is that of `tokenizer`."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with encoding():
            return self._tokenizer(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def _reset_after_fork() -> None:
    """In a child process the thread that held the lock does not go on."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
