"""Supervised fine-tuning through transformers' `Trainer`: seeded, resumable, within steps or seconds.

    manifest = train(model, processor, dataset, SFTConfig(output="out/tagged", seconds=180))

The objective is plain cross entropy over `labels` (REVERSE, https://arxiv.org/abs/2504.13169, Eq. 1, with the
indicator already in the labels): nothing here knows of tags.

What is on disk. While a run goes on, `OUTPUT.checkpoints/checkpoint-N` (the Trainer's own), if `save_steps`
is set; a run that is started again goes on from the last of them. At the end model, processor and
`training.json` are written to `OUTPUT.partial`, which is renamed to `OUTPUT`; only then are checkpoints
removed. So `OUTPUT` is whole or not there, and a restart finds either it, or checkpoints, or nothing.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from reverse.training.collator import Collator
from reverse.training.encoding import Item
from reverse.training.schedule import Clock, Progress, Schedule

__all__ = ["SFTConfig", "train"]

MANIFEST = "training.json"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class SFTConfig:
    """How one run trains. Defaults suit small models on one device."""

    output: str  # folder that the model is written to, see the module's docstring
    seconds: float | None = None  # stop after these, with the learning rate at zero; None: steps alone count
    steps: int | None = None  # stop after these; None: `epochs` times the data
    epochs: float = 1.0  # passes over the data where `steps` is not given
    batch: int = 64  # items a step; one item may be several rows
    accumulate: int = 1  # batches to an optimizer step
    lr: float = 1e-3  # highest learning rate
    warmup: float = 0.03  # share of the run (published recipes: 0.03)
    weight_decay: float = 0.0  # of matrices; vectors and embeddings have none
    beta2: float = 0.98  # of AdamW; short runs want a shorter memory than 0.999
    clip: float = 1.0  # largest norm of the gradient, 0 for none
    shuffle: bool = True  # False: items in the order of their indices
    precision: str = "bfloat16"  # autocast on a GPU; weights and optimizer stay float32. "float32": none
    pixels: str = "bfloat16"  # what pixels are sent as, see Collator
    compile: bool = False  # torch.compile; pays in long runs only
    checkpoint_activations: bool = False  # recompute them in the backward pass: less memory, slower
    workers: int = 0  # processes that prepare data
    prefetch: int = 2  # batches each worker is ahead; they stand in shared memory
    log_steps: int = 50  # steps between two lines of progress
    save_steps: int | None = None  # steps between two checkpoints; None: none, a stopped run starts over
    save_dtype: str | None = None  # of the weights on disk, "bfloat16" halves them; None: as they are trained
    seed: int = 0
    quiet: bool = False  # no progress lines


def train(
    model: Any,
    processor: Any,
    dataset: Dataset[Item],
    config: SFTConfig,
    *,
    resume: bool = True,
    notes: Mapping[str, Any] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Train `model` on the items of `dataset`, in place, and write it to `config.output`.

    Args:
        model: of transformers, float32 for full training, or wrapped by peft.
        processor: of the model, saved beside it.
        dataset: with a length; gives `Item`s.
        resume: go on from the last checkpoint of this output, where there is one.
        notes: what else the outcome depends on (JSON); kept in the manifest under its names.
        callbacks: further ones of the Trainer's.

    Returns:
        The manifest, as written to `training.json`: configuration, versions, device, steps, seconds, losses.

    Raises:
        ValueError: a setting out of its range, nothing to train, checkpoints of a run with other settings, or
            a loss that is not a number at the end.
    """
    _check(config, dataset)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are forked
    set_seed(config.seed)
    output = Path(config.output)
    checkpoints = output.with_name(output.name + ".checkpoints")
    # The first item is made here: faults in the data show now, and caches are filled before the fork.
    rows = len(dataset[0].rows) * config.batch * config.accumulate
    items = len(dataset)  # type: ignore[arg-type]
    steps = config.steps or max(1, int(items * config.epochs) // (config.batch * config.accumulate))
    arguments = _arguments(config, checkpoints, steps)
    model.to(arguments.device)
    if config.checkpoint_activations:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    schedule = Schedule(steps, config.seconds, config.warmup)
    optimizer = _optimizer(model, config, arguments.device)
    progress = Progress(schedule, rows, output.name, config.quiet)
    began = time.monotonic()
    with _without_cache(model):
        trainer = Trainer(
            model=model,
            args=arguments,
            data_collator=Collator(processor, pixel_dtype=_DTYPES[config.pixels]),
            train_dataset=dataset,
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)),
            callbacks=[Clock(schedule), progress, *callbacks],
        )
        trainer.remove_callback(PrinterCallback)
        # Counting operations walks through all parameters at each step: a millisecond that nobody asked for.
        trainer.floating_point_ops = lambda inputs: 0
        last = _last_checkpoint(checkpoints, {**_outcome(config), "notes": dict(notes or {})}, resume)
        if last is not None:
            _load_weights(model, last)
        result = trainer.train(resume_from_checkpoint=last)
    wall = time.monotonic() - began
    manifest = {**(notes or {}), **_manifest(model, config, trainer, schedule, progress, result, rows, wall)}
    if trainer.is_world_process_zero():
        _save(model, processor, output, manifest, config.save_dtype)
        shutil.rmtree(checkpoints, ignore_errors=True)
    return manifest


def _outcome(config: SFTConfig) -> dict[str, Any]:
    """The settings that decide what comes out of a run."""
    elsewhere = {"output", "workers", "prefetch", "log_steps", "save_steps", "quiet"}
    return {name: value for name, value in asdict(config).items() if name not in elsewhere}


