"""Intervals for any metric of a scored table, by resampling images.

    estimate_interval(table, CHAIR_I)                           # 2,000 rounds, BCa
    estimate_interval(table, CHAIR_I, BootstrapSettings("percentile", rounds=100, seed=42))  # as published
    estimate_over_seeds([first, second, third], CHAIR_I)        # variance of decoding and of items

Rows of one cluster (image) depend on each other, so clusters are drawn, with all their rows. If a table has
parts, clusters are drawn within strata: a stratum is the set of parts that a cluster has rows in. Every part
so keeps its number of images, and an image that stands in several parts (POPE's three settings) is drawn
once for all of them. Published scripts pool the draws of the parts instead, and the result is not a
confidence interval of any figure.

BCa: Efron 1987 (doi 10.1080/01621459.1987.10478410), acceleration by the jackknife over clusters and strata.
`scipy.stats.bootstrap` computes the same for one sample; it has no clusters and no strata.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.special import ndtr, ndtri

from reverse.errors import DataError
from reverse.evaluation.stats.bootstrap import (
    DEFAULT_BOOTSTRAP,
    ROUNDS,
    BootstrapSettings,
    draw_counts,
    make_generator,
)
from reverse.evaluation.stats.scored_tables import Metric, Sums, Table

__all__ = [
    "Interval",
    "OverSeeds",
    "Resampling",
    "align_rows",
    "estimate_interval",
    "estimate_intervals",
    "estimate_over_seeds",
    "summarize_rounds",
]

SMALL_STRATUM = 10  # strata with fewer clusters are drawn as one: two images say little about a spread
_CHUNK = 4_000_000  # weights in memory at a time
_JACKKNIFE = 400  # groups left out in turn for a metric that is a function of rows


@dataclass(frozen=True)
class Interval:
    """A figure and its confidence interval. The limits are NaN if there is no interval; `note` says why."""

    point: float
    low: float
    high: float
    method: str  # "bca", "percentile", or "none" if there is no interval
    level: float = 0.95
    rounds: int = ROUNDS
    mean: float = float("nan")  # mean of the rounds; published AMBER scores are this, not the point
    sd: float = float("nan")  # standard deviation of the rounds: the standard error
    note: str = ""

    def __iter__(self) -> Iterator[float]:
        """(point, low, high)."""
        return iter((self.point, self.low, self.high))


class Resampling:
    """Sums of a table's columns per cluster, from which rounds of the bootstrap are computed.

    `clusters`: names in order of first occurrence. `cluster` (rows,): each row's place in `clusters`.
    `totals`: column to (clusters, parts), its sums. `strata`: places of the clusters of each stratum.
    """

    def __init__(self, table: Table):
        if not len(table.clusters):
            raise DataError(f"the table of {table.benchmark!r} has no rows: score at least one answer")
        self.table = table
        self.clusters = list(dict.fromkeys(table.clusters))
        place = {name: i for i, name in enumerate(self.clusters)}
        self.cluster = np.array([place[name] for name in table.clusters])
        shape = (len(self.clusters), len(table.part_names))
        cell = self.cluster * shape[1] + table.part_places()
        self.totals = {
            name: np.bincount(cell, column, shape[0] * shape[1]).reshape(shape)
            for name, column in table.columns.items()
        }
        self.strata = _find_strata(np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape) > 0)

    def point(self, metric: Metric) -> float:
        """Return the metric of the whole table."""
        if metric.of is not None:
            return float(metric.of({n: t.sum(axis=0) for n, t in self.totals.items()}))
        return self._compute_from_rows(metric, np.ones(len(self.clusters), int))

    def draw(self, metrics: Sequence[Metric], rounds: int, seed: int) -> np.ndarray:
        """Compute every metric in every round, shape (metrics, rounds); equal seeds draw equal clusters."""
        rng = make_generator(seed)
        names = list(self.totals)
        flat = np.stack([self.totals[name] for name in names], axis=1)  # (clusters, columns, parts)
        found = np.empty((len(metrics), rounds))
        step = max(1, _CHUNK // len(self.clusters))
        for start in range(0, rounds, step):
            stop = min(start + step, rounds)
            counts = self.draw_cluster_counts(stop - start, rng)
            summed = (counts @ flat.reshape(len(flat), -1)).reshape(-1, *flat.shape[1:])
            sums: Sums = {name: summed[:, i] for i, name in enumerate(names)}
            for k, metric in enumerate(metrics):
                found[k, start:stop] = (
                    metric.of(sums)
                    if metric.of is not None
                    else [self._compute_from_rows(metric, each) for each in counts.astype(int)]
                )
        return found

    def draw_cluster_counts(self, rounds: int, rng: np.random.Generator) -> np.ndarray:
        """Draw how often each cluster occurs within its stratum, shape (rounds, clusters)."""
        counts = np.zeros((rounds, len(self.clusters)))
        for stratum in self.strata:
            counts[:, stratum] = draw_counts(len(stratum), rounds, rng)
        return counts

    def acceleration(self, metric: Metric) -> float:
        """Compute BCa's acceleration by leaving out clusters in turn (groups of clusters for a metric of
        rows).
        """
        cube = square = 0.0
        for stratum in self.strata:
            if len(stratum) < 2:
                continue
            left = self._compute_without_each(metric, stratum)
            left = left[np.isfinite(left)]
            n = len(left)
            if n < 2:
                return 0.0
            influence = (n - 1) * (left.mean() - left)
            cube += (influence**3).sum() / n**3
            square += (influence**2).sum() / n**2
        return cube / (6 * square**1.5) if square > 0 else 0.0

    def _compute_without_each(self, metric: Metric, stratum: np.ndarray) -> np.ndarray:
        if metric.of is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.asarray(metric.of({n: t.sum(axis=0) - t[stratum] for n, t in self.totals.items()}))
        counts = np.ones(len(self.clusters), int)
        values = []
        for group in np.array_split(stratum, min(len(stratum), _JACKKNIFE)):
            counts[group] = 0
            values.append(self._compute_from_rows(metric, counts))
            counts[group] = 1
        return np.array(values)

    def _compute_from_rows(self, metric: Metric, counts: np.ndarray) -> float:
        """Compute a metric of rows, with each row repeated as often as its cluster was drawn."""
        if metric.rows is None:
            raise DataError(f"metric {metric.name!r} has neither `of` nor `rows`: define one of them")
        rows = np.repeat(np.arange(len(self.cluster)), counts[self.cluster])
        return float(metric.rows({name: column[rows] for name, column in self.table.columns.items()}))


def estimate_interval(
    table: Table, metric: Metric, settings: BootstrapSettings = DEFAULT_BOOTSTRAP
) -> Interval:
    """Estimate one metric with its interval. Raises DataError for an empty table."""
    return estimate_intervals(table, [metric], settings)[metric.name]


def estimate_intervals(
    table: Table, metrics: Sequence[Metric], settings: BootstrapSettings = DEFAULT_BOOTSTRAP
) -> dict[str, Interval]:
    """Estimate several metrics with intervals from the same draws, by name."""
    resampling = Resampling(table)
    points = [resampling.point(metric) for metric in metrics]
    draws = resampling.draw(metrics, settings.rounds, settings.seed)
    found = {}
    for metric, point, rounds in zip(metrics, points, draws, strict=True):
        accelerate = partial(resampling.acceleration, metric) if settings.method == "bca" else None
        found[metric.name] = summarize_rounds(
            point, rounds, settings.level, accelerate, len(resampling.clusters)
        )
    return found


def summarize_rounds(
    point: float, draws: np.ndarray, level: float, accelerate: Callable[[], float] | None, clusters: int
) -> Interval:
    """Make the interval of a figure from its rounds: BCa if `accelerate` is given, else percentiles."""
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
        shifted = _shift_tails(point, finite, tails, accelerate())
        if shifted is None:
            notes.append("the point lies outside its own rounds: percentile instead of BCa")
        else:
            method, tails = "bca", shifted
    low, high = np.quantile(finite, tails)
    spread = float(finite.std(ddof=1)) if len(finite) > 1 else float("nan")
    return Interval(
        point, float(low), float(high), method, level, rounds, float(finite.mean()), spread, "; ".join(notes)
    )


def _shift_tails(point: float, draws: np.ndarray, tails: np.ndarray, a: float) -> np.ndarray | None:
    """Return the percentiles that BCa uses instead of `tails`; None if its correction is not finite."""
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
    points: tuple[float, ...]  # one per seed
    between: float  # standard deviation of the points
    sd_decoding: float  # the same, from how seeds differ inside each image: far steadier for few seeds
    sd_items: float  # of the items alone

    @property
    def sd_single(self) -> float:
        """The standard error of one run's figure, of items and decoding together."""
        return float(np.hypot(self.sd_items, self.sd_decoding))


