"""Check, once per run, that transformers, peft and accelerate behave as training relies on.

A release that calls other methods, scales the loss differently or reads positions in another way would
silently train another objective. Whatever its version is, IncompatibleLibraryError says so before the first
step, or at its backward pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from reverse.compatibility import IncompatibleLibraryError
from reverse.models.unwrapping import unwrap_model

__all__ = ["check_decoder", "check_gradient_scale", "check_trainer"]

# What `StepTrainer` overrides, with the arguments that it reads.
_OVERRIDDEN = {
    "create_optimizer": (),
    "create_scheduler": ("num_training_steps", "optimizer"),
    "get_batch_samples": ("epoch_iterator", "num_batches", "device"),
    "training_step": (),
    "compute_loss": ("model", "inputs", "return_outputs", "num_items_in_batch"),
    "floating_point_ops": ("inputs",),
}
_ATTRIBUTES = (
    "model_accepts_loss_kwargs",
    "_created_lr_scheduler",
    "accelerator",
    "lr_scheduler",
    "optimizer",
)
_PROBE = (5, 6, 7, 5, 6, 7, 8)  # ids of two rows end to end, of three and of four


def check_trainer(trainer: Any) -> None:
    """Raise unless a `Trainer`, or its class, has the methods that are overridden and their parameters."""
    kind = trainer if isinstance(trainer, type) else type(trainer)
    from transformers import Trainer

    base = next((each for each in kind.__mro__ if each is Trainer), kind)
    for name, arguments in _OVERRIDDEN.items():
        method = getattr(base, name, None)
        known = inspect.signature(method).parameters if callable(method) else {}
        missing = [argument for argument in arguments if argument not in known]
        if method is None or missing:
            what = "is gone" if method is None else f"has no argument {', '.join(missing)}"
            raise IncompatibleLibraryError(
                "transformers", f"Trainer.{name} {what}, so this library's method would be ignored"
            )
    if kind is not trainer:
        gone = [name for name in _ATTRIBUTES if not hasattr(trainer, name)]
        if gone:
            raise IncompatibleLibraryError("transformers", f"the Trainer has no attribute {', '.join(gone)}")


def check_gradient_scale(gradient: Tensor, expected: float) -> None:
    """Raise unless `gradient`, of the loss that we return with respect to itself, is `expected`."""
    found = float(gradient)
    if not abs(found - expected) <= 1e-6 * abs(expected):
        raise IncompatibleLibraryError(
            "transformers",
            f"Trainer or accelerate multiplies the loss of a batch by {found / expected:g} before its "
            "backward pass, where it was expected to stay as it is",
        )


@torch.no_grad()
def check_decoder(model: Any, packed: bool) -> None:
    """Raise unless logits are the head's of the last hidden state and, if `packed`, rows do not see each
    other.

    Seven ids go through the decoder. Nothing is checked if the weights are sharded already.
    """
    base = unwrap_model(model)
    if any(hasattr(p, "ds_id") or p.device.type == "meta" for p in base.parameters()):
        return
    with _evaluating(base):
        hidden, logits = _probe(base, _PROBE, packed)
        head = base.get_output_embeddings()(hidden)
        if not _agree(logits, head):
            raise IncompatibleLibraryError(
                "transformers", f"logits of {type(base).__name__} are not its head's of the last hidden state"
            )
        if not packed:
            return
        alone, _ = _probe(base, _PROBE[3:], False)
        if not _agree(hidden[:, 3:], alone):
            raise IncompatibleLibraryError(
                "transformers",
                f"{type(base).__name__} lets packed rows see each other: compute.packing=false avoids it",
            )


def _probe(base: Any, ids: tuple[int, ...], packed: bool) -> tuple[Tensor, Tensor]:
    """Return the last hidden states of `ids`, (1, length, width), and their logits."""
    device = base.get_input_embeddings().weight.device
    counted = [0, 1, 2, 0, 1, 2, 3] if packed else list(range(len(ids)))
    positions = torch.tensor([counted], device=device)
    if hasattr(base.model, "get_rope_index"):
        positions = positions.expand(4, 1, -1)
    inputs = {"input_ids": torch.tensor([ids], device=device), "position_ids": positions, "use_cache": False}
    return base.model(**inputs).last_hidden_state, base(**inputs).logits


def _agree(found: Tensor, expected: Tensor) -> bool:
    """Whether two results are equal up to rounding."""
    most = 1e-3 if found.dtype in (torch.float32, torch.float64) else 5e-2
    found, expected = found.double(), expected.double()
    return bool((found - expected).norm() <= most * expected.norm().clamp(min=1e-12))


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Put the model into eval mode inside the context, and restore every module's mode after it."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
