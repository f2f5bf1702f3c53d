"""Claims over seeds: `benchmarks/results/selftraining.json` from the folders of their runs.

    python -m experiments.selftraining.loop_claims out/selftraining/qwen-0 out/selftraining/qwen-1 --name qwen

All seeds answer the same test questions. A gain is the mean over seeds of a difference on each question;
intervals are over questions. Beside them stand the gains of each seed, and what each system cost.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.claim_files import add_claims
from reverse.errors import DataError
from reverse.evaluation.detector.detection import auroc
from reverse.evaluation.stats.bootstrap import estimate_ratio
from reverse.files.text_reading import read_json

__all__ = ["compute_claims", "describe_runs", "read_runs"]

RESULTS = Path("benchmarks/results/selftraining.json")
Right = npt.NDArray[np.float64]  # (seeds, questions), 1 for a right answer
Run = Mapping[str, Mapping[str, Right]]  # by model, then by mode
KEPT = ("device", "reverse", "torch", "transformers", "python", "date")
OWN = ("seed", "start")  # settings that differ between the runs of several seeds
GAINS: dict[str, tuple[tuple[str, str], tuple[str, str]]] = {  # claim: (model, mode) over (model, mode)
    "r3v_iter1_gain": (("r3v-1", "greedy"), ("start", "greedy")),
    "r3v_iter2_gain": (("r3v-2", "greedy"), ("r3v-1", "greedy")),
    "r3v_over_star": (("r3v-2", "greedy"), ("star-2", "greedy")),
    "r3v_over_longer": (("r3v-1", "greedy"), ("longer-1", "greedy")),
    "r3v_select_over_vote": (("r3v-2", "select"), ("r3v-2", "vote")),
    "r3v_refine_gain": (("r3v-2", "refine"), ("r3v-2", "greedy")),
    "gated_gain_before_selftraining": (("start-gated", "refine_gated"), ("start-gated", "greedy")),
    "gated_gain_after_selftraining": (("r3v-2-gated", "refine_gated"), ("r3v-2-gated", "greedy")),
    "sco_gain": (("sco-1", "self_correct"), ("sco-1", "greedy")),
    "sco_published_gain": (("sco_published-1", "self_correct"), ("sco_published-1", "greedy")),
    "srpo_coldstart_gain": (("srpo-1", "reflect"), ("start", "greedy")),
    "srpo_reflection_gain": (("srpo-1", "reflect"), ("srpo-1", "reflect_first")),
}


def read_runs(folders: Sequence[Path]) -> tuple[Run, list[dict[str, Any]]]:
    """What the models of several seeds answered, and the measurements as they were written.

    Raises DataError if there is nothing, or if the seeds answered other questions.
    """
    measured = [
        {path.stem: read_json(path) for path in sorted((folder / "measure").glob("*.json"))}
        for folder in folders
    ]
    models = set.intersection(*(set(each) for each in measured)) if measured else set()
    if "start" not in models:
        raise DataError(f"no measurements of a start in {', '.join(map(str, folders)) or 'no folder'}")
    found: dict[str, dict[str, Right]] = {}
    for model in sorted(models):
        modes = set.intersection(*(set(each[model]["modes"]) for each in measured))
        found[model] = {
            mode: _stack([each[model]["modes"][mode]["right"] for each in measured]) for mode in modes
        }
    _check_settings(folders, measured)
    lengths = {right.shape[1] for modes_ in found.values() for right in modes_.values()}
    if len(lengths) != 1:
        raise DataError(f"the runs answered other numbers of questions: {sorted(lengths)}")
    return found, measured


def _check_settings(folders: Sequence[Path], measured: Sequence[Mapping[str, Any]]) -> None:
    """Raise DataError if measurements that are compared were made with other settings, but for the seed."""
    wanted: dict[str, Any] | None = None
    for folder, each in zip(folders, measured, strict=True):
        for model, found in each.items():
            settings = {name: value for name, value in found["settings"].items() if name not in OWN}
            wanted = settings if wanted is None else wanted
            if settings != wanted:
                differ = [name for name in wanted | settings if wanted.get(name) != settings.get(name)]
                raise DataError(
                    f"{folder}: {model} was measured with other settings ({', '.join(differ)}): delete the "
                    "measurements that are no longer wanted"
                )


def _stack(told: Sequence[str]) -> Right:
    if len({len(each) for each in told}) != 1:
        raise DataError(f"the seeds answered other numbers of questions: {sorted(map(len, told))}")
    return np.array([[float(digit) for digit in each] for each in told])


def compute_claims(run: Run) -> dict[str, list[float]]:
    """The claims that were measured, each (point, low, high), in shares of the questions."""
    claims = {"start_accuracy": estimate(run["start"]["greedy"])}
    for name, (after, before) in GAINS.items():
        if all(model in run and mode in run[model] for model, mode in (after, before)):
            claims[name] = estimate(run[after[0]][after[1]] - run[before[0]][before[1]])
    return claims


def estimate(values: Right) -> list[float]:
    """The mean of values (seeds, questions), with its 95 % interval over questions."""
    found = estimate_ratio(values.sum(axis=0), np.full(values.shape[1], len(values)))
    return [round(float(each), 5) for each in found]


def describe_runs(folders: Sequence[Path]) -> dict[str, Any]:
    """Claims, the accuracy of every model and mode, changes by correction, and costs of several seeds."""
    run, measured = read_runs(folders)
    seeds = [
        {name: round(value[0], 5) for name, value in compute_claims(_pick(run, number)).items()}
        for number in range(len(folders))
    ]
    accuracy = {
        model: {mode: estimate(right) for mode, right in sorted(modes.items())}
        for model, modes in run.items()
    }
    return {
        "claims": compute_claims(run) | _compute_aurocs(measured),
        "seeds": seeds,
        "accuracy": accuracy,
        "fix_and_break": _count_changes(run),
        "cost": [_sum_cost(folder, each) for folder, each in zip(folders, measured, strict=True)],
    }


def _pick(run: Run, number: int) -> Run:
    return {
        model: {mode: right[number : number + 1] for mode, right in modes.items()}
        for model, modes in run.items()
    }


def _count_changes(run: Run) -> dict[str, dict[str, list[float]]]:
    """How many wrong answers each correction mends, and how many right ones it breaks, of all questions."""
    pairs = {"refine": "greedy", "self_correct": "greedy", "reflect": "reflect_first"}
    found = {}
    for model, modes in run.items():
        for after, before in pairs.items():
            if after in modes and before in modes:
                first, last = modes[before], modes[after]
                found[f"{model} {after}"] = {
                    "fixed": estimate((1 - first) * last),
                    "broken": estimate(first * (1 - last)),
                }
    return found


def _compute_aurocs(measured: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How well the confidence of first answers tells right ones from wrong ones: the mean over seeds."""
    found = {}
    for claim, model in (("confidence_auroc", "r3v-2-gated"), ("confidence_auroc_start", "start-gated")):
        if all(model in each for each in measured):
            answers = [each[model]["modes"]["greedy"] for each in measured]
            aurocs = [
                auroc(1 - np.array(each["confidence"]), np.array(list(each["right"])) == "0")
                for each in answers
            ]
            found[claim] = round(float(np.mean(aurocs)), 5)
    return found


