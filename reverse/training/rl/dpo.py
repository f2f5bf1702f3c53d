"""Direct preference optimisation of a recipe (`kind: dpo`) by TRL's DPOTrainer.

Rows are those of `reverse data view --as dpo`. The reference is the model without its adapter. Answers of
pairs that were only matched by their answer teach little (R3V, arXiv 2411.00855: +0.1 points): make the rows
with `--verified`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reverse.training.recipes.recipe import Recipe
from reverse.training.rl.trl_setup import find_trainer, make_trl_arguments

__all__ = ["make_dpo_trainer"]


def make_dpo_trainer(
    recipe: Recipe,
    given: dict[str, Any],
    checkpoints: Path,
    steps: int,
    accumulate: int,
    parallel: dict[str, Any],
) -> Any:
    """Make the trainer of a recipe.

    Args:
        given: model, processor, data set, callbacks and adapter, by TRL's names.
        checkpoints: folder.
        steps, accumulate: optimizer steps of the run, and batches of a step.
        parallel: of `parallel_arguments`.
    """
    settings = recipe.dpo
    arguments = make_trl_arguments(
        "dpo", recipe, checkpoints, steps, accumulate, parallel,
        {
            "beta": settings.beta,
            "loss_type": [settings.loss],
            "label_smoothing": settings.label_smoothing,
            "max_length": recipe.data.max_length,
        },
    )  # fmt: skip
    return find_trainer("dpo")(args=arguments, **given)
