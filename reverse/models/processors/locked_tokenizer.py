"""Let one thread at a time into a tokenizer.

The tokenizers of the Rust library raise "Already borrowed" if a thread changes their padding, which a call
may do, while another thread is encoding.
"""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager
from typing import Any

__all__ = ["LockedTokenizer", "tokenizer_lock"]

_lock = threading.RLock()  # of all tokenizers: a text is encoded in about a millisecond


def tokenizer_lock() -> AbstractContextManager[Any]:
    """Return the lock to hold while a tokenizer encodes: `with tokenizer_lock(): tokenizer(...)`."""
    return _lock


class LockedTokenizer:
    """A tokenizer that one thread at a time calls; its attributes are those of `tokenizer`."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with tokenizer_lock():
            return self._tokenizer(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def _reset_after_fork() -> None:
    """Make a new lock in a child process: the thread that held the old one does not exist there."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
