"""Daemon threads and generators that end before the interpreter does.

While Python exits, it stops every daemon thread that asks for the GIL. In a thread that returns from an
operation of torch, this aborts the process: "terminate called without an active exception", exit status 134.
So an exit handler asks these threads to end, and waits for them for a bounded time. It runs after the
program's own non-daemon threads have ended.

A thread that takes longer than its `patience` is left alone, and may abort the process after all.

Then the handler closes generators that the program has not read to their ends. Python would close them when
modules have lost their contents, and print the errors.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, TypeVar
from weakref import WeakValueDictionary

__all__ = ["BackgroundThread", "close_at_exit", "is_exiting", "would_wait_forever"]

G = TypeVar("G", bound=Generator[Any, Any, Any])

_exiting = threading.Event()
_generators: WeakValueDictionary[int, Generator[Any, Any, Any]] = WeakValueDictionary()


class BackgroundThread(threading.Thread):
    """A daemon thread that is asked to end when Python exits.

    Args:
        target: runs in the thread. It returns soon after `stop` was called.
        name: of the thread.
        stop: asks the thread to end. It may be called more than once, and must not wait for the thread.
        patience: seconds that the exit waits for the thread.
    """

    def __init__(self, target: Callable[[], None], name: str, *, stop: Callable[[], None], patience: float):
        super().__init__(target=target, name=name, daemon=True)
        self.stop, self.patience = stop, patience


def is_exiting() -> bool:
    """Whether Python exits and background threads end."""
    return _exiting.is_set()


def would_wait_forever() -> bool:
    """Whether the caller must not wait for a background thread, because Python exits.

    A daemon thread of the program may wait: it ends with the interpreter, and an error would be printed.
    """
    return _exiting.is_set() and not threading.current_thread().daemon


def close_at_exit(generator: G) -> G:
    """Return the generator, which is closed when Python exits and the background threads have ended."""
    _generators[id(generator)] = generator
    return generator


def _end_threads() -> None:
    """Stop all background threads, also those that the others start meanwhile, and wait for their ends."""
    began = time.monotonic()
    awaited: set[threading.Thread] = set()
    while threads := [
        t for t in threading.enumerate() if isinstance(t, BackgroundThread) and t not in awaited
    ]:
        for thread in threads:
            thread.stop()
        for thread in threads:
            awaited.add(thread)
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(max(0.0, began + thread.patience - time.monotonic()))


@atexit.register
def _exit() -> None:
    _exiting.set()
    _end_threads()
    for reference in _generators.valuerefs():
        generator = reference()
        if generator is not None:
            with suppress(ValueError):  # a daemon thread of the program waits in it
                generator.close()
