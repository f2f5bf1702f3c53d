"""Write the detector's figures at every threshold.

    write_sweep(read_phrases("off.jsonl", SceneTruth()), Path("out"))

Files: detector.json (figures with intervals), thresholds.csv, and the plots roc, reliability and
risk_coverage as PNG and SVG, each written atomically.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from reverse.evaluation.detector.detection import BINS, DETECTOR_BOOTSTRAP, Detector, reliability
from reverse.evaluation.stats.bootstrap import BootstrapSettings
from reverse.files.atomic_write import atomic_write, write_json
from reverse.files.json_values import replace_non_finite

__all__ = ["plot_sweep", "write_csv", "write_sweep"]


def write_sweep(
    detector: Detector, out: Path, settings: BootstrapSettings = DETECTOR_BOOTSTRAP, bins: int = BINS
) -> dict[str, Any]:
    """Write detector.json and thresholds.csv into `out`; return the content of detector.json."""
    out.mkdir(parents=True, exist_ok=True)
    figures = detector.estimate_figures(settings, bins)
    content: dict[str, Any] = {
        "phrases": len(detector.p),
        "wrong": int(detector.wrong.sum()),
        "images": len(detector.images),
        "ece_bins": bins,
        "figures": {name: asdict(each) for name, each in figures.items()},
        "reliability": {
            name: column.tolist() for name, column in reliability(detector.p, detector.wrong, bins).items()
        },
    }
    write_csv(out / "thresholds.csv", detector.tabulate_thresholds())
    write_json(out / "detector.json", replace_non_finite(content))
    return content


def plot_sweep(detector: Detector, out: Path, bins: int = BINS) -> None:
    """Write the plots of a sweep. Raises DataError if matplotlib is missing."""
    from reverse.evaluation.reports import plots

    plots.plot_roc(detector, out / "roc")
    plots.plot_reliability(detector, out / "reliability", bins)
    plots.plot_risk_coverage(detector, out / "risk_coverage")


def write_csv(path: Path, columns: Mapping[str, Sequence[Any] | np.ndarray]) -> None:
    """Write columns of equal length below a line of names; None and NaN become empty cells."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow(["" if x is None or x != x else f"{x:.9g}" for x in row])
    with atomic_write(path) as stream:
        stream.write(text.getvalue().encode("utf-8"))