def _last_checkpoint(checkpoints: Path, settings: dict[str, Any], resume: bool) -> str | None:
    """The checkpoint to go on from; `run.json` beside them says what run they are of."""
    run = checkpoints / "run.json"
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    if last is not None and resume:
        before = json.loads(run.read_text(encoding="utf-8")) if run.is_file() else None
        if before != settings:
            changed = sorted(key for key in settings if before is None or before.get(key) != settings[key])
            raise ValueError(
                f"{checkpoints} holds checkpoints of a run with other settings ({', '.join(changed)}): "
                "remove the folder, or pass resume=False to start over"
            )
        return last
    shutil.rmtree(checkpoints, ignore_errors=True)
    checkpoints.mkdir(parents=True)
    run.write_text(json.dumps(settings) + "\n", encoding="utf-8")
    return None


def _load_weights(model: Any, checkpoint: str) -> None:
    """Put a checkpoint's weights into `model`.

    `save_pretrained` writes LLaVA's weights under the names of published checkpoints, and the Trainer looks
    for the module's names: it finds none, warns, and goes on from the weights it was given (transformers
    5.23). Adapters of peft it does load.
    """
    if not isinstance(model, PreTrainedModel):
        return
    saved = type(model).from_pretrained(checkpoint, dtype=model.dtype, use_safetensors=True)
    model.load_state_dict(saved.state_dict())
    logging.getLogger("transformers.trainer").addFilter(_is_other_warning)


def _is_other_warning(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(("There were missing keys", "There were unexpected keys"))


def _check(config: SFTConfig, dataset: Any) -> None:
    if len(dataset) < config.batch:
        raise ValueError(f"the data hold {len(dataset)} items, a batch takes {config.batch}: make it smaller")
    for name in ("pixels", "precision", "save_dtype"):
        value = getattr(config, name)
        if value is not None and value not in _DTYPES:
            raise ValueError(f"{name} must be one of {', '.join(_DTYPES)}, got {value!r}")


def _optimizer(model: torch.nn.Module, config: SFTConfig, device: torch.device) -> torch.optim.Optimizer:
    """AdamW, fused on a GPU; weight decay for matrices only."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("no parameter of the model requires a gradient: nothing would be trained")
    decayed = [p for p in trained if p.ndim >= 2 and id(p) not in embeddings]
    others = [p for p in trained if p.ndim < 2 or id(p) in embeddings]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(0.9, config.beta2),
        fused=device.type == "cuda",
    )


def _arguments(config: SFTConfig, checkpoints: Path, steps: int) -> TrainingArguments:
    """The Trainer's settings; what it would do beside training is off, for a small model waits on it."""
    cuda = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=config.batch,
        gradient_accumulation_steps=config.accumulate,
        max_grad_norm=config.clip,
        bf16=cuda and config.precision == "bfloat16",
        fp16=cuda and config.precision == "float16",
        tf32=True if cuda else None,
        torch_compile=config.compile,
        dataloader_num_workers=config.workers,
        dataloader_persistent_workers=config.workers > 0,
        dataloader_prefetch_factor=config.prefetch if config.workers else None,
        dataloader_pin_memory=cuda,
        dataloader_drop_last=True,
        accelerator_config={"non_blocking": cuda},
        train_sampling_strategy="random" if config.shuffle else "sequential",
        remove_unused_columns=False,
        average_tokens_across_devices=False,
        logging_strategy="steps",
        logging_steps=config.log_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it reads the loss, and so waits for the device, at every step
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 500,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=not cuda,
    )


@contextmanager
def _without_cache(model: Any) -> Iterator[None]:
    """No key-value cache while training; the configurations are as before afterwards."""
    configs = [model.config, model.config.get_text_config()]
    before = [vars(config).get("use_cache", _ABSENT) for config in configs]
    for config in configs:
        config.use_cache = False
    try:
        yield
    finally:
        for config, value in zip(configs, before, strict=True):
            if value is _ABSENT:
                vars(config).pop("use_cache", None)
            else:
                config.use_cache = value


_ABSENT = object()


def _manifest(
    model: Any,
    config: SFTConfig,
    trainer: Trainer,
    schedule: Schedule,
    progress: Progress,
    result: Any,
    rows: int,
    wall: float,
) -> dict[str, Any]:
    import accelerate

    import reverse

    steps = trainer.state.global_step
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    final = losses[-1] if losses else float(result.training_loss)
    if not final == final:
        raise ValueError(f"the loss is {final} after {steps} steps: lower lr, now {config.lr}")
    spent = max(schedule.spent, 1e-9)
    cuda = torch.cuda.is_available()
    return {
        "config": asdict(config),
        "versions": {
            "reverse": getattr(reverse, "__version__", None),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
        },
        "device": torch.cuda.get_device_name() if cuda else f"cpu ({torch.get_num_threads()} threads)",
        "gpu_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "steps": steps,
        "items": steps * config.batch * config.accumulate,
        "rows": steps * rows,
        "seconds": round(schedule.spent, 3),  # of training
        "startup_seconds": round(max(0.0, wall - schedule.spent), 3),  # workers, first batch, resuming
        "steps_per_second": round(steps / spent, 3),
        "rows_per_second": round(steps * rows / spent, 1),
        "final_loss": round(final, 5),
        "losses": [[line["step"], line["loss"]] for line in progress.lines],
    }


def _save(model: Any, processor: Any, output: Path, manifest: dict[str, Any], dtype: str | None) -> None:
    """Write everything to `OUTPUT.partial`, then rename."""
    partial = output.with_name(output.name + ".partial")
    replaced = output.with_name(output.name + ".replaced")
    for leftover in (partial, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    if dtype is not None and model.dtype != _DTYPES[dtype]:
        model = copy.deepcopy(model).to(_DTYPES[dtype])
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    if output.exists():
        output.rename(replaced)
    partial.rename(output)
    shutil.rmtree(replaced, ignore_errors=True)
