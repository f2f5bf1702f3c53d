"""A threshold whose promise holds for answers decoded with it, tested on scenes.

    chosen, tried = calibrate_decoding("tiny-llava", 0.16, Path("out"), risk=0.05, split="val", count=300)

Striking out what is above a threshold and decoding anew are two things: a phrase that is put in the place of
a rejected one has been chosen for its low p. So a few thresholds, fixed before these pictures are looked at
(the one given, a half, a quarter, …), are decoded in truth, the largest first, and "risk > what is asked" is
tested of each at an equal part of what the confidence leaves (Bonferroni, Learn-then-Test's plainest form,
arXiv:2110.01052, §2.2.1). Answers are kept, so a stopped run goes on. `start` must come from other pictures,
which `given_by` makes sure of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reverse.data.scenes import make_scene
from reverse.errors import DataError
from reverse.evaluation.detector.calibration import TESTS, Calibration
from reverse.evaluation.detector.phrase_truth import same_picture
from reverse.evaluation.stats.bootstrap import interval

__all__ = ["calibrate_decoding", "decoded_losses"]

STEPS = 5  # thresholds that may be tried: start, start / 2, …, start / 16


def calibrate_decoding(
    model: str,
    start: float,
    out: Path,
    *,
    risk: float = 0.05,
    confidence: float = 0.95,
    rule: str = "betting",
    split: str = "val",
    count: int = 300,
    batch_size: int = 16,
    device: Any = None,
    seed: int = 0,
    loaded: Any = None,
    given_by: Iterable[str] = (),
    on_tried: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[Calibration, list[dict[str, Any]]]:
    """The largest of the thresholds whose decoding can be promised, and what was tried.

    `given_by` are the pictures that `start` was found with, of the same world; `on_tried` is called with what
    came of each threshold as soon as it is measured. Raises ValueError for a start
    outside (0, 1], a rule that is no test, or a picture of theirs among those to be decoded.
    """
    if not 0 < start <= 1:
        raise DataError(f"start must lie in (0, 1], got {start}: it is a probability of </UN>")
    if rule not in TESTS:
        raise DataError(f"rule must be one of {', '.join(TESTS)} for decoding, got {rule!r}")
    _others(given_by, split, count)
    from reverse.evaluation.scenes_runner import Contender, measure
    from reverse.models import load

    make_scene(split, 0, seed)  # its errors come before the model is loaded
    loaded = load(model, device=device) if loaded is None else loaded
    delta = (1 - confidence) / STEPS
    tried: list[dict[str, Any]] = []
    chosen = Calibration(None, risk, confidence, rule, count, float("nan"), 0.0, decoded=True)
    for step in range(STEPS):
        threshold = float(f"{start / 2**step:.4g}")  # as the name of the file says it
        rows = measure(
            Contender(f"on_{threshold:g}", model, threshold=threshold), loaded, out, split=split, count=count,
            seed=seed, batch_size=batch_size,
        )  # fmt: skip
        loss, kept = decoded_losses(rows, threshold)
        p = float(TESTS[rule](loss[:, None], risk, delta)[0])
        observed, low, high = interval(loss, np.ones(len(loss)), seed=seed)
        wrong, mentions = (sum(row[name] for row in rows) for name in ("wrong", "mentions"))
        tried.append(
            {
                "threshold": threshold,
                "images": len(rows),
                "observed": observed,
                "low": low,
                "high": high,
                "p": p,
                "must_be_below": delta,
                "kept": kept,
                "chair_i": wrong / max(1, mentions),  # unresolved phrases and untagged words too
                "unresolved": float(np.mean([row["unresolved"] for row in rows])),
                "tokens_ratio": sum(r["generated"] for r in rows) / max(1, sum(r["kept"] for r in rows)),
            }
        )
        if on_tried is not None:
            on_tried(tried[-1])
        if p <= delta:
            chosen = Calibration(threshold, risk, confidence, rule, len(rows), observed, kept, decoded=True)
            break
    return chosen, tried


def _others(pictures: Iterable[str], split: str, count: int) -> None:
    """Refuse to test a threshold on the scenes that chose it."""
    both = sorted({same_picture(each) for each in pictures} & {f"{split}-{i:06d}" for i in range(count)})
    if both:
        raise DataError(
            f"{len(both)} of the {count} scenes of {split!r} that are to be decoded gave the threshold "
            f"({', '.join(both[:3])}): a promise is tested on others: decode another --split (val, test or "
            "shift) or calibrate with answers about another"
        )


def decoded_losses(rows: Sequence[dict[str, Any]], threshold: float) -> tuple[np.ndarray, float]:
    """Each picture's share of false ones among its accepted object phrases, and the share that is accepted.

    `rows` are those of `reverse.evaluation.scenes_runner`; an unresolved phrase is one with p above the
    threshold.
    """
    loss = np.zeros(len(rows))
    accepted = shown = 0
    for i, row in enumerate(rows):
        kept = [wrong for _, p, wrong in row["phrases"] if p <= threshold]
        loss[i] = float(np.mean(kept)) if kept else 0.0
        accepted, shown = accepted + len(kept), shown + len(row["phrases"])
    return loss, accepted / max(1, shown)
