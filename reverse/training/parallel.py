"""One device or many: what `parallel: none | ddp | fsdp | zero2 | zero3` means to transformers' Trainer.

    torchrun --nproc-per-node 8 -m reverse train llava_v15_lora --set compute.parallel=zero2

A run starts with as many processes as there are devices (`torchrun`, `accelerate launch`, on several machines
too); nothing else needs to be configured, and no configuration of accelerate is read. What every process
holds:

    ddp      everything
    zero2    all weights, a share of gradients and optimizer
    zero3    a share of everything (DeepSpeed); also fsdp (torch's FSDP2)
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import torch

from reverse.models import family_of

__all__ = [
    "MODES",
    "check_parallel",
    "is_first",
    "is_sharded",
    "parallel_arguments",
    "processes",
    "set_fsdp_precision",
]

MODES = ("none", "ddp", "fsdp", "zero2", "zero3")


def processes() -> int:
    """How many processes this run has, as its launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the one that shows and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def is_sharded(parallel: str) -> bool:
    """Whether a process holds a share of the weights only."""
    return parallel in ("fsdp", "zero3")


def check_parallel(parallel: str) -> None:
    """Raise ValueError for a mode that is unknown, that the launcher does not fit, or is not installed."""
    if parallel not in MODES:
        raise ValueError(f"parallel must be one of {', '.join(MODES)}, got {parallel!r}")
    count = processes()
    if parallel == "none" and count > 1:
        raise ValueError(
            f"compute.parallel is 'none' but there are {count} processes: each would train a model of its "
            "own; take ddp, fsdp, zero2 or zero3"
        )
    if parallel != "none" and "RANK" not in os.environ:
        raise ValueError(
            f"compute.parallel is {parallel!r}, which needs a launcher: torchrun --nproc-per-node 8 -m "
            "reverse train …, or compute.parallel=none for one device"
        )
    if parallel in ("fsdp", "zero2", "zero3") and not torch.cuda.is_available():
        raise ValueError(
            f"compute.parallel is {parallel!r}, which needs GPUs; on CPUs accelerate "
            "would run ddp in its place: take ddp"
        )
    if parallel in ("zero2", "zero3") and importlib.util.find_spec("deepspeed") is None:
        raise ValueError(
            f"compute.parallel is {parallel!r} but deepspeed is not installed: pip install "
            "'reverse-vlm[deepspeed]', or take fsdp"
        )


def parallel_arguments(parallel: str, model: Any) -> dict[str, Any]:
    """Arguments of `TrainingArguments` for a mode.

    Args:
        parallel: one of `MODES`.
        model: not yet wrapped; with or without peft.
    """
    family = family_of(model)
    if parallel == "ddp":
        # Of a tower that is trained, layers may stand unused (LLaVA takes the features of its last layer but
        # one).
        tower = any(parameter.requires_grad for parameter in family.vision_tower(model).parameters())
        projector = any(parameter.requires_grad for parameter in family.image_projector(model).parameters())
        inside = family.projector.startswith(family.tower)
        return {"ddp_find_unused_parameters": tower and not (inside and projector)}
    if parallel == "fsdp":
        layer = type(family.decoder(model).layers[0]).__name__
        return {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": [layer]}}
    if parallel in ("zero2", "zero3"):
        return {"deepspeed": _deepspeed(3 if parallel == "zero3" else 2)}
    return {}


def set_fsdp_precision(trainer: Any, dtype: torch.dtype) -> None:
    """Compute in `dtype`, but sum gradients over devices in float32, and leave the loss as it is.

    Accelerate would do all three in `dtype`: a loss of 10,000 in bfloat16 is known to within 32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin = trainer.accelerator.state.fsdp_plugin
    if dtype is not torch.float32:
        plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)


def _deepspeed(stage: int) -> Mapping[str, Any]:
    """Stage 2 or 3 without offloading; sizes, batches and precision follow from the Trainer ("auto")."""
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
    }
    if stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
    }
