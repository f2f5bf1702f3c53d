"""One thread at a time builds a model or changes its vocabulary.

    with building_alone():
        model = LlavaForConditionalGeneration.from_pretrained(folder)

Meanwhile transformers replaces functions of its own, such as the one that ties head and embeddings, and the
default dtype of torch, for the whole process. Two threads at once would spoil each other's models.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["building_alone"]

_lock = threading.RLock()


@contextmanager
def building_alone() -> Iterator[None]:
    """Wait until no other thread of this process is in such a block."""
    with _lock:
        yield


def _reset_after_fork() -> None:
    """Make a new lock in a child process: the thread that held the old one does not exist there."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
