"""Figures of one model from its drafts: what modes gain over single answers, with paired intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.reasoning.reasoning_measures import AUTO_BUDGETS, CORRECTIONS
from reverse.data.drafts.draft_record import DraftRecord
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

__all__ = ["compute_claims", "describe_runs"]

Runs = Mapping[str, Sequence[DraftRecord]]


def describe_runs(runs: Runs, baselines: Mapping[str, Sequence[DraftRecord]]) -> dict[str, Any]:
    """Claims, a row for each mode, and curves over samples. Arguments as of `compute_claims`."""
    return {
        "claims": compute_claims(runs, baselines),
        "modes": summarise_modes(runs),
        "curves": compute_curves(runs["samples"]),
        "frontier": list_frontier(runs),
    }


def compute_claims(runs: Runs, baselines: Mapping[str, Sequence[DraftRecord]]) -> dict[str, Any]:
    """The claims of one split. Shares and gains are in [0, 1]; intervals are (point, low, high).

    Args:
        runs: records by mode.
        baselines: single answers of other models by name, such as "greedy".
    """
    plain = runs["plain"]
    right = _values(plain)
    claims: dict[str, Any] = {
        "base_accuracy": _show(estimate_mean(plain, right)),
        "auroc_steps": _show(step_auroc(plain)),
        "auroc_answers": _show(answer_auroc(plain)),
        "resample_gain": _show(transitions(plain, runs["resample"]).net),
        "resample_right_to_wrong": _show(transitions(plain, runs["resample"]).right_to_wrong),
        "resample_tokens_ratio": _ratio(runs["resample"], plain),
    }
    samples, most = runs["samples"], count_samples(runs["samples"])
    claims["oracle8"] = _show(estimate_mean(samples, values_at(samples, "oracle", min(8, most))))
    for n in (3, 8):
        chosen = runs[f"select{n}"]
        size = min(n, count_samples(chosen))
        vote = values_at(chosen, "vote", size)  # of the very samples that the model chose from
        claims[f"select{n}_over_vote{n}"] = _show(estimate_mean(chosen, _values(chosen) - vote))
    worst, ratios = 0.0, []
    for name in CORRECTIONS:
        gated = transitions(plain, runs[f"{name}_gated"])
        claims[f"{name}_gain"] = _show(gated.net)
        claims[f"{name}_gain_ungated"] = _show(transitions(plain, runs[name]).net)
        worst = max(worst, gated.right_to_wrong.point)
        ratios.append(_ratio(runs[f"{name}_gated"], plain))
        for baseline, records in baselines.items():
            claims[f"{name}_over_trained_{baseline}"] = _show(transitions(records, runs[f"{name}_gated"]).net)
    claims |= {"right_to_wrong_max": worst, "gated_tokens_ratio": max(ratios)}
    for baseline, records in baselines.items():
        claims[f"trained_{baseline}"] = _show(estimate_mean(records, _values(records)))
        gains = [claims[f"{name}_over_trained_{baseline}"] for name in CORRECTIONS]
        claims[f"gain_over_trained_{baseline}"] = max(gains)
    tree, tokens = runs["tree"], cost(samples).tokens.point / most
    equal = int(np.clip(round(cost(runs["tree"]).tokens.point / tokens), 1, most))
    claims["tree_equal_samples"] = equal
    for rule, name in (("vote", "tree_over_vote"), ("weighted", "tree_over_weighted_vote")):
        claims[name] = _show(estimate_mean(tree, _values(tree) - values_at(samples, rule, equal)))
    claims["auto_gain"] = _show(transitions(plain, runs[f"auto{AUTO_BUDGETS[-1]}"]).net)
    frontier = list_frontier(runs)
    claims["auto_on_frontier"] = [name for name in frontier if name.startswith("auto")]
    claims["errors_corrected"] = {
        kind: {"questions": each.questions, "corrected": _show(each.corrected)}
        for kind, each in corrections_by_error(plain, runs["refine_gated"]).items()
    }
    return claims


def compute_curves(samples: Sequence[DraftRecord]) -> dict[str, dict[int, list[float]]]:
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
        if name != "samples"
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