def estimate_over_seeds(
    tables: Sequence[Table], metric: Metric, settings: BootstrapSettings = DEFAULT_BOOTSTRAP
) -> OverSeeds:
    """Estimate the mean over decoding seeds, with separate variances of decoding and of items.

    All seeds of a cluster are drawn together. With S seeds, rounds of one run vary by items + decoding and
    rounds of their mean by items + decoding / S; the two give both. Raises DataError for fewer than two
    tables, or tables of different questions.
    """
    if len(tables) < 2:
        raise DataError(f"got {len(tables)} table: decoding varies between at least two seeds")
    first = tables[0]
    runs = [Resampling(table) for table in (first, *(align_rows(first, other) for other in tables[1:]))]
    points = np.array([run.point(metric) for run in runs])
    draws = np.stack([run.draw([metric], settings.rounds, settings.seed)[0] for run in runs])
    count = len(runs)

    def accelerate() -> float:
        return float(np.mean([run.acceleration(metric) for run in runs]))

    mean = summarize_rounds(
        float(points.mean()),
        draws.mean(axis=0),
        settings.level,
        accelerate if settings.method == "bca" else None,
        len(runs[0].clusters),
    )
    usable = draws[:, np.isfinite(draws).all(axis=0)]
    single, averaged = usable.var(axis=1).mean(), usable.mean(axis=0).var()
    decoding = max(0.0, (single - averaged) * count / (count - 1))
    items = max(0.0, averaged - decoding / count)
    deviations = float(points.std(ddof=1)), float(np.sqrt(decoding)), float(np.sqrt(items))
    return OverSeeds(mean, tuple(map(float, points)), *deviations)


