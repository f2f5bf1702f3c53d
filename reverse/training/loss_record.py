"""Record the loss of every step, and stop a run whose loss or weights are not finite.

Losses stay on the device until the run logs, saves or ends, so that no step waits for them. Then they are
fetched together, and a value that is not finite raises an error before a line or a checkpoint is written.
Fetched losses are kept in the Trainer's `log_history`, and so in each checkpoint. A resumed run therefore has
the losses of an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from reverse.compatibility import IncompatibleLibraryError
from reverse.errors import DataError
from reverse.training.checkpoints.resuming import last_checkpoint
from reverse.training.optim.parallel import processes, rank

__all__ = ["LossRecord"]

_KEY = "step_loss"  # in the log history, beside the Trainer's means over several steps


class LossRecord(TrainerCallback):
    """Records the losses of `StepTrainer`. It is the last callback, so that it sees the decisions of the
    others.

    Args:
        checkpoints: folder of checkpoints, named in the error.
        lr: highest learning rate, named in the error.
    """

    def __init__(self, checkpoints: Path, lr: float):
        self.checkpoints = checkpoints
        self.lr = lr
        self._waiting: dict[int, Tensor] = {}  # by step; of this process, on the device

    def add(self, step: int, loss: Tensor) -> None:
        """Add one batch's share of the loss of `step`, a scalar tensor."""
        before = self._waiting.get(step)
        self._waiting[step] = loss if before is None else before + loss

    @staticmethod
    def losses(state: Any) -> list[list[Any]]:
        """Return `[step, loss]` of every step so far, also of those before a restart."""
        return [[entry["step"], entry[_KEY]] for entry in state.log_history if _KEY in entry]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if control.should_training_stop:
            control.should_log = True
        if control.should_log or control.should_save:
            self._fetch(state)
        if control.should_save:
            self._check_weights(state, model)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that the saved checkpoint is found again: else a stopped run would start over."""
        if processes() == 1 and not str(last_checkpoint(self.checkpoints, 1)).endswith(
            f"-{state.global_step}"
        ):
            raise IncompatibleLibraryError(
                "transformers",
                f"the checkpoint of step {state.global_step} lacks trainer_state.json or rng_state.pth: "
                "no run could go on from it",
            )

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._fetch(state)
        self._check_weights(state, model)

    def _fetch(self, state: Any) -> None:
        """Fetch the waiting losses, average them over processes and record them."""
        steps = list(self._waiting)
        if not steps:
            return
        shares = gather(torch.stack(list(self._waiting.values()))).view(-1, len(steps)).tolist()
        self._waiting.clear()
        for step, of_step in zip(steps, zip(*shares, strict=True), strict=True):
            loss = sum(of_step) / len(of_step)
            if not abs(loss) < float("inf"):
                # The weights that gave it are those after the step before.
                self._stop(f"the loss of step {step} is {loss}", step - 1)
            state.log_history.append({"step": step, _KEY: loss})

    def _check_weights(self, state: Any, model: Any) -> None:
        """Stop the run if a trained weight is not finite: the last loss does not show the last step."""
        ends = [torch.stack(torch.aminmax(held)) for held in _trained(model)]  # without a mask in their size
        finite = torch.stack([end.isfinite().all() for end in ends]).all() if ends else torch.tensor(True)
        if processes() > 1:
            device = next(model.parameters()).device
            finite = gather(finite.reshape(1).to(device, torch.int32)).all()
        if not finite:
            self._stop(f"weights are not finite after step {state.global_step}", state.global_step)

    def _stop(self, found: str, after: int) -> None:
        """Raise the error; the weights after step `after` are bad, and so are checkpoints of them."""
        if after == 0:
            raise DataError(
                f"{found}, before any weight was changed: the model that the run starts from holds weights "
                "that are not finite, or compute.precision is too narrow for it, try float32"
            )
        good = last_checkpoint(self.checkpoints, processes(), before=after)
        kept = f"the last good checkpoint is {good}" if good else "there is no good checkpoint"
        raise DataError(
            f"{found}: lower lr (optim.lr in a recipe), now {self.lr:g}, and start over with resume=False "
            f"(--restart); {kept}"
        )


def _trained(model: Any) -> Iterator[Tensor]:
    """Return the parts of the trained parameters that this process holds."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        held = parameter.detach()
        if hasattr(parameter, "ds_tensor"):  # ZeRO-3
            share = parameter.ds_tensor  # flat; behind the end of the last one lies what was in memory
            held = share[: max(0, parameter.ds_numel - rank() * share.numel())]
        elif isinstance(held, DTensor):
            held = held.to_local()
        if held.numel():
            yield held
