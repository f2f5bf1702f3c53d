"""Compare two runs over the same questions image by image.

    compare_runs(first, second, [CHAIR_I, COVERAGE])       # differences first - second, in the metrics' order

Images are drawn once for both runs (paired bootstrap). For p the runs' answers about an image are swapped at
random (paired permutation): if the runs do not differ, it does not matter which of them gave which answers.
Two intervals computed apart would ignore that both runs saw the same pictures. With several metrics p is
corrected by Holm's step-down method (Holm 1979), which holds for dependent metrics too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import binomtest

from reverse.errors import DataError
from reverse.evaluation.stats.bootstrap import (
    DEFAULT_BOOTSTRAP,
    BootstrapSettings,
    check_rounds,
    make_generator,
)
from reverse.evaluation.stats.intervals import Interval, Resampling, align_rows, estimate_intervals
from reverse.evaluation.stats.scored_tables import Metric, Table, find_columns

__all__ = ["Difference", "adjust_by_holm", "compare_runs", "run_mcnemar_test", "run_permutation_test"]

PERMUTATIONS = 9_999  # with the observed one 10,000: p has four digits
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Difference:
    """One metric of two runs. `difference` is first - second; `better` says which sign is good."""

    metric: str
    title: str
    unit: str
    better: str
    first: float
    second: float
    difference: Interval
    p: float  # two-sided, by permutation of images
    exact: bool  # every swap was tried
    p_holm: float
    discordant: tuple[int, int] | None = None  # rows that only the first, only the second run has as 1
    p_mcnemar: float | None = None  # exact; for metrics that are the mean of one 0/1 value per row

    @property
    def verdict(self) -> str:
        """Whether the first run is "better" or "worse"; "" if the difference may be chance.

        Both the interval and the test corrected over metrics must exclude zero: without the correction one of
        twenty metrics would differ by chance, and with few events the bootstrap alone is too sure (five
        events against none of 60 exclude zero).
        """
        low, high = self.difference.low, self.difference.high
        clear = (low > 0 or high < 0) and self.p_holm <= 1 - self.difference.level + 1e-9
        if self.better == "neither" or not clear:
            return ""
        return "better" if (low > 0) == (self.better == "high") else "worse"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"verdict": self.verdict}


def compare_runs(
    first: Table,
    second: Table,
    metrics: Sequence[Metric],
    settings: BootstrapSettings = DEFAULT_BOOTSTRAP,
    *,
    names: tuple[str, str] = ("the first", "the second"),
    permutations: int = PERMUTATIONS,
) -> list[Difference]:
    """Compute every metric's difference with its paired interval and p.

    Raises DataError if the tables do not answer the same questions; it names what is missing.
    """
    if not metrics:
        raise DataError("no metrics to compare: name at least one")
    second = align_rows(first, second, names)
    shared = [name for name in first.columns if name in second.columns]
    first, second = (replace(t, columns={name: t.columns[name] for name in shared}) for t in (first, second))
    for metric in metrics:
        if gone := sorted(find_columns(metric.form) - set(shared)):
            raise DataError(
                f"metric {metric.name!r} needs {', '.join(gone)}, which "
                f"{names[0]} and {names[1]} do not both have"
            )
    columns = {
        f"{side}.{name}": column
        for side, table in (("a", first), ("b", second))
        for name, column in table.columns.items()
    }
    widths = estimate_intervals(
        replace(first, columns=columns), [_subtract(metric) for metric in metrics], settings
    )
    runs = Resampling(first), Resampling(second)
    found = []
    for metric in metrics:
        p, exact = run_permutation_test(*runs, metric, permutations, settings.seed)
        discordant, p_mcnemar = run_mcnemar_test(first, second, metric) or (None, None)
        found.append(
            Difference(
                metric=metric.name,
                title=metric.title or metric.name,
                unit=metric.unit,
                better=metric.better,
                first=runs[0].point(metric),
                second=runs[1].point(metric),
                difference=widths[metric.name],
                p=p,
                exact=exact,
                p_holm=float("nan"),
                discordant=discordant,
                p_mcnemar=p_mcnemar,
            )
        )
    corrected = adjust_by_holm([each.p for each in found])
    return [replace(each, p_holm=p) for each, p in zip(found, corrected, strict=True)]


def adjust_by_holm(ps: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p in the given order; NaN stays and does not count as a test."""
    adjusted = np.full(len(ps), np.nan)
    order = [i for i in np.argsort(ps, kind="stable") if np.isfinite(ps[i])]
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * ps[i]))
        adjusted[i] = highest
    return adjusted.tolist()


