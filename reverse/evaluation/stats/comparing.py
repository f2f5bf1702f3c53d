"""Two runs over the same questions, compared image by image.

    compare(first, second, [CHAIR_I, COVERAGE])       # differences first - second, in the metrics' order

Images are drawn once for both runs (paired bootstrap) and the runs' answers about an image are swapped at
random (paired permutation): under the hypothesis that the two do not differ, who gave which answers means
nothing. Intervals and p of two runs taken apart ignore that both saw the same pictures. With several metrics
p is corrected by Holm's step-down method (Holm 1979), which holds whatever the metrics have in common.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import binomtest

from reverse.errors import DataError
from reverse.evaluation.stats.bootstrap import REPLICATES, check_rounds, make_generator
from reverse.evaluation.stats.intervals import DEFAULT, Interval, Method, Resampling, aligned, intervals
from reverse.evaluation.stats.scored_tables import Metric, Sums, Table, columns_of

__all__ = ["Difference", "compare", "holm", "mcnemar", "permutation"]

PERMUTATIONS = 9_999  # and the observed one: p has four digits
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
    discordant: tuple[int, int] | None = None  # rows that only first, only second has as 1
    p_mcnemar: float | None = None  # exact; for metrics that are the mean of a 0/1 a row

    @property
    def verdict(self) -> str:
        """What the first is, "better" or "worse", where the interval leaves zero out and the test agrees.

        The test is the one corrected over metrics: of twenty, one would else be "better" by chance. With few
        events the bootstrap alone is too sure: five against none of 60 leaves zero out. Else "".
        """
        low, high = self.difference.low, self.difference.high
        clear = (low > 0 or high < 0) and self.p_holm <= 1 - self.difference.level + 1e-9
        if self.better == "neither" or not clear:
            return ""
        return "better" if (low > 0) == (self.better == "high") else "worse"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"verdict": self.verdict}


def compare(
    first: Table,
    second: Table,
    metrics: Sequence[Metric],
    *,
    names: tuple[str, str] = ("the first", "the second"),
    method: Method = DEFAULT,
    rounds: int = REPLICATES,
    permutations: int = PERMUTATIONS,
    level: float = 0.95,
    seed: int = 0,
) -> list[Difference]:
    """Every metric's difference with its paired interval and p.

    Raises ValueError where the tables do not answer the same questions, with what is missing.
    """
    if not metrics:
        raise DataError("no metrics to compare: name at least one")
    second = aligned(first, second, names)
    shared = [name for name in first.columns if name in second.columns]
    first, second = (replace(t, columns={name: t.columns[name] for name in shared}) for t in (first, second))
    for metric in metrics:
        if not set(columns_of(metric.form)) <= set(shared):
            gone = ", ".join(sorted(columns_of(metric.form) - set(shared)))
            raise DataError(
                f"metric {metric.name!r} needs {gone}, which {' and '.join(names)} do not both have"
            )
    joint = Table(
        first.benchmark,
        first.clusters,
        {f"a.{n}": c for n, c in first.columns.items()} | {f"b.{n}": c for n, c in second.columns.items()},
        first.parts,
        first.keys,
    )
    widths = intervals(joint, [_minus(metric) for metric in metrics], method, rounds, level, seed)
    runs = Resampling(first, 1, seed), Resampling(second, 1, seed)
    found = []
    for metric in metrics:
        p, exact = permutation(runs[0], runs[1], metric, permutations, seed)
        discordant = mcnemar(first, second, metric)
        found.append(
            Difference(
                metric.name,
                metric.title or metric.name,
                metric.unit,
                metric.better,
                runs[0].point(metric),
                runs[1].point(metric),
                widths[metric.name],
                p,
                exact,
                float("nan"),
                *(discordant or (None, None)),
            )
        )
    corrected = holm([each.p for each in found])
    return [replace(each, p_holm=p) for each, p in zip(found, corrected, strict=True)]


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p, in the given order; NaN stays and is not counted among the tests."""
    adjusted = np.full(len(ps), np.nan)
    order = [i for i in np.argsort(ps, kind="stable") if np.isfinite(ps[i])]
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * ps[i]))
        adjusted[i] = highest
    return adjusted.tolist()


