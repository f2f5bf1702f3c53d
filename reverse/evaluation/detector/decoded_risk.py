"""Find a threshold with a guarantee for answers that are decoded with it, tested on scenes.

    scenes = SceneDecoding("tiny-llava", "val", 300)
    chosen, tried = calibrate_decoding(scenes, 0.16, Path("out"), RiskTarget(0.05))

Removing phrases above a threshold is not the same as decoding with it, because replacements of rejected
phrases were selected for their low p. So a few thresholds, fixed before these pictures are seen (the one
given, a half, a quarter, …), are decoded, the largest first, and "risk > target" is tested for each at an
equal part of 1 - confidence (Bonferroni, Learn-then-Test's plainest form, arXiv:2110.01052, §2.2.1). Answers
are kept, so a stopped run continues. `start` must come from other pictures; `given_by` checks that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reverse.errors import DataError
from reverse.evaluation.detector.calibration import DEFAULT_TARGET, TESTS, Calibration, RiskTarget
from reverse.evaluation.detector.phrase_truth import same_picture
from reverse.evaluation.detector.scene_decoding import SceneDecoding
from reverse.evaluation.stats.bootstrap import estimate_ratio

__all__ = ["calibrate_decoding", "compute_decoded_losses"]

STEPS = 5  # thresholds that may be tried: start, start / 2, …, start / 16


def calibrate_decoding(
    scenes: SceneDecoding,
    start: float,
    out: Path,
    target: RiskTarget = DEFAULT_TARGET,
    *,
    given_by: Iterable[str] = (),
    on_tried: Callable[[dict[str, Any]], None] = lambda tried: None,
) -> tuple[Calibration, list[dict[str, Any]]]:
    """Find the largest threshold whose decoding has the guarantee; also return all measurements.

    Args:
        given_by: the pictures that `start` was found with, of the same world.
        on_tried: called with the measurement of each threshold as soon as it is made.

    Raises DataError for a start outside (0, 1], a rule that is not a test, or a picture of `given_by` among
    the scenes.
    """
    if not 0 < start <= 1:
        raise DataError(f"start must lie in (0, 1], got {start}: it is a probability of </UN>")
    if target.rule not in TESTS:
        raise DataError(f"rule must be one of {', '.join(TESTS)} for decoding, got {target.rule!r}")
    _check_others(given_by, scenes.split, scenes.count)
    delta = (1 - target.confidence) / STEPS
    tried: list[dict[str, Any]] = []
    for step in range(STEPS):
        threshold = float(f"{start / 2**step:.4g}")  # rounded as in the name of its file
        rows = scenes.describe(out, threshold)
        tried.append(_measure_risk(rows, threshold, target, delta, scenes.seed))
        on_tried(tried[-1])
        if tried[-1]["p"] <= delta:
            observed, kept = tried[-1]["observed"], tried[-1]["kept"]
            return Calibration(threshold, target, len(rows), observed, kept, decoded=True), tried
    return Calibration(None, target, scenes.count, float("nan"), 0.0, decoded=True), tried


def _measure_risk(
    rows: Sequence[dict[str, Any]], threshold: float, target: RiskTarget, delta: float, seed: int
) -> dict[str, Any]:
    """Measure one decoded threshold; `p` is the p-value of "risk > target"."""
    loss, kept = compute_decoded_losses(rows, threshold)
    observed, low, high = estimate_ratio(loss, np.ones(len(loss)), seed=seed)
    total = {name: sum(row[name] for row in rows) for name in ("wrong", "mentions", "generated", "kept")}
    return {
        "threshold": threshold,
        "images": len(rows),
        "observed": observed,
        "low": low,
        "high": high,
        "p": float(TESTS[target.rule](loss[:, None], target.risk, delta)[0]),
        "must_be_below": delta,
        "kept": kept,
        "chair_i": total["wrong"] / max(1, total["mentions"]),  # unresolved phrases and untagged words too
        "unresolved": float(np.mean([row["unresolved"] for row in rows])),
        "tokens_ratio": total["generated"] / max(1, total["kept"]),
    }


def _check_others(pictures: Iterable[str], split: str, count: int) -> None:
    """Raise DataError if the threshold would be tested on the scenes that chose it."""
    both = sorted({same_picture(each) for each in pictures} & {f"{split}-{i:06d}" for i in range(count)})
    if both:
        raise DataError(
            f"{len(both)} of the {count} scenes of {split!r} that are to be decoded gave the threshold "
            f"({', '.join(both[:3])}): a promise is tested on others: decode another --split (val, test or "
            "shift) or calibrate with answers about another"
        )


def compute_decoded_losses(rows: Sequence[dict[str, Any]], threshold: float) -> tuple[np.ndarray, float]:
    """Compute each picture's share of false phrases among the accepted ones, and its share of accepted
    phrases.

    `rows` are those of `describe_scenes`; an unresolved phrase is one with p above the
    threshold.
    """
    loss = np.zeros(len(rows))
    accepted = shown = 0
    for i, row in enumerate(rows):
        kept = [wrong for _, p, wrong in row["phrases"] if p <= threshold]
        loss[i] = float(np.mean(kept)) if kept else 0.0
        accepted, shown = accepted + len(kept), shown + len(row["phrases"])
    return loss, accepted / max(1, shown)
