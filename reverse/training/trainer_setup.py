"""Set up transformers' Trainer and the model for a training run.

arguments = make_arguments(config, Path("out.checkpoints"), steps=100, accumulate=2, parallel={})
checkpoint_activations(model, "none")
with disable_cache(model):
    ...
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from reverse.compatibility import IncompatibleLibraryError
from reverse.models import family_of
from reverse.training.optim.trainable_weights import is_adapted

__all__ = ["checkpoint_activations", "disable_cache", "make_arguments"]

_ABSENT = object()


def make_arguments(
    config: Any, checkpoints: Path, steps: int, accumulate: int, parallel: dict[str, Any]
) -> TrainingArguments:
    """Make the Trainer's settings for an `SFTConfig`, without extras that slow down a small model.

    `parallel`: further arguments, from `parallel_arguments`.
    """
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


def checkpoint_activations(model: Any, parallel: str) -> None:
    """Recompute activations in the backward pass, in all layers except frozen ones of the vision tower."""
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


@contextmanager
def disable_cache(model: Any) -> Iterator[None]:
    """Turn the KV cache off inside the context; afterwards the configurations are as before."""
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
