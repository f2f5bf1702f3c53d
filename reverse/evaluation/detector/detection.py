"""Measure how well p(`</UN>`) separates wrong phrases from right ones, at every threshold, from one pass.

    detector = read_phrases("off.jsonl", SceneTruth())      # answers made with checking off
    detector.estimate_figures()                             # AUROC and others, with intervals over images
    detector.tabulate_thresholds()                          # rates, precision, risk, kept at every threshold

The score is p, the positive class a phrase that is wrong. Answers that were corrected while they were made
show only what passed their threshold, so they cannot be used here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from reverse.errors import DataError
from reverse.evaluation.stats.bootstrap import BootstrapSettings, check_rounds
from reverse.evaluation.stats.intervals import Interval, estimate_intervals
from reverse.evaluation.stats.scored_tables import Better, Metric, Table

__all__ = [
    "BINS",
    "Detector",
    "aurc",
    "auroc",
    "average_precision",
    "brier",
    "ece",
    "make_metrics",
    "reliability",
]

BINS = 15
DETECTOR_BOOTSTRAP = BootstrapSettings(rounds=1000)


@dataclass(frozen=True)
class Detector:
    """Object phrases with a p.

    `p` and `wrong`: (phrases,) float64. `image`: (phrases,) the place in `images`, which lists all images
    that were described, also those without a phrase.
    """

    p: np.ndarray
    wrong: np.ndarray
    image: np.ndarray
    images: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.p):
            raise DataError(
                "no phrase has a p and names an object of the truth: were the answers made by a model with "
                "the three tokens, and is it the right truth?"
            )
        if not (np.isfinite(self.p) & (self.p >= 0) & (self.p <= 1)).all():
            raise DataError("a phrase's p lies outside [0, 1]: it is a probability of </UN>")

    @cached_property
    def _levels(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return _count_levels(self.p, self.wrong)

    def roc(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (false alarm rate, hit rate, threshold) of rejecting p >= threshold, from none to all."""
        levels, bad, good = self._levels
        hits, alarms = (np.concatenate([[0.0], np.cumsum(x[::-1])]) for x in (bad, good))
        with np.errstate(invalid="ignore"):
            return alarms / alarms[-1], hits / hits[-1], np.concatenate([[np.inf], levels[::-1]])

    def risk_coverage(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (share kept, share wrong among them, threshold) of keeping p <= threshold, at every p."""
        levels, bad, good = self._levels
        kept = np.cumsum(bad + good)
        return kept / kept[-1], np.cumsum(bad) / kept, levels

    def tabulate_thresholds(self) -> dict[str, np.ndarray]:
        """Return rates at every threshold (keeping p <= threshold), one entry each; shares in [0, 1]."""
        levels, bad, good = self._levels
        kept_bad, kept_good = np.cumsum(bad), np.cumsum(good)
        kept, rejected = kept_bad + kept_good, len(self.p) - kept_bad - kept_good
        rejected_bad = kept_bad[-1] - kept_bad
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "threshold": levels,
                "kept": kept / len(self.p),
                "risk": kept_bad / kept,
                "hit_rate": rejected_bad / kept_bad[-1],
                "false_alarm_rate": (kept_good[-1] - kept_good) / kept_good[-1],
                "precision": rejected_bad / rejected,
            }

    def estimate_figures(
        self, settings: BootstrapSettings = DETECTOR_BOOTSTRAP, bins: int = BINS
    ) -> dict[str, Interval]:
        """Estimate all metrics of `make_metrics` with intervals over images.

        ECE is biased upwards in small samples, and every resample adds to it, so its BCa interval may lie
        below what its rounds show.
        """
        check_rounds("bins", bins, "15 is usual")
        table = Table("detector", [self.images[i] for i in self.image], {"p": self.p, "wrong": self.wrong})
        return estimate_intervals(table, make_metrics(bins), settings)


def make_metrics(bins: int = BINS) -> tuple[Metric, ...]:
    """Make the metrics of a detector, in the order in which they are shown; `bins` is for ECE."""

    def of_phrases(function: Callable[[np.ndarray, np.ndarray], float]) -> Callable[..., float]:
        def rows(columns: Mapping[str, np.ndarray]) -> float:
            return function(np.asarray(columns["p"]), np.asarray(columns["wrong"]))

        return rows

    figures: tuple[tuple[str, Better, str, Callable[..., float]], ...] = (
        ("auroc", "high", "AUROC", auroc),
        ("average_precision", "high", "average precision", average_precision),
        ("ece", "low", f"ECE ({bins} bins of equal mass)", partial(ece, bins=bins)),
        ("brier", "low", "Brier score", brier),
        ("aurc", "low", "AURC", aurc),
        ("wrong", "low", "share of wrong phrases", lambda p, wrong: float(np.mean(wrong))),
    )
    return tuple(
        Metric(name, better, rows=of_phrases(function), unit="", title=title)
        for name, better, title, function in figures
    )


def _count_levels(p: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return every value of p, ascending, and how many wrong and right phrases have it."""
    levels, place = np.unique(p, return_inverse=True)
    bad = np.bincount(place, wrong, len(levels))
    return levels, bad, np.bincount(place, minlength=len(levels)) - bad


def auroc(p: np.ndarray, wrong: np.ndarray) -> float:
    """Return the probability that a wrong phrase has a higher p than a right one (ties count half); NaN
    without both.
    """
    _, bad, good = _count_levels(p, wrong)
    pairs = bad.sum() * good.sum()
    return float((bad * (np.cumsum(good) - good / 2)).sum() / pairs) if pairs else float("nan")


def average_precision(p: np.ndarray, wrong: np.ndarray) -> float:
    """Return the mean precision over the wrong phrases found (a step function, no interpolation)."""
    _, bad, good = _count_levels(p, wrong)
    hits, found = np.cumsum(bad[::-1]), np.cumsum((bad + good)[::-1])
    return float((bad[::-1] * hits / found).sum() / bad.sum()) if bad.sum() else float("nan")


def reliability(p: np.ndarray, wrong: np.ndarray, bins: int = BINS) -> dict[str, np.ndarray]:
    """Return bins of equal mass, fewer if values of p tie: mean of `p`, share that is `wrong`, `count`."""
    check_rounds("bins", bins, "15 is usual")
    ordered = np.sort(p)
    edges = np.unique(ordered[np.arange(1, bins) * len(p) // bins]) if bins > 1 else np.empty(0)
    place = np.searchsorted(edges, p, side="right")  # equal p fall into one bin
    count = np.bincount(place, minlength=len(edges) + 1)
    used = count > 0
    return {
        "p": np.bincount(place, p, len(count))[used] / count[used],
        "wrong": np.bincount(place, wrong, len(count))[used] / count[used],
        "count": count[used],
    }


def ece(p: np.ndarray, wrong: np.ndarray, bins: int = BINS) -> float:
    """Return the expected calibration error: mean over phrases of |mean p - share wrong| of their bins."""
    table = reliability(p, wrong, bins)
    return float((table["count"] * np.abs(table["p"] - table["wrong"])).sum() / len(p))


def brier(p: np.ndarray, wrong: np.ndarray) -> float:
    """Return the Brier score: the mean squared difference of p and whether the phrase is wrong."""
    return float(np.mean((p - wrong) ** 2))


def aurc(p: np.ndarray, wrong: np.ndarray) -> float:
    """Return the mean over k of the share of wrong phrases among the k surest ones (Geifman and El-Yaniv
    2017).
    """
    _, bad, good = _count_levels(p, wrong)
    size = (bad + good).astype(int)
    before = np.cumsum(bad) - bad
    first = np.cumsum(size) - size
    k = np.arange(1, len(p) + 1)
    level = np.repeat(np.arange(len(size)), size)
    # Inside a tie every order is equally likely: take the mean over all of them.
    expected = before[level] + (k - first[level]) * bad[level] / size[level]
    return float((expected / k).mean())
