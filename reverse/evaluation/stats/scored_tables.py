"""Scored answers as tables of counts, and the metrics that are computed from them.

    table = Table("chair", clusters, {"wrong": wrong, "mentions": mentions})
    CHAIR_I = ratio("chair_i", "wrong", "mentions", better="low")
    CHAIR_I.of(table.sums())                                # the point estimate

A scorer returns a `Table` and names its `Metric`s; intervals, comparisons and reports need no more. Nearly
every published figure is a function of column sums (a mean, a ratio, F1, a macro average over parts), so a
bootstrap is one matrix product; the others (AUROC) are functions of rows.

    save_scored(path, table, metrics)                       # a scored file: one JSON object
    table, metrics = load_scored(path)

A scored file holds no code: a metric made by `ratio`, `f1`, `total` or `macro` is written as its form and
rebuilt from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from reverse.errors import DataError, MissingFileError
from reverse.files.atomic_write import write_json
from reverse.files.cell_values import shorten
from reverse.files.text_reading import read_json

__all__ = [
    "Metric",
    "Sums",
    "Table",
    "f1",
    "find_columns",
    "load_scored",
    "macro",
    "ratio",
    "save_scored",
    "total",
]

Sums = Mapping[str, np.ndarray]  # column to (..., parts), summed over the rows of each part
Better = Literal["low", "high", "neither"]


@dataclass(frozen=True)
class Table:
    """One row per answer, in the order of the answers file.

    `clusters` (rows,): the unit that is resampled, image ids as text. `columns`: name to (rows,) float64,
    counts of the answer. `parts` (rows,): the groups that a macro average weighs equally (POPE's three
    settings, MME's tasks), None if there is one group. `keys` (rows,): identify the same row in another run.
    """

    benchmark: str
    clusters: Sequence[str]
    columns: Mapping[str, np.ndarray]
    parts: Sequence[str] | None = None
    keys: Sequence[str] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)  # versions, fallbacks, failures: shown in reports

    def __post_init__(self) -> None:
        for name, column in self.columns.items():
            if len(column) != len(self.clusters):
                raise DataError(f"column {name!r} has {len(column)} rows, the table {len(self.clusters)}")

    @property
    def part_names(self) -> list[str]:
        """Names of the parts in order of first occurrence."""
        return list(dict.fromkeys(self.parts)) if self.parts is not None else [""]

    def part_places(self) -> np.ndarray:
        """The index in `part_names` of each row's part, shape (rows,)."""
        if self.parts is None:
            return np.zeros(len(self.clusters), int)
        place = {name: i for i, name in enumerate(self.part_names)}
        return np.array([place[part] for part in self.parts])

    def sums(self) -> dict[str, np.ndarray]:
        """Sum every column over the rows of each part, shape (parts,)."""
        places, parts = self.part_places(), len(self.part_names)
        return {name: np.bincount(places, column, parts) for name, column in self.columns.items()}


@dataclass(frozen=True)
class Metric:
    """A figure, computed from column sums by `of` or else from rows by `rows`.

    `of` maps arrays (..., parts) to (...), vectorised over bootstrap rounds; `rows` maps the columns of
    resampled rows, (rows,) each, to a number. Both return NaN if the figure is not defined.
    """

    name: str  # as in reports and JSON: chair_i, f1
    better: Better
    of: Callable[[Sums], np.ndarray] | None = None
    rows: Callable[[Mapping[str, np.ndarray]], float] | None = None
    unit: Literal["%", "", "tokens", "s", "words"] = "%"  # "%": a share that is shown times 100
    title: str = ""
    form: Mapping[str, Any] = field(default_factory=dict)  # what a scored file stores of it


def ratio(name: str, part: str, whole: str, better: Better, **kwargs: Any) -> Metric:
    """Make a metric: sum(part) / sum(whole), over all parts together."""

    def of(sums: Sums) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(sums[part].sum(axis=-1) / sums[whole].sum(axis=-1))

    return Metric(name, better, of, form={"ratio": [part, whole]}, **kwargs)


def f1(
    name: str,
    hits: str,
    false_alarms: str,
    misses: str,
    better: Better = "high",
    **kwargs: Any,
) -> Metric:
    """Make a metric: 2 hits / (2 hits + false alarms + misses), over all parts together."""

    def of(sums: Sums) -> np.ndarray:
        tp, fp, fn = (sums[column].sum(axis=-1) for column in (hits, false_alarms, misses))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(2 * tp / (2 * tp + fp + fn))

    return Metric(name, better, of, form={"f1": [hits, false_alarms, misses]}, **kwargs)


def total(
    name: str,
    ratios: Sequence[tuple[str, str]],
    better: Better,
    times: float = 1.0,
    **kwargs: Any,
) -> Metric:
    """Make a metric: `times` the sum of several ratios (part, whole), each over all parts together."""

    def of(sums: Sums) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = [sums[part].sum(axis=-1) / sums[whole].sum(axis=-1) for part, whole in ratios]
        return np.asarray(times * sum(shares))

    return Metric(name, better, of, form={"total": [list(pair) for pair in ratios], "times": times}, **kwargs)


def macro(metric: Metric) -> Metric:
    """Make a metric: the mean over parts of a metric of sums. Raises DataError for a metric of rows."""
    inner = metric.of
    if inner is None:
        raise DataError(
            f"{metric.name!r} is computed from rows: a macro average needs a metric of column sums"
        )

    def of(sums: Sums) -> np.ndarray:
        return np.asarray(inner({column: each[..., None] for column, each in sums.items()}).mean(axis=-1))

    return replace(metric, of=of, form={"macro": metric.form} if metric.form else {})


_FORMAT = "reverse-scored-1"


def save_scored(path: Path, table: Table, metrics: Sequence[Metric]) -> None:
    """Write a scored file atomically: the table's columns as lists, and its metrics by form.

    Raises DataError for a column with a value that is not finite, which JSON cannot hold.
    """
    for name, column in table.columns.items():
        if not np.isfinite(column).all():
            raise DataError(f"column {name!r} has a value that is not finite: a count is missing")
    content = {
        "format": _FORMAT,
        "benchmark": table.benchmark,
        "metrics": [
            {"name": m.name, "better": m.better, "unit": m.unit, "title": m.title, "form": dict(m.form)}
            for m in metrics
        ],
        "notes": dict(table.notes),
        "keys": list(table.keys),
        "clusters": list(table.clusters),
        "parts": None if table.parts is None else list(table.parts),
        "columns": {name: _to_list(column) for name, column in table.columns.items()},
    }
    write_json(path, content)


def load_scored(path: Path) -> tuple[Table, list[Metric]]:
    """Read a scored file's table and metrics. Raises MissingFileError; DataError for a damaged file."""
    if not Path(path).is_file():
        raise MissingFileError(f"no scored file {str(path)!r}: make one with `reverse score … --save`")
    try:
        content = read_json(path)
    except ValueError as error:
        raise DataError(
            f"{path} is not a scored file ({error}): make one with `reverse score … --save`"
        ) from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise DataError(
            f"{path} is not a scored file (no format {_FORMAT!r}): make one with `reverse score … --save`"
        )
    try:
        columns = {str(n): _read_column(str(n), c) for n, c in content["columns"].items()}
        clusters = [str(cluster) for cluster in content["clusters"]]
        parts = None if content.get("parts") is None else [str(part) for part in content["parts"]]
        keys = [str(key) for key in content.get("keys", [])]
        for name, some in (("parts", parts), ("keys", keys)):
            if some and len(some) != len(clusters):
                raise DataError(f"{name!r} has {len(some)} rows, 'clusters' {len(clusters)}")
        table = Table(
            str(content["benchmark"]), clusters, columns, parts, keys, dict(content.get("notes") or {})
        )
        metrics = [_read_metric(table, metric) for metric in content["metrics"]]
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(f"{path} is damaged ({shorten(repr(error), 200)}): score the answers again") from None
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    return table, metrics


def _read_column(name: str, values: Any) -> np.ndarray:
    column = np.array(values, dtype=float)
    if column.ndim != 1 or not np.isfinite(column).all():
        raise DataError(f"column {shorten(name)!r} must be a list of finite numbers: score the answers again")
    return column


def _to_list(column: np.ndarray) -> list[float]:
    """Return the values as a list, whole numbers as int: the file is half as large and easier to read."""
    return [int(x) if x == math.floor(x) else float(x) for x in np.asarray(column, dtype=float)]


def _read_metric(table: Table, stored: Mapping[str, Any]) -> Metric:
    """Make a metric from its stored description. Raises DataError if its form is not known."""
    name, form = str(stored["name"]), stored.get("form") or {}
    display = {"unit": stored.get("unit", "%"), "title": str(stored.get("title", ""))}
    better = stored.get("better")
    if better not in get_args(Better):
        raise DataError(f"metric {name!r} has better={better!r}: known are {', '.join(get_args(Better))}")
    found = _make_from_form(name, better, form, display)
    if found is None:
        raise DataError(
            f"nothing known computes the metric {name!r} of {table.benchmark!r}: its form is {form!r}"
        )
    missing = sorted(find_columns(found.form) - set(table.columns))
    if missing:
        raise DataError(f"metric {name!r} needs the columns {', '.join(missing)}, which are not there")
    return found


def _make_from_form(
    name: str, better: Any, form: Mapping[str, Any], display: Mapping[str, Any]
) -> Metric | None:
    if "macro" in form:
        inner = _make_from_form(name, better, form["macro"], display)
        return None if inner is None else macro(inner)
    if len(form.get("ratio", ())) == 2:
        part, whole = map(str, form["ratio"])
        return ratio(name, part, whole, better, **display)
    if len(form.get("f1", ())) == 3:
        hits, false_alarms, misses = map(str, form["f1"])
        return f1(name, hits, false_alarms, misses, better, **display)
    if form.get("total"):
        ratios = [(str(part), str(whole)) for part, whole in form["total"]]
        return total(name, ratios, better, float(form.get("times", 1.0)), **display)
    return None


def find_columns(form: Mapping[str, Any]) -> set[str]:
    """Return the columns that a form reads."""
    if "macro" in form:
        return find_columns(form["macro"])
    totals = [column for pair in form.get("total", ()) for column in pair]
    return set(map(str, [*form.get("ratio", ()), *form.get("f1", ()), *totals]))
