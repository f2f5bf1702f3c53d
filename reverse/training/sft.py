"""Masked supervised fine-tuning on transformers' `Trainer`: seeded, resumable, within steps or seconds.

    manifest = train(model, processor, dataset, SFTConfig(output="out/tagged", seconds=180))

The objective is plain cross entropy over `labels` (REVERSE, https://arxiv.org/abs/2504.13169, Eq. 1, with the
indicator already in the labels): apart from `confidence_weight`, this module does not depend on tags.

What is on disk. During a run, `OUTPUT.checkpoints/checkpoint-N` (the Trainer's own), if `save_steps`
is set; a restarted run resumes from the last complete one. At the end model, processor and
`training.json` are written to `OUTPUT.partial`, which is renamed to `OUTPUT`; only then are checkpoints
removed. So `OUTPUT` is complete or absent, and a restart finds either it, or checkpoints, or nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, set_seed

from reverse.errors import RequestError
from reverse.files.file_lock import output_lock
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
from reverse.training.data.encoding import TrainingItem
from reverse.training.data.item_order import Ordered, grouped_order
from reverse.training.data.mixture import Mixture
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
from reverse.training.trainer_setup import checkpoint_activations, disable_cache, make_arguments

__all__ = ["MANIFEST", "REPORTERS", "SFTConfig", "run_settings", "train"]


@dataclass
class SFTConfig:
    """Settings of a training run. The defaults suit small models on one device."""

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
    schedule: str = "cosine"  # of the rate after the warm-up, or "constant"
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
    added_seed: int | None = None  # of `add_tokens`, if the base of an adapter has no tokens on disk


def train(
    model: Any,
    processor: Any,
    dataset: Dataset[TrainingItem],
    config: SFTConfig,
    *,
    resume: bool = True,
    notes: Mapping[str, Any] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    files: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Train `model` on the items of `dataset`, in place, and write it to `config.output`.

    Every process of a run calls it, each with the whole `dataset`.

    Args:
        model: of transformers, float32 for full training, or wrapped by peft.
        processor: of the model, saved beside it.
        dataset: with a length; gives `TrainingItem`s.
        resume: continue from the last checkpoint of this output, if there is one.
        notes: further settings that decide the result (JSON); they are added to the manifest.
        callbacks: further callbacks of the Trainer.
        files: further texts written beside the weights, by their names.

    Returns:
        The manifest, as written to `training.json`: configuration, versions, device, steps, seconds, losses.

    Raises:
        ValueError: a setting out of its range, nothing to train, checkpoints of a run with other settings, or
            a loss or weights that are not finite. These are found where the run logs, saves or ends; then
            neither a checkpoint nor the output is written.
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
        run = _Run(model, processor, dataset, config, accumulate, steps, notes or {})
        return run.train(resume, callbacks, files or {})


def run_settings(config: SFTConfig, notes: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the settings that are stored with checkpoints: only a run with the same ones resumes."""
    return {**_outcome(config), "processes": processes(), "notes": dict(notes or {})}


