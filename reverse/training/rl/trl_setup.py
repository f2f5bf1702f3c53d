"""Arguments for both trainers of TRL, and checks that TRL accepts them.

    check_recipe(recipe)                       # before anything is loaded
    trainer_class = find_trainer("dpo")
    arguments = make_trl_arguments("dpo", recipe, checkpoints, steps, accumulate, parallel, {"beta": 0.1})

Nothing of TRL is replaced. The trainer's class is derived to leave out the message that TRL sends to a server
when a trainer is made.
"""

from __future__ import annotations

import importlib.util
import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from reverse.compatibility import IncompatibleLibraryError
from reverse.errors import MissingPackageError, RequestError
from reverse.training.optim.trainable_weights import check_tuning
from reverse.training.recipes.recipe import Recipe

__all__ = ["check_recipe", "find_trainer", "make_trl_arguments"]

_TRAINER_ARGUMENTS = {
    "dpo": ("model", "args", "train_dataset", "processing_class", "callbacks", "peft_config"),
    "grpo": (
        "model", "args", "train_dataset", "processing_class", "callbacks", "peft_config", "reward_funcs",
        "rollout_func",
    ),
}  # fmt: skip
# Keys of a recipe that have no effect here, with their defaults: another value is refused.
_WITHOUT_EFFECT: dict[str, Any] = {
    "data.hint_share": 0.2,
    "tune.quantize": "none",
    "tune.vision": False,
    "optim.projector_lr": None,
    "loss.confidence_weight": 1.0,
    "loss.kernel": "auto",
    "compute.group_by_length": False,
    "compute.packing": False,
    "compute.compile": False,
}


def check_recipe(recipe: Recipe) -> None:
    """Raise an error for settings that TRL does not support, or would silently treat differently.

    Raises:
        MissingPackageError: TRL is not installed.
        RequestError: a key that has no effect, or what is trained cannot be trained with TRL.
    """
    for package in ("trl", "datasets"):
        if importlib.util.find_spec(package) is None:
            raise MissingPackageError(
                f"kind is {recipe.kind} but {package} is not installed: pip install 'reverse-vlm[train,rl]'"
            )
    check_tuning(recipe.tune)
    settings = recipe.model_dump()
    for key, default in _WITHOUT_EFFECT.items():
        section, name = key.split(".")
        if settings[section][name] != default:
            raise RequestError(
                f"{key}={settings[section][name]} has no effect on a run of kind {recipe.kind}: leave it at "
                f"{'none' if default is None else default}"
            )
    if not isinstance(recipe.data.records, str):
        raise RequestError(f"data.records must be one file for kind {recipe.kind}: join the parts")
    if recipe.tune.method == "lora" and recipe.tune.tokens:
        raise RequestError(
            "tune.tokens=true trains rows beside the head, and TRL reads probabilities from the head's own "
            "matrix: train the tokens by kind=sft first, then set tune.tokens=false"
        )
    if recipe.tune.projector:
        raise RequestError(
            f"tune.projector=true: kind {recipe.kind} trains the language model alone: set "
            "tune.projector=false"
        )
    if recipe.compute.parallel in ("fsdp", "zero3"):
        raise RequestError(
            f"compute.parallel={recipe.compute.parallel} is not supported for kind {recipe.kind}, which "
            "generates and compares with whole weights: take ddp or zero2"
        )
    needs_reference = recipe.kind == "dpo" or recipe.grpo.beta > 0
    if recipe.tune.method == "full" and needs_reference:
        raise RequestError(
            "the model that a run starts from is also its reference, which needs tune.method=lora (the "
            "adapter is switched off for it)" + ("" if recipe.kind == "dpo" else ", or grpo.beta=0")
        )
    if recipe.kind == "grpo":
        _check_rewards(recipe)


def _check_rewards(recipe: Recipe) -> None:
    settings = recipe.grpo
    if settings.pass_rate_low > settings.pass_rate_high:
        raise RequestError(
            f"grpo.pass_rate_low {settings.pass_rate_low} is above grpo.pass_rate_high "
            f"{settings.pass_rate_high}: try 0.1 and 0.9"
        )
    if settings.rollout == "checked" and recipe.optim.lr != 0:
        raise RequestError(
            f"grpo.rollout=checked with optim.lr={recipe.optim.lr}: a decoder that rejects phrases does not "
            "draw from the model's own distribution, so its completions are for measuring: set optim.lr=0, "
            "or grpo.rollout=plain or keep_phrases"
        )


def find_trainer(kind: str) -> Any:
    """Find TRL's trainer of a kind, without its message to a server.

    Raises IncompatibleLibraryError if it does not take the arguments that are given to it.
    """
    import trl

    name = {"dpo": "DPOTrainer", "grpo": "GRPOTrainer"}[kind]
    trainer = getattr(trl, name)
    known = inspect.signature(trainer.__init__).parameters
    missing = [each for each in _TRAINER_ARGUMENTS[kind] if each not in known]
    if missing:
        raise IncompatibleLibraryError("trl", f"{name} takes no {', '.join(missing)}")
    if not hasattr(trainer, "_send_telemetry"):
        return trainer
    return type(name, (trainer,), {"_send_telemetry": lambda self: None, "__doc__": trainer.__doc__})


def make_trl_arguments(
    kind: str,
    recipe: Recipe,
    checkpoints: Path,
    steps: int,
    accumulate: int,
    parallel: dict[str, Any],
    further: dict[str, Any],
) -> Any:
    """Make TRL's configuration of a kind, from the recipe's common settings and `further` ones.

    Raises IncompatibleLibraryError for a setting that TRL does not have.
    """
    import trl

    cls = {"dpo": trl.DPOConfig, "grpo": trl.GRPOConfig}[kind]
    cuda, optim = torch.cuda.is_available(), recipe.optim
    settings: dict[str, Any] = {
        "output_dir": str(checkpoints),
        "max_steps": steps,
        "per_device_train_batch_size": optim.batch,
        "gradient_accumulation_steps": accumulate,
        "learning_rate": optim.lr,
        "lr_scheduler_type": "cosine" if optim.schedule == "cosine" else "constant_with_warmup",
        "warmup_steps": int(optim.warmup * steps),
        "weight_decay": optim.weight_decay,
        "adam_beta2": optim.beta2,
        "max_grad_norm": optim.clip,
        "bf16": cuda and recipe.compute.precision == "bfloat16",
        "fp16": cuda and recipe.compute.precision == "float16",
        "gradient_checkpointing": recipe.compute.checkpoint_activations,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "disable_dropout": True,
        "remove_unused_columns": False,
        "dataloader_num_workers": recipe.data.workers,
        "dataloader_drop_last": True,
        "logging_strategy": "steps",
        "logging_steps": recipe.log.steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps" if recipe.log.save_steps else "no",
        "save_steps": recipe.log.save_steps or 500,
        "save_total_limit": 2,
        "report_to": recipe.log.report_to,
        "run_name": Path(recipe.output).name,
        "disable_tqdm": True,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "use_cpu": not cuda,
        "ddp_find_unused_parameters": False,  # every row has pictures, and what is trained is always used
        **parallel,
        **further,
    }
    unknown = sorted(settings.keys() - {each.name for each in fields(cls)})
    if unknown:
        raise IncompatibleLibraryError("trl", f"{cls.__name__} has no {', '.join(unknown)}")
    return cls(**settings)
