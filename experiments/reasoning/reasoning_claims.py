"""Figures of one model from its drafts: what modes gain over single answers, with paired intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.reasoning.reasoning_measures import CORRECTIONS
from experiments.reasoning.reasoning_recipe import AUTO_BUDGETS
from reverse.data.drafts.draft_files import read_drafts
from reverse.data.drafts.draft_record import DraftRecord
from reverse.errors import DataError
from reverse.evaluation.modes.mode_effects import (
    answer_auroc,
    corrections_by_error,
    cost,
    step_auroc,
    transitions,
)
from reverse.evaluation.modes.question_means import estimate_mean, is_right
from reverse.evaluation.modes.sample_curves import count_samples, usual_sizes, values_at
from reverse.evaluation.stats.intervals import Interval

__all__ = ["BASELINES", "compute_claims", "describe_runs", "read_baselines", "read_runs"]

Runs = Mapping[str, Sequence[DraftRecord]]
BASELINES = ("greedy", "truth")
SAMPLES = ("samples",)  # measured for their curves
GATED = tuple(f"{name}_gated" for name in CORRECTIONS)


def describe_runs(runs: Runs, baselines: Mapping[str, Sequence[DraftRecord]]) -> dict[str, Any]:
    """Claims, a row for each mode, and curves over samples. Arguments as of `compute_claims`."""
    samples = find_samples(runs)
    return {
        "claims": compute_claims(runs, baselines),
        "modes": summarise_modes(runs),
        "curves": compute_curves(samples) if samples else {},
        "frontier": list_frontier(runs),
    }


def read_runs(folder: Path, stage: str, split: str) -> dict[str, list[DraftRecord]]:
    """The records of each mode of one run. Raises DataError if there are none."""
    files = sorted((folder / "measure" / stage / split).glob("*.jsonl"))
    if not files:
        raise DataError(f"{folder} holds no drafts of {stage} on {split}: run the stage answer first")
    return {path.stem: list(read_drafts(path)) for path in files}


def read_baselines(folder: Path, split: str) -> dict[str, list[DraftRecord]]:
    """The single answers of the baselines that a run has, by the name of their stage."""
    paths = {name: folder / "measure" / name / split / "plain.jsonl" for name in BASELINES}
    return {name: list(read_drafts(path)) for name, path in paths.items() if path.is_file()}


def find_samples(runs: Runs) -> Sequence[DraftRecord]:
    """The largest set of samples of one run; empty without one."""
    return runs.get("samples") or runs.get("select8") or []


def compute_claims(runs: Runs, baselines: Mapping[str, Sequence[DraftRecord]]) -> dict[str, Any]:
    """The claims of one split. Shares and gains are in [0, 1]; intervals are (point, low, high).

    A claim whose modes were not measured is left out.

    Args:
        runs: records by mode.
        baselines: single answers of other models by name, such as "greedy".
    """
    plain = runs["plain"]
    claims: dict[str, Any] = {
        "base_accuracy": _show(estimate_mean(plain, _values(plain))),
        "auroc_steps": _show(step_auroc(plain)),
        "auroc_answers": _show(answer_auroc(plain)),
    }
    for baseline, records in baselines.items():
        claims[f"trained_{baseline}"] = _show(estimate_mean(records, _values(records)))
    gains = {"resample": "resample_gain"}
    for name in CORRECTIONS:
        gains |= {f"{name}_gated": f"{name}_gain", name: f"{name}_gain_ungated"}
    claims |= {
        claim: _show(transitions(plain, runs[name]).net) for name, claim in gains.items() if name in runs
    }
    return claims | _claim_resampling(runs) | _claim_samples(runs) | _claim_corrections(runs, baselines)


def _claim_resampling(runs: Runs) -> dict[str, Any]:
    if "resample" not in runs:
        return {}
    change = transitions(runs["plain"], runs["resample"])
    return {
        "resample_right_to_wrong": _show(change.right_to_wrong),
        "resample_tokens_ratio": _ratio(runs["resample"], runs["plain"]),
    }


def _claim_samples(runs: Runs) -> dict[str, Any]:
    samples = find_samples(runs)
    claims: dict[str, Any] = {}
    if samples:
        most = count_samples(samples)
        claims["oracle8"] = _show(estimate_mean(samples, values_at(samples, "oracle", min(8, most))))
    for n in (3, 8):
        chosen = runs.get(f"select{n}")
        if chosen:
            vote = values_at(chosen, "vote", min(n, count_samples(chosen)))  # of what it chose from
            claims[f"select{n}_over_vote{n}"] = _show(estimate_mean(chosen, _values(chosen) - vote))
    if samples and "tree" in runs:
        tree, tokens = runs["tree"], cost(samples).tokens.point / most
        paid = cost(tree).tokens.point / tokens
        equal = int(np.clip(round(paid), 1, most))
        # Samples that the tokens of a tree pay for, and as many of them as there are to compare with.
        claims |= {"tree_pays_for_samples": round(paid, 2), "tree_equal_samples": equal}
        for rule, name in (("vote", "tree_over_vote"), ("weighted", "tree_over_weighted_vote")):
            gain = _values(tree) - values_at(samples, rule, equal)
            claims[name] = _show(estimate_mean(tree, gain))
    frontier = list_frontier(runs)
    if any(name.startswith("auto") for name in runs):
        claims["auto_gain"] = _gain_of_largest_auto(runs)
        claims["auto_on_frontier"] = [name for name in frontier if name.startswith("auto")]
    return claims


def _gain_of_largest_auto(runs: Runs) -> list[float] | None:
    """What `Auto` gains with the largest budget that was measured."""
    largest = [name for name in (f"auto{tokens}" for tokens in AUTO_BUDGETS) if name in runs][-1]
    return _show(transitions(runs["plain"], runs[largest]).net)


def _claim_corrections(runs: Runs, baselines: Mapping[str, Sequence[DraftRecord]]) -> dict[str, Any]:
    claims: dict[str, Any] = {}
    gated = {name: runs[name] for name in GATED if name in runs}
    if not gated:
        return claims
    plain = runs["plain"]
    changes = {name: transitions(plain, records) for name, records in gated.items()}
    claims["right_to_wrong_max"] = max(change.right_to_wrong.point for change in changes.values())
    claims["gated_tokens_ratio"] = max(_ratio(records, plain) for records in gated.values())
    for baseline, trained in baselines.items():
        gains = {
            name.removesuffix("_gated"): _show(transitions(trained, records).net)
            for name, records in gated.items()
        }
        claims |= {f"{name}_over_trained_{baseline}": gain for name, gain in gains.items()}
        claims[f"gain_over_trained_{baseline}"] = max(map(list, filter(None, gains.values())))
    if "refine_gated" in gated:
        claims["errors_corrected"] = {
            kind: {"questions": each.questions, "corrected": _show(each.corrected)}
            for kind, each in corrections_by_error(plain, gated["refine_gated"]).items()
        }
    return claims


def compute_curves(samples: Sequence[DraftRecord]) -> dict[str, dict[int, list[float] | None]]:
    """oracle, vote, weighted and best at N = 1, 2, 3, 4, 8, … from one set of samples."""
    sizes = usual_sizes(count_samples(samples))
    return {
        rule: {n: _show(estimate_mean(samples, values_at(samples, rule, n))) for n in sizes}
        for rule in ("oracle", "vote", "weighted", "best")
    }


def list_frontier(runs: Runs) -> list[str]:
    """The modes that no other mode beats with at most as many tokens, the cheapest first."""
    points = sorted(
        (cost(records).tokens.point, -float(_values(records).mean()), name)
        for name, records in runs.items()
        if name not in SAMPLES
    )
    found, best = [], -1.0
    for _, accuracy, name in points:
        if -accuracy > best:
            best = -accuracy
            found.append(name)
    return found


def summarise_modes(runs: Runs) -> dict[str, Any]:
    """One row a mode: accuracy, transitions, tokens and seconds a question and a right answer."""
    rows = {}
    for name, records in runs.items():
        change, spent = transitions(runs["plain"], records), cost(records)
        rows[name] = {
            "accuracy": _show(change.after),
            "gain": _show(change.net),
            "wrong_to_right": _show(change.wrong_to_right),
            "right_to_wrong": _show(change.right_to_wrong),
            "tokens": _show(spent.tokens),
            "tokens_per_right": _show(spent.tokens_per_right),
            "seconds": _show(spent.seconds),
        }
    return rows


def _values(records: Sequence[DraftRecord]) -> np.ndarray:
    return np.array([is_right(record) for record in records], dtype=float)


def _ratio(records: Sequence[DraftRecord], plain: Sequence[DraftRecord]) -> float:
    return round(cost(records).tokens.point / cost(plain).tokens.point, 4)


def _show(interval: Interval | None) -> list[float] | None:
    if interval is None:
        return None
    return [round(float(value), 5) for value in (interval.point, interval.low, interval.high)]
