"""Cross entropy of the targets only, so that the logits of a whole batch are never in memory.

A batch of 16 rows of 2,048 ids over 151,936 logits takes 20 GB in float32, and most of these logits belong to
prompts and pictures, which are not trained. Here the hidden states at targets are gathered first, and go
through the head a few hundred at a time; the backward pass computes each part again.

    with loss_in_forward(model, LossConfig()):
        loss = model(**batch)["loss"] / batch["places"].numel()     # batch as `collator.Collator` makes it

Sum and gradients equal those of `torch.nn.functional.cross_entropy` over all logits. Inside the context a
call of the model returns the sum of the losses and no logits. That also works for a wrapped model (peft, DDP,
FSDP2, DeepSpeed), because the head's parameters are only used inside a call of the head.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from reverse.errors import RequestError
from reverse.training.data.labels import IGNORE
from reverse.training.optim.module_views import view_module

__all__ = ["KERNELS", "LossConfig", "class_weights", "loss_in_forward", "summed_loss"]

KERNELS = ("auto", "chunked", "liger")
ROOM = 1 << 24  # logits that stand at once: 0.2 to 0.3 GB with what softmax and its gradient take


@dataclass(frozen=True)
class LossConfig:
    """How the loss is computed; the defaults are the published objective."""

    closing_ids: tuple[int, ...] = ()  # `</CN>` and `</UN>`
    confidence_weight: float = 1.0  # of targets that are a closing tag; every other target weighs 1
    kernel: str = (
        "auto"  # "liger" (fused, needs liger-kernel and CUDA), "chunked", or the first that can be had
    )

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise RequestError(f"loss.kernel must be one of {', '.join(KERNELS)}, got {self.kernel!r}")
        if not self.confidence_weight > 0:
            raise RequestError(
                f"loss.confidence_weight must be positive, got {self.confidence_weight!r}: 1 is the "
                "published objective, 2 makes a closing tag count twice"
            )
        if self.kernel == "liger" and not _has_liger():
            raise RequestError(
                "loss.kernel is 'liger' but liger-kernel is not installed: pip install 'reverse-vlm[liger]', "
                "or loss.kernel=chunked"
            )

    @property
    def weighted(self) -> bool:
        """Whether targets have different weights."""
        return self.confidence_weight != 1.0 and bool(self.closing_ids)

    def weight_of(self, targets: Tensor, weights: Tensor | None = None) -> Tensor | int:
        """Sum the weights of `targets` (int64, any shape, `IGNORE` allowed), by which a loss is divided.

        `weights`: of each target, float32 of the shape of `targets`; None: all weigh 1.
        """
        if weights is not None:
            factors = torch.where(targets != IGNORE, weights.double(), 0.0)
            if self.weighted:
                closing = torch.isin(targets, torch.tensor(self.closing_ids, device=targets.device))
                factors = torch.where(closing, factors * self.confidence_weight, factors)
            return factors.sum()
        if not self.weighted:
            return (targets != IGNORE).sum()
        closing = torch.isin(targets, torch.tensor(self.closing_ids, device=targets.device)).sum()
        return (targets != IGNORE).sum() + closing * (self.confidence_weight - 1)


def class_weights(config: LossConfig, vocabulary: int, device: torch.device) -> Tensor | None:
    """Return the weight of each id as a target, (vocabulary,) float32, or None if all weigh 1."""
    if not config.weighted:
        return None
    weights = torch.ones(vocabulary, device=device)
    weights[list(config.closing_ids)] = config.confidence_weight
    return weights


def summed_loss(
    project: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    part: int,
    factors: Tensor | None = None,
) -> Tensor:
    """Sum the cross entropies in float32, with at most `part` rows of logits at a time.

    Args:
        project: (rows, hidden size) to logits (rows, vocabulary).
        hidden: (rows, hidden size).
        targets: (rows,) int64.
        weights: (vocabulary,) float32 or None.
        part: number of rows of logits at a time.
        factors: (rows,) float32, which multiply the loss of each target, or None.
    """
    if len(hidden) <= part:
        return _part_loss(project, hidden, targets, weights, factors)
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, len(hidden), part):
        rows = slice(start, start + part)
        total = total + checkpoint(
            _part_loss,
            project,
            hidden[rows],
            targets[rows],
            weights,
            None if factors is None else factors[rows],
            use_reentrant=False,
            preserve_rng_state=False,
            determinism_check="none",  # ZeRO-3 shows parameters without rows between its gatherings
        )
    return total


def _part_loss(
    project: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    factors: Tensor | None = None,
) -> Tensor:
    logits = project(hidden)
    if logits.dtype != torch.float64:
        logits = logits.float()
    weights = None if weights is None else weights.to(logits.dtype)
    if factors is not None:
        losses = F.cross_entropy(logits, targets, weight=weights, reduction="none")
        return (losses * factors.to(logits.dtype)).sum()
    return F.cross_entropy(logits, targets, weight=weights, reduction="sum")


@contextmanager
def loss_in_forward(model: Any, config: LossConfig) -> Iterator[None]:
    """Inside the context `model(**batch)` returns `{"loss": sum over targets}`, wrapped or not.

    Hooks of the model pass the targets to its head, and a view of the head computes the loss instead of
    logits. So FSDP and DeepSpeed gather the head's weight once, for a call of the head.

    Args:
        model: of transformers, with or without peft around it; not yet wrapped for several devices.
        config: see `LossConfig`.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()
    view: Any = view_module(head, type("LossHead", (_LossHead, type(head)), {}))
    view.loss_config = config
    base.set_output_embeddings(view)
    hooks = (
        # Of the wrapper where there is one: peft below 0.20 calls the base model's forward past its hooks.
        model.register_forward_pre_hook(partial(_take_targets, view), with_kwargs=True),
        model.register_forward_hook(_return_loss),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        base.set_output_embeddings(head)
        for name in ("loss_config", "loss_targets"):
            vars(head).pop(name, None)
        vars(base).pop("forward", None)  # accelerate puts its own there and does not always remove it


def _take_targets(
    head: Any, model: Any, args: tuple[Any, ...], batch: dict[str, Any]
) -> tuple[tuple[Any, ...], Any]:
    """Give labels and places to the head, and return the other arguments for the model's forward.

    Args:
        head: the view that computes the loss.
        batch: the model's inputs; `labels` (rows, length) int64, `IGNORE` where no target is; `places`
            (targets,) int64, positions in the flattened `labels` whose *next* id is a target; `weights`
            (targets,) float32, if they do not all weigh 1.
    """
    inputs = {name: value for name, value in batch.items() if value is not None}
    head.loss_targets = inputs.pop("labels"), inputs.pop("places"), inputs.pop("weights", None)
    return args, {**inputs, "use_cache": False}


def _return_loss(model: Any, args: tuple[Any, ...], output: Any) -> dict[str, Tensor]:
    """Return what the head returned, which is the loss."""
    return {"loss": output.logits}


class _LossHead(torch.nn.Module):
    """Mixin of the class of a head: its forward pass returns the summed loss of the targets and not the
    logits.
    """

    loss_config: LossConfig
    loss_targets: tuple[Tensor, Tensor, Tensor | None]

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the sum of the losses for the last hidden states (rows, length, hidden size)."""
        config, (labels, places, factors) = self.loss_config, self.loss_targets
        chosen = hidden.flatten(0, 1).index_select(0, places)  # (targets, hidden size)
        targets = labels.flatten()[places + 1]
        whole: Any = self if isinstance(self, torch.nn.Linear) else self.original_module
        weights = class_weights(config, whole.out_features, hidden.device)
        if _use_liger(self, config, hidden):
            return _liger_loss(whole, chosen, targets, weights, factors)
        part = max(1, ROOM // whole.out_features)
        return summed_loss(super().forward, chosen, targets, weights, part, factors)


def _has_liger() -> bool:
    return importlib.util.find_spec("liger_kernel") is not None


def _use_liger(head: Any, config: LossConfig, hidden: Tensor) -> bool:
    """Whether Liger's kernel computes the loss. It reads a head as one matrix, without trained token rows."""
    plain = isinstance(head, torch.nn.Linear)
    if config.kernel == "liger" and not plain:
        raise RequestError(
            "loss.kernel is 'liger', which reads a head as one matrix, but this one's token rows are trained "
            "beside it: take loss.kernel=auto or chunked"
        )
    if config.kernel == "chunked" or not plain:
        return False
    if config.kernel == "liger" and hidden.device.type != "cuda":
        raise RequestError("loss.kernel is 'liger', which needs a CUDA device: take loss.kernel=chunked here")
    return hidden.device.type == "cuda" and _has_liger()


def _liger_loss(
    head: torch.nn.Linear, hidden: Tensor, targets: Tensor, weights: Tensor | None, factors: Tensor | None
) -> Tensor:
    """Compute the summed loss by Liger's kernel.

    It gives only sums, so it is called once for each weight of a row.
    """
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    kind = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else head.weight.dtype
    loss = LigerFusedLinearCrossEntropyLoss(
        ce_weight=weights, ignore_index=IGNORE, reduction="sum", accum_dtype=torch.float32
    )
    bias = None if head.bias is None else head.bias.to(kind)
    weight, hidden = head.weight.to(kind), hidden.to(kind)
    if factors is None:
        return loss(weight, hidden, targets, bias)
    total = hidden.new_zeros((), dtype=torch.float32)
    for factor in factors.unique():  # rows of a batch at most, often few
        rows = (factors == factor).nonzero().squeeze(1)
        total = total + factor * loss(weight, hidden[rows], targets[rows], bias)
    return total
