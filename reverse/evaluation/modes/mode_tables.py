"""The report of modes as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reverse.evaluation.reports.report_tables import format_range

__all__ = ["make_mode_tables"]

_CURVES = (("oracle", "oracle"), ("vote", "vote"), ("weighted", "weighted vote"), ("best", "most confident"))


def make_mode_tables(report: Mapping[str, Any], title: str = "") -> list[Any]:
    """Make Rich tables: all modes, then the curve of each mode that samples, then errors and detection."""
    tables = [_tabulate_modes(report, title)]
    for mode in report["modes"]:
        if mode["curves"] is not None:
            tables.append(_tabulate_curves(mode))
    if any(mode["errors"] for mode in report["modes"]):
        tables.append(_tabulate_errors(report))
    return tables


def _make_table(title: str, columns: Sequence[str], caption: str | None = None) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left", no_wrap=place == 0)
    return table


def _tabulate_modes(report: Mapping[str, Any], title: str) -> Any:
    before = report["before"]
    table = _make_table(
        f"{title or 'modes'}: {report['questions']:,} questions, 95 % intervals",
        ("mode", "accuracy %", f"change from {before}", "wrong → right", "right → wrong", "tokens", "seconds",
         "tokens a right answer", "− vote, equal tokens", "AUROC steps", "answers"),
        "changes are paired by question; tokens and seconds are those of a question; AUROC is of p(</UN>); "
        "* no other mode is better for as many tokens",
    )  # fmt: skip
    for mode in report["modes"]:
        change, cost = mode["change"] or {}, mode["cost"]
        table.add_row(
            mode["name"] + (" *" if mode["on_frontier"] else ""),
            _percent(mode["accuracy"]),
            _percent(change.get("net"), signed=True),
            _percent(change.get("wrong_to_right"), wide=False),
            _percent(change.get("right_to_wrong"), wide=False),
            _number(cost["tokens"], 1),
            _number(cost["seconds"], 3),
            _number(cost["tokens_per_right"], 1),
            _percent(mode["over_vote_at_equal_tokens"], signed=True),
            _number(mode["auroc"]["steps"], 3),
            _number(mode["auroc"]["answers"], 3),
        )
    return table


def _tabulate_curves(mode: Mapping[str, Any]) -> Any:
    curves = mode["curves"]
    table = _make_table(
        f"{mode['name']}: accuracy % of N samples, means over subsets",
        ("N", "tokens", *(title for _, title in _CURVES), "weighted − vote", "most confident − vote"),
    )
    for place, n in enumerate(curves["sizes"]):
        table.add_row(
            str(n),
            f"{curves['tokens'][place]:.1f}",
            *(_percent(curves[rule][place]) for rule, _ in _CURVES),
            _percent(curves["weighted_over_vote"][place], signed=True),
            _percent(curves["best_over_vote"][place], signed=True),
        )
    return table


def _tabulate_errors(report: Mapping[str, Any]) -> Any:
    kinds = list(dict.fromkeys(kind for mode in report["modes"] for kind in mode["errors"]))
    modes = [mode for mode in report["modes"] if mode["change"]]
    table = _make_table(
        f"wrong answers of {report['before']} that are right after, %",
        ("kind of error", "questions", *(mode["name"] for mode in modes)),
    )
    for kind in kinds:
        found = [mode["errors"].get(kind) for mode in modes]
        questions = next(each["questions"] for each in found if each)
        table.add_row(kind, str(questions), *(_percent(each and each["corrected"]) for each in found))
    return table


def _percent(figure: Sequence[float] | None, *, signed: bool = False, wide: bool = True) -> str:
    if figure is None:
        return "–"
    point, low, high = figure
    shown = f"{100 * point:+.1f}" if signed else f"{100 * point:.1f}"
    if not wide or not low < high:
        return shown
    return f"{shown} ({format_range(low, high, 1, 100)})"


def _number(figure: Sequence[float] | None, digits: int) -> str:
    return "–" if figure is None else f"{figure[0]:.{digits}f}"
