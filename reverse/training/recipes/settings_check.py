"""Checks before the first record is read: settings, kernels, the output.

accumulate = check_settings(config)      # of an SFTConfig; batches to an optimizer step
check_kernel(config, model)              # when it is known what is trained
check_writable("runs/llava")
"""

from __future__ import annotations

import math
import os
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from reverse.errors import OutputExistsError, RequestError
from reverse.models import family_of
from reverse.training.data.packing import check_packing
from reverse.training.optim.loss import LossConfig
from reverse.training.optim.parallel import check_parallel, processes
from reverse.training.optim.schedule import Schedule

__all__ = ["DTYPES", "REPORTERS", "check_kernel", "check_settings", "check_size", "check_writable"]

REPORTERS = ("none", "tensorboard", "wandb", "trackio")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MOST_STEPS = 1 << 31
_LEAST = {
    "steps": 1, "epochs": 0, "batch": 1, "accumulate": 1, "global_batch": 1, "lr": 0, "projector_lr": 0,
    "weight_decay": 0, "clip": 0, "beta2": 0, "workers": 0, "prefetch": 1, "log_steps": 1, "save_steps": 1,
}  # fmt: skip


def check_settings(config: Any, count: int | None = None) -> int:
    """Check that settings can run here, and return the number of batches of an optimizer step.

    Args: `count`: number of processes that will train; None: as the launcher of this process says.

    Raises:
        ValueError: a number out of its range or not finite, an unknown name, settings that exclude each
            other, what is not installed, what this machine's devices cannot do.
    """
    for item in fields(config):
        value = getattr(config, item.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise RequestError(f"{item.name} must be a finite number, got {value}")
        if value is not None and item.name in _LEAST and value < _LEAST[item.name]:
            raise RequestError(f"{item.name} must be at least {_LEAST[item.name]}, got {value}")
    if not config.beta2 < 1:
        raise RequestError(f"beta2 must be below 1, got {config.beta2}")
    Schedule(config.steps or 1, config.seconds, config.warmup, config.schedule)
    check_parallel(config.parallel, count)
    for name in ("pixels", "precision", "save_dtype"):
        value = getattr(config, name)
        if value is not None and value not in DTYPES:
            raise RequestError(f"{name} must be one of {', '.join(DTYPES)}, got {value!r}")
    if config.precision == "bfloat16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise RequestError(
            f"precision is bfloat16, which {torch.cuda.get_device_name()} cannot compute in: take float32 "
            "(compute.precision=float32), or float16"
        )
    if config.report_to not in REPORTERS:
        raise RequestError(f"report_to must be one of {', '.join(REPORTERS)}, got {config.report_to!r}")
    if config.report_to != "none" and find_spec(config.report_to) is None:
        raise RequestError(
            f"report_to is {config.report_to!r}, which is not installed: pip install {config.report_to}, or "
            "report_to=none"
        )
    if config.group_by_length and config.packing:
        raise RequestError("group_by_length saves padding and packing has none: choose one of them")
    LossConfig(confidence_weight=config.confidence_weight, kernel=config.loss_kernel)
    if config.loss_kernel == "liger" and not torch.cuda.is_available():
        raise RequestError("loss.kernel is 'liger', which needs a CUDA device: take loss.kernel=chunked here")
    if config.global_batch is None:
        return config.accumulate
    count = processes() if count is None else count
    accumulate, rest = divmod(config.global_batch, config.batch * count)
    if rest or not accumulate:
        raise RequestError(
            f"global_batch {config.global_batch} is not a multiple of batch {config.batch} on {count} "
            "processes: change one of them"
        )
    return accumulate


def check_kernel(config: Any, model: Any) -> None:
    """Raise ValueError for settings that do not fit the model with its trained weights.

    Raises:
        ValueError: the loss' kernel cannot read the model's head, or packed rows would see each other.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if config.loss_kernel == "liger" and not isinstance(base.get_output_embeddings(), torch.nn.Linear):
        raise RequestError(
            "loss.kernel is 'liger', which reads a head as one matrix, but this one's token rows are trained "
            "beside it: take loss.kernel=auto or chunked"
        )
    if config.packing:
        check_packing(model)
    family_of(model)


def check_size(config: Any, accumulate: int, count: int) -> int:
    """Return the number of steps of a run over `count` items.

    Raises ValueError if they do not fill one step.
    """
    items = config.batch * accumulate * processes()
    if count < items:
        raise RequestError(
            f"the data hold {count} items, a batch takes {items}: make it smaller (optim.global_batch and "
            "optim.batch in a recipe), or take more data"
        )
    steps = config.steps or max(1, int(count * config.epochs) // items)
    if steps > MOST_STEPS:
        raise RequestError(f"{steps:.3g} steps are more than {MOST_STEPS:,}: give fewer epochs or steps")
    return steps


def check_writable(output: str | Path) -> None:
    """Raise an error for an output that this process may not write. Nothing is written for the check.

    Raises:
        FileExistsError: a part of its path is a file.
        PermissionError: its folder may not be written to.
    """
    above = next(folder for folder in Path(output).absolute().parents if folder.exists())
    if not above.is_dir():
        raise OutputExistsError(f"output: {output} would lie in {above}, a file: name another folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(
            f"output: {output} cannot be written, for this user may not write to {above}: name another folder"
        )
