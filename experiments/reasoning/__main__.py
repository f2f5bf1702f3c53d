"""Train a model of the reasoning world and measure all modes with it.

    python -m experiments.reasoning --family qwen --out out/reasoning/qwen-0 --compile --workers 14
    python -m experiments.reasoning --smoke --out out/smoke        # seconds on a CPU; learns nothing

A run that is stopped goes on when it is started again. The stage answer may run in several processes at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from experiments.reasoning.reasoning_claims import BASELINES, describe_runs, read_baselines, read_runs
from experiments.reasoning.reasoning_measures import (
    MeasuredMode,
    Measurer,
    choose_settings,
    list_modes,
)
from experiments.reasoning.reasoning_recipe import ReasoningRecipe
from experiments.reasoning.reasoning_stages import run_stage
from experiments.recipe_arguments import read_recipe
from reverse.errors import DataError
from reverse.evaluation.runs.environment import describe_environment
from reverse.files.atomic_write import write_json
from reverse.files.json_values import replace_non_finite
from reverse.files.text_reading import read_json
from reverse.models import load
from reverse.models.devices import default_device


def answer(recipe: ReasoningRecipe, stage: str, say: Any) -> None:
    """Answer the recipe's splits with every mode of a stage's model, and with its baselines."""
    out = Path(recipe.out)
    with _open_writer(recipe) as writer:
        measurer = _open(recipe, stage, say, writer)
        threshold, gates = choose_settings(measurer)
        settings = {"gates": gates, "threshold": threshold, **describe_environment(default_device())}
        write_json(out / "measure" / stage / "settings.json", replace_non_finite(settings))
        measurer.answer_all(recipe.measured, list_modes(threshold, gates, recipe.most_samples))
        for name in BASELINES:
            if (out / name).is_dir() and name != stage:
                work = [(split, "plain") for split in recipe.splits.split(",")]
                _open(recipe, name, say, writer).answer_all(work, {"plain": MeasuredMode("plain")})


def report(recipe: ReasoningRecipe, stage: str, say: Any) -> None:
    """Write the claims of one run to `report-STAGE.json`, from the drafts that are there."""
    out = Path(recipe.out)
    found: dict[str, Any] = {"setup": "one_model", **read_json(out / "measure" / stage / "settings.json")}
    for split in recipe.splits.split(","):
        found[split] = describe_runs(read_runs(out, stage, split), read_baselines(out, split))
    measured = recipe.settings_of("report").items() - recipe.settings_of(stage).items()
    trained = read_json(out / stage / "stage.json")
    found["recipe"] = trained["settings"] | dict(measured)
    found["trained"] = {name: trained[name] for name in ("device", "versions")}
    write_json(out / f"report-{stage}.json", replace_non_finite(found))
    say(f"{out / f'report-{stage}.json'}")


def _open_writer(recipe: ReasoningRecipe) -> Any:
    if recipe.workers < 1:
        return nullcontext()
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def _open(recipe: ReasoningRecipe, stage: str, say: Any, writer: Any) -> Measurer:
    out = Path(recipe.out)
    check_measurements(recipe, stage)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model, processor = load(out / stage, device=default_device(), dtype=dtype)
    return Measurer(model, processor, recipe, out / "measure" / stage, say, writer)


def check_measurements(recipe: ReasoningRecipe, stage: str) -> None:
    """Raise DataError if there are drafts of a model, or of measurements, with other settings."""
    out = Path(recipe.out)
    counts = ("test_questions", "shift_questions", "val_questions", "most_tokens", "most_samples")
    wanted = {
        "trained": read_json(out / stage / "stage.json")["settings"],
        "measured": {name: getattr(recipe, name) for name in counts},
    }
    path = out / "measure" / stage / "measured.json"
    if path.is_file() and read_json(path) != wanted:
        raise DataError(
            f"{path.parent} holds drafts of a model that was trained or measured with other settings: delete "
            "this folder, or give the settings of before"
        )
    write_json(path, wanted)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `python -m experiments.reasoning`."""
    recipe = read_recipe(ReasoningRecipe, "python -m experiments.reasoning", __doc__, arguments)

    def say(line: str) -> None:
        print(line, flush=True)

    for stage in recipe.stages.split(","):
        model = "two" if stage.endswith("2") else "one"
        if stage.startswith("answer"):
            answer(recipe, model, say)
        elif stage.startswith("report"):
            report(recipe, model, say)
        else:
            run_stage(stage, recipe, say)


if __name__ == "__main__":
    main()
