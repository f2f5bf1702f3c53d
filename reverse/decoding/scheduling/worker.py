"""One worker thread per model takes the steps of all engines on it.

Callers wait in their own threads, so Ctrl-C never interrupts a step. The thread lives as long as there is
work, and ends after the current step when Python exits. During a step the model is in eval mode.

    worker = find_worker(model)
    worker.start(engine)        # engine.step() is called until engine.has_work is False
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakSet

from torch import nn

from reverse.background_threads import BackgroundThread, is_exiting, would_wait_forever
from reverse.errors import BackendError
from reverse.models.unwrapping import unwrap_model

__all__ = ["ModelWorker", "eval_mode", "find_worker"]

_PATIENCE = 30.0  # seconds that the exit of Python waits for a step; on a CPU, a long prefill takes ten


class SteppedEngine(Protocol):
    """An engine as the worker sees it."""

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""

    @property
    def is_wanted(self) -> bool:
        """Whether a caller waits for an answer."""

    @property
    def wakes_after(self) -> float | None:
        """Seconds after which a step may do more than the last one, though nothing was told; None: never."""

    def step(self) -> bool:
        """Take one step; False if nothing could be done. Never raises."""

    def rest(self) -> None:
        """Free memory, because no work is left."""


class ModelWorker:
    """Takes the steps of the engines of one model in turns.

    Callers take no lock, because an interrupt or a finalizer could leave it locked. So two threads may be
    started; they step one after the other, and all but the last one end.
    """

    def __init__(self) -> None:
        self._engines: list[SteppedEngine] = []
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._turn = threading.Lock()  # held by a thread that steps, never by a caller
        self._is_stepping = False
        self._steps = 0
        self.training: list[nn.Module] = []  # modules that a step has put into eval mode
        _all.add(self)

    def start(self, engine: SteppedEngine) -> None:
        """Start stepping an engine that has work.

        Raises RuntimeError in the worker's own thread, BackendError while Python exits.
        """
        self.check_not_inside()
        if would_wait_forever():
            raise BackendError(
                "a request was made while Python exits, and the decoding thread has ended: make it before "
                "the script ends, or in an exit handler that is registered after `import reverse`"
            )
        if engine not in self._engines:
            self._engines.append(engine)
        self.notify()

    def notify(self) -> None:
        """Wake the thread, and start one if there is none."""
        thread = self._thread
        # A thread that is not alive was never started, because an interrupt came in between, or has failed.
        if self._engines and (thread is None or not thread.is_alive()) and not is_exiting():
            self._thread = BackgroundThread(self._run, "reverse-decoding", stop=self.poke, patience=_PATIENCE)
            self._thread.start()
        self.poke()

    def poke(self) -> None:
        """Wake the thread without starting one. Finalizers may call it at any time."""
        self._news.put(None)

    @property
    def is_current(self) -> bool:
        """Whether the caller runs in the worker's thread."""
        return threading.current_thread() is self._thread

    def check_not_inside(self) -> None:
        """Raise RuntimeError in the worker's own thread, which would wait for itself."""
        if self.is_current:
            raise RuntimeError(
                "generate() was called from inside of a decoding step (by a mode, a stopping criterion or a "
                "logits processor), which would wait for itself: let a mode yield Generate(...) instead"
            )

    def finish_step(self) -> None:
        """Wait until the current step, if there is one, is done."""
        seen = self._steps
        while self._is_stepping and self._steps == seen and not self.is_current and not is_exiting():
            time.sleep(0.0002)

    def _run(self) -> None:
        me = threading.current_thread()
        while True:
            self._forget_news()
            if is_exiting():
                return
            if self._step_all():
                continue
            self._drop_idle_engines()
            if self._thread is not me:  # another thread was started meanwhile
                return
            if self._engines:
                self._wait_for_news()
                continue
            self._thread = None
            if not self._engines:  # an engine may have come between these two lines and seen this thread
                return
            self._thread = self._thread or me

    def _forget_news(self) -> None:
        with suppress(queue.Empty):  # another thread may take them, too
            while True:
                self._news.get_nowait()

    def _wait_for_news(self) -> None:
        """Wait until something has changed, or until an engine wants to be stepped all the same."""
        delays = [engine.wakes_after for engine in list(self._engines)]
        with suppress(queue.Empty):
            self._news.get(timeout=min((each for each in delays if each is not None), default=None))

    def _step_all(self) -> bool:
        """Take a step of every wanted engine; False if none could do anything."""
        is_busy = False
        with self._turn:
            self._is_stepping = True  # before `is_wanted` is read, see `finish_step`
            try:
                for engine in list(self._engines):
                    if engine.is_wanted and not is_exiting():
                        is_busy |= engine.step()
            finally:
                self._is_stepping = False
                self._steps += 1
        return is_busy

    def _drop_idle_engines(self) -> None:
        with self._turn:
            for engine in [each for each in self._engines if not each.has_work]:
                self._engines.remove(engine)
                if engine.has_work and engine not in self._engines:  # it has got work in between
                    self._engines.append(engine)
                else:
                    engine.rest()

    def reset_after_fork(self) -> None:
        """Forget the thread and its work in a child process, which does not have the thread."""
        self._engines, self._thread, self._is_stepping = [], None, False
        self._turn, self._news = threading.Lock(), queue.SimpleQueue()
        restore_training(self)


@contextmanager
def eval_mode(modules: Iterable[nn.Module], worker: ModelWorker) -> Iterator[None]:
    """Put modules into eval mode, and restore their modes afterwards.

    In train mode dropout changes answers, and gradient checkpointing decodes without a cache.
    """
    worker.training = [module for module in modules if module.training]
    for module in worker.training:  # not by `.eval()`, which merges the adapters of some layers
        module.training = False
    try:
        yield
    finally:
        restore_training(worker)


def restore_training(worker: ModelWorker) -> None:
    """Put the modules back into train mode that a step has put into eval mode."""
    modules, worker.training = worker.training, []
    for module in modules:
        module.training = True


_all: WeakSet[ModelWorker] = WeakSet()
_workers: WeakKeyDictionary[Any, ModelWorker] = WeakKeyDictionary()


def find_worker(model: Any) -> ModelWorker:
    """Return the worker of a model, which its wrappers share."""
    return _workers.setdefault(unwrap_model(model), ModelWorker())


def _reset_after_fork() -> None:
    for worker in list(_all):
        worker.reset_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