def run_permutation_test(
    first: Resampling, second: Resampling, metric: Metric, rounds: int = PERMUTATIONS, seed: int = 0
) -> tuple[float, bool]:
    """Return the two-sided p under swaps of the runs' answers about an image, and whether it is exact.

    It is exact if all swaps of the images that differ are no more than `rounds`. Otherwise p is (1 + rounds
    at least as extreme) / (1 + rounds), which keeps the level of the test (Phipson and Smyth 2010).
    """
    check_rounds("permutations", rounds, "9999 is usual")
    observed = first.point(metric) - second.point(metric)
    if not np.isfinite(observed):
        return float("nan"), False
    # Only the columns that the metric reads: fewer images differ, often few enough to try every swap.
    names = sorted(find_columns(metric.form)) or list(first.totals)
    a, b = (np.stack([run.totals[name] for name in names], axis=1) for run in (first, second))
    differ = (
        _find_differing(first, second) if metric.of is None else np.flatnonzero((a != b).any(axis=(1, 2)))
    )
    exact = len(differ) < 62 and 2 ** len(differ) <= rounds
    total = 2 ** len(differ) if exact else rounds
    extreme = undefined = 0
    edge = abs(observed) * (1 - 1e-9) - 1e-12  # the observed swap must count as extreme as itself
    for swap in _make_swaps(len(differ), total, exact, seed):
        if metric.of is None:
            found = np.array([_swap_rows(first, second, metric, differ[row.astype(bool)]) for row in swap])
        else:
            moved = swap.astype(float) @ (b - a)[differ].reshape(len(differ), a[0].size)
            moved = moved.reshape(len(swap), *a.shape[1:])
            ours, theirs = a.sum(axis=0) + moved, b.sum(axis=0) - moved
            with np.errstate(divide="ignore", invalid="ignore"):
                found = np.asarray(
                    metric.of({name: ours[:, i] for i, name in enumerate(names)})
                    - metric.of({name: theirs[:, i] for i, name in enumerate(names)})
                )
        undefined += int((~np.isfinite(found)).sum())
        extreme += int((np.abs(found[np.isfinite(found)]) >= edge).sum())
    if exact:
        return extreme / max(1, total - undefined), True
    return (1 + extreme) / (1 + total - undefined), False


def _make_swaps(images: int, total: int, exact: bool, seed: int) -> Iterator[np.ndarray]:
    """Yield blocks of swaps, each (rounds, images) of 0 and 1: all swaps if `exact`, else random ones."""
    rng = make_generator(seed)
    step = max(1, _CHUNK // max(images, 1))
    for start in range(0, total, step):
        size = min(step, total - start)
        if exact:
            yield (np.arange(start, start + size)[:, None] >> np.arange(images)) & 1
        else:
            yield rng.integers(0, 2, (size, images))


def _find_differing(first: Resampling, second: Resampling) -> np.ndarray:
    """Return the indices of the clusters with a row that differs between the runs."""
    differ = np.zeros(len(first.cluster), bool)
    for name, column in first.table.columns.items():
        differ |= np.asarray(column) != np.asarray(second.table.columns[name])
    return np.unique(first.cluster[differ])


def _swap_rows(first: Resampling, second: Resampling, metric: Metric, swapped: np.ndarray) -> float:
    """Compute the difference of a metric of rows after the rows of the `swapped` clusters changed sides."""
    assert metric.rows is not None
    exchanged = np.isin(first.cluster, swapped)
    pairs = {name: (column, second.table.columns[name]) for name, column in first.table.columns.items()}
    ours = {name: np.where(exchanged, b, a) for name, (a, b) in pairs.items()}
    theirs = {name: np.where(exchanged, a, b) for name, (a, b) in pairs.items()}
    return metric.rows(ours) - metric.rows(theirs)


def run_mcnemar_test(first: Table, second: Table, metric: Metric) -> tuple[tuple[int, int], float] | None:
    """Count the rows that are 1 in only one of the runs, and compute McNemar's exact p; None if it does not
    apply.

    It applies to a metric that is the mean over rows of a 0/1 value (accuracy, CHAIRs), which is found by
    computing the metric for every row alone. It assumes independent rows: if images have several, the
    permutation of images is the test to believe.
    """
    a, b = (_find_binary_values(table, metric) for table in (first, second))
    if a is None or b is None:
        return None
    only_first, only_second = int((a > b).sum()), int((a < b).sum())
    n = only_first + only_second
    return (only_first, only_second), float(binomtest(only_first, n).pvalue) if n else 1.0


def _find_binary_values(table: Table, metric: Metric) -> np.ndarray | None:
    """Return the metric of each row alone, shape (rows,), if all are 0/1 and their mean is the table's
    metric.
    """
    if metric.of is None:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.asarray(metric.of({n: np.asarray(c, float)[:, None] for n, c in table.columns.items()}))
        whole = metric.of(table.sums())
    binary = value.shape == (len(table.clusters),) and np.isin(value, (0.0, 1.0)).all()
    return value if binary and np.isclose(value.mean(), whole) else None


def _subtract(metric: Metric) -> Metric:
    """Compute the metric of the columns `a.*` minus that of the columns `b.*`."""

    def select(columns: Mapping[str, np.ndarray], side: str) -> dict[str, np.ndarray]:
        return {name[2:]: each for name, each in columns.items() if name.startswith(f"{side}.")}

    of, rows = metric.of, metric.rows
    if of is not None:
        return replace(metric, of=lambda sums: np.asarray(of(select(sums, "a")) - of(select(sums, "b"))))
    assert rows is not None
    return replace(metric, rows=lambda columns: rows(select(columns, "a")) - rows(select(columns, "b")))
