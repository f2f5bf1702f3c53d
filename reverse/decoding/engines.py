"""Which engine decodes: the captured one where it can, the dynamic one everywhere.

`engine="auto"` takes the static engine on CUDA for bfloat16 and float16 models it can capture, when no logits
processor of the caller has to see every step; otherwise the dynamic one, and says so in one log line. The
first step of a new engine is compared with the model's own logits; where they differ, the dynamic engine
goes on. An engine stays with its model between calls, since capturing takes seconds; `release(model)` lets it
go.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any, Literal, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch

from reverse.decoding.backend import Backend, Draw, Prefill, Run
from reverse.decoding.static.backend import AT_ONCE, DifferentLogits, StaticBackend
from reverse.decoding.static.engine import Engine
from reverse.decoding.static.state import Style
from reverse.decoding.static.weights import text_model, unsupported
from reverse.models.unwrapping import input_device, unwrap_model

__all__ = ["ChosenBackend", "release"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_log = logging.getLogger(__name__)
_idle: WeakKeyDictionary[Any, Engine] = WeakKeyDictionary()
_guard = threading.Lock()
_said: set[str] = set()


def _renew_guard() -> None:
    """In a forked process: another thread of the parent may have held it."""
    global _guard
    _guard = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_guard)


def release(model: Any) -> None:
    """Free what the static engine keeps for `model` between calls: its cache and captured steps."""
    with _guard:
        _idle.pop(unwrap_model(model), None)


def why_not_static(model: Any, processors: Sequence[Any]) -> str | None:
    """Why the static engine cannot take these requests; None where it can."""
    if any(len(p) for p in processors):
        return f"{type(processors[0][0]).__name__} has to see every step"
    return unsupported(model)


def _worth_it(model: Any) -> str | None:
    if input_device(model).type != "cuda":
        return f"the model is on {input_device(model).type}"
    if model.dtype not in (torch.bfloat16, torch.float16):
        return f"its dtype is {model.dtype}"
    if find_spec("triton") is None:
        return "triton is not installed"
    return None


def _device_context(model: Any) -> AbstractContextManager[Any]:
    """Make the model's GPU the current one: kernels and graphs run there, not where their tensors are."""
    return torch.cuda.device(model.device) if model.device.type == "cuda" else nullcontext()


def _on_model_device(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run a method of `ChosenBackend` with the model's GPU as the current one."""

    @functools.wraps(method)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with _device_context(args[0].model):  # type: ignore[attr-defined]
            return method(*args, **kwargs)

    return call


class ChosenBackend:
    """A backend that makes up its mind when it sees its first prompts.

    Args: `dynamic` makes the dynamic backend; `engine` as in `ResamplingConfig`; `style`, `slots` and
    `candidates` are for the static one. `admit` raises ValueError where `engine="static"` cannot be had.
    """

    def __init__(
        self,
        model: Any,
        dynamic: Callable[[], Backend],
        *,
        engine: Literal["auto", "dynamic", "static"],
        style: Style,
        slots: int,
        candidates: int,
    ):
        self.model, self.dynamic, self.engine = unwrap_model(model), dynamic, engine
        self.style, self.candidates = style, candidates
        self.inner: Backend | None = None
        self._slots = slots
        self._sound = True  # no error has left the engine in a state that nobody knows
        if engine == "static":  # before anything is read or encoded
            self._refuse(unsupported(self.model))

    @property
    def slots(self) -> int:
        """Rows side by side at most; fewer once memory has run out."""
        return self._slots if self.inner is None else self.inner.slots

    def _choose(self, batch: Prefill) -> Backend:
        if self.engine == "dynamic":
            return self.dynamic()
        reason = why_not_static(self.model, batch.processors)
        if self.engine == "static":
            self._refuse(reason)
        else:
            elsewhere = _worth_it(self.model)
            if elsewhere is not None or reason is not None:
                if elsewhere is None or input_device(self.model).type == "cuda":
                    self._say(elsewhere or reason or "")
                return self.dynamic()
        return StaticBackend(
            self.model,
            self._open,
            style=self.style,
            slots=self._slots,
            candidates=self.candidates,
        )

    def _refuse(self, reason: str | None) -> None:
        if reason is not None:
            raise ValueError(f"engine='static' cannot decode this: {reason}; use engine='auto'")

    def _say(self, reason: str) -> None:
        if reason not in _said:
            _said.add(reason)
            _log.warning("decoding with the dynamic engine: %s", reason)

    def _open(self, lanes: int, slots: int) -> Engine:
        """The model's idle engine where it is large enough and has the weights of now, else a new one."""
        with _guard:
            engine = _idle.pop(self.model, None)
        text = text_model(self.model)
        if engine is None or engine.lanes < lanes or not engine.text.same_as(text):
            engine = None  # before a new one asks for memory
            return Engine(text, lanes, slots)
        if engine.slots < slots:
            engine.make_room(slots)
        return engine

    @_on_model_device
    def close(self) -> None:
        """Give the engine back to its model, unless something went wrong: NaN in a lane would outlast it."""
        if self.inner is not None:
            self.inner.close()
        if isinstance(self.inner, StaticBackend) and self.inner.engine is not None:
            if self._sound:
                with _guard:
                    _idle[self.model] = self.inner.engine
            self.inner.engine = None

    # ------------------------------------------------------------------ verbs
    @property
    def chosen(self) -> Backend:
        assert self.inner is not None, "nothing was admitted"
        return self.inner

    def free(self) -> int:
        return min(self._slots, AT_ONCE) if self.inner is None else self.inner.free()

    @_on_model_device
    def admit(self, batch: Prefill) -> list[int]:
        if self.inner is None:
            self.inner = self._choose(batch)
        self._sound = False
        try:
            rows = self.inner.admit(batch)
        except DifferentLogits as error:
            self.inner.close()
            self.inner = None
            if self.engine == "static":
                self._refuse(str(error))
            self._say(str(error))
            self.inner = self.dynamic()
            rows = self.inner.admit(batch)
        self._sound = True
        return rows

    @_on_model_device
    def rewind(self, row: int, ids: Sequence[int]) -> None:
        self.chosen.rewind(row, ids)

    @_on_model_device
    def start(self, row: int, draw: Draw) -> None:
        self.chosen.start(row, draw)

    @_on_model_device
    def fork(self, row: int, draws: Sequence[Draw]) -> None:
        self.chosen.fork(row, draws)

    @_on_model_device
    def adopt(self, row: int, candidate: int) -> int:
        return self.chosen.adopt(row, candidate)

    @_on_model_device
    def extend(self) -> list[tuple[int, int, Run]]:
        if self.inner is None:
            return []
        self._sound = False
        ended = self.inner.extend()
        self._sound = True
        return ended

    @_on_model_device
    def finish(self, row: int) -> None:
        if self.inner is not None:
            self.inner.finish(row)
