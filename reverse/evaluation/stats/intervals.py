"""Intervals for any metric of a scored table, by resampling images.

    interval(table, CHAIR_I)                           # 2,000 rounds, BCa
    interval(table, CHAIR_I, method="percentile", rounds=100, seed=42)      # the published form
    over_seeds([first, second, third], CHAIR_I)        # what sampling adds, apart from what items add

Rows of one cluster (image) lean together, so clusters are drawn, with all their rows. Where a table has
parts, clusters are drawn within strata: a stratum is the set of parts that a cluster has rows in, so every
part keeps its number of images, and an image that stands in several parts (POPE's three settings) is drawn
once for all of them. Pooling the draws of the parts instead, as published scripts do, gives the interval of
no figure at all.

BCa: Efron 1987 (doi 10.1080/01621459.1987.10478410), acceleration by the jackknife over clusters and strata.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from scipy.special import ndtr, ndtri

from reverse.errors import DataError
from reverse.evaluation.stats.bootstrap import REPLICATES, check_rounds, make_generator, weights
from reverse.evaluation.stats.scored_tables import Metric, Sums, Table

__all__ = ["Interval", "OverSeeds", "Resampling", "interval", "intervals", "over_seeds"]

Method = Literal["bca", "percentile"]
DEFAULT: Method = "bca"
SMALL_STRATUM = 10  # strata with fewer clusters are drawn as one: two images say little of a spread
_CHUNK = 4_000_000  # weights in memory at a time
_JACKKNIFE = 400  # groups left out in turn for a metric that is a function of rows


@dataclass(frozen=True)
class Interval:
    """A figure and how far it would move with other images. NaN limits where that cannot be said; `note`
    says why, and what was left out."""

    point: float
    low: float
    high: float
    method: str  # bca, percentile; none where there is no interval
    level: float = 0.95
    rounds: int = REPLICATES
    mean: float = float("nan")  # of the rounds; published AMBER scores are this, not the point
    sd: float = float("nan")  # of the rounds: the standard error
    note: str = ""

    def __iter__(self) -> Iterator[float]:
        """(point, low, high)."""
        return iter((self.point, self.low, self.high))


class Resampling:
    """Draws of a table's clusters, made once and used for every metric.

    `clusters`: names in order of first occurrence. `totals`: column to (clusters, parts), sums of each.
    """

    def __init__(self, table: Table, rounds: int = REPLICATES, seed: int = 0):
        check_rounds("rounds", rounds, "2000 is usual, 100 the published form")
        if not len(table.clusters):
            raise DataError(f"the table of {table.benchmark!r} has no rows: score at least one answer")
        self.table, self.rounds, self.seed = table, rounds, seed
        self.clusters = list(dict.fromkeys(table.clusters))
        place = {name: i for i, name in enumerate(self.clusters)}
        self.cluster = np.array([place[name] for name in table.clusters])  # (rows,)
        parts = table.part_names
        part_place = {name: i for i, name in enumerate(parts)}
        part = (
            np.zeros(len(self.cluster), int)
            if table.parts is None
            else np.array([part_place[name] for name in table.parts])
        )
        shape = (len(self.clusters), len(parts))
        cell = self.cluster * len(parts) + part
        self.totals = {
            name: np.bincount(cell, column, shape[0] * shape[1]).reshape(shape)
            for name, column in table.columns.items()
        }
        self.strata = _strata(np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape) > 0)

    def point(self, metric: Metric) -> float:
        if metric.of is not None:
            return float(metric.of({n: t.sum(axis=0) for n, t in self.totals.items()}))
        return self._of_rows(metric, np.ones(len(self.clusters), int))

    def draws(self, metrics: Sequence[Metric]) -> np.ndarray:
        """Every metric in every round, shape (metrics, rounds); the same seed draws the same clusters."""
        rng = make_generator(self.seed)
        names = list(self.totals)
        flat = np.stack([self.totals[name] for name in names], axis=1)  # (clusters, columns, parts)
        found = np.empty((len(metrics), self.rounds))
        step = max(1, _CHUNK // len(self.clusters))
        for start in range(0, self.rounds, step):
            stop = min(start + step, self.rounds)
            drawn = self.weights(stop - start, rng)
            summed = (drawn @ flat.reshape(len(flat), -1)).reshape(-1, *flat.shape[1:])
            sums: Sums = {name: summed[:, i] for i, name in enumerate(names)}
            for k, metric in enumerate(metrics):
                found[k, start:stop] = (
                    metric.of(sums)
                    if metric.of is not None
                    else [self._of_rows(metric, weight) for weight in drawn.astype(int)]
                )
        return found

    def weights(self, rounds: int, rng: np.random.Generator) -> np.ndarray:
        drawn = np.zeros((rounds, len(self.clusters)))
        for stratum in self.strata:
            drawn[:, stratum] = weights(len(stratum), rounds, rng)
        return drawn

    def _of_rows(self, metric: Metric, weight: np.ndarray) -> float:
        """A metric of rows, each row as often as its cluster was drawn."""
        if metric.rows is None:
            raise DataError(f"metric {metric.name!r} has neither `of` nor `rows`: nothing computes it")
        rows = np.repeat(np.arange(len(self.cluster)), weight[self.cluster])
        return float(metric.rows({name: column[rows] for name, column in self.table.columns.items()}))

    def acceleration(self, metric: Metric) -> float:
        """BCa's a, from leaving out clusters in turn (groups of them for a metric of many rows)."""
        cube = upper = 0.0
        for stratum in self.strata:
            if len(stratum) < 2:
                continue
            left = self._left_out(metric, stratum)
            left = left[np.isfinite(left)]
            n = len(left)
            if n < 2:
                return 0.0
            influence = (n - 1) * (left.mean() - left)
            cube += (influence**3).sum() / n**3
            upper += (influence**2).sum() / n**2
        return cube / (6 * upper**1.5) if upper > 0 else 0.0

    def _left_out(self, metric: Metric, stratum: np.ndarray) -> np.ndarray:
        if metric.of is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.asarray(metric.of({n: t.sum(axis=0) - t[stratum] for n, t in self.totals.items()}))
        groups = np.array_split(stratum, min(len(stratum), _JACKKNIFE))
        weight = np.ones(len(self.clusters), int)
        values = np.empty(len(groups))
        for i, group in enumerate(groups):
            weight[group] = 0
            values[i] = self._of_rows(metric, weight)
            weight[group] = 1
        return values


