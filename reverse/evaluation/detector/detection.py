"""How well p(`</UN>`) tells wrong phrases from right ones, at every threshold, from one pass.

    detector = read_phrases("off.jsonl", SceneTruth())      # answers made with checking off
    detector.auroc(); detector.figures()                    # with intervals over images
    detector.sweep()                                        # rates, precision, risk, kept at every threshold

The score is p, the positive class a phrase that is wrong. Answers that were corrected while they were made
show only what passed their threshold, so such files are for costs and scores, not for this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from reverse.errors import DataError
from reverse.evaluation.stats.bootstrap import check_rounds
from reverse.evaluation.stats.intervals import DEFAULT, Interval, Method, intervals
from reverse.evaluation.stats.scored_tables import Metric, Table

__all__ = ["BINS", "Detector", "metrics"]

BINS = 15


@dataclass(frozen=True)
class Detector:
    """Object phrases with a p. `p`, `wrong` (phrases,) float64; `image` (phrases,) the place in `images`.

    `images` are all that were described, those without a phrase too.
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
        return _levels(self.p, self.wrong)

    def roc(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(false alarm rate, hit rate, threshold): rejecting p >= threshold, from none to all."""
        levels, bad, good = self._levels
        hits, alarms = (np.concatenate([[0.0], np.cumsum(x[::-1])]) for x in (bad, good))
        with np.errstate(invalid="ignore"):
            return alarms / alarms[-1], hits / hits[-1], np.concatenate([[np.inf], levels[::-1]])

    def auroc(self) -> float:
        """Probability that a wrong phrase has a higher p than a right one, ties half; NaN without both."""
        return auroc(self.p, self.wrong)

    def average_precision(self) -> float:
        """Mean precision over the wrong phrases found (a step function, no interpolation)."""
        return average_precision(self.p, self.wrong)

    def brier(self) -> float:
        return brier(self.p, self.wrong)

    def reliability(self, bins: int = BINS) -> dict[str, np.ndarray]:
        """Bins of equal mass, fewer where p ties: `p` its mean, `wrong` the share, `count`."""
        return reliability(self.p, self.wrong, bins)

    def ece(self, bins: int = BINS) -> float:
        """Expected calibration error: mean over phrases of |mean p - share wrong| of its bin (equal mass)."""
        return ece(self.p, self.wrong, bins)

    def risk_coverage(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(share kept, share wrong among them, threshold): keeping p <= threshold, at every p there is."""
        levels, bad, good = self._levels
        kept = np.cumsum(bad + good)
        return kept / kept[-1], np.cumsum(bad) / kept, levels

    def aurc(self) -> float:
        """Mean over k of the share of wrong ones among the k surest phrases (Geifman and El-Yaniv 2017)."""
        return aurc(self.p, self.wrong)

    def sweep(self) -> dict[str, np.ndarray]:
        """At every threshold (keeping p <= threshold), one entry each; shares in [0, 1]."""
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

    def table(self) -> Table:
        """One row a phrase, clustered by image."""
        return Table("detector", [self.images[i] for i in self.image], {"p": self.p, "wrong": self.wrong})

    def figures(
        self,
        method: Method = DEFAULT,
        rounds: int = 1000,
        level: float = 0.95,
        seed: int = 0,
        bins: int = BINS,
    ) -> dict[str, Interval]:
        """auroc, average_precision, ece, brier, aurc and the share wrong, with intervals over images.

        ECE is biased upwards in small samples, and every resample adds to it, so BCa intervals of it may lie
        below what its rounds show.
        """
        check_rounds("bins", bins, "15 is usual")
        return intervals(self.table(), metrics(bins), method, rounds, level, seed)


# ---------------------------------------------------------------------- functions of p and wrong
def _levels(p: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every p there is, ascending, and how many wrong and right phrases have it."""
    levels, place = np.unique(p, return_inverse=True)
    bad = np.bincount(place, wrong, len(levels))
    return levels, bad, np.bincount(place, minlength=len(levels)) - bad


def auroc(p: np.ndarray, wrong: np.ndarray) -> float:
    _, bad, good = _levels(p, wrong)
    pairs = bad.sum() * good.sum()
    return float((bad * (np.cumsum(good) - good / 2)).sum() / pairs) if pairs else float("nan")


def average_precision(p: np.ndarray, wrong: np.ndarray) -> float:
    _, bad, good = _levels(p, wrong)
    hits, found = np.cumsum(bad[::-1]), np.cumsum((bad + good)[::-1])
    return float((bad[::-1] * hits / found).sum() / bad.sum()) if bad.sum() else float("nan")


def reliability(p: np.ndarray, wrong: np.ndarray, bins: int = BINS) -> dict[str, np.ndarray]:
    if bins < 1:
        raise DataError(f"bins must be at least 1, got {bins}: 15 is usual")
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
    table = reliability(p, wrong, bins)
    return float((table["count"] * np.abs(table["p"] - table["wrong"])).sum() / len(p))


def brier(p: np.ndarray, wrong: np.ndarray) -> float:
    return float(np.mean((p - wrong) ** 2))


def aurc(p: np.ndarray, wrong: np.ndarray) -> float:
    _, bad, good = _levels(p, wrong)
    size = (bad + good).astype(int)
    before = np.cumsum(bad) - bad
    first = np.cumsum(size) - size
    k = np.arange(1, len(p) + 1)
    level = np.repeat(np.arange(len(size)), size)
    # inside a tie any order is as good as another: the mean of all
    expected = before[level] + (k - first[level]) * bad[level] / size[level]
    return float((expected / k).mean())


def _of(function: Any) -> Any:
    def rows(columns: Mapping[str, np.ndarray]) -> float:
        return function(np.asarray(columns["p"]), np.asarray(columns["wrong"]))

    return rows


def metrics(bins: int = BINS) -> tuple[Metric, ...]:
    """The figures of a detector, in the order in which they are shown; `bins` are those of ECE."""
    return (
        Metric("auroc", "high", rows=_of(auroc), unit="", title="AUROC"),
        Metric("average_precision", "high", rows=_of(average_precision), unit="", title="average precision"),
        Metric(
            "ece", "low", rows=_of(partial(ece, bins=bins)), unit="", title=f"ECE ({bins} bins of equal mass)"
        ),
        Metric("brier", "low", rows=_of(brier), unit="", title="Brier score"),
        Metric("aurc", "low", rows=_of(aurc), unit="", title="AURC"),
        Metric("wrong", "low", rows=_of(lambda p, w: float(np.mean(w))), title="wrong phrases"),
    )
