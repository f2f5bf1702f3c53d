"""The engine that all calls on one model share.

engine = find_shared_engine(model, processor)  # the same for all while any of them holds it
"""

from __future__ import annotations

import os
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from reverse.decoding.backends.auto import BackendName, check_backend
from reverse.decoding.engine import Engine, read_autocast
from reverse.models.unwrapping import unwrap_model

__all__ = ["find_shared_engine"]

_engines: WeakKeyDictionary[Any, WeakValueDictionary[Any, Engine]] = WeakKeyDictionary()


def find_shared_engine(model: Any, processor: Any, backend: BackendName = "auto") -> Engine:
    """Return the engine that all calls on a model share while any of them is under way.

    Calls with another autocast precision, processor or backend have an engine of their own.
    """
    base = unwrap_model(model)
    if not hasattr(base, "generate"):
        return Engine(model, processor)  # raises the error that says what is wrong
    check_backend(base, backend)
    key = (id(model), id(processor), backend, read_autocast(base))
    engines = _engines.setdefault(base, WeakValueDictionary())
    engine = engines.get(key)
    if engine is None:  # no lock is needed: engines of two threads would step in turns
        engine = engines.setdefault(key, Engine(model, processor, backend=backend, reserves=False))
    return engine


def _reset_after_fork() -> None:
    """Forget all engines in a child process, where none of them has a thread."""
    _engines.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