def interval(
    table: Table,
    metric: Metric,
    method: Method = DEFAULT,
    rounds: int = REPLICATES,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """One metric's interval. Raises ValueError for an empty table, another method, a level not in (0, 1)."""
    return intervals(table, [metric], method, rounds, level, seed)[metric.name]


def intervals(
    table: Table,
    metrics: Sequence[Metric],
    method: Method = DEFAULT,
    rounds: int = REPLICATES,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Intervals of several metrics from the same draws, by name."""
    _check(method, level)
    resampling = Resampling(table, rounds, seed)
    points = [resampling.point(metric) for metric in metrics]
    found = {}
    for metric, point, draws in zip(metrics, points, resampling.draws(metrics), strict=True):
        accelerate = partial(resampling.acceleration, metric) if method == "bca" else None
        found[metric.name] = summary(point, draws, level, accelerate, len(resampling.clusters))
    return found


def summary(
    point: float, draws: np.ndarray, level: float, accelerate: Callable[[], float] | None, clusters: int
) -> Interval:
    """The interval of a figure from its rounds; `accelerate()` gives BCa's a, None takes percentiles."""
    rounds = len(draws)
    nothing = Interval(point, float("nan"), float("nan"), "none", level, rounds)
    if not np.isfinite(point):
        return replace(nothing, note="not defined on these rows")
    if clusters < 2:
        return replace(nothing, note="one cluster: there is nothing to resample")
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return replace(nothing, note="not defined in any round")
    notes = []
    if len(finite) < rounds:
        notes.append(f"not defined in {rounds - len(finite)} of {rounds} rounds, which were left out")
    method, tails = "percentile", np.array([(1 - level) / 2, (1 + level) / 2])
    if np.ptp(finite) == 0:
        notes.append("every round gives the same value: the width is not known, not zero")
    elif accelerate is not None:
        shifted = _bca(point, finite, tails, accelerate())
        if shifted is None:
            notes.append("the point lies outside its own rounds: percentile instead of BCa")
        else:
            method, tails = "bca", shifted
    low, high = np.quantile(finite, tails)
    spread = float(finite.std(ddof=1)) if len(finite) > 1 else float("nan")
    return Interval(
        point, float(low), float(high), method, level, rounds, float(finite.mean()), spread, "; ".join(notes)
    )


def _bca(point: float, draws: np.ndarray, tails: np.ndarray, a: float) -> np.ndarray | None:
    """The percentiles to read instead of `tails`; None where the correction is not finite."""
    below = ((draws < point).mean() + (draws <= point).mean()) / 2  # ties count half
    if not 0 < below < 1:
        return None
    bias = ndtri(below)
    z = bias + ndtri(tails)
    shifted = ndtr(bias + z / (1 - a * z))
    return shifted if np.isfinite(shifted).all() else None


@dataclass(frozen=True)
class OverSeeds:
    """Several decodings of the same questions. A single run's variance is `sd_items`² + `sd_decoding`²."""

    mean: Interval  # of the mean over seeds: what the items leave open, given these seeds
    points: tuple[float, ...]  # each seed's own
    between: float  # standard deviation of the points: decoding as seen (S values only)
    sd_decoding: float  # the same, from how the seeds differ inside each image: far steadier for few seeds
    sd_items: float  # of the items alone

    @property
    def sd_single(self) -> float:
        """Standard error of one run's figure, items and decoding together."""
        return float(np.hypot(self.sd_items, self.sd_decoding))


def over_seeds(
    tables: Sequence[Table],
    metric: Metric,
    method: Method = DEFAULT,
    rounds: int = REPLICATES,
    level: float = 0.95,
    seed: int = 0,
) -> OverSeeds:
    """The mean over decoding seeds, with the variance of decoding apart from that of items.

    All seeds of a cluster are drawn together. With S seeds, rounds of one run vary by items + decoding and
    rounds of their mean by items + decoding / S; the two give both. Raises ValueError for fewer than two
    tables, or tables of different questions.
    """
    _check(method, level)
    if len(tables) < 2:
        raise DataError(f"got {len(tables)} table: decoding varies between at least two seeds")
    first = tables[0]
    runs = [Resampling(t, rounds, seed) for t in (first, *(aligned(first, t) for t in tables[1:]))]
    points = np.array([run.point(metric) for run in runs])
    draws = np.stack([run.draws([metric])[0] for run in runs])  # (seeds, rounds), the same clusters drawn
    count = len(runs)

    def accelerate() -> float:
        return float(np.mean([run.acceleration(metric) for run in runs]))

    of_mean = summary(
        float(points.mean()),
        draws.mean(axis=0),
        level,
        accelerate if method == "bca" else None,
        len(runs[0].clusters),
    )
    usable = draws[:, np.isfinite(draws).all(axis=0)]
    single, averaged = usable.var(axis=1).mean(), usable.mean(axis=0).var()
    decoding = max(0.0, (single - averaged) * count / (count - 1))
    items = max(0.0, averaged - decoding / count)
    return OverSeeds(
        of_mean,
        tuple(map(float, points)),
        float(points.std(ddof=1)),
        float(np.sqrt(decoding)),
        float(np.sqrt(items)),
    )


def aligned(first: Table, second: Table, names: tuple[str, str] = ("the first", "the second")) -> Table:
    """`second` in the order of `first`. Raises ValueError where they do not answer the same questions."""
    for name, table in zip(names, (first, second), strict=True):
        if len(table.keys) != len(table.clusters):
            raise DataError(f"{name} table has no keys: rows cannot be told apart, score the answers again")
        if len(set(table.keys)) < len(table.keys):
            twice = next(key for key in table.keys if list(table.keys).count(key) > 1)
            raise DataError(f"{name} table has {twice!r} twice: a question may be answered once")
    if first.benchmark != second.benchmark:
        raise DataError(f"tables of different benchmarks: {first.benchmark!r} and {second.benchmark!r}")
    place = {key: i for i, key in enumerate(second.keys)}
    known = set(first.keys)
    missing = [key for key in first.keys if key not in place]
    extra = [key for key in second.keys if key not in known]
    if missing or extra:
        lacks = [
            f"{name} lacks {len(gone)} ({', '.join(gone[:5])}{', …' if len(gone) > 5 else ''})"
            for name, gone in ((names[1], missing), (names[0], extra))
            if gone
        ]
        raise DataError(f"not the same questions: {'; '.join(lacks)}")
    order = np.array([place[key] for key in first.keys])
    moved = Table(
        second.benchmark,
        [second.clusters[i] for i in order],
        {name: np.asarray(column)[order] for name, column in second.columns.items()},
        None if second.parts is None else [second.parts[i] for i in order],
        list(first.keys),
        second.notes,
    )
    if list(moved.clusters) != list(first.clusters) or moved.parts != (
        None if first.parts is None else list(first.parts)
    ):
        raise DataError("the same questions stand with other images or parts: were they scored alike?")
    return moved


def _strata(stands: np.ndarray) -> list[np.ndarray]:
    """Clusters that are drawn among themselves, from which parts each stands in, (clusters, parts) bool."""
    kinds, kind = np.unique(stands, axis=0, return_inverse=True)
    found = [np.flatnonzero(kind.ravel() == i) for i in range(len(kinds))]
    small = [stratum for stratum in found if len(stratum) < SMALL_STRATUM]
    if len(found) == 1 or not small:
        return found
    large = [stratum for stratum in found if len(stratum) >= SMALL_STRATUM]
    return [*large, np.sort(np.concatenate(small))]


def check_method(method: str) -> None:
    """Refuse a method that is not known. Raises ValueError."""
    if method not in ("bca", "percentile"):
        raise DataError(f"method must be bca or percentile, got {method!r}")


def _check(method: str, level: float) -> None:
    check_method(method)
    if not 0 < level < 1:
        raise DataError(f"level must lie between 0 and 1, got {level}: 0.95 is usual")
