"""Every threshold at once: what the detector would let pass, and what decoding anew makes of it.

    sweep(read_phrases("off.jsonl", SceneTruth()), Path("out"))            # no decoding
    decode_at("tiny-llava", [0.3, 0.1, 0.03], Path("out"), count=200)      # scenes, decoded at each threshold

Written: detector.json (figures with intervals), thresholds.csv, roc, reliability and risk_coverage as PNG and
SVG; of decoding, decoded.csv and tradeoff. Each file is written whole or not at all; answers are kept under
`decoded/`, so a stopped run goes on where it was.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from reverse.data.scenes import make_scene
from reverse.errors import DataError
from reverse.evaluation.detector.detection import BINS, Detector
from reverse.evaluation.stats.intervals import DEFAULT, Method
from reverse.files.atomic_write import atomic_write, write_json

__all__ = ["decode_at", "draw", "finite", "sweep", "write_csv"]

FIGURES = ("chair_i", "chair_s", "coverage", "tokens_ratio", "words", "empty", "unresolved")


def sweep(
    detector: Detector,
    out: Path,
    *,
    bins: int = BINS,
    method: Method = DEFAULT,
    rounds: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    plots: bool = True,
) -> dict[str, Any]:
    """Write figures, the table of thresholds and plots into `out`; returns what detector.json holds."""
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {
        "phrases": len(detector.p),
        "wrong": int(detector.wrong.sum()),
        "images": len(detector.images),
        "ece_bins": bins,
        "figures": {
            name: asdict(each) for name, each in detector.figures(method, rounds, level, seed, bins).items()
        },
        "reliability": {name: column.tolist() for name, column in detector.reliability(bins).items()},
    }
    table = detector.sweep()
    write_csv(out / "thresholds.csv", table)
    write_json(out / "detector.json", finite(found))
    if plots:
        draw(detector, out, bins)
    return found


def draw(detector: Detector, out: Path, bins: int = BINS) -> None:
    """The plots of a sweep. Raises ValueError where matplotlib is missing."""
    from reverse.evaluation.reports import plots

    plots.roc(detector, out / "roc")
    plots.reliability(detector, out / "reliability", bins)
    plots.risk_coverage(detector, out / "risk_coverage")


def decode_at(
    model: str,
    thresholds: Sequence[float],
    out: Path,
    *,
    split: str = "test",
    count: int = 200,
    batch_size: int = 16,
    device: str | None = None,
    seed: int = 0,
    plots: bool = True,
    quiet: bool = True,
) -> list[dict[str, Any]]:
    """Describe scenes with checking off and at each threshold; one dictionary each, off first.

    Figures are [value, low, high], 95 % over scenes. Raises ValueError for a threshold outside (0, 1].
    """
    from reverse.evaluation.scenes_runner import Contender, measure, summarise
    from reverse.models import load

    for threshold in thresholds:
        if not 0 < threshold <= 1:
            raise DataError(f"threshold must lie in (0, 1], got {threshold:g}: it is a probability of </UN>")
    make_scene(split, 0, seed)  # its errors come before the model is loaded
    loaded = load(model, device=device)
    contenders = [
        Contender("off", model, "plain"),
        *(Contender(f"on_{t:g}", model, threshold=t) for t in sorted(set(thresholds), reverse=True)),
    ]
    points = []
    for contender in contenders:
        rows = measure(
            contender, loaded, out / "decoded", split=split, count=count, seed=seed,
            batch_size=batch_size, quiet=quiet,
        )  # fmt: skip
        figures = summarise(rows, seed)
        points.append(
            {"threshold": contender.threshold, "answers": len(rows)}
            | {name: figures[name] for name in FIGURES}
            | {"tokens": float(np.mean([row["generated"] for row in rows]))}
        )
    flat = [
        {
            f"{name}{end}": value
            for name, each in point.items()
            for end, value in (
                zip(("", "_low", "_high"), each, strict=True) if isinstance(each, list) else (("", each),)
            )
        }
        for point in points
    ]
    write_csv(out / "decoded.csv", {name: [row[name] for row in flat] for name in flat[0]})
    if plots:
        from reverse.evaluation.reports.plots import tradeoff

        tradeoff(points, out / "tradeoff")
    return points


def write_csv(path: Path, columns: Mapping[str, Sequence[Any] | np.ndarray]) -> None:
    """Columns of equal length with a line of names; None and NaN as nothing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow(["" if x is None or x != x else f"{x:.9g}" for x in row])
    with atomic_write(path) as stream:
        stream.write(text.getvalue().encode("utf-8"))


def finite(value: Any) -> Any:
    """The same with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
