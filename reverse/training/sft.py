"""Masked supervised fine-tuning on transformers' `Trainer`: seeded, resumable, within steps or seconds.

    manifest = train(model, processor, dataset, SFTConfig(output="out/tagged", seconds=180))

The objective is plain cross entropy over `labels` (REVERSE, https://arxiv.org/abs/2504.13169, Eq. 1, with the
indicator already in the labels): nothing here knows of tags, but for `confidence_weight`.

What is on disk. While a run goes on, `OUTPUT.checkpoints/checkpoint-N` (the Trainer's own), if `save_steps`
is set; a run that is started again goes on from the last whole one of them. At the end model, processor and
`training.json` are written to `OUTPUT.partial`, which is renamed to `OUTPUT`; only then are checkpoints
removed. So `OUTPUT` is whole or not there, and a restart finds either it, or checkpoints, or nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from reverse.compatibility import IncompatibleLibraryError
from reverse.errors import RequestError
from reverse.files.file_lock import output_lock
from reverse.models import family_of
from reverse.models.adapters.adapter_card import CARD, adapter_card
from reverse.models.window_attention import use_varlen_window_attention
from reverse.tokens import find_token_ids
from reverse.training.assumptions import check_decoder
from reverse.training.checkpoints.full_disk import explain_full_disk
from reverse.training.checkpoints.resuming import (
    last_checkpoint,
    load_weights,
    names_not_missed,
    prepare_folder,
)
from reverse.training.checkpoints.saving import MANIFEST, save_run, versions
from reverse.training.data.collator import Collator, blank_item
from reverse.training.data.encoding import Item
from reverse.training.data.item_order import Ordered, grouped_order
from reverse.training.data.packing import row_positions
from reverse.training.loss_record import LossRecord
from reverse.training.optim.loss import LossConfig, loss_in_forward
from reverse.training.optim.parallel import (
    is_first,
    is_sharded,
    parallel_arguments,
    processes,
    set_fsdp_precision,
)
from reverse.training.optim.schedule import Clock, Progress, Schedule
from reverse.training.optim.trainable_weights import disable_lora_input_cast, is_adapted
from reverse.training.recipes.settings_check import (
    DTYPES,
    REPORTERS,
    check_kernel,
    check_settings,
    check_size,
    check_writable,
)
from reverse.training.trainer import StepTrainer, parameter_groups

__all__ = ["MANIFEST", "REPORTERS", "SFTConfig", "run_settings", "train"]


@dataclass
class SFTConfig:
    """How one run trains. Defaults suit small models on one device."""

    output: str  # folder that the model is written to, see the module's docstring
    seconds: float | None = None  # stop after these, with the learning rate at zero; None: steps alone count
    steps: int | None = None  # stop after these; None: `epochs` times the data
    epochs: float = 1.0  # passes over the data where `steps` is not given
    batch: int = 64  # items a device takes at once; one item may be several rows
    accumulate: int = 1  # batches to an optimizer step
    global_batch: int | None = None  # items an optimizer step, over all devices; `accumulate` follows from it
    lr: float = 1e-3  # highest learning rate
    projector_lr: float | None = None  # of the projector; None: as everything
    warmup: float = 0.03  # share of the run (published recipes: 0.03)
    weight_decay: float = 0.0  # of matrices; vectors and embeddings have none
    beta2: float = 0.98  # of AdamW; short runs want a shorter memory than 0.999
    clip: float = 1.0  # largest norm of the gradient, 0 for none
    confidence_weight: float = 1.0  # of targets that are a closing tag; 1 is the published objective
    loss_kernel: str = "auto"  # see LossConfig
    shuffle: bool = True  # False: items in the order of their indices
    group_by_length: bool = False  # items of about one length in a batch; the data must know lengths
    packing: bool = False  # the rows of a batch end to end, without padding
    precision: str = "bfloat16"  # autocast on a GPU; weights and optimizer stay float32. "float32": none
    pixels: str = "bfloat16"  # what pixels are sent as, see Collator
    compile: bool = False  # torch.compile; pays in long runs only
    checkpoint_activations: bool = False  # recompute them in the backward pass: less memory, slower
    parallel: str = "none"  # "ddp", "fsdp", "zero2", "zero3", see reverse.training.optim.parallel
    workers: int = 0  # processes that prepare data
    prefetch: int = 2  # batches each worker is ahead; they stand in shared memory
    log_steps: int = 50  # steps between two lines of progress
    save_steps: int | None = None  # steps between two checkpoints; None: none, a stopped run starts over
    save_dtype: str | None = None  # of the weights on disk, "bfloat16" halves them; None: as they are trained
    report_to: str = "none"  # also "tensorboard", "wandb" or "trackio"
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
    files: Mapping[str, str] | None = None,
    added_seed: int | None = None,
) -> dict[str, Any]:
    """Train `model` on the items of `dataset`, in place, and write it to `config.output`.

    Every process of a run calls it; all of them see the whole of `dataset`.

    Args:
        model: of transformers, float32 for full training, or wrapped by peft.
        processor: of the model, saved beside it.
        dataset: with a length; gives `Item`s.
        resume: go on from the last checkpoint of this output, where there is one.
        notes: what else the outcome depends on (JSON); kept in the manifest under its names.
        callbacks: further ones of the Trainer's.
        files: further texts written beside the weights, by their names.
        added_seed: of `add_tokens`, where the base of an adapter has no tokens on disk: merging adds them.

    Returns:
        The manifest, as written to `training.json`: configuration, versions, device, steps, seconds, losses.

    Raises:
        ValueError: a setting out of its range, nothing to train, checkpoints of a run with other settings, or
            a loss or weights that are not finite. These are found where the run logs, saves or ends; neither
            a checkpoint nor the output is written of them.
        OutputInUseError: another process trains to this output.
        DiskFullError: the disk of the output is full; the last good checkpoint stays.
    """
    accumulate = check_settings(config)
    check_kernel(config, model)
    steps = check_size(config, accumulate, len(dataset))  # type: ignore[arg-type]
    check_writable(config.output)
    with ExitStack() as stack:
        if is_first():
            stack.enter_context(output_lock(config.output))
        stack.enter_context(explain_full_disk(config.output))
        return _train(
            model, processor, dataset, config, accumulate, steps, resume=resume, notes=notes,
            callbacks=callbacks, files=files, added_seed=added_seed,
        )  # fmt: skip


def run_settings(config: SFTConfig, notes: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the checkpoints of a run are kept with: only a run with the same goes on from them."""
    return {**_outcome(config), "processes": processes(), "notes": dict(notes or {})}


