"""One thread for each model, which takes the steps of all engines on it.

Callers wait for their answers in their own threads; what they do there, and Ctrl-C, never meets a step half
done. The thread lives as long as there is something to decode. It holds the model in eval mode during a step.

    worker = worker_of(model)
    worker.start(engine)        # engine.step() is called until engine.has_work is False
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakSet

from torch import nn

from reverse.models.unwrapping import unwrap_model

__all__ = ["ModelWorker", "eval_mode", "worker_of"]


class Stepping(Protocol):
    """What a worker drives."""

    @property
    def has_work(self) -> bool:
        """Whether anything is left to be done, now or later."""

    @property
    def is_wanted(self) -> bool:
        """Whether anybody waits for it."""

    def step(self) -> bool:
        """Do a little; False where nothing could be done before something else happens. Never raises."""

    def rest(self) -> None:
        """There is no work any more: let go of what costs memory."""


class ModelWorker:
    """Takes turns between the engines of one model.

    Callers take no lock: an interrupt between two lines of theirs, or a finalizer, must not leave one behind.
    So threads may be started twice; they step one after the other, and all but the last one end.
    """

    def __init__(self) -> None:
        self._engines: list[Stepping] = []
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._turn = threading.Lock()  # of a thread of this worker to take steps; callers never hold it
        self._is_stepping = False
        self._steps = 0
        self.training: list[nn.Module] = []  # modules that are in eval mode for the length of a step
        _all.add(self)

    def start(self, engine: Stepping) -> None:
        """Let the thread know that an engine has work.

        Raises RuntimeError in the thread itself, which would wait for itself.
        """
        self.check_not_inside()
        if engine not in self._engines:
            self._engines.append(engine)
        self.notify()

    def notify(self) -> None:
        """Something happened that a waiting thread may go on with."""
        thread = self._thread
        # One that has no `ident` was never started: an interrupt came in between.
        if self._engines and (thread is None or thread.ident is None):
            self._thread = threading.Thread(target=self._run, name="reverse-decoding", daemon=True)
            self._thread.start()
        self.poke()

    def poke(self) -> None:
        """As `notify`, for a thread that is there: for finalizers, which may come anywhere."""
        self._news.put(None)

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is the worker's own."""
        return threading.current_thread() is self._thread

    def check_not_inside(self) -> None:
        """Raise RuntimeError in the worker's own thread, which would wait for itself."""
        if self.is_current:
            raise RuntimeError(
                "generate() was called from inside of a decoding step (by a mode, a stopping criterion or a "
                "logits processor), which would wait for itself: let a mode yield Generate(...) instead"
            )

    def finish_step(self) -> None:
        """Wait until the step that is under way, if any, is done."""
        seen = self._steps
        while self._is_stepping and self._steps == seen and not self.is_current:
            time.sleep(0.0002)

    def _run(self) -> None:
        me = threading.current_thread()
        while True:
            while not self._news.empty():
                self._news.get()
            if self._step_all():
                continue
            self._let_idle_go()
            if self._thread is not me:  # another one was started meanwhile
                return
            if self._engines:
                self._news.get()
                continue
            self._thread = None
            if not self._engines:  # else one came between these two lines, and perhaps saw this thread
                return
            self._thread = self._thread or me

    def _step_all(self) -> bool:
        """One step of every engine that is wanted; False where none could do anything."""
        is_busy = False
        with self._turn:
            self._is_stepping = True  # before anybody is asked whether it is wanted: see `finish_step`
            try:
                for engine in list(self._engines):
                    if engine.is_wanted:
                        is_busy |= engine.step()
            finally:
                self._is_stepping = False
                self._steps += 1
        return is_busy

    def _let_idle_go(self) -> None:
        with self._turn:
            for engine in [each for each in self._engines if not each.has_work]:
                self._engines.remove(engine)
                if engine.has_work and engine not in self._engines:  # it has got some in between
                    self._engines.append(engine)
                else:
                    engine.rest()

    def reset_after_fork(self) -> None:
        """In a child process, where the thread is not: what it was decoding is lost there."""
        self._engines, self._thread, self._is_stepping = [], None, False
        self._turn, self._news = threading.Lock(), queue.SimpleQueue()
        restore_training(self)


@contextmanager
def eval_mode(modules: Iterable[nn.Module], worker: ModelWorker) -> Iterator[None]:
    """The modules of a model in eval mode; afterwards each has the mode that it had.

    In train mode dropout changes what is said, and gradient checkpointing decodes without a cache.
    """
    worker.training = [module for module in modules if module.training]
    for module in worker.training:  # not `.eval()`: some layers merge their adapters in it
        module.training = False
    try:
        yield
    finally:
        restore_training(worker)


def restore_training(worker: ModelWorker) -> None:
    """Put the modules back into train mode that were in it before the step."""
    modules, worker.training = worker.training, []
    for module in modules:
        module.training = True


_all: WeakSet[ModelWorker] = WeakSet()
_workers: WeakKeyDictionary[Any, ModelWorker] = WeakKeyDictionary()


def worker_of(model: Any) -> ModelWorker:
    """The worker of a model, the same for whatever wraps it."""
    return _workers.setdefault(unwrap_model(model), ModelWorker())


def _reset_after_fork() -> None:
    for worker in list(_all):
        worker.reset_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
