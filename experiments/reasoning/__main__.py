"""Train a model of the reasoning world and measure all modes with it.

    python -m experiments.reasoning --family qwen --out out/reasoning/qwen-0 --compile --workers 14
    python -m experiments.reasoning --smoke --out out/smoke        # seconds on a CPU; learns nothing

A run that is stopped goes on when it is started again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from experiments.reasoning.reasoning_claims import describe_runs
from experiments.reasoning.reasoning_measures import (
    CORRECTIONS,
    KEEP,
    MeasuredMode,
    Measurer,
    choose_gate,
    choose_threshold,
    list_modes,
)
from experiments.reasoning.reasoning_recipe import ReasoningRecipe
from experiments.reasoning.reasoning_stages import run_stage
from reverse.evaluation.runs.environment import describe_environment
from reverse.files.atomic_write import write_json
from reverse.files.json_values import replace_non_finite
from reverse.models import load
from reverse.models.devices import default_device


def measure(recipe: ReasoningRecipe, stage: str, say: Any) -> dict[str, Any]:
    """Measure the model of a stage on the recipe's splits, beside the baselines that are there."""
    out = Path(recipe.out)
    measurer = _open(recipe, stage, say)
    first = measurer.answer("val", "plain", MeasuredMode(KEEP))
    gates = {
        name: choose_gate(first, measurer.answer("val", name, MeasuredMode(mode)))
        for name, mode in CORRECTIONS.items()
    }
    threshold = choose_threshold(measurer)
    gates["auto"] = gates["refine"]
    baselines = {name: _open(recipe, name, say) for name in ("greedy", "truth") if (out / name).is_dir()}
    report: dict[str, Any] = {"gates": gates, "threshold": threshold, "setup": "one_model"}
    for split in recipe.splits.split(","):
        modes = list_modes(threshold, gates, recipe.most_samples)
        runs = {name: measurer.answer(split, name, mode) for name, mode in modes.items()}
        trained = {
            name: each.answer(split, "plain", MeasuredMode("plain")) for name, each in baselines.items()
        }
        report[split] = describe_runs(runs, trained)
    report |= describe_environment(default_device())
    report["recipe"] = recipe.settings_of("measure")
    write_json(out / f"report-{stage}.json", replace_non_finite(report))
    return report


def _open(recipe: ReasoningRecipe, stage: str, say: Any) -> Measurer:
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model, processor = load(Path(recipe.out) / stage, device=default_device(), dtype=dtype)
    return Measurer(model, processor, recipe, Path(recipe.out) / "measure" / stage, say)


def _parser() -> argparse.ArgumentParser:
    summary = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m experiments.reasoning", description=summary)
    for field in fields(ReasoningRecipe):
        option = "--" + field.name.replace("_", "-")
        if isinstance(field.default, bool):
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(
                option, type=type(field.default), default=field.default, help="default: %(default)s"
            )
    parser.add_argument("--smoke", action="store_true", help="a few steps of a miniature")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `python -m experiments.reasoning`."""
    given = vars(_parser().parse_args(arguments))
    smoke = given.pop("smoke")
    recipe = ReasoningRecipe(**given)
    recipe = recipe.smoke() if smoke else recipe

    def say(line: str) -> None:
        print(line, flush=True)

    for stage in recipe.stages.split(","):
        if stage.startswith("measure"):
            measure(recipe, "two" if stage == "measure2" else "one", say)
        else:
            run_stage(stage, recipe, say)


if __name__ == "__main__":
    main()
