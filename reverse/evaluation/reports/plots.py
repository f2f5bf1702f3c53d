"""Plots of the statistics, each as PNG and SVG. Needs matplotlib (extra `eval`).

plot_forest(compare_runs(a, b, metrics), Path("out/forest"))       # out/forest.png, out/forest.svg
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from reverse.errors import DataError
from reverse.evaluation.detector.detection import Detector, aurc, auroc, ece, reliability
from reverse.evaluation.reports.report_tables import format_heading
from reverse.evaluation.stats.paired_comparison import Difference
from reverse.files.atomic_write import atomic_write

__all__ = [
    "check_plots",
    "plot_forest",
    "plot_modes",
    "plot_reliability",
    "plot_risk_coverage",
    "plot_roc",
    "plot_tradeoff",
]

COLOURS = {"better": "#1b7f4d", "worse": "#b3261e", "": "#5f6368"}
LINE = "#1f5fa8"
_LABELS = {"%": "percentage points", "": "", "tokens": "tokens", "s": "seconds", "words": "words"}


def check_plots() -> None:
    """Raise DataError if matplotlib is missing; it is called before the work and not after it."""
    if find_spec("matplotlib") is None:
        raise DataError("plots need matplotlib: pip install 'reverse-vlm[eval]'")


@contextmanager
def _make_figure(width: float, height: float, **kwargs: Any) -> Iterator[tuple[Any, Any]]:
    """Make (figure, axes) without a display. Raises DataError if matplotlib is missing."""
    check_plots()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "reverse", "font.size": 9, "axes.grid": True,
             "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False}  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(**kwargs)


def _save(figure: Any, path: Path) -> list[Path]:
    """Write `path` with .png and .svg, each atomically; the same figure gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        content = io.BytesIO()
        figure.savefig(content, format=kind, dpi=150, metadata=metadata)
        target = path.with_name(f"{path.name}.{kind}")
        with atomic_write(target) as stream:
            stream.write(content.getvalue())
        written.append(target)
    return written


def plot_forest(found: Sequence[Difference], path: Path, title: str = "") -> list[Path]:
    """Plot differences with their intervals, one panel per unit; green if the first run is clearly better."""
    units = list(dict.fromkeys(each.unit for each in found))
    groups = [[each for each in found if each.unit == unit] for unit in units]
    heights = [len(group) + 0.6 for group in groups]
    with _make_figure(
        6.5, 0.9 + 0.34 * sum(heights) + 0.35 * len(units), nrows=len(units), squeeze=False,
        gridspec_kw={"height_ratios": heights},
    ) as (figure, axes):  # fmt: skip
        for axis, unit, group in zip(axes[:, 0], units, groups, strict=True):
            scale = 100 if unit == "%" else 1
            for y, each in enumerate(group):
                point, low, high = (scale * x for x in each.difference)
                colour = COLOURS[each.verdict]
                if np.isfinite(low) and np.isfinite(high):
                    axis.plot([low, high], [y, y], color=colour, lw=2, solid_capstyle="butt")
                axis.plot([point], [y], "o", color=colour, ms=5)
            axis.axvline(0, color="black", lw=0.8)
            labels = [format_heading(each.title, "", each.better).replace("$", r"\$") for each in group]
            axis.set_yticks(range(len(group)), labels)
            axis.set_ylim(len(group) - 0.5, -0.5)
            axis.set_xlabel(f"difference, {_LABELS[unit]}" if _LABELS[unit] else "difference")
        if title:
            figure.suptitle(title, fontsize=10)
        return _save(figure, path)


def plot_roc(detector: Detector, path: Path) -> list[Path]:
    """Plot the share of wrong phrases rejected against the share of right ones, over all thresholds."""
    with _make_figure(4.2, 4.0) as (figure, axis):
        false, true, _ = detector.roc()
        axis.plot([0, 1], [0, 1], color="#9aa0a6", lw=0.8, ls="--")
        axis.plot(false, true, color=LINE, lw=1.6)
        axis.set(xlabel="right phrases rejected", ylabel="wrong phrases rejected", aspect="equal")
        area = auroc(detector.p, detector.wrong)
        axis.set_title(f"AUROC {area:.3f}, {len(detector.p)} phrases", fontsize=9)
        return _save(figure, path)


def plot_reliability(detector: Detector, path: Path, bins: int = 10) -> list[Path]:
    """Plot the share of wrong phrases against mean p, in bins of equal mass."""
    with _make_figure(4.4, 4.0) as (figure, axis):
        table = reliability(detector.p, detector.wrong, bins)
        error = ece(detector.p, detector.wrong, bins)
        axis.plot([0, 1], [0, 1], color="#9aa0a6", lw=0.8, ls="--")
        axis.plot(table["p"], table["wrong"], "o-", color=LINE, lw=1.2, ms=4)
        axis.set(xlabel="mean p(</UN>) of the bin", ylabel="share of wrong phrases")
        axis.set_title(f"ECE {error:.3f} ({len(table['p'])} bins of equal mass)", fontsize=9)
        return _save(figure, path)


