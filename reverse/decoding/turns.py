"""One lock for each model: threads that decode with it take turns, and it is in eval mode meanwhile.

    with DecodingTurn(model):       # the same lock for whatever adapters or compilers wrap the model
        ...

A process that is forked while another thread decodes would inherit locks that nobody will ever release. So
the child gets new ones, and a model that was being decoded with gets its training mode back.
"""

from __future__ import annotations

import os
import threading
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import nn

from reverse.models.unwrapping import unwrap_model

__all__ = ["DecodingTurn", "FairLock", "model_lock"]


class FairLock:
    """A lock for threads that use one model, a step at a time.

    It covers the tokenizer too, whose padding is a state. Who waits comes before who had it last, and the
    thread that holds it may take it again (a reader of events that asks something else).
    """

    def __init__(self) -> None:
        self._door, self._lock = threading.Lock(), threading.RLock()
        self._owner: int | None = None
        self.depth = 0
        self.training: list[nn.Module] = []  # modules in eval mode for as long as the lock is held
        _all.add(self)

    def __enter__(self) -> None:
        me = threading.get_ident()
        if self._owner == me:
            self._lock.acquire()
        else:
            with self._door:  # held by the one who waits, so that the last owner cannot overtake it
                self._lock.acquire()
        self._owner, self.depth = me, self.depth + 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1
        if self.depth == 0:
            self._owner = None
        self._lock.release()

    def reset_after_fork(self) -> None:
        """In a child process: let go of what another thread of the parent held; that thread is not here."""
        self._door = threading.Lock()
        if self._owner == threading.get_ident():  # this thread forked in the middle of its own turn
            return
        self._lock, self._owner, self.depth = threading.RLock(), None, 0
        self.restore_training()

    def restore_training(self) -> None:
        """Put the modules back into train mode that were in it when the lock was taken."""
        modules, self.training = self.training, []
        for module in modules:
            module.training = True


_all: WeakSet[FairLock] = WeakSet()
_locks: WeakKeyDictionary[Any, FairLock] = WeakKeyDictionary()
_guard = threading.Lock()


def model_lock(model: Any) -> FairLock:
    """The lock of a model, the same for whatever wraps it."""
    model = unwrap_model(model)
    with _guard:
        return _locks.setdefault(model, FairLock())


class DecodingTurn:
    """Hold a model's lock, with every module in eval mode; afterwards each module has the mode that it had.

    In train mode dropout changes what is said, and gradient checkpointing decodes without a cache. May be
    entered again and again, by the thread that holds it too.
    """

    def __init__(self, model: Any):
        self.lock = model_lock(model)
        self._modules = list(unwrap_model(model).modules())

    def __enter__(self) -> None:
        self.lock.__enter__()
        if self.lock.depth == 1:
            self.lock.training = [module for module in self._modules if module.training]
            for module in self.lock.training:  # not `.eval()`: some layers merge their adapters in it
                module.training = False

    def __exit__(self, *error: object) -> None:
        if self.lock.depth == 1:
            self.lock.restore_training()
        self.lock.__exit__(*error)


def _renew_locks() -> None:
    global _guard
    _guard = threading.Lock()
    for lock in list(_all):
        lock.reset_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
