"""Do a run up to its first step: load and check everything, and write nothing.

plan = dry_run(load_recipe("llava_v15_lora", ["data.records=reverse_ft.json"]))
plan["steps"], plan["tokens"]["each_pass"], plan["memory"]["gib"]
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reverse.files.file_lock import check_free
from reverse.training.checkpoints.resuming import last_checkpoint
from reverse.training.optim.parallel import is_sharded, processes
from reverse.training.recipe_data import describe_parts
from reverse.training.recipes.recipe import Recipe
from reverse.training.recipes.settings_check import check_settings, check_size
from reverse.training.training_run import check_before_loading, prepare, read_finished

__all__ = ["SAMPLE", "dry_run"]

SAMPLE = 256  # records whose ids are counted, pictures opened; more would take minutes
_ADAMW = 8  # bytes that AdamW keeps of a parameter: two moments in float32


def dry_run(recipe: Recipe, *, resume: bool = True, quiet: bool = False) -> dict[str, Any]:
    """Do everything that a run does before its first step, and return the plan of the run.

    The model is loaded and all records are checked, so it takes as long as the start of the run.

    Args:
        recipe, resume, quiet: as for `run_recipe`.

    Returns:
        Plain values: `records` (trained on, left out, cut), `parts` of a mixture, `tokens`, `steps` and what
        they are made of, `parameters`, `memory` in GiB of one process, `goes_on_from` (a checkpoint, or
        None). For a finished run the only key is `finished`, its manifest.

    Raises:
        ValueError, OSError: whatever would stop the run before its first step.
    """
    config = check_before_loading(recipe, quiet)
    check_free(recipe.output)
    finished = read_finished(recipe, resume)
    if finished is not None:
        return {"finished": finished}
    with tempfile.TemporaryDirectory() as folder:  # what is found is kept for no other run
        ready = prepare(recipe, config, Path(folder) / "found", resume=resume, quiet=quiet)
    accumulate = check_settings(config)
    count = len(ready.dataset)
    output = Path(recipe.output)
    return {
        "records": {"trained": count, "left_out": len(ready.checked.bad), "cut": ready.checked.cut.records},
        "parts": describe_parts(recipe, ready.dataset),
        "tokens": _count_tokens(ready.dataset),
        "steps": check_size(config, accumulate, count),
        "samples_a_step": config.batch * accumulate * processes(),
        "batch": config.batch,
        "accumulate": accumulate,
        "processes": processes(),
        "parameters": {
            "all": sum(p.numel() for p in ready.model.parameters()),
            "trained": sum(p.numel() for p in ready.model.parameters() if p.requires_grad),
        },
        "memory": _estimate_memory(ready.model, config.parallel),
        "goes_on_from": last_checkpoint(output.with_name(output.name + ".checkpoints")) if resume else None,
    }


def _count_tokens(dataset: Any) -> dict[str, Any]:
    """Count the ids of a pass over the data, pictures included; above SAMPLE records it is an estimate."""
    count = len(dataset)
    chosen = np.unique(np.linspace(0, count - 1, min(SAMPLE, count)).astype(int)).tolist()
    lengths = [sum(len(row.ids) for row in dataset[k].rows) for k in chosen]
    return {
        "each_pass": round(sum(lengths) * count / len(chosen)),
        "exact": len(chosen) == count,
        "mean": round(sum(lengths) / len(chosen), 1),
        "longest": max(lengths),
        "counted": len(chosen),
    }


def _estimate_memory(model: Any, parallel: str) -> dict[str, float]:
    """Estimate the Estimate the GiB that one process needs for weights, gradients and AdamW, without
    activations.

    Four-bit weights count as they lie in memory; gathered layers of sharded weights are left out.
    """
    parameters = list(model.parameters())
    weights = sum(p.numel() * p.element_size() for p in parameters)
    trained: list[torch.Tensor] = [p for p in parameters if p.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in trained)
    optimizer = sum(p.numel() for p in trained) * _ADAMW
    shares = processes() if is_sharded(parallel) else 1
    states = processes() if is_sharded(parallel) or parallel == "zero2" else 1
    total = weights / shares + (gradients + optimizer) / states
    parts = {"weights": weights / shares, "gradients": gradients / states, "optimizer": optimizer / states}
    return {name: round(size / 2**30, 3) for name, size in {"gib": total, **parts}.items()}