def _train(
    model: Any,
    processor: Any,
    dataset: Dataset[Item],
    config: SFTConfig,
    accumulate: int,
    steps: int,
    *,
    resume: bool,
    notes: Mapping[str, Any] | None,
    callbacks: Sequence[TrainerCallback],
    files: Mapping[str, str] | None,
    added_seed: int | None,
) -> dict[str, Any]:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are forked
    set_seed(config.seed)
    output = Path(config.output)
    checkpoints = output.with_name(output.name + ".checkpoints")
    # The first item is made here: faults in the data show now, and caches are filled before the fork.
    items = config.batch * accumulate * processes()  # a step
    rows = len(dataset[0].rows) * items
    loss = LossConfig(_closing_ids(processor), config.confidence_weight, config.loss_kernel)
    groups = parameter_groups(
        model, lr=config.lr, projector_lr=config.projector_lr, weight_decay=config.weight_decay
    )
    arguments = _arguments(config, checkpoints, steps, accumulate, parallel_arguments(config.parallel, model))
    if is_adapted(model):  # now: a sharded base has no fingerprint
        base = model.peft_config["default"].base_model_name_or_path or ""
        card = adapter_card(model, processor, base=base, added_seed=added_seed)
        files = {**(files or {}), CARD: json.dumps(card, indent=2) + "\n"}
    if not is_sharded(config.parallel):
        _place(model, arguments.device)
    if config.checkpoint_activations:
        _checkpoint_activations(model, config.parallel)
    schedule = Schedule(steps, config.seconds, config.warmup)
    shown = not config.quiet and arguments.process_index == 0
    progress = Progress(schedule, rows, output.name, quiet=not shown)
    settings = run_settings(config, notes)
    with arguments.main_process_first(local=False):
        if arguments.process_index == 0:
            prepare_folder(checkpoints, settings, resume)
    check_decoder(model, config.packing)
    began = time.monotonic()
    with ExitStack() as stack:
        stack.callback(progress.close)
        stack.enter_context(_without_cache(model))
        stack.enter_context(use_varlen_window_attention(model))
        stack.enter_context(loss_in_forward(model, loss))
        if is_adapted(model) and arguments.bf16:
            stack.enter_context(disable_lora_input_cast(model))
        trainer = StepTrainer(
            loss=loss,
            rate=schedule,
            record=LossRecord(checkpoints, config.lr),
            groups=groups,
            betas=(0.9, config.beta2),
            model=model,
            args=arguments,
            data_collator=_collator(model, processor, config),
            train_dataset=_ordered(dataset, config, items, steps),
            callbacks=[Clock(schedule), progress, *callbacks],
        )
        trainer.remove_callback(PrinterCallback)
        if config.parallel == "fsdp":
            set_fsdp_precision(trainer, DTYPES[config.precision])
        last = last_checkpoint(checkpoints, processes())
        if last is not None and config.parallel in ("none", "ddp"):
            load_weights(model, last)
            stack.enter_context(names_not_missed())
        trainer.train(resume_from_checkpoint=last)
    wall = time.monotonic() - began
    manifest = {**(notes or {}), **_manifest(model, config, trainer, schedule, rows, wall)}
    dtype = None if config.save_dtype is None else DTYPES[config.save_dtype]
    save_run(trainer, model, processor, output, manifest, parallel=config.parallel, dtype=dtype, files=files)
    if trainer.is_world_process_zero():
        shutil.rmtree(checkpoints, ignore_errors=True)
    return manifest


