"""Do a run of kind `dpo` or `grpo` from beginning to end, with TRL's trainers.

    manifest = run_rl_recipe(load_recipe("srpo_grpo", ["model=out/cold_start"]))

`OUTPUT` is written as by `kind: sft`: the adapter (or model) with its card, the processor, `training.json`,
`recipe.yaml`. It appears when it is complete. A run that was stopped continues from its last checkpoint in
`OUTPUT.checkpoints`, and ends with the weights and the log of an unbroken one: rows come in the same order,
and completions that were drawn since are drawn again with the same random numbers.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, set_seed

from reverse.errors import DataError, RequestError
from reverse.files.file_lock import output_lock
from reverse.models import family_of
from reverse.models.adapters.adapter_card import CARD, adapter_card
from reverse.models.checkpoints.loading import find_checkpoint
from reverse.training.checkpoints.full_disk import explain_full_disk
from reverse.training.checkpoints.resuming import (
    last_checkpoint,
    load_weights,
    names_not_missed,
    prepare_folder,
)
from reverse.training.checkpoints.saving import save_run, versions
from reverse.training.optim.parallel import (
    check_parallel,
    check_shared,
    is_first,
    parallel_arguments,
    processes,
)
from reverse.training.optim.schedule import Clock, Progress, Schedule
from reverse.training.optim.trainable_weights import make_lora_config, select_trained
from reverse.training.recipe_data import check_part_files, describe_data
from reverse.training.recipes.recipe import Recipe, as_yaml
from reverse.training.recipes.settings_check import DTYPES, check_writable
from reverse.training.rl.dpo import make_dpo_trainer
from reverse.training.rl.grpo import make_grpo_trainer
from reverse.training.rl.rl_callbacks import FiniteCheck, LogAtCheckpoints, TokenCount
from reverse.training.rl.rl_rows import RowFile, make_dataset, read_rows
from reverse.training.rl.trl_inputs import check_same_ids, copy_for_trl
from reverse.training.rl.trl_setup import check_recipe
from reverse.training.training_run import (
    check_recipe_settings,
    load_base,
    outcome_settings,
    pad_to_square,
    read_finished,
    set_pixels,
)

__all__ = ["RLPlan", "plan_rl_run", "run_rl_recipe"]


@dataclass(frozen=True)
class RLPlan:
    """The plan of a run, before anything is loaded."""

    rows: RowFile
    steps: int
    accumulate: int  # batches to an optimizer step
    data: dict[str, Any]  # what the data are and what a look at them found, for the manifest


def plan_rl_run(recipe: Recipe) -> RLPlan:
    """Check everything that needs no model, all rows included.

    Raises ReverseError for settings that cannot run here.
    """
    check_recipe(recipe)
    check_parallel(recipe.compute.parallel)
    check_part_files(recipe)
    check_writable(recipe.output)
    accumulate = check_recipe_settings(recipe)
    _, family = find_checkpoint(recipe.model)
    rows = read_rows(
        str(recipe.data.records),
        recipe.data.images,
        kind=recipe.kind,
        image_token=family.image_token,
        limit=recipe.data.limit,
        skip_bad=recipe.data.skip_bad,
        pass_rates=(recipe.grpo.pass_rate_low, recipe.grpo.pass_rate_high),
    )
    steps = _count_steps(recipe, len(rows))
    data = describe_data(recipe) | {
        "count": len(rows),
        "left_out": {"count": rows.left_out.total(), "reasons": dict(rows.left_out), "records": rows.bad},
    }
    return RLPlan(rows, steps, accumulate, data)


def run_rl_recipe(recipe: Recipe, *, resume: bool = True, quiet: bool = False) -> dict[str, Any]:
    """Train as `recipe` says, and return the manifest. Arguments and errors are those of `run_recipe`."""
    with ExitStack() as stack:
        check_recipe(recipe)
        check_writable(recipe.output)
        if is_first():
            stack.enter_context(output_lock(recipe.output))
        stack.enter_context(explain_full_disk(recipe.output))
        check_shared(Path(recipe.output))
        finished = read_finished(recipe, resume)
        if finished is not None:
            return finished
        plan = plan_rl_run(recipe)
        return _RLRun(recipe, plan, quiet).train(resume)


class _RLRun:
    """One run: its loaded parts, and its trainer."""

    def __init__(self, recipe: Recipe, plan: RLPlan, quiet: bool):
        set_seed(recipe.seed)
        self.recipe, self.plan = recipe, plan
        self.output = Path(recipe.output)
        self.checkpoints = self.output.with_name(self.output.name + ".checkpoints")
        self.model, self.processor, added_seed = load_base(recipe)
        set_pixels(self.processor, recipe)
        if recipe.data.pad_to_square:
            pad_to_square(self.processor)
        copied = copy_for_trl(self.processor)
        check_same_ids(recipe.kind, copied, self.processor, family_of(self.model), plan.rows)
        self.files = {"recipe.yaml": as_yaml(recipe)}
        adapter = None
        if recipe.tune.method == "lora":
            card = adapter_card(self.model, self.processor, base=recipe.model, added_seed=added_seed)
            self.files[CARD] = json.dumps(card, indent=2) + "\n"
            adapter = make_lora_config(self.model, self.processor, recipe.tune)
        else:
            select_trained(self.model, self.processor, recipe.tune)
        self.schedule = Schedule(plan.steps, None, recipe.optim.warmup, recipe.optim.schedule)
        self.progress = Progress(
            self.schedule, recipe.optim.global_batch, self.output.name, quiet=quiet or not is_first()
        )
        given = {
            "model": self.model,
            "processing_class": copied,
            "train_dataset": make_dataset(plan.rows),
            "callbacks": [Clock(self.schedule), self.progress, FiniteCheck(), LogAtCheckpoints()],
            "peft_config": adapter,
        }
        parallel = parallel_arguments(recipe.compute.parallel, self.model)
        make = make_dpo_trainer if recipe.kind == "dpo" else make_grpo_trainer
        with _quiet_libraries():
            self.trainer = make(recipe, given, self.checkpoints, plan.steps, plan.accumulate, parallel)
        self.trainer.remove_callback(PrinterCallback)
        if recipe.kind == "dpo":
            self.trainer.add_callback(TokenCount())

    def train(self, resume: bool) -> dict[str, Any]:
        """Train to the end, write the output, remove the checkpoints and return the manifest."""
        recipe, trainer = self.recipe, self.trainer
        notes = {"recipe": outcome_settings(recipe), "data": self.plan.data}
        with trainer.args.main_process_first(local=False):
            if trainer.is_world_process_zero():
                prepare_folder(self.checkpoints, {"processes": processes(), "notes": notes}, resume)
        began = time.monotonic()
        with ExitStack() as stack:
            stack.callback(self.progress.close)
            stack.enter_context(_quiet_libraries())
            last = last_checkpoint(self.checkpoints, processes())
            if last is not None and recipe.tune.method == "full":
                load_weights(trainer.model, last)
                stack.enter_context(names_not_missed())
            trainer.train(resume_from_checkpoint=last)
        _check_weights(trainer.model)
        manifest = {**notes, **self._make_manifest(time.monotonic() - began)}
        full = recipe.tune.method == "full" and recipe.compute.save_dtype is not None
        dtype = DTYPES[str(recipe.compute.save_dtype)] if full else None
        save_run(trainer, trainer.model, self.processor, self.output, manifest, dtype=dtype, files=self.files)
        if trainer.is_world_process_zero():
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        return manifest

    def _make_manifest(self, wall: float) -> dict[str, Any]:
        """Make the manifest of the run. `wall`: its total seconds."""
        import datasets
        import peft
        import trl

        log = [_round(entry) for entry in self.trainer.state.log_history if "loss" in entry]
        cuda = torch.cuda.is_available()
        parameters = list(self.trainer.model.parameters())
        packages = {"peft": peft, "trl": trl, "datasets": datasets}
        return {
            "kind": self.recipe.kind,
            "versions": versions() | {name: each.__version__ for name, each in packages.items()},
            "device": torch.cuda.get_device_name() if cuda else f"cpu ({torch.get_num_threads()} threads)",
            "gpu_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
            "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "steps": self.trainer.state.global_step,
            "processes": processes(),
            "seconds": round(self.schedule.spent, 3),
            "startup_seconds": round(max(0.0, wall - self.schedule.spent), 3),
            "final_loss": log[-1]["loss"] if log else None,
            "log": log,  # of every logged step: loss, rewards, outcomes
        }


def _check_weights(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
            raise DataError(f"the weights of {name} are not finite: lower optim.lr")


def _count_steps(recipe: Recipe, count: int) -> int:
    """Count the optimizer steps of a run; `global_batch` counts rows of all processes."""
    if count < recipe.optim.global_batch:
        raise RequestError(
            f"the data hold {count} rows, a step takes {recipe.optim.global_batch}: lower optim.global_batch"
        )
    return recipe.optim.steps or max(1, int(count * recipe.optim.epochs) // recipe.optim.global_batch)


def _round(entry: dict[str, Any]) -> dict[str, Any]:
    """Round figures, and sort their names: entries that come from a checkpoint are sorted."""
    return {name: round(v, 6) if isinstance(v, float) else v for name, v in sorted(entry.items())}


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Silence TRL's warnings about intended settings, and about names that transformers renames."""
    logger = logging.getLogger("trl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*'rollout_func', which is an experimental feature")
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
            yield
    finally:
        logger.setLevel(before)
