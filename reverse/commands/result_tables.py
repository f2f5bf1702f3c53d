"""How `reverse compare`, `sweep` and `calibrate` show what they found."""

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from reverse.evaluation.reports.metric_titles import heading

__all__ = ["decoded", "decoded_risk", "detector", "differences", "names", "remarks", "say_calibration"]


def differences(found: list[Any], first: str, second: str, level: float, benchmark: str) -> Table:
    shown = Table(
        title=f"{benchmark}: {first} − {second}",
        caption=f"{level:.0%} intervals paired over images, p by swapping images, corrected by Holm",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for i, name in enumerate(("", "first", "second", "difference", "interval", "p", "Holm")):
        shown.add_column(name, justify="right" if i else "left", no_wrap=i > 0)
    colours = {"better": "green", "worse": "red", "": ""}
    for each in found:
        scale, digits = (100, 2) if each.unit == "%" else (1, 3)
        gap = each.difference
        shown.add_row(
            heading(each.title, each.unit, each.better),
            f"{each.first * scale:.{digits}f}",
            f"{each.second * scale:.{digits}f}",
            Text(f"{gap.point * scale:+.{digits}f}", colours[each.verdict]),
            _range(gap.low, gap.high, digits, scale),
            f"{each.p:.4f}" + ("=" if each.exact else ""),
            f"{each.p_holm:.4f}",
        )
    return shown


def names(first: Path, second: Path) -> tuple[str, str]:
    """What the two are called: the files' names, with their folders' where they share one."""
    if first.stem != second.stem:
        return first.stem, second.stem
    return f"{first.resolve().parent.name}/{first.stem}", f"{second.resolve().parent.name}/{second.stem}"


def remarks(found: list[Any]) -> list[str]:
    """What stands below the table."""
    lines = ["= exact: every swap of images was tried"] if any(each.exact for each in found) else []
    lines += [
        f"McNemar, answers taken for independent: {each.title} p {each.p_mcnemar:.4f} "
        f"({each.discordant[0]} only in the first, {each.discordant[1]} only in the second)"
        for each in found
        if each.p_mcnemar is not None and sum(each.discordant)
    ]
    return lines + [f"{each.title}: {each.difference.note}" for each in found if each.difference.note]


def detector(found: dict[str, Any], bins: int) -> Table:
    """What p(</UN>) knows, over all phrases."""
    from reverse.evaluation.detector.detection import metrics

    shown = Table(title=f"{found['phrases']} phrases of {found['images']} pictures, {found['wrong']} wrong")
    for name in ("", "value", "95 % over pictures"):
        shown.add_column(name, justify="left" if not name else "right")
    for each in metrics(bins):
        figure = found["figures"][each.name]
        shown.add_row(each.title, f"{figure['point']:.4f}", _range(figure["low"], figure["high"], 4))
    return shown


def decoded(points: list[dict[str, Any]]) -> Table:
    shown = Table(title="Decoded anew, 95 % over scenes", box=SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(("threshold", "CHAIRi %", "coverage %", "made / kept", "unresolved %")):
        shown.add_column(name, justify="right" if i else "left")
    for point in points:
        cells = []
        for name, scale, digits in (("chair_i", 100, 1), ("coverage", 100, 1), ("tokens_ratio", 1, 2),
                                    ("unresolved", 100, 1)):  # fmt: skip
            value, low, high = point[name]
            cells.append(f"{value * scale:.{digits}f} ({_range(low, high, digits, scale)})")
        shown.add_row("off" if point["threshold"] is None else f"{point['threshold']:g}", *cells)
    return shown


def say_calibration(console: Console, content: dict[str, Any]) -> None:
    promise = content["promise"]
    if content["threshold"] is None:
        console.print(
            Text(f"no threshold can be promised with {content['images']} pictures: {promise}", "yellow"),
            soft_wrap=True,
        )
    else:
        console.print(f"threshold {content['threshold']:.4g}", highlight=False)
        console.print(promise, highlight=False, soft_wrap=True)
        console.print(
            f"calibration: {content['images']} pictures, mean {content['observed']:.4f}, "
            f"{content['kept']:.1%} of the phrases kept",
            highlight=False,
        )
    if "test" in content:
        each = content["test"]
        console.print(
            f"test: {each['images']} pictures, mean {each['observed']:.4f} "
            f"({_range(each['low'], each['high'], 4)}), {each['kept']:.1%} of the phrases kept",
            highlight=False,
        )
    again = content["resplits"]
    seen = "nothing" if again["observed"] is None else f"{again['observed']:.4f} on average"
    console.print(
        f"{again['times']} divisions into {again['calibration_images']} + {again['test_images']}: promised "
        f"{again['promised']:.3f}, observed {seen}, above it in {again['over']:.1%}, "
        f"no promise in {again['without_promise']:.1%}",
        highlight=False,
        soft_wrap=True,
    )


def decoded_risk(tried: list[dict[str, Any]]) -> Table:
    shown = Table(
        title="Decoded: mean share of false ones among accepted phrases",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for name in ("threshold", "mean", "95 %", "p", "needs", "CHAIRi %", "unresolved %", "made/kept"):
        shown.add_column(name, justify="right", no_wrap=True)
    for each in tried:
        shown.add_row(
            f"{each['threshold']:g}",
            f"{each['observed']:.4f}",
            _range(each["low"], each["high"], 3),
            f"{each['p']:.4f}",
            f"{each['must_be_below']:.3f}",
            f"{100 * each['chair_i']:.1f}",
            f"{100 * each['unresolved']:.1f}",
            f"{each['tokens_ratio']:.2f}",
        )
    return shown


def _range(low: float | None, high: float | None, digits: int, scale: float = 1) -> str:
    if low is None or high is None or not low < high:  # NaN, or rounds that all agree: no width is known
        return "–"
    between = "–" if low >= 0 else " to "
    return f"{low * scale:.{digits}f}{between}{high * scale:.{digits}f}"