def _outcome(config: SFTConfig) -> dict[str, Any]:
    """The settings that decide what comes out of a run."""
    elsewhere = {"output", "workers", "prefetch", "log_steps", "save_steps", "quiet", "report_to"}
    return {name: value for name, value in asdict(config).items() if name not in elsewhere}


def _closing_ids(processor: Any) -> tuple[int, ...]:
    try:
        tags = find_token_ids(processor.tokenizer)
    except ValueError:  # a base or a plain twin
        return ()
    return (tags.cn, tags.un)


def _place(model: Any, device: torch.device) -> None:
    """On its device; four-bit weights were put there when they were loaded."""
    if getattr(model, "quantization_method", None) is None:
        model.to(device)


def _checkpoint_activations(model: Any, parallel: str) -> None:
    """Of all layers but the frozen ones of the tower: nothing goes back through them, so they save none."""
    base = model.get_base_model() if is_adapted(model) else model
    # DeepSpeed's gathered parameters look different the second time, which the other way to checkpoint
    # checks.
    reentrant = parallel == "zero3" and is_adapted(model)
    # Its name up to transformers 5.19, and the newer one.
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    # It has all embeddings require a gradient, the tower's of patches too: then a frozen tower keeps what it
    # computes (3.3 GiB for eight pictures of LLaVA-1.5), and the backward pass goes through all of it for
    # nothing. Only reentrant checkpoints need that, and only those of the decoder.
    base.disable_input_require_grads()
    family = family_of(model)
    if reentrant:
        family.decoder(model).enable_input_require_grads()
    for module in family.vision_tower(model).modules():
        trained = any(parameter.requires_grad for parameter in module.parameters())
        if getattr(module, "gradient_checkpointing", False) and not trained:
            module.gradient_checkpointing = False


def _collator(model: Any, processor: Any, config: SFTConfig) -> Collator:
    positions = None
    if config.packing:
        positions = row_positions(model, processor)
    blank = blank_item(processor) if config.parallel != "none" else None
    return Collator(
        processor, pixel_dtype=DTYPES[config.pixels], packed=config.packing, positions=positions, blank=blank
    )


def _ordered(dataset: Any, config: SFTConfig, items: int, steps: int) -> Any:
    if not config.group_by_length:
        return dataset
    if not hasattr(dataset, "lengths"):
        raise RequestError(
            f"group_by_length needs data that know their lengths; {type(dataset).__name__} does not"
        )
    epochs = -(-steps * items // len(dataset))
    return Ordered(dataset, grouped_order(dataset.lengths(), items, config.seed, epochs))


def _arguments(
    config: SFTConfig, checkpoints: Path, steps: int, accumulate: int, parallel: dict[str, Any]
) -> TrainingArguments:
    """The Trainer's settings; what it would do beside training is off, for a small model waits on it."""
    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=config.batch,
        gradient_accumulation_steps=accumulate,
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
        train_sampling_strategy="sequential" if config.group_by_length or not config.shuffle else "random",
        remove_unused_columns=False,
        average_tokens_across_devices=False,
        logging_strategy="steps",
        logging_steps=config.log_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it reads the loss, and so waits for the device, at every step
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 500,
        save_total_limit=2,
        report_to=config.report_to,
        run_name=Path(config.output).name,
        disable_tqdm=True,
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=not cuda,
        **parallel,
    )
    if config.parallel == "none":
        arguments._n_gpu = min(1, arguments.n_gpu)  # one device, however many there are
        if arguments.n_gpu > 1:
            raise IncompatibleLibraryError(
                "transformers", "TrainingArguments would train on all GPUs at once"
            )
    return arguments


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
    rows: int,
    wall: float,
) -> dict[str, Any]:
    import accelerate
    import peft

    steps = trainer.state.global_step
    losses = LossRecord.losses(trainer.state)
    spent = max(schedule.spent, 1e-9)
    cuda = torch.cuda.is_available()
    return {
        "config": asdict(config),
        "versions": versions() | {"accelerate": accelerate.__version__, "peft": peft.__version__},
        "device": torch.cuda.get_device_name() if cuda else f"cpu ({torch.get_num_threads()} threads)",
        "gpu_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "steps": steps,
        "items": steps * trainer.get_total_train_batch_size(trainer.args),
        "processes": processes(),
        "rows": steps * rows,
        "seconds": round(schedule.spent, 3),  # of training
        "startup_seconds": round(max(0.0, wall - schedule.spent), 3),  # workers, first batch, resuming
        "steps_per_second": round(steps / spent, 3),
        "rows_per_second": round(steps * rows / spent, 1),
        "final_loss": round(losses[-1][1], 5),
        "losses": losses,  # of every step
    }
