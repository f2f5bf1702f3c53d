"""Train on one or many devices: settings of transformers' Trainer for `parallel: none | ddp | fsdp | zero2 |
zero3`.

    torchrun --nproc-per-node 8 -m reverse train llava_v15_lora --set compute.parallel=zero2

A run starts with as many processes as there are devices (`torchrun`, `accelerate launch`, on several machines
too); nothing else needs to be configured, and no configuration of accelerate is read. What every process
holds:

    ddp      everything
    zero2    all weights, a share of gradients and optimizer
    zero3    a share of everything (DeepSpeed); also fsdp (torch's FSDP2)
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import os
import socket
import time
import uuid
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from reverse.compatibility import IncompatibleLibraryError
from reverse.errors import RequestError
from reverse.models import family_of

__all__ = [
    "MODES",
    "check_parallel",
    "check_shared",
    "exchange",
    "is_first",
    "is_sharded",
    "parallel_arguments",
    "processes",
    "set_fsdp_precision",
]

MODES = ("none", "ddp", "fsdp", "zero2", "zero3")


PIECE = 4 << 20  # bytes that go into the launcher's store at once: it refuses more than 8 MiB
_CALLS = itertools.count()


def processes() -> int:
    """Return the number of processes of this run, as its launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the rank of this process."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this process is the one that shows and writes."""
    return rank() == 0


def exchange(value: Any) -> list[Any]:
    """Exchange a JSON value between all processes; return the values in the order of ranks.

    It goes through the launcher's store, before the devices are joined: any number of minutes may pass until
    the last one comes.
    """
    if processes() == 1:
        return [json.loads(json.dumps(value))]
    store, call = _store(), next(_CALLS)
    said = json.dumps(value)  # ASCII
    pieces = [said[at : at + PIECE] for at in range(0, len(said), PIECE)]
    for k, piece in enumerate(pieces):
        store.set(f"{call}/{rank()}/{k}", piece)
    store.set(f"{call}/{rank()}", str(len(pieces)))
    return [json.loads(_said(store, f"{call}/{other}")) for other in range(processes())]


def _said(store: Any, key: str) -> bytes:
    return b"".join(store.get(f"{key}/{k}") for k in range(int(store.get(key))))


@functools.cache
def _store() -> Any:
    """Open the key-value store of torchrun's agent, or of the first process; process groups use it too."""
    import torch.distributed as dist

    store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(hours=6)))
    # Processes that torchrun started again find what their forerunners said.
    return dist.PrefixStore(f"reverse/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def check_shared(output: Path, patience: float = 30.0) -> None:
    """Raise ValueError unless all processes see what the first one writes beside `output`.

    All processes read checkpoints and, with sharded weights, write them, so several machines need a common
    disk. A marker file is written and looked for during `patience` seconds, because such disks show new files
    late.
    """
    if processes() == 1:
        return
    marker = output.parent / f".{output.name}.{uuid.uuid4().hex}.marker"
    if is_first():
        output.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    try:
        marker = output.parent / exchange(marker.name)[0]
        end = time.monotonic() + patience
        while not (seen := marker.exists()) and time.monotonic() < end:
            time.sleep(0.2)
        found = exchange([seen, f"process {rank()} on {socket.gethostname()} ({output.absolute()})"])
    finally:
        if is_first():
            marker.unlink(missing_ok=True)
    blind = [who for seen, who in found if not seen]
    if blind:
        raise RequestError(
            f"output: what {found[0][1]} writes is not seen by {', '.join(blind[:8])}"
            f"{f' and {len(blind) - 8} more' if len(blind) > 8 else ''}: all machines of a run write to and "
            "read from one folder; put output on a disk that they share"
        )


def is_sharded(parallel: str) -> bool:
    """Whether each process holds only a share of the weights."""
    return parallel in ("fsdp", "zero3")


def check_parallel(parallel: str, count: int | None = None) -> None:
    """Raise ValueError for a mode that is unknown, does not fit the launcher, or is not installed.

    Args: `count`: number of processes that will be started; None: this one was started by a launcher or is
    the only one.
    """
    if parallel not in MODES:
        raise RequestError(f"parallel must be one of {', '.join(MODES)}, got {parallel!r}")
    is_launched = "RANK" in os.environ if count is None else count > 1
    count = processes() if count is None else count
    if parallel == "none" and count > 1:
        raise RequestError(
            f"compute.parallel is 'none' but there are {count} processes: each would train a model of its "
            "own; take ddp, fsdp, zero2 or zero3"
        )
    if parallel != "none" and not is_launched:
        raise RequestError(
            f"compute.parallel is {parallel!r}, which needs a launcher: torchrun --nproc-per-node 8 -m "
            "reverse train …, or compute.parallel=none for one device"
        )
    if parallel in ("fsdp", "zero2", "zero3") and not torch.cuda.is_available():
        raise RequestError(
            f"compute.parallel is {parallel!r}, which needs GPUs; on CPUs accelerate "
            "would run ddp in its place: take ddp"
        )
    if parallel in ("zero2", "zero3") and importlib.util.find_spec("deepspeed") is None:
        raise RequestError(
            f"compute.parallel is {parallel!r} but deepspeed is not installed: pip install "
            "'reverse-vlm[deepspeed]', or take fsdp"
        )


def parallel_arguments(parallel: str, model: Any) -> dict[str, Any]:
    """Return the arguments of `TrainingArguments` for a mode.

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

    Accelerate would do all three in `dtype`: bfloat16 rounds a loss of 10,000 to steps of 64.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is None or not hasattr(plugin, "mixed_precision_policy"):
        raise IncompatibleLibraryError("accelerate", "its state has no fsdp_plugin.mixed_precision_policy")
    if dtype is not torch.float32:
        plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)


def _deepspeed(stage: int) -> Mapping[str, Any]:
    """Return the configuration of ZeRO stage 2 or 3; sizes, batches and precision follow from the Trainer
    ("auto").
    """
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