def permutation(
    first: Resampling, second: Resampling, metric: Metric, rounds: int = PERMUTATIONS, seed: int = 0
) -> tuple[float, bool]:
    """Two-sided p of the difference when the runs' answers about an image are swapped; whether it is exact.

    Exact where all swaps of the images that differ are no more than `rounds`; else (1 + as extreme) /
    (1 + rounds), which no test exceeds its level by (Phipson and Smyth 2010).
    """
    # only what the metric reads: fewer images differ then, often few enough to try every swap
    names = sorted(columns_of(metric.form)) or list(first.totals)
    a, b = (np.stack([run.totals[name] for name in names], axis=1) for run in (first, second))
    observed = first.point(metric) - second.point(metric)
    if not np.isfinite(observed):
        return float("nan"), False
    differ = _differing(first, second) if metric.of is None else np.flatnonzero((a != b).any(axis=(1, 2)))
    count = len(differ)
    exact = count < 62 and 2**count <= rounds
    check_rounds("permutations", rounds, "9999 is usual")
    rng = make_generator(seed)
    total = 2**count if exact else rounds
    step = max(1, _CHUNK // max(count, 1))
    extreme = undefined = 0
    edge = abs(observed) * (1 - 1e-9) - 1e-12  # the observed swap must count as extreme as itself
    for start in range(0, total, step):
        size = min(step, total - start)
        if exact:
            swap = (np.arange(start, start + size)[:, None] >> np.arange(count)) & 1
        else:
            swap = rng.integers(0, 2, (size, count))
        if metric.of is None:
            found = np.array([_swapped_rows(first, second, metric, differ, row) for row in swap])
        else:
            moved = swap.astype(float) @ (b - a)[differ].reshape(count, a[0].size)
            moved = moved.reshape(size, *a.shape[1:])
            mine, theirs = a.sum(axis=0) + moved, b.sum(axis=0) - moved
            with np.errstate(divide="ignore", invalid="ignore"):
                found = metric.of(_named(names, mine)) - metric.of(_named(names, theirs))
        undefined += int((~np.isfinite(found)).sum())
        extreme += int((np.abs(found[np.isfinite(found)]) >= edge).sum())
    if exact:
        return extreme / max(1, total - undefined), True
    return (1 + extreme) / (1 + total - undefined), False


def mcnemar(first: Table, second: Table, metric: Metric) -> tuple[tuple[int, int], float] | None:
    """Rows that only one of the two has as 1, and McNemar's exact p; None where it does not apply.

    It applies to a metric that is the mean over rows of a 0/1 (accuracy, CHAIRs), which is found out by
    computing it of every row alone. It takes rows for independent: where images have several, the permutation
    of images is the one to believe.
    """
    both = [_binary(table, metric) for table in (first, second)]
    if both[0] is None or both[1] is None:
        return None
    only_first = int((both[0] > both[1]).sum())
    only_second = int((both[0] < both[1]).sum())
    n = only_first + only_second
    return (only_first, only_second), float(binomtest(only_first, n).pvalue) if n else 1.0


def _binary(table: Table, metric: Metric) -> np.ndarray | None:
    if metric.of is None:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.asarray(metric.of({n: np.asarray(c, float)[:, None] for n, c in table.columns.items()}))
        whole = metric.of(table.sums())
    binary = value.shape == (len(table.clusters),) and np.isin(value, (0.0, 1.0)).all()
    return value if binary and np.isclose(value.mean(), whole) else None


def _minus(metric: Metric) -> Metric:
    """The metric of the columns `a.*` minus that of `b.*`."""

    def side(columns: Mapping[str, np.ndarray], letter: str) -> dict[str, np.ndarray]:
        return {name[2:]: each for name, each in columns.items() if name.startswith(f"{letter}.")}

    of, rows = metric.of, metric.rows
    if of is not None:

        def minus(sums: Sums) -> np.ndarray:
            return np.asarray(of(side(sums, "a")) - of(side(sums, "b")))

        return replace(metric, of=minus)
    assert rows is not None
    return replace(metric, rows=lambda columns: rows(side(columns, "a")) - rows(side(columns, "b")))


def _named(names: Sequence[str], stacked: np.ndarray) -> Sums:
    return {name: stacked[:, i] for i, name in enumerate(names)}


def _differing(first: Resampling, second: Resampling) -> np.ndarray:
    """Clusters any row of which is not the same in both runs."""
    differ = np.zeros(len(first.cluster), bool)
    for name, column in first.table.columns.items():
        differ |= np.asarray(column) != np.asarray(second.table.columns[name])
    return np.unique(first.cluster[differ])


def _swapped_rows(
    first: Resampling, second: Resampling, metric: Metric, differ: np.ndarray, swap: np.ndarray
) -> float:
    assert metric.rows is not None
    exchanged = np.isin(first.cluster, differ[swap.astype(bool)])
    pairs = {name: (column, second.table.columns[name]) for name, column in first.table.columns.items()}
    mine = {name: np.where(exchanged, b, a) for name, (a, b) in pairs.items()}
    theirs = {name: np.where(exchanged, a, b) for name, (a, b) in pairs.items()}
    return metric.rows(mine) - metric.rows(theirs)
