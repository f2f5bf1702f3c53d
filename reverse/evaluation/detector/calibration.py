"""Find the largest threshold that guarantees a share of false phrases below a target.

    chosen = calibrate(detector, RiskTarget(risk=0.05, confidence=0.95))
    chosen.threshold                                  # None: nothing can be guaranteed

**The guarantee.** The loss of a picture at threshold t is the share of false ones among its object phrases
with p <= t, 0 if none is left; the risk R(t) is its mean over pictures. Learn-then-Test (Angelopoulos,
Bates, Candès, Jordan, Lei 2021, arXiv:2110.01052) chooses t so that P(R(t) <= risk) >= confidence, the
probability being over the calibration pictures. Conformal risk control (Angelopoulos, Bates, Fisch, Lei,
Schuster, ICLR 2024, arXiv:2208.02814) guarantees only the mean, E[loss] <= risk, over calibration and one new
picture. Both hold for pictures drawn like those of the calibration, described by the same model with the
same prompt and checking off, phrases above t being struck out. The guarantee does not hold for other pictures
or prompts. It does not hold for decoding, which replaces such phrases until one passes: a phrase that passes
at the third attempt is wrong more often than one that passes at the first.
`reverse.evaluation.detector.decoded_risk` tests decoding itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from scipy.stats import binom

from reverse.errors import DataError, MissingFileError
from reverse.evaluation.detector.detection import Detector
from reverse.evaluation.detector.phrase_truth import same_picture
from reverse.evaluation.stats.bootstrap import check_rounds, estimate_ratio, make_generator
from reverse.files.atomic_write import write_json
from reverse.files.text_reading import read_json

__all__ = [
    "GRID",
    "TESTS",
    "Calibration",
    "RiskTarget",
    "calibrate",
    "check_on_others",
    "choose_threshold",
    "compute_losses",
    "describe_promise",
    "join_detectors",
    "resplit",
    "write_threshold",
]

GRID = np.geomspace(1e-5, 1.0, 251)  # fixed before any data are seen, as fixed-sequence testing needs
Rule = Literal["betting", "hoeffding-bentkus", "conformal"]


@dataclass(frozen=True)
class RiskTarget:
    """The guarantee that is wanted, and the rule for it. Raises DataError for a value out of range."""

    risk: float = 0.05  # mean share of false phrases of a picture
    confidence: float = 0.95  # probability of the promise; "conformal" promises the mean alone
    rule: Rule = "betting"

    def __post_init__(self) -> None:
        for name, value in (("risk", self.risk), ("confidence", self.confidence)):
            if not 0 < value < 1:
                raise DataError(f"{name} must lie between 0 and 1, got {value}: try 0.05 and 0.95")
        if self.rule not in get_args(Rule):
            raise DataError(f"rule must be one of {', '.join(get_args(Rule))}, got {self.rule!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; confidence is None for a guarantee of the mean."""
        return asdict(self) | ({"confidence": None} if self.rule == "conformal" else {})


DEFAULT_TARGET = RiskTarget()


@dataclass(frozen=True)
class Calibration:
    """A threshold and its guarantee; `threshold` is None if the pictures allow no guarantee."""

    threshold: float | None
    target: RiskTarget
    images: int
    observed: float  # mean loss on the calibration pictures at the threshold; NaN without one
    kept: float  # share of their phrases with p <= threshold
    decoded: bool = False  # promised of answers decoded with the threshold, not of phrases struck out

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "threshold": self.threshold,
            **self.target.to_dict(),
            "images": self.images,
            "observed": self.observed,
            "kept": self.kept,
            "decoded": self.decoded,
        }


def compute_losses(detector: Detector, grid: np.ndarray = GRID) -> np.ndarray:
    """Compute each picture's share of false phrases among those it keeps, 0 if none, shape (images,
    thresholds).
    """
    kept, wrong = _count_kept(detector, grid)
    return np.divide(wrong, kept, out=np.zeros_like(wrong), where=kept > 0)


