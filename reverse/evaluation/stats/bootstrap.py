"""Bootstrap intervals for ratios: answers are resampled, since phrases of one answer lean together.

    interval(wrong, mentioned, seed=0)       # (point, low, high) of sum(wrong) / sum(mentioned)

A ratio of sums is the statistic CHAIR is; its percentile interval over resampled items is taken from
B replicates with one seeded generator. For any other metric, several rows an image, parts, and BCa see
`reverse.evaluation.stats.intervals`, which draws as this does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from reverse.errors import DataError

__all__ = ["REPLICATES", "difference", "interval", "weights"]

REPLICATES = 2000
MAX_ROUNDS = 1_000_000  # of any resampling: memory and hours, for digits that nobody reads


def interval(
    part: ArrayLike, whole: ArrayLike, *, level: float = 0.95, replicates: int = REPLICATES, seed: int = 0
) -> tuple[float, float, float]:
    """sum(part) / sum(whole) with its percentile interval; NaN where `whole` sums to zero.

    Args: `part`, `whole` one number an item, of equal length.
    """
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    draws = weights(len(part), replicates, seed)
    return _summary(_ratio(part.sum(), whole.sum()), _ratio(draws @ part, draws @ whole), level)


def difference(
    first: tuple[ArrayLike, ArrayLike],
    second: tuple[ArrayLike, ArrayLike],
    *,
    relative: bool = False,
    level: float = 0.95,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> tuple[float, float, float]:
    """first - second of two ratios over the same items, paired; `relative` divides by the second."""
    (p1, w1), (p2, w2) = (
        (np.asarray(p, dtype=float), np.asarray(w, dtype=float)) for p, w in (first, second)
    )
    if len(p1) != len(p2):
        raise DataError(f"a paired comparison needs the same items, got {len(p1)} and {len(p2)}")
    draws = weights(len(p1), replicates, seed)
    point = _ratio(p1.sum(), w1.sum()) - _ratio(p2.sum(), w2.sum())
    spread = _ratio(draws @ p1, draws @ w1) - _ratio(draws @ p2, draws @ w2)
    if relative:
        point = _ratio(point, _ratio(p2.sum(), w2.sum()))
        spread = _ratio(spread, _ratio(draws @ p2, draws @ w2))
    return _summary(point, spread, level)


def weights(items: int, replicates: int, seed: int | np.random.Generator) -> np.ndarray:
    """How often each item is drawn in each replicate, shape (replicates, items).

    A generator that is given goes on where it was. Raises ValueError where there is nothing to draw from.
    """
    if items == 0:
        raise DataError("no items to resample: the interval needs at least one scored answer")
    return make_generator(seed).multinomial(items, np.full(items, 1 / items), size=replicates)


def make_generator(seed: int | np.random.Generator) -> np.random.Generator:
    """A generator of a seed. Raises ValueError for one that is negative, which NumPy does not take."""
    if not isinstance(seed, np.random.Generator) and seed < 0:
        raise DataError(f"seed must be at least 0, got {seed}: try 0")
    return np.random.default_rng(seed)


def check_rounds(name: str, rounds: int, usual: str) -> None:
    """Refuse a number of rounds that says nothing, or that no memory holds. Raises ValueError."""
    if not 1 <= rounds <= MAX_ROUNDS:
        raise DataError(f"{name} must lie between 1 and {MAX_ROUNDS:,}, got {rounds}: {usual}")


def _ratio(part: ArrayLike, whole: ArrayLike) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(part, dtype=float) / np.asarray(whole, dtype=float)


def _summary(point: np.ndarray, draws: np.ndarray, level: float) -> tuple[float, float, float]:
    tail = (1 - level) / 2
    finite = draws[np.isfinite(draws)]
    low, high = np.quantile(finite, [tail, 1 - tail]) if len(finite) else (np.nan, np.nan)
    return float(point), float(low), float(high)
