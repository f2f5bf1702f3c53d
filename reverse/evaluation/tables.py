"""What a benchmark's answers were counted as, and the figures made of it: what scoring hands to statistics.

    table = Table("chair", clusters, {"wrong": wrong, "mentions": mentions})
    CHAIR_I = ratio("chair_i", "wrong", "mentions", better="low")
    CHAIR_I.of(table.sums())                                # the point estimate

A scorer returns a `Table` and names its `Metric`s; intervals, comparisons and reports need to know no
more. Nearly every published figure is a function of column sums (a mean, a ratio, F1, a macro average over
parts), so a bootstrap is one matrix product; what is not (AUROC) is a function of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

__all__ = ["Metric", "Sums", "Table", "ratio"]

Sums = Mapping[str, np.ndarray]  # of each column, shape (..., parts): summed over the rows of each part


@dataclass(frozen=True)
class Table:
    """One row an answer, in the order of the answers file.

    `clusters` (rows,): what is resampled together, image ids as text. `columns`: name to (rows,) float64,
    counts of the answer. `parts` (rows,): names of what a macro average weighs equally (POPE's three
    settings, MME's tasks), None where there is one. `keys` (rows,): what makes a row the same in another run.
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
                raise ValueError(f"column {name!r} has {len(column)} rows, the table {len(self.clusters)}")

    @property
    def part_names(self) -> list[str]:
        """In the order in which they first occur."""
        return list(dict.fromkeys(self.parts)) if self.parts is not None else [""]

    def sums(self) -> dict[str, np.ndarray]:
        """Of every column, shape (parts,)."""
        names = self.part_names
        place = {name: i for i, name in enumerate(names)}
        at = np.zeros(len(self.clusters), int)
        if self.parts is not None:
            at = np.array([place[part] for part in self.parts])
        return {name: np.bincount(at, column, len(names)) for name, column in self.columns.items()}


@dataclass(frozen=True)
class Metric:
    """A figure: `of(sums)` for what is a function of column sums, else `rows(columns)`.

    `of` maps arrays (..., parts) to (...), vectorised over bootstrap rounds; `rows` maps the columns of
    resampled rows, (rows,) each, to a number. NaN where it is not defined.
    """

    name: str  # as in reports and JSON: chair_i, f1
    better: Literal["low", "high", "neither"]
    of: Callable[[Sums], np.ndarray] | None = None
    rows: Callable[[Mapping[str, np.ndarray]], float] | None = None
    unit: Literal["%", "", "tokens", "s", "words"] = "%"  # "%": a share, shown times 100
    title: str = ""


def ratio(
    name: str, part: str, whole: str, better: Literal["low", "high", "neither"], **kwargs: Any
) -> Metric:
    """sum(part) / sum(whole), over all parts together."""

    def of(sums: Sums) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(sums[part].sum(axis=-1) / sums[whole].sum(axis=-1))

    return Metric(name, better, of, **kwargs)