def _count_kept(detector: Detector, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the phrases, and the wrong phrases, that a picture keeps at each threshold."""
    first = np.searchsorted(grid, detector.p)  # the first threshold that keeps the phrase: p <= grid
    shape = (len(detector.images), len(grid) + 1)
    cell = detector.image * shape[1] + first
    kept, wrong = (
        np.bincount(cell, weight, shape[0] * shape[1]).reshape(shape)[:, :-1].cumsum(axis=1)
        for weight in (np.ones(len(cell)), detector.wrong)
    )
    return kept, wrong


def calibrate(
    detector: Detector, target: RiskTarget = DEFAULT_TARGET, grid: np.ndarray = GRID
) -> Calibration:
    """Find the largest threshold of `grid` with the guarantee."""
    loss = compute_losses(detector, grid)
    found = choose_threshold(loss, target)
    if found is None:
        return Calibration(None, target, len(loss), float("nan"), 0.0)
    threshold = float(grid[found])
    kept = float((detector.p <= threshold).mean())
    return Calibration(threshold, target, len(loss), float(loss[:, found].mean()), kept)


def choose_threshold(loss: np.ndarray, target: RiskTarget) -> int | None:
    """Return the index of the largest threshold with the guarantee; None if there is none.

    Args: `loss` (images, thresholds) in [0, 1], thresholds ascending.
    """
    if target.rule == "conformal":
        return _control_conformal_risk(loss, target.risk)
    # Fixed-sequence testing of "R(t) > risk" from the strictest threshold on, until one is not rejected
    # (arXiv:2110.01052, §2.2.2).
    delta = 1 - target.confidence
    failed = np.flatnonzero(TESTS[target.rule](loss, target.risk, delta) > delta)
    last = (failed[0] if len(failed) else loss.shape[1]) - 1
    return int(last) if last >= 0 else None


def hoeffding_bentkus(loss: np.ndarray, risk: float, delta: float = 0.05) -> np.ndarray:
    """Compute p-values of the hypothesis "the mean loss is above `risk`", one for each column of `loss`.

    Each is the smaller of Hoeffding's and Bentkus's (arXiv:2110.01052, §2.1).
    """
    n = len(loss)
    mean = loss.mean(axis=0)
    lower = np.minimum(mean, risk)
    with np.errstate(divide="ignore", invalid="ignore"):
        divergence = np.where(lower > 0, lower * np.log(lower / risk), 0.0)
        divergence += np.where(lower < 1, (1 - lower) * np.log((1 - lower) / (1 - risk)), 0.0)
    total = np.ceil(np.round(n * mean, 9))
    return np.minimum(1.0, np.minimum(np.exp(-n * divergence), np.e * binom.cdf(total, n, risk)))


def betting(loss: np.ndarray, risk: float, delta: float = 0.05) -> np.ndarray:
    """Compute p-values of the hypothesis "the mean loss is above `risk`" by betting, one per column of
    `loss`.

    Source: Waudby-Smith and Ramdas, JRSS-B 2024, arXiv:2010.09686; the form of arXiv:2101.02703, §3.1.3. It
    makes use of a small variance of the losses, which the bound of Hoeffding and Bentkus cannot, so it needs
    far fewer pictures.
    """
    n = len(loss)
    count = np.arange(1, n + 1)[:, None]
    mean = (0.5 + loss.cumsum(axis=0)) / (1 + count)
    variance = (0.25 + ((loss - mean) ** 2).cumsum(axis=0)) / (1 + count)
    before = np.vstack([np.full((1, loss.shape[1]), 0.25), variance[:-1]])
    stake = np.minimum(1.0, np.sqrt(2 * np.log(1 / delta) / (n * before)))  # known before the picture is seen
    capital = np.log1p(-stake * (loss - risk)).cumsum(axis=0).max(axis=0)
    return np.minimum(1.0, np.exp(-capital))


TESTS: dict[str, Callable[[np.ndarray, float, float], np.ndarray]] = {
    "betting": betting,
    "hoeffding-bentkus": hoeffding_bentkus,
}


def _control_conformal_risk(loss: np.ndarray, risk: float) -> int | None:
    """Choose by conformal risk control (arXiv:2208.02814, equation 4). A running maximum makes the loss
    monotone.
    """
    n = len(loss)
    bound = (np.maximum.accumulate(loss, axis=1).sum(axis=0) + 1) / (n + 1)
    allowed = np.flatnonzero(bound <= risk)
    return int(allowed[-1]) if len(allowed) else None


def resplit(
    detector: Detector,
    target: RiskTarget = DEFAULT_TARGET,
    *,
    times: int = 200,
    share: float = 0.5,
    seed: int = 0,
) -> dict[str, Any]:
    """Repeat `times` times: calibrate on a random part of the pictures and measure on the rest.

    Returns the target; `observed`, the mean over splits of the mean loss on the rest; `over`, the share of
    splits in which that exceeded the risk (the rest is a sample too, so some excess is normal);
    thresholds and shares kept. Means are over the splits with a guarantee, None if there is none.
    """
    loss = compute_losses(detector)
    kept = _count_kept(detector, GRID)[0]
    n = len(loss)
    cut = int(n * share)
    if not 0 < cut < n:
        raise DataError(f"{n} pictures cannot be split with share {share}: give at least two")
    check_rounds("resplits", times, "200 is usual")
    rng = make_generator(seed)
    splits = []  # (loss on the rest, threshold, share of phrases kept) of each split with a promise
    for _ in range(times):
        order = rng.permutation(n)
        found = choose_threshold(loss[order[:cut]], target)
        if found is not None:
            rest = order[cut:]
            share_kept = kept[rest, found].sum() / max(1, kept[rest, -1].sum())
            splits.append((loss[rest, found].mean(), GRID[found], share_kept))
    observed, thresholds, phrases = np.array(splits).reshape(-1, 3).T
    return {
        "promised": target.risk,
        "confidence": target.to_dict()["confidence"],
        "rule": target.rule,
        "times": times,
        "calibration_images": cut,
        "test_images": n - cut,
        "observed": float(observed.mean()) if splits else None,
        "observed_95": float(np.quantile(observed, 0.95)) if splits else None,
        "over": float((observed > target.risk).sum() / times),
        "without_promise": float((times - len(splits)) / times),
        "threshold": [float(x) for x in np.quantile(thresholds, [0.05, 0.5, 0.95])] if splits else None,
        "kept": float(phrases.mean()) if splits else None,
    }


def describe_promise(found: Calibration) -> str:
    """Return one sentence that states the guarantee."""
    share = (
        f"the mean share of false ones among a picture's kept object phrases is at most {found.target.risk:g}"
    )
    pictures = "for pictures like those of the calibration, " + (
        "decoded with the threshold, phrases marked unresolved not counted"
        if found.decoded
        else "phrases above the threshold struck out"
    )
    if found.target.rule == "conformal":
        return f"on average over calibrations {share}, {pictures}"
    return f"with {found.target.confidence:.0%} confidence {share}, {pictures}"


def check_on_others(detector: Detector, found: Calibration, seed: int = 0) -> dict[str, Any]:
    """Measure the risk at a threshold on other pictures with its 95 % interval; 0 without a threshold."""
    if found.threshold is None:
        return {"images": len(detector.images), "observed": 0.0, "low": 0.0, "high": 0.0, "kept": 0.0}
    loss = compute_losses(detector, np.array([found.threshold, 1.0]))[:, 0]
    observed, low, high = estimate_ratio(loss, np.ones(len(loss)), seed=seed)
    kept = float((detector.p <= found.threshold).mean())
    return {"images": len(loss), "observed": observed, "low": low, "high": high, "kept": kept}


def join_detectors(first: Detector, second: Detector) -> Detector:
    """Join the phrases of two sets of pictures. Raises DataError if the sets share a picture."""
    both = sorted(set(map(same_picture, first.images)) & set(map(same_picture, second.images)))
    if both:
        raise DataError(
            f"{len(both)} pictures are in both files ({', '.join(both[:3])}): use different pictures for "
            "the check and the calibration"
        )
    return Detector(
        np.concatenate([first.p, second.p]),
        np.concatenate([first.wrong, second.wrong]),
        np.concatenate([first.image, second.image + len(first.images)]),
        first.images + second.images,
    )


def write_threshold(folder: str | Path, found: Calibration, **record: Any) -> Path:
    """Make the threshold the checkpoint's default: `reverse.threshold` in its config.json.

    The guarantee and `record` are written beside it, under `reverse.calibration`. The file is written
    atomically. Raises MissingFileError without a checkpoint; DataError if there is no threshold or the file
    is damaged.
    """
    if found.threshold is None:
        raise DataError(
            "there is no threshold to write: these answers allow no guarantee; give more answers or a "
            "higher risk"
        )
    path, config = read_config(folder)
    promise = {k: v for k, v in (found.to_dict() | record).items() if k != "threshold"}
    config["reverse"] = (config.get("reverse") or {}) | {
        "threshold": found.threshold,
        "calibration": promise,
    }
    write_json(path, config)
    return path


def read_config(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """Return path and content of a checkpoint's config.json.

    Raises MissingFileError; DataError if damaged.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise MissingFileError(f"{str(folder)!r} holds no config.json: name the folder of a checkpoint")
    try:
        config = read_json(path)
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}): fetch or save the checkpoint again") from None
    section = config.get("reverse") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(section or {}, dict):
        raise DataError(f'{path} holds no object with an object "reverse": it is not a checkpoint\'s config')
    return path, config