def _sum_cost(folder: Path, measured: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return seconds and sampled tokens of each stage, and tokens a question of each mode."""
    stages = {}
    for path in sorted(folder.glob("*/stage.json")):
        if ".old-" in path.parent.name:
            continue
        found = read_json(path)
        kept = ("seconds", "seconds_training", "tokens", "steps", "rows")
        stages[path.parent.name] = {name: found[name] for name in kept if name in found}
    modes = {
        model: {
            mode: round(each["tokens"] / len(each["right"]), 1)
            for mode, each in sorted(found["modes"].items())
        }
        for model, found in measured.items()
    }
    return {"stages": stages, "tokens_of_a_question": modes}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `python -m experiments.selftraining.loop_claims`."""
    parser = argparse.ArgumentParser(prog="python -m experiments.selftraining.loop_claims")
    parser.add_argument("folders", nargs="+", type=Path, help="folders of the seeds of one start")
    parser.add_argument("--name", required=True, help="of the start in the results, such as qwen")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: %(default)s")
    given = parser.parse_args(arguments)
    found = describe_runs(given.folders)
    first = read_json(given.folders[0] / "measure" / "start.json")
    made = {name: first[name] for name in KEPT if name in first} | {"settings": first["settings"]}
    words = ["python", "-m", "experiments.selftraining.loop_claims", *map(str, given.folders)]
    words += ["--name", given.name]
    claims = found.pop("claims")
    part = {**made, "command": shlex.join(words), **found}
    add_claims(given.out, given.name, claims, {f"loops_{given.name}": part})
    print(f"{given.out}: {given.name}, {len(given.folders)} seeds")


if __name__ == "__main__":
    main()