def plot_risk_coverage(detector: Detector, path: Path) -> list[Path]:
    """Plot the share of wrong phrases among those kept against the share kept."""
    with _make_figure(4.6, 3.6) as (figure, axis):
        coverage, risk, _ = detector.risk_coverage()
        axis.plot(coverage, 100 * risk, color=LINE, lw=1.6)
        axis.set(xlabel="share of phrases kept", ylabel="wrong among them, %", xlim=(0, 1))
        axis.set_title(f"AURC {aurc(detector.p, detector.wrong):.4f}", fontsize=9)
        return _save(figure, path)


def plot_tradeoff(points: Sequence[Mapping[str, Any]], path: Path) -> list[Path]:
    """Plot decoding at several thresholds: hallucination against coverage, and against tokens."""
    with _make_figure(8.2, 3.6, ncols=2) as (figure, axes):
        for axis, name, label, scale in (
            (axes[0], "coverage", "coverage, %", 100),
            (axes[1], "tokens_ratio", "tokens generated for each kept", 1),
        ):
            for point in points:
                x, y = point[name], point["chair_i"]
                axis.errorbar(
                    scale * x[0], 100 * y[0],
                    xerr=scale * np.abs([[x[0] - x[1]], [x[2] - x[0]]]),
                    yerr=100 * np.abs([[y[0] - y[1]], [y[2] - y[0]]]),
                    fmt="o", color=LINE, ms=4, lw=0.9,
                )  # fmt: skip
                axis.annotate(
                    f"{point['threshold']:g}" if point.get("threshold") is not None else "off",
                    (scale * x[0], 100 * y[0]), xytext=(4, 4), textcoords="offset points", fontsize=8,
                )  # fmt: skip
            axis.set(xlabel=label, ylabel="CHAIRi, %")
        return _save(figure, path)


def plot_modes(report: Mapping[str, Any], path: Path, title: str = "") -> list[Path]:
    """Plot accuracy against tokens per question: a point per mode, and a line for each way to pick one of N
    samples.

    Args: `report` is of `reverse.evaluation.modes.mode_report.make_report`.
    """
    with _make_figure(6.5, 4.2) as (figure, axis):
        for mode in report["modes"]:
            if mode["curves"] is not None:
                _draw_curves(axis, mode)
        shown = [each for each in report["modes"] if each["cost"]["tokens"] and each["accuracy"]]
        for place, mode in enumerate(shown):
            tokens, accuracy = mode["cost"]["tokens"], mode["accuracy"]
            axis.errorbar(
                tokens[0], 100 * accuracy[0], xerr=_spread(tokens, 1), yerr=_spread(accuracy, 100),
                fmt="o", color=f"C{place % 10}", ms=6, lw=1.0, zorder=3,
            )  # fmt: skip
            axis.annotate(
                mode["name"], (tokens[0], 100 * accuracy[0]), xytext=(5, _find_offset(shown, mode)),
                textcoords="offset points", fontsize=8,
            )  # fmt: skip
        axis.set(xlabel="tokens generated a question", ylabel="accuracy, %")
        axis.margins(x=0.12, y=0.1)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7, loc="best")
        axis.set_title(title or f"{report['questions']:,} questions, 95 % intervals", fontsize=9)
        return _save(figure, path)


def _find_offset(modes: Sequence[Mapping[str, Any]], mode: Mapping[str, Any]) -> int:
    """Return how many points a name stands above its mode: below, if a slightly better mode is near."""
    widest = max(each["cost"]["tokens"][0] for each in modes)
    for other in modes:
        better = other["accuracy"][0] - mode["accuracy"][0]
        near = abs(other["cost"]["tokens"][0] - mode["cost"]["tokens"][0]) < 0.15 * widest
        if near and 0 < better < 0.015:
            return -11
    return 5


def _draw_curves(axis: Any, mode: Mapping[str, Any]) -> None:
    """Draw the accuracy of N samples of a mode against their tokens."""
    curves = mode["curves"]
    styles = (("oracle", ":", "oracle"), ("weighted", "-", "weighted vote"), ("vote", "--", "vote"),
              ("best", "-.", "most confident"))  # fmt: skip
    for rule, line, name in styles:
        points = [100 * figure[0] for figure in curves[rule]]
        label = f"{name}, N = {curves['sizes'][0]} … {curves['sizes'][-1]} ({mode['name']})"
        axis.plot(curves["tokens"], points, line, marker=".", color="#5f6368", lw=1.0, label=label)


def _spread(figure: Sequence[float], scale: float) -> np.ndarray | None:
    """Return the lengths of the two error bars of [point, low, high]; None without an interval."""
    point, low, high = figure
    if not (np.isfinite(low) and np.isfinite(high)):
        return None
    return scale * np.array([[max(0.0, point - low)], [max(0.0, high - point)]])