class _Run:
    """One call of `train`: its arguments, and what is made from them before the first step."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        dataset: Any,
        config: SFTConfig,
        accumulate: int,
        steps: int,
        notes: Mapping[str, Any],
    ):
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are forked
        set_seed(config.seed)
        self.model, self.processor, self.dataset, self.config = model, processor, dataset, config
        self.notes = notes
        self.output = Path(config.output)
        self.checkpoints = self.output.with_name(self.output.name + ".checkpoints")
        self.items = config.batch * accumulate * processes()  # a step
        # The first item is made here: faults in the data show now, and caches are filled before the fork.
        self.rows = len(dataset[0].rows) * self.items  # a step
        self.loss = LossConfig(_closing_ids(processor), config.confidence_weight, config.loss_kernel)
        self.groups = parameter_groups(
            model, lr=config.lr, projector_lr=config.projector_lr, weight_decay=config.weight_decay
        )
        parallel = parallel_arguments(config.parallel, model)
        # A mixture has an order of its own for the whole run.
        arranged = replace(config, shuffle=False) if isinstance(dataset, Mixture) else config
        self.arguments = make_arguments(arranged, self.checkpoints, steps, accumulate, parallel)
        self.schedule = Schedule(steps, config.seconds, config.warmup, config.schedule)

    def train(
        self, resume: bool, callbacks: Sequence[TrainerCallback], files: Mapping[str, str]
    ) -> dict[str, Any]:
        """Train to the end, write the output, remove the checkpoints and return the manifest."""
        model, config, arguments = self.model, self.config, self.arguments
        if is_adapted(model):  # now: a sharded base has no fingerprint
            base = model.peft_config["default"].base_model_name_or_path or ""
            card = adapter_card(model, self.processor, base=base, added_seed=config.added_seed)
            files = {**files, CARD: json.dumps(card, indent=2) + "\n"}
        four_bits = (
            getattr(model, "quantization_method", None) is not None
        )  # they are on their device already
        if not is_sharded(config.parallel) and not four_bits:
            model.to(arguments.device)
        if config.checkpoint_activations:
            checkpoint_activations(model, config.parallel)
        with arguments.main_process_first(local=False):
            if arguments.process_index == 0:
                prepare_folder(self.checkpoints, run_settings(config, self.notes), resume)
        check_decoder(model, config.packing)
        shown = not config.quiet and arguments.process_index == 0
        progress = Progress(self.schedule, self.rows, self.output.name, quiet=not shown)
        began = time.monotonic()
        with ExitStack() as stack:
            stack.callback(progress.close)
            stack.enter_context(disable_cache(model))
            stack.enter_context(use_varlen_window_attention(model))
            stack.enter_context(loss_in_forward(model, self.loss))
            if is_adapted(model) and arguments.bf16:
                stack.enter_context(disable_lora_input_cast(model))
            trainer = self.make_trainer([Clock(self.schedule), progress, *callbacks])
            last = last_checkpoint(self.checkpoints, processes())
            if last is not None and config.parallel in ("none", "ddp"):
                load_weights(model, last)
                stack.enter_context(names_not_missed())
            trainer.train(resume_from_checkpoint=last)
        manifest = {**self.notes, **self.make_manifest(trainer, time.monotonic() - began)}
        dtype = None if config.save_dtype is None else DTYPES[config.save_dtype]
        save_run(
            trainer, model, self.processor, self.output, manifest,
            parallel=config.parallel, dtype=dtype, files=files,
        )  # fmt: skip
        if trainer.is_world_process_zero():
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        return manifest

    def make_trainer(self, callbacks: list[TrainerCallback]) -> StepTrainer:
        """Make the Trainer over the data in their order."""
        config = self.config
        trainer = StepTrainer(
            loss=self.loss,
            rate=self.schedule,
            record=LossRecord(self.checkpoints, config.lr),
            groups=self.groups,
            betas=(0.9, config.beta2),
            model=self.model,
            args=self.arguments,
            data_collator=_collator(self.model, self.processor, config),
            train_dataset=_ordered(self.dataset, config, self.items, self.schedule.steps),
            callbacks=callbacks,
        )
        trainer.remove_callback(PrinterCallback)
        if config.parallel == "fsdp":
            set_fsdp_precision(trainer, DTYPES[config.precision])
        return trainer

    def make_manifest(self, trainer: Trainer, wall: float) -> dict[str, Any]:
        """Make the manifest: what the run did, and with what. `wall`: its total seconds."""
        import accelerate
        import peft

        steps, losses = trainer.state.global_step, LossRecord.losses(trainer.state)
        seconds = self.schedule.spent
        cuda = torch.cuda.is_available()
        parameters = list(self.model.parameters())
        return {
            "config": asdict(self.config),
            "versions": versions() | {"accelerate": accelerate.__version__, "peft": peft.__version__},
            "device": torch.cuda.get_device_name() if cuda else f"cpu ({torch.get_num_threads()} threads)",
            "gpu_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
            "parameters": sum(p.numel() for p in parameters),
            "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "steps": steps,
            "items": steps * trainer.get_total_train_batch_size(trainer.args),
            "processes": processes(),
            "rows": steps * self.rows,
            "seconds": round(seconds, 3),  # of training
            "startup_seconds": round(max(0.0, wall - seconds), 3),  # workers, first batch, resuming
            "steps_per_second": round(steps / max(seconds, 1e-9), 3),
            "rows_per_second": round(steps * self.rows / max(seconds, 1e-9), 1),
            "final_loss": round(losses[-1][1], 5),
            "losses": losses,  # of every step
        }


def _outcome(config: SFTConfig) -> dict[str, Any]:
    """Return the settings that decide the result of a run."""
    elsewhere = {
        "output",
        "workers",
        "prefetch",
        "log_steps",
        "save_steps",
        "quiet",
        "report_to",
        "added_seed",
    }
    return {name: value for name, value in asdict(config).items() if name not in elsewhere}


def _closing_ids(processor: Any) -> tuple[int, ...]:
    try:
        tags = find_token_ids(processor.tokenizer)
    except ValueError:  # a base or a plain twin
        return ()
    return (tags.cn, tags.un)


def _collator(model: Any, processor: Any, config: SFTConfig) -> Collator:
    positions = None
    if config.packing:
        positions = row_positions(model, processor)
    blank = blank_item(processor) if config.parallel != "none" else None
    return Collator(
        processor, pixel_dtype=DTYPES[config.pixels], packed=config.packing, positions=positions, blank=blank
    )


def _ordered(dataset: Any, config: SFTConfig, items: int, steps: int) -> Any:
    if isinstance(dataset, Mixture):
        group = items if config.group_by_length else None
        return dataset.arrange(-(-steps * items // len(dataset)), shuffle=config.shuffle, group=group)
    if not config.group_by_length:
        return dataset
    if not hasattr(dataset, "lengths"):
        raise RequestError(
            f"group_by_length needs data that know their lengths; {type(dataset).__name__} does not"
        )
    epochs = -(-steps * items // len(dataset))
    return Ordered(dataset, grouped_order(dataset.lengths(), items, config.seed, epochs))
