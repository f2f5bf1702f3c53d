"""Choose the backend: steps captured as CUDA graphs where they can be, transformers everywhere else.

    backend = choose_backend(model, "auto", max_sequences=32, tags=tags)

`"auto"` takes `cuda_graph` on CUDA for bfloat16 and float16 models that can be captured, if no logits
processor has to see every step; otherwise `hf`, and says why in one log line. The first step of a new cache
is compared with the model's own logits; if they differ, `hf` takes over. Cache and captured steps are kept
while nothing decodes, because capturing takes seconds; `release(model)` frees them.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch

from reverse.decoding.backends.cuda_graph.graph_backend import CudaGraphBackend
from reverse.decoding.backends.cuda_graph.logits_check import DifferentLogits
from reverse.decoding.backends.cuda_graph.runner import GraphRunner
from reverse.decoding.backends.cuda_graph.weights import unsupported
from reverse.decoding.backends.hf.hf_backend import HfBackend
from reverse.decoding.backends.protocol import (
    Backend,
    Capabilities,
    EncodedPicture,
    Picture,
    Prompt,
    SegmentParams,
    StepOutput,
)
from reverse.errors import RequestError
from reverse.models.unwrapping import input_device, unwrap_model
from reverse.tokens.spans import TokenIds

__all__ = ["AutoBackend", "BackendName", "check_backend", "choose_backend", "release"]

BackendName = Literal["auto", "hf", "cuda_graph"]

_log = logging.getLogger(__name__)
_idle: WeakKeyDictionary[Any, GraphRunner] = WeakKeyDictionary()
_guard = threading.Lock()
_logged: set[str] = set()


def _renew_guard() -> None:
    """Make a new lock in a forked process, because a thread of the parent may have held the old one."""
    global _guard
    _guard = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_guard)


def release(model: Any) -> None:
    """Free the cache and the captured steps that are kept for `model` while nothing decodes with it."""
    _take_runner(unwrap_model(model))


def _take_runner(model: Any) -> GraphRunner | None:
    with _guard:
        return _idle.pop(model, None)


def _keep_runner(model: Any, runner: GraphRunner) -> None:
    with _guard:
        _idle[model] = runner


def check_backend(model: Any, name: str) -> None:
    """Raise ValueError for a backend that cannot decode `model`."""
    if name not in ("auto", "hf", "cuda_graph"):
        raise RequestError(f"backend must be 'auto', 'hf' or 'cuda_graph', got {name!r}")
    reason = unsupported(unwrap_model(model)) if name == "cuda_graph" else None
    if reason is not None:
        raise DifferentLogits(reason)


def choose_backend(
    model: Any,
    name: BackendName,
    *,
    max_sequences: int,
    tags: TokenIds,
    processors: str = "",
) -> Backend:
    """Return a backend for `model`, which may be wrapped; `processors` names logits processors that have to
    see every step.

    Raises ValueError for an unknown name, and if `"cuda_graph"` is asked for and cannot decode the model.
    """
    check_backend(model, name)
    make_hf = partial(HfBackend, model)
    if name == "hf":
        return make_hf(max_sequences=max_sequences)
    inner = unwrap_model(model)
    reason = f"{processors} has to see every step" if processors else unsupported(inner)
    if name == "auto":
        why_not = _why_not_worth_it(inner)
        if why_not is not None or reason is not None:
            if why_not is None or input_device(inner).type == "cuda":
                _log_once(why_not or reason or "")
            return make_hf(max_sequences=max_sequences)
    elif reason is not None:
        raise DifferentLogits(reason)
    captured = CudaGraphBackend(
        inner,
        max_sequences=max_sequences,
        tags=tags,
        open_runner=partial(_take_runner, inner),
        keep_runner=partial(_keep_runner, inner),
    )
    return AutoBackend(captured, make_hf) if name == "auto" else captured


def _why_not_worth_it(model: Any) -> str | None:
    if input_device(model).type != "cuda":
        return f"the model is on {input_device(model).type}"
    if model.dtype not in (torch.bfloat16, torch.float16):
        return f"its dtype is {model.dtype}"
    if find_spec("triton") is None:
        return "triton is not installed"
    return None


def _log_once(reason: str) -> None:
    if reason not in _logged:
        _logged.add(reason)
        _log.warning("decoding with backend 'hf': %s", reason)


class AutoBackend:
    """Uses captured steps as long as they compute the same as the model, and transformers from then on.

    Args: `make_fallback(max_sequences=…)` makes the transformers backend for that case. The verbs are those
    of `Backend`.
    """

    def __init__(self, captured: CudaGraphBackend, make_fallback: Callable[..., Backend]):
        self.inner: Backend = captured
        self._make_fallback = make_fallback

    @property
    def capabilities(self) -> Capabilities:
        """The current capabilities of the backend."""
        return self.inner.capabilities

    def reserve(self, sequences: int) -> None:
        """Set how many sequences may be held at once."""
        self.inner.reserve(sequences)

    def encode(self, pictures: Sequence[Picture]) -> list[EncodedPicture]:
        """Run the vision tower and the projector, once for all of them."""
        return self.inner.encode(pictures)

    def add(self, prompts: Sequence[Prompt]) -> list[int]:
        """Prefill new sequences in one batch; the first call may switch to the fallback backend."""
        try:
            return self.inner.add(prompts)
        except DifferentLogits as error:  # raised only while no sequence is held
            _log_once(error.reason)
        self.inner.reset()
        self.inner = self._make_fallback(max_sequences=self.inner.capabilities.max_sequences)
        return self.inner.add(prompts)

    def split(self, sequence: int, n: int) -> list[int]:
        """Add `n` sequences with the same tokens."""
        return self.inner.split(sequence, n)

    def set_tokens(self, sequence: int, ids: Sequence[int]) -> None:
        """Make `ids` the tokens of a sequence and end its segment."""
        self.inner.set_tokens(sequence, ids)

    def start(self, sequence: int, params: SegmentParams) -> None:
        """Begin a segment after the sequence's tokens."""
        self.inner.start(sequence, params)

    def step(self) -> list[StepOutput]:
        """One decode step of all sequences that decode a segment."""
        return self.inner.step()

    def score(self, sequences: Sequence[int], kind: str, begins: Sequence[int] | None = None) -> list[float]:
        """Return a number for each sequence."""
        return self.inner.score(sequences, kind, begins)

    def release(self, sequence: int) -> None:
        """Release a sequence, also while it decodes."""
        self.inner.release(sequence)

    def reset(self) -> None:
        """Release every sequence."""
        self.inner.reset()
