"""Tables of the results of `reverse compare`, `sweep` and `calibrate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from reverse.evaluation.detector.detection import make_metrics
from reverse.evaluation.reports.report_tables import format_heading, format_range
from reverse.evaluation.stats.paired_comparison import Difference

__all__ = [
    "list_remarks",
    "make_decoded_risk_table",
    "make_decoding_table",
    "make_detector_table",
    "make_difference_table",
    "name_runs",
    "print_calibration",
]

Rows = list[dict[str, Any]]


def _make_table(title: str, columns: Sequence[str], caption: str | None = None) -> Table:
    """Make an empty table whose first column holds names and whose other columns hold figures."""
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left", no_wrap=i > 0)
    return table


def make_difference_table(found: Sequence[Difference], title: str, level: float) -> Table:
    """Make a table of both runs' figures and their differences; clear differences are coloured."""
    table = _make_table(
        title,
        ("", "first run", "second run", "difference", f"{level:.0%} interval", "p", "p (Holm)"),
        "intervals: paired bootstrap over images; p: permutation of images, corrected by Holm",
    )
    colours = {"better": "green", "worse": "red", "": ""}
    for each in found:
        scale, digits = (100, 2) if each.unit == "%" else (1, 3)
        gap = each.difference
        table.add_row(
            format_heading(each.title, each.unit, each.better),
            f"{each.first * scale:.{digits}f}",
            f"{each.second * scale:.{digits}f}",
            Text(f"{gap.point * scale:+.{digits}f}", colours[each.verdict]),
            format_range(gap.low, gap.high, digits, scale),
            f"{each.p:.4f}" + ("=" if each.exact else ""),
            f"{each.p_holm:.4f}",
        )
    return table


def name_runs(first: Path, second: Path) -> tuple[str, str]:
    """Return the names of the files, with the names of their folders if they are equal."""
    if first.stem != second.stem:
        return first.stem, second.stem
    return f"{first.resolve().parent.name}/{first.stem}", f"{second.resolve().parent.name}/{second.stem}"


def list_remarks(found: Sequence[Difference]) -> list[str]:
    """Return the lines below the table of differences."""
    lines = ["= exact: every swap of images was tried"] if any(each.exact for each in found) else []
    lines += [
        f"McNemar, if answers are independent: {each.title} p {each.p_mcnemar:.4f} "
        f"({each.discordant[0]} only in the first, {each.discordant[1]} only in the second)"
        for each in found
        if each.discordant and sum(each.discordant)
    ]
    return lines + [f"{each.title}: {each.difference.note}" for each in found if each.difference.note]


def make_detector_table(found: dict[str, Any], bins: int) -> Table:
    """Make a table of the detector's figures over all phrases; `found` is the content of detector.json."""
    title = f"{found['phrases']} phrases of {found['images']} pictures, {found['wrong']} wrong"
    table = _make_table(title, ("", "value", "95 % over pictures"))
    for each in make_metrics(bins):
        figure = found["figures"][each.name]
        table.add_row(each.title, f"{figure['point']:.4f}", format_range(figure["low"], figure["high"], 4))
    return table


def make_decoding_table(points: Rows) -> Table:
    """Make a table of the figures of scenes decoded at several thresholds."""
    columns = ("threshold", "CHAIRi %", "coverage %", "generated / kept tokens", "unresolved %")
    table = _make_table("Decoded scenes, 95 % intervals over scenes", columns)
    figures = (("chair_i", 100, 1), ("coverage", 100, 1), ("tokens_ratio", 1, 2), ("unresolved", 100, 1))
    for point in points:
        cells = []
        for name, scale, digits in figures:
            value, low, high = point[name]
            cells.append(f"{value * scale:.{digits}f} ({format_range(low, high, digits, scale)})")
        table.add_row("off" if point["threshold"] is None else f"{point['threshold']:g}", *cells)
    return table


def print_calibration(console: Console, content: dict[str, Any]) -> None:
    """Print the threshold, its guarantee, and how well it holds on other pictures."""

    def say(text: str | Text) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    def describe_part(part: str, found: dict[str, Any], limits: str = "") -> str:
        return (
            f"{part}: {found['images']} pictures, mean share of false phrases {found['observed']:.4f}{limits}"
            f", {found['kept']:.1%} of the phrases kept"
        )

    promise = content["promise"]
    if content["threshold"] is None:
        say(Text(f"no threshold can be promised with {content['images']} pictures: {promise}", "yellow"))
    else:
        say(f"threshold {content['threshold']:.4g}")
        say(promise)
        say(describe_part("calibration", content))
    if "test" in content:
        test = content["test"]
        say(describe_part("test", test, f" ({format_range(test['low'], test['high'], 4)})"))
    again = content["resplits"]
    observed = "nothing" if again["observed"] is None else f"{again['observed']:.4f} on average"
    say(
        f"{again['times']} divisions into {again['calibration_images']} + {again['test_images']} pictures: "
        f"promised {again['promised']:.3f}, observed {observed}, more than promised in {again['over']:.1%}, "
        f"no promise in {again['without_promise']:.1%}"
    )


def make_decoded_risk_table(tried: Rows) -> Table:
    """Make a table of the tests of the thresholds that were decoded."""
    table = _make_table(
        "Decoded scenes: mean share of false ones among accepted phrases",
        ("threshold", "mean", "95 %", "p", "p needed", "CHAIRi %", "unresolved %", "generated / kept"),
    )
    for each in tried:
        table.add_row(
            f"{each['threshold']:g}",
            f"{each['observed']:.4f}",
            format_range(each["low"], each["high"], 3),
            f"{each['p']:.4f}",
            f"{each['must_be_below']:.3f}",
            f"{100 * each['chair_i']:.1f}",
            f"{100 * each['unresolved']:.1f}",
            f"{each['tokens_ratio']:.2f}",
        )
    return table
