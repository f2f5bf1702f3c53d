"""The tables of a report, which the page and the Markdown file render alike, and how figures are written.

for table in make_tables(runs):                    # benchmarks, then decoding seeds, then costs
    table.title, table.columns, table.rows
format_heading("CHAIRi", "%", "low")               # "CHAIRi % ↓"
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from reverse.evaluation.reports.run_folder import AnswersSummary, RunFolder, SeedGroup
from reverse.evaluation.stats.intervals import Interval
from reverse.evaluation.stats.scored_tables import Metric

__all__ = ["Cell", "ReportTable", "format_heading", "format_range", "make_tables"]

NOTHING = "–"


class Cell(NamedTuple):
    """A cell of a table, and its note."""

    text: str
    note: str = ""


class ReportTable(NamedTuple):
    """A table; the first cell of a row is its name."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]


def make_tables(runs: Sequence[RunFolder]) -> Iterator[ReportTable]:
    """Make one table per benchmark, one per group of decoding seeds, and one of the answers' costs."""
    for benchmark in dict.fromkeys(each.table.benchmark for run in runs for each in run.scored):
        found = [(run, each) for run in runs for each in run.scored if each.table.benchmark == benchmark]
        metrics: dict[str, Metric] = {}
        for metric in (metric for _, each in found for metric in each.metrics):
            metrics.setdefault(metric.name, metric)
        rows = [
            [
                Cell(f"{run.name} {each.name}"),
                *(_make_cell(m, each.figures.get(m.name)) for m in metrics.values()),
            ]
            for run, each in found
        ]
        yield ReportTable(benchmark, ["", *map(_head, metrics.values())], rows)
    for run in runs:
        for group in run.seeds:
            yield _make_seed_table(f"Decoding seeds: {run.name} {group.name}", group)
    rows = [
        [Cell(text) for text in (f"{run.name} {each.name}", *_format_costs(each))]
        for run in runs
        for each in run.answers
    ]
    if rows:
        columns = ["", "answers", "tokens per answer", "seconds per answer", "empty %", "unresolved %"]
        yield ReportTable("Answers and their costs", columns, rows)


def _make_seed_table(title: str, group: SeedGroup) -> ReportTable:
    rows = []
    for metric in group.metrics:
        each = group.figures[metric.name]
        scale, digits = (100, 2) if metric.unit == "%" else (1, 3)
        deviations = (each.between, each.sd_decoding, each.sd_items)
        spread = [Cell(NOTHING if x != x else f"{x * scale:.{digits}f}") for x in deviations]
        rows.append([Cell(_head(metric)), _make_cell(metric, each.mean), *spread])
    columns = ["", "mean", "sd between seeds", "sd of decoding", "sd of items"]
    return ReportTable(title, columns, rows)


def _head(metric: Metric) -> str:
    return format_heading(metric.title or metric.name, metric.unit, metric.better)


def format_heading(title: str, unit: str, better: str) -> str:
    """Return a metric's title, its unit unless the title names it, and an arrow for the better direction."""
    shown_unit = " %" if unit == "%" else f" ({unit})" if unit else ""
    arrow = {"low": " ↓", "high": " ↑"}.get(better, "")
    return title + ("" if unit and unit in title else shown_unit) + arrow


def format_range(low: float | None, high: float | None, digits: int, scale: float = 1) -> str:
    """Return both limits of an interval; a dash if its width is not known (NaN, or all rounds are equal)."""
    if low is None or high is None or not low < high:
        return NOTHING
    between = "–" if low >= 0 else " to "
    return f"{low * scale:.{digits}f}{between}{high * scale:.{digits}f}"


def _make_cell(metric: Metric, found: Interval | None) -> Cell:
    """Make a cell of a figure with its interval and note; only the figure if the interval's width is not
    known.
    """
    if found is None or found.point != found.point:
        return Cell(NOTHING, found.note if found else "")
    scale, digits = (100, 1) if metric.unit == "%" else (1, 2)
    value, limits = f"{found.point * scale:.{digits}f}", format_range(found.low, found.high, digits, scale)
    return Cell(value if limits == NOTHING else f"{value} ({limits})", found.note)


def _format_costs(answers: AnswersSummary) -> list[str]:
    return [
        f"{answers.rows}",
        *(NOTHING if x is None else f"{x:.2f}" for x in (answers.tokens, answers.seconds)),
        *(NOTHING if x is None else f"{100 * x:.1f}" for x in (answers.empty, answers.unresolved)),
    ]
