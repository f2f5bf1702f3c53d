"""Transformers' `Trainer` with the loss, the parameter groups and the rate of this library.

Differences to transformers: the loss is a sum over targets, divided by the weight of all targets of an
optimizer step (all its batches, on all devices), so that a step is the same however it is cut into batches
and devices; parameters fall into groups with a rate and a decay each; every step's loss is kept on record
(`reverse.training.loss_record`); floating-point operations are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from reverse.compatibility import IncompatibleLibraryError
from reverse.errors import DataError
from reverse.models import family_of
from reverse.training.assumptions import check_gradient_scale, check_trainer
from reverse.training.loss_record import LossRecord
from reverse.training.optim.loss import LossConfig
from reverse.training.optim.schedule import Schedule

__all__ = ["StepTrainer", "parameter_groups"]

Group = dict[str, Any]


class StepTrainer(Trainer):
    """The Trainer of this library. The module's docstring lists the differences to transformers.

    Args:
        loss: weights of targets.
        rate: factor of the learning rates.
        record: receives every step's loss; it is also a callback.
        groups: names of parameters with their settings, from `parameter_groups`.
        betas: of AdamW.
        kwargs: for `Trainer`.
    """

    def __init__(
        self,
        *,
        loss: LossConfig,
        rate: Schedule,
        record: LossRecord,
        groups: list[Group],
        betas: tuple[float, float],
        **kwargs: Any,
    ):
        check_trainer(type(self))
        super().__init__(**kwargs)
        check_trainer(self)
        self._is_scale_checked = False
        self.loss, self.rate, self.groups, self.betas = loss, rate, groups, betas
        self.record = record
        self.add_callback(record)
        # The loss below is divided by the whole step's targets: not once more by the number of its batches.
        self.model_accepts_loss_kwargs = True

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make AdamW over `groups`, fused on a GPU; it is called before or after the model is sharded."""
        self.optimizer: Any
        if self.optimizer is None:
            found = dict((model if model is not None else self.model).named_parameters())
            groups = [group | {"params": [found[name] for name in group["names"]]} for group in self.groups]
            for group in groups:
                del group["names"]
            fused = self.args.device.type == "cuda"
            self.optimizer = torch.optim.AdamW(groups, betas=self.betas, fused=fused)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Make the scheduler of `rate`, which knows the number of steps itself."""
        self.lr_scheduler: Any
        if self.lr_scheduler is None:
            chosen = optimizer if optimizer is not None else self.optimizer
            # Accelerate and DeepSpeed wrap optimizers; a scheduler takes only what torch made.
            while not isinstance(chosen, torch.optim.Optimizer) or hasattr(chosen, "optimizer"):
                chosen = chosen.optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(chosen, self.rate)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Return the batches of one step, and the total weight of their targets on all devices."""
        if self.rate.done(self.state.global_step) >= 1:  # resumed where it was at its end: not one step more
            self.control.should_training_stop = True
            return [], None
        samples = []
        for _ in range(num_batches):
            batch = next(epoch_iterator, None)
            if batch is None:
                break
            samples.append(batch)
        if not samples:
            return samples, None
        weight: Tensor | float
        if any("weights" in batch for batch in samples):
            weight = torch.stack([self._weigh(batch) for batch in samples]).sum()
        elif self.loss.weighted:
            weight = torch.stack([torch.as_tensor(self.loss.weight_of(b["labels"])) for b in samples]).sum()
        else:
            weight = sum(len(batch["places"]) for batch in samples)  # without waiting for the device
        if self.args.world_size > 1:
            weight = self.accelerator.reduce(torch.as_tensor(weight, dtype=torch.float64, device=device))
        return samples, weight

    def _weigh(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the total weight of a batch's targets, float64."""
        targets = batch["labels"].flatten()[batch["places"] + 1]
        return torch.as_tensor(self.loss.weight_of(targets, batch.get("weights"))).double()

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)
        self.record.add(self.state.global_step + 1, loss)
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return this batch's share of the step's mean loss, times the number of devices, because their
        gradients are averaged.
        """
        if num_items_in_batch is None:
            raise IncompatibleLibraryError(
                "transformers", "Trainer does not say what the targets of a step weigh"
            )
        outputs = model(**inputs)
        loss = (outputs["loss"] * (self.accelerator.num_processes / num_items_in_batch)).to(torch.float32)
        if not self._is_scale_checked and loss.requires_grad and not self.is_deepspeed_enabled:
            self._is_scale_checked = True
            scaler = getattr(self.accelerator, "scaler", None)
            expected = 1.0 if scaler is None else scaler.get_scale()
            loss.register_hook(lambda gradient: check_gradient_scale(gradient, expected))
        return (loss, outputs) if return_outputs else loss

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0: counting would go through all parameters at each step."""
        return 0


def parameter_groups(
    model: Any, *, lr: float, projector_lr: float | None, weight_decay: float
) -> list[Group]:
    """Group trained parameters by rate and decay: `{"names", "lr", "weight_decay"}` each, without empty
    groups.

    Matrices decay; vectors, embeddings and the rows of tokens do not. The projector (Qwen2.5-VL: the merger)
    has its own rate if one is given.

    Raises:
        ValueError: nothing requires a gradient.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    projector = {id(p) for p in family_of(model).image_projector(model).parameters()}
    groups: dict[tuple[float, float], list[str]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim >= 2 and id(parameter) not in embeddings and "trainable_tokens" not in name
        rate = projector_lr if projector_lr is not None and id(parameter) in projector else lr
        groups.setdefault((rate, weight_decay if decays else 0.0), []).append(name)
    if not groups:
        raise DataError("no parameter of the model requires a gradient: nothing would be trained")
    ordered = sorted(groups.items(), key=lambda group: group[0][0] != lr)  # the first one's rate is shown
    return [{"names": names, "lr": rate, "weight_decay": decay} for (rate, decay), names in ordered]
