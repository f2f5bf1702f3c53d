"""Threads that prepare requests ahead of need, the oldest first.

They are background threads, because Python waits at exit for all the work of `concurrent.futures`. For these,
it waits a few seconds for the calls that have begun.
"""

from __future__ import annotations

import heapq
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import count
from typing import Any

from reverse.background_threads import BackgroundThread

__all__ = ["PreparingThreads", "count_cores"]

_MOST = 8  # threads; more would wait for the GIL
_PATIENCE = 5.0  # seconds that the exit of Python waits for pictures that are being read


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class PreparingThreads:
    """Up to `most` threads (default: one per core, at most 8), each started when it is needed."""

    def __init__(self, most: int | None = None):
        self.most = min(_MOST, count_cores()) if most is None else most
        self.process = os.getpid()  # a forked child has none of the threads
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._work: list[tuple[int, int, Future[Any], Callable[[], Any]]] = []  # a heap
        self._numbers = count()
        self._changed = threading.Condition()
        self._is_closed = self._is_paused = False

    def submit(self, order: int, call: Callable[[], Any]) -> Future[Any]:
        """Make a call in one of the threads. Calls with the lowest `order` come first."""
        future: Future[Any] = Future()
        with self._changed:
            heapq.heappush(self._work, (order, next(self._numbers), future, call))
            if len(self._work) > self._idle and len(self._threads) < self.most:
                name = f"reverse-preparing-{len(self._threads)}"
                thread = BackgroundThread(self._run, name, stop=self.close, patience=_PATIENCE)
                thread.start()
                self._threads.append(thread)
            self._changed.notify()
        return future

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Return a context in which the threads begin nothing new.

        A vision tower makes a thousand launches, and after each the calling thread waits for the GIL: with
        eight preparing threads, encoding takes a third longer.
        """
        self._set_paused(True)
        try:
            yield
        finally:
            self._set_paused(False)

    def _set_paused(self, is_paused: bool) -> None:
        with self._changed:
            self._is_paused = is_paused
            self._changed.notify_all()

    def close(self) -> None:
        """Cancel calls that have not begun, and end the threads after their current calls."""
        with self._changed:
            self._is_closed = True
            left, self._work = self._work, []
            self._changed.notify_all()
        for _, _, future, _ in left:
            future.cancel()

    def _run(self) -> None:
        while (found := self._next()) is not None:
            future, call = found
            if future.set_running_or_notify_cancel():
                try:
                    result = call()
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)
                    del result
            del found, future, call  # they would keep pictures until the next call

    def _next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        with self._changed:
            self._idle += 1
            while (self._is_paused or not self._work) and not self._is_closed:
                self._changed.wait()
            self._idle -= 1
            if not self._work:
                return None
            _, _, future, call = heapq.heappop(self._work)
            return future, call
