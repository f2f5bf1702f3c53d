"""Bootstrap settings, the random draws behind every interval, and intervals for a ratio of two sums.

    estimate_ratio(wrong, mentioned, seed=0)       # (point, low, high) of sum(wrong) / sum(mentioned)

Answers are resampled, not phrases, because phrases of one answer depend on each other. For other metrics,
several rows per image, parts and BCa see `reverse.evaluation.stats.intervals`, which uses the same draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from reverse.errors import DataError

__all__ = [
    "DEFAULT_BOOTSTRAP",
    "BootstrapSettings",
    "check_rounds",
    "draw_counts",
    "estimate_ratio",
    "estimate_ratio_difference",
]

Method = Literal["bca", "percentile"]
Triple = tuple[float, float, float]  # point, low, high
ROUNDS = 2000
TAILS = ((1 - 0.95) / 2, 1 - (1 - 0.95) / 2)
MAX_ROUNDS = 1_000_000  # more rounds cost memory and hours for digits that nobody reads


def make_generator(seed: int | np.random.Generator) -> np.random.Generator:
    """Make a random generator. Raises DataError for a negative seed, which NumPy does not take."""
    if not isinstance(seed, np.random.Generator) and seed < 0:
        raise DataError(f"seed must be at least 0, got {seed}: try 0")
    return np.random.default_rng(seed)


def check_rounds(name: str, rounds: int, usual: str) -> None:
    """Raise DataError for fewer rounds than one or more than memory holds; `usual` is the remedy."""
    if not 1 <= rounds <= MAX_ROUNDS:
        raise DataError(f"{name} must lie between 1 and {MAX_ROUNDS:,}, got {rounds}: {usual}")


@dataclass(frozen=True)
class BootstrapSettings:
    """Settings of intervals. Raises DataError for a value out of range."""

    method: Method = "bca"
    rounds: int = ROUNDS
    level: float = 0.95  # share of intervals that hold the truth
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in ("bca", "percentile"):
            raise DataError(f"method must be bca or percentile, got {self.method!r}")
        check_rounds("rounds", self.rounds, "2000 is usual, 100 the published form")
        if not 0 < self.level < 1:
            raise DataError(f"level must lie between 0 and 1, got {self.level}: 0.95 is usual")
        make_generator(self.seed)


DEFAULT_BOOTSTRAP = BootstrapSettings()


def estimate_ratio(part: ArrayLike, whole: ArrayLike, *, rounds: int = ROUNDS, seed: int = 0) -> Triple:
    """Estimate sum(part) / sum(whole) with its 95 % percentile interval; NaN if `whole` sums to zero.

    Args: `part` and `whole` hold one number per item and have equal lengths.
    """
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    counts = draw_counts(len(part), rounds, seed)
    return _summarize(_divide(part.sum(), whole.sum()), _divide(counts @ part, counts @ whole))


def estimate_ratio_difference(
    first: tuple[ArrayLike, ArrayLike],
    second: tuple[ArrayLike, ArrayLike],
    *,
    relative: bool = False,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> Triple:
    """Estimate the difference of two ratios (part, whole) over the same items, with its paired 95 % interval.

    With `relative` the difference is divided by the second ratio.
    """
    (p1, w1), (p2, w2) = (
        (np.asarray(p, dtype=float), np.asarray(w, dtype=float)) for p, w in (first, second)
    )
    if len(p1) != len(p2):
        raise DataError(f"a paired comparison needs the same items, got {len(p1)} and {len(p2)}")
    counts = draw_counts(len(p1), rounds, seed)
    base, base_draws = _divide(p2.sum(), w2.sum()), _divide(counts @ p2, counts @ w2)
    point, draws = _divide(p1.sum(), w1.sum()) - base, _divide(counts @ p1, counts @ w1) - base_draws
    if relative:
        point, draws = _divide(point, base), _divide(draws, base_draws)
    return _summarize(point, draws)


def draw_counts(items: int, rounds: int, seed: int | np.random.Generator) -> np.ndarray:
    """Draw how often each item occurs in each round, shape (rounds, items). Raises DataError without items.

    A generator that is passed as `seed` continues from its current state.
    """
    if items == 0:
        raise DataError("no items to resample: the interval needs at least one scored answer")
    return make_generator(seed).multinomial(items, np.full(items, 1 / items), size=rounds)


def _divide(part: ArrayLike, whole: ArrayLike) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(part, dtype=float) / np.asarray(whole, dtype=float)


def _summarize(point: np.ndarray, draws: np.ndarray) -> Triple:
    finite = draws[np.isfinite(draws)]
    low, high = np.quantile(finite, TAILS) if len(finite) else (np.nan, np.nan)
    return float(point), float(low), float(high)
