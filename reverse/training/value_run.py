"""A run of kind `value` from beginning to end: a value head, on a frozen model or trained with LoRA.

    manifest = run_value_recipe(load_recipe("value_head", ["model=out/policy", "data.records=drafts.jsonl"]))
    load_value_head("out/value_head", model=model)

`OUTPUT` holds the head, `training.json`, `recipe.yaml` and, with `value.backbone: lora`, the adapter in
`OUTPUT/adapter`, which `reverse merge` takes. It appears when it is complete. There are no checkpoints: a
run that was stopped begins anew.
"""

from __future__ import annotations

import json
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from reverse.data.drafts.draft_files import read_drafts
from reverse.errors import RequestError
from reverse.files.atomic_write import sync_files
from reverse.files.file_lock import output_lock
from reverse.models.adapters.adapter_card import CARD, adapter_card
from reverse.models.value_head import save_value_head
from reverse.progress import show_progress
from reverse.training.checkpoints.full_disk import explain_full_disk
from reverse.training.checkpoints.saving import MANIFEST, versions
from reverse.training.optim.trainable_weights import check_tuning, select_trained
from reverse.training.recipe_data import check_part_files, describe_data
from reverse.training.recipes.recipe import Recipe, as_yaml
from reverse.training.recipes.settings_check import check_writable
from reverse.training.training_run import (
    load_base,
    outcome_settings,
    pad_to_square,
    read_finished,
    set_pixels,
)
from reverse.training.value_training import ValueConfig, train_value_head

__all__ = ["run_value_recipe"]


def run_value_recipe(recipe: Recipe, *, resume: bool = True, quiet: bool = False) -> dict[str, Any]:
    """Train as `recipe` says, and return the manifest. Arguments and errors as of `run_recipe`."""
    _check(recipe)
    with ExitStack() as stack:
        stack.enter_context(output_lock(recipe.output))
        stack.enter_context(explain_full_disk(recipe.output))
        finished = read_finished(recipe, resume)
        if finished is not None:
            return finished
        return _run(recipe, quiet)


def _check(recipe: Recipe) -> None:
    """Refuse settings that have no effect on a value head."""
    optim = recipe.optim
    if not isinstance(recipe.data.records, str):
        raise RequestError("data.records must be one draft file for kind value: join the parts")
    if recipe.compute.parallel != "none":
        raise RequestError("compute.parallel has no effect on a run of kind value: set compute.parallel=none")
    if optim.steps is not None or not (optim.epochs >= 1 and float(optim.epochs).is_integer()):
        raise RequestError(
            "kind value makes whole passes: set optim.epochs to a whole number, no optim.steps"
        )
    if recipe.value.backbone == "frozen":
        return
    check_tuning(recipe.tune)
    if recipe.tune.method != "lora" or recipe.tune.tokens or recipe.tune.projector:
        raise RequestError(
            "value.backbone=lora trains low-rank matrices and the head: set tune.method=lora, "
            "tune.tokens=false and tune.projector=false"
        )
    if optim.global_batch != optim.batch:
        raise RequestError(
            f"kind value does not accumulate batches: set optim.global_batch={optim.batch}, as optim.batch"
        )
    if optim.schedule != "constant" or optim.warmup != 0:
        raise RequestError("kind value keeps its rate: set optim.schedule=constant and optim.warmup=0")


def _run(recipe: Recipe, quiet: bool) -> dict[str, Any]:
    check_part_files(recipe)
    check_writable(recipe.output)
    set_seed(recipe.seed)
    began = time.monotonic()
    model, processor, added_seed = load_base(recipe)
    set_pixels(processor, recipe)
    if recipe.data.pad_to_square:
        pad_to_square(processor)
    files = {"recipe.yaml": as_yaml(recipe)}
    card = ""
    if recipe.value.backbone == "lora":
        card = json.dumps(adapter_card(model, processor, base=recipe.model, added_seed=added_seed), indent=2)
        model = select_trained(model, processor, recipe.tune)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    settings = ValueConfig(
        epochs=int(recipe.optim.epochs),
        lr=recipe.value.head_lr,
        train_backbone=recipe.value.backbone == "lora",
        backbone_lr=recipe.optim.lr,
        batch=recipe.optim.batch,
        weight_decay=recipe.optim.weight_decay,
        held_out=recipe.value.held_out,
        tagged=recipe.value.tagged,
        seed=recipe.seed,
    )
    records = read_drafts(str(recipe.data.records))
    with show_progress("answers read", shown=not quiet, transient=True) as progress:
        head, report = train_value_head(model, processor, records, recipe.data.images, settings, progress)
    manifest = {
        "recipe": outcome_settings(recipe),
        "data": describe_data(recipe) | {"count": report["answers"]},
        "kind": "value",
        "versions": versions(),
        "report": report,
        "steps": report["steps"],
        "seconds": round(time.monotonic() - began, 3),
        "final_loss": report["loss"],
    }
    _write(Path(recipe.output), model, processor, head, card, files, manifest)
    return manifest


def _write(
    output: Path,
    model: Any,
    processor: Any,
    head: Any,
    card: str,
    files: dict[str, str],
    manifest: dict[str, Any],
) -> None:
    """Write all files beside the output, then rename the folder; an earlier run goes last."""
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_value_head(head, partial, notes=manifest["report"])
    if card:
        model.save_pretrained(partial / "adapter", save_embedding_layers=False)
        processor.save_pretrained(partial / "adapter")
        (partial / "adapter" / CARD).write_text(card + "\n", encoding="utf-8")
    for name, text in (files | {MANIFEST: json.dumps(manifest, indent=1) + "\n"}).items():
        (partial / name).write_text(text, encoding="utf-8")
    sync_files(partial)
    if output.exists():
        shutil.rmtree(output)
    partial.rename(output)