def align_rows(first: Table, second: Table, names: tuple[str, str] = ("the first", "the second")) -> Table:
    """Return `second` in the order of `first`. Raises DataError if they do not answer the same questions."""
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
    moved = replace(
        second,
        clusters=[second.clusters[i] for i in order],
        columns={name: np.asarray(column)[order] for name, column in second.columns.items()},
        parts=None if second.parts is None else [second.parts[i] for i in order],
        keys=list(first.keys),
    )
    parts = None if first.parts is None else list(first.parts)
    if list(moved.clusters) != list(first.clusters) or moved.parts != parts:
        raise DataError("equal questions have other images or parts: score both files in the same way")
    return moved


def _find_strata(stands: np.ndarray) -> list[np.ndarray]:
    """Return the indices of the clusters of each stratum.

    Args: `stands` (clusters, parts) bool, whether a cluster has rows in a part.
    """
    kinds, kind = np.unique(stands, axis=0, return_inverse=True)
    found = [np.flatnonzero(kind.ravel() == i) for i in range(len(kinds))]
    small = [stratum for stratum in found if len(stratum) < SMALL_STRATUM]
    if len(found) == 1 or not small:
        return found
    large = [stratum for stratum in found if len(stratum) >= SMALL_STRATUM]
    return [*large, np.sort(np.concatenate(small))]
