"""The largest threshold whose share of false phrases is promised to stay below what was asked for.

    chosen = learn_then_test(losses(detector, GRID), GRID, risk=0.05, confidence=0.95)
    chosen.threshold                                  # None: nothing can be promised

**What is promised.** The loss of a picture at threshold t is the share of false ones among its object phrases
with p <= t, 0 where none is left; the risk R(t) is its mean over pictures. Learn-then-Test (Angelopoulos,
Bates, Candès, Jordan, Lei 2021, arXiv:2110.01052) chooses t so that P(R(t) <= risk) >= confidence, the
probability being over the calibration pictures. Conformal risk control (Angelopoulos, Bates, Fisch, Lei,
Schuster, ICLR 2024, arXiv:2208.02814) promises the mean alone, E[loss] <= risk, over calibration and one new
picture. Both hold for pictures drawn as those of the calibration were, described by the same model with the
same prompt and checking off, phrases above t being struck out. Other pictures or prompts void it. Decoding
anew, which puts other phrases in their place and keeps what passes, is not covered: what passes at the third
try is wrong more often than what passes at the first. `reverse.evaluation.detector.decoded_risk` tests that
itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.stats import binom

from reverse.errors import DataError, MissingFileError
from reverse.evaluation.detector.detection import Detector
from reverse.evaluation.detector.phrase_truth import same_picture
from reverse.evaluation.stats.bootstrap import check_rounds, make_generator
from reverse.files.atomic_write import write_json
from reverse.files.text_reading import read_json

__all__ = [
    "GRID",
    "Calibration",
    "calibrate",
    "check",
    "conformal_risk",
    "joined",
    "learn_then_test",
    "losses",
    "promise",
    "resplit",
    "write_threshold",
]

GRID = np.geomspace(1e-5, 1.0, 251)  # fixed before any data are seen, as fixed-sequence testing needs
Rule = Literal["betting", "hoeffding-bentkus", "conformal"]


@dataclass(frozen=True)
class Calibration:
    """A threshold and what is promised of it; `threshold` None where the pictures allow no promise."""

    threshold: float | None
    risk: float  # promised
    confidence: float | None  # None: the promise is one of the mean
    rule: str
    images: int
    observed: float  # mean loss on the calibration pictures at the threshold; NaN without one
    kept: float  # share of their phrases with p <= threshold
    decoded: bool = False  # promised of answers decoded with the threshold, not of phrases struck out

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def losses(detector: Detector, grid: np.ndarray = GRID) -> np.ndarray:
    """Every picture's share of false ones among the phrases it keeps, 0 where none, (images, thresholds)."""
    kept, wrong = _kept(detector, grid)
    return np.divide(wrong, kept, out=np.zeros_like(wrong), where=kept > 0)


def _kept(detector: Detector, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many phrases, and how many wrong ones, a picture keeps at each threshold."""
    first = np.searchsorted(grid, detector.p)  # the first threshold that keeps the phrase: p <= grid
    shape = (len(detector.images), len(grid) + 1)
    cell = detector.image * shape[1] + first
    size = shape[0] * shape[1]
    return tuple(  # type: ignore[return-value]
        np.bincount(cell, weight, size).reshape(shape)[:, :-1].cumsum(axis=1)
        for weight in (np.ones(len(cell)), detector.wrong)
    )


def calibrate(
    detector: Detector,
    risk: float = 0.05,
    confidence: float = 0.95,
    rule: Rule = "betting",
    grid: np.ndarray = GRID,
) -> Calibration:
    """The largest threshold that `rule` can promise. Raises ValueError for a risk that is no share."""
    found = choose(losses(detector, grid), grid, risk, confidence, rule)
    threshold = None if found is None else float(grid[found])
    observed = float("nan") if found is None else float(losses(detector, grid)[:, found].mean())
    return Calibration(
        threshold,
        risk,
        None if rule == "conformal" else confidence,
        rule,
        len(detector.images),
        observed,
        0.0 if threshold is None else float((detector.p <= threshold).mean()),
    )


def choose(
    loss: np.ndarray, grid: np.ndarray, risk: float, confidence: float, rule: Rule = "betting"
) -> int | None:
    """The place in `grid` of the largest threshold that can be promised, None where there is none."""
    for name, value in (("risk", risk), ("confidence", confidence)):
        if not 0 < value < 1:
            raise DataError(f"{name} must lie between 0 and 1, got {value}: it is a share, try 0.05 and 0.95")
    if rule == "conformal":
        return conformal_risk(loss, risk)
    if rule not in TESTS:
        raise DataError(f"rule must be one of {', '.join((*TESTS, 'conformal'))}, got {rule!r}")
    return learn_then_test(loss, risk, confidence, TESTS[rule])


def learn_then_test(
    loss: np.ndarray,
    risk: float,
    confidence: float,
    test: Callable[[np.ndarray, float, float], np.ndarray] | None = None,
) -> int | None:
    """Fixed-sequence testing of "R(t) > risk" from the strictest threshold on, until one is not rejected
    (arXiv:2110.01052, §2.2.2). `loss` (images, thresholds) in [0, 1], thresholds ascending."""
    p = (test or betting)(loss, risk, 1 - confidence)
    failed = np.flatnonzero(p > 1 - confidence)
    last = (failed[0] if len(failed) else loss.shape[1]) - 1
    return int(last) if last >= 0 else None


def hoeffding_bentkus(loss: np.ndarray, risk: float, delta: float = 0.05) -> np.ndarray:
    """p of "mean loss > risk" for each column, the smaller of two (arXiv:2110.01052, §2.1)."""
    n = len(loss)
    mean = loss.mean(axis=0)
    lower = np.minimum(mean, risk)
    with np.errstate(divide="ignore", invalid="ignore"):
        divergence = np.where(lower > 0, lower * np.log(lower / risk), 0.0)
        divergence += np.where(lower < 1, (1 - lower) * np.log((1 - lower) / (1 - risk)), 0.0)
    total = np.ceil(np.round(n * mean, 9))
    return np.minimum(1.0, np.minimum(np.exp(-n * divergence), np.e * binom.cdf(total, n, risk)))


def betting(loss: np.ndarray, risk: float, delta: float = 0.05) -> np.ndarray:
    """p of "mean loss > risk" for each column, by betting (Waudby-Smith and Ramdas, JRSS-B 2024,
    arXiv:2010.09686; the form of arXiv:2101.02703, §3.1.3). It sees that losses vary little, which the bound
    of Hoeffding and Bentkus cannot, and rejects with far fewer pictures."""
    n = len(loss)
    count = np.arange(1, n + 1)[:, None]
    mean = (0.5 + loss.cumsum(axis=0)) / (1 + count)
    variance = (0.25 + ((loss - mean) ** 2).cumsum(axis=0)) / (1 + count)
    before = np.vstack([np.full((1, loss.shape[1]), 0.25), variance[:-1]])
    stake = np.minimum(1.0, np.sqrt(2 * np.log(1 / delta) / (n * before)))  # known before the picture is
    capital = np.log1p(-stake * (loss - risk)).cumsum(axis=0).max(axis=0)
    return np.minimum(1.0, np.exp(-capital))


TESTS: dict[str, Callable[[np.ndarray, float, float], np.ndarray]] = {
    "betting": betting,
    "hoeffding-bentkus": hoeffding_bentkus,
}


def conformal_risk(loss: np.ndarray, risk: float) -> int | None:
    """Conformal risk control (arXiv:2208.02814, eq. 4), on the loss made monotone by its running maximum."""
    n = len(loss)
    bound = (np.maximum.accumulate(loss, axis=1).sum(axis=0) + 1) / (n + 1)
    allowed = np.flatnonzero(bound <= risk)
    return int(allowed[-1]) if len(allowed) else None


def resplit(
    detector: Detector,
    risk: float = 0.05,
    confidence: float = 0.95,
    rule: Rule = "betting",
    *,
    times: int = 200,
    share: float = 0.5,
    seed: int = 0,
    grid: np.ndarray = GRID,
) -> dict[str, Any]:
    """Calibrate on one part of the pictures and look at the rest, `times` times.

    Returns the promise; `observed`, the mean over splits of the mean loss on the rest; `over`, the share of
    splits in which that exceeded `risk` (the rest is a sample too, so a promise that is kept shows some);
    thresholds and what is kept. Means are of the splits with a promise, None where there is none.
    """
    loss = losses(detector, grid)
    kept = _kept(detector, grid)[0]
    n = len(loss)
    cut = int(n * share)
    if not 0 < cut < n:
        raise DataError(f"{n} pictures cannot be split with share {share}: give at least two")
    check_rounds("resplits", times, "200 is usual")
    rng = make_generator(seed)
    observed, thresholds, phrases = [], [], []
    for _ in range(times):
        order = rng.permutation(n)
        found = choose(loss[order[:cut]], grid, risk, confidence, rule)
        rest = order[cut:]
        observed.append(np.nan if found is None else float(loss[rest, found].mean()))
        thresholds.append(np.nan if found is None else float(grid[found]))
        phrases.append(
            np.nan if found is None else float(kept[rest, found].sum() / max(1, kept[rest, -1].sum()))
        )
    usable = np.array(thresholds)[np.isfinite(thresholds)]
    return {
        "promised": risk,
        "confidence": None if rule == "conformal" else confidence,
        "rule": rule,
        "times": times,
        "calibration_images": cut,
        "test_images": n - cut,
        # Of those with a promise: where nothing is promised, nothing can be kept or broken.
        "observed": float(np.nanmean(observed)) if len(usable) else None,
        "observed_95": float(np.nanquantile(observed, 0.95)) if len(usable) else None,
        "over": float(np.mean(np.array(observed) > risk)),
        "without_promise": float(np.mean(~np.isfinite(thresholds))),
        "threshold": [float(x) for x in np.quantile(usable, [0.05, 0.5, 0.95])] if len(usable) else None,
        "kept": float(np.nanmean(phrases)) if len(usable) else None,
    }


def promise(found: Calibration) -> str:
    """One sentence that says what is promised, for people."""
    share = f"the mean share of false ones among a picture's kept object phrases is at most {found.risk:g}"
    under = "for pictures like those of the calibration, " + (
        "decoded with the threshold, phrases marked unresolved not counted"
        if found.decoded
        else "phrases above the threshold struck out"
    )
    if found.confidence is None:
        return f"on average over calibrations {share}, {under}"
    return f"with {found.confidence:.0%} confidence {share}, {under}"


def check(detector: Detector, found: Calibration, seed: int = 0) -> dict[str, Any]:
    """The risk at a threshold on other pictures with its 95 % interval; 0 where there is no threshold."""
    from reverse.evaluation.stats.bootstrap import interval

    if found.threshold is None:
        return {"images": len(detector.images), "observed": 0.0, "low": 0.0, "high": 0.0, "kept": 0.0}
    loss = losses(detector, np.array([found.threshold, 1.0]))[:, 0]
    observed, low, high = interval(loss, np.ones(len(loss)), seed=seed)
    kept = float((detector.p <= found.threshold).mean())
    return {"images": len(loss), "observed": observed, "low": low, "high": high, "kept": kept}


def joined(first: Detector, second: Detector) -> Detector:
    """The phrases of two sets of pictures. Raises ValueError where they share any."""
    both = sorted(set(map(same_picture, first.images)) & set(map(same_picture, second.images)))
    if both:
        raise DataError(
            f"{len(both)} pictures are in both files ({', '.join(both[:3])}): check on others than calibrate"
        )
    return Detector(
        np.concatenate([first.p, second.p]),
        np.concatenate([first.wrong, second.wrong]),
        np.concatenate([first.image, second.image + len(first.images)]),
        first.images + second.images,
    )


def write_threshold(folder: str | Path, found: Calibration, **record: Any) -> Path:
    """Make the threshold the checkpoint's default: `reverse.threshold` in its config.json.

    What was promised stands beside it under `reverse.calibration`. The file is written under a temporary name
    and renamed: it is the old or the new one, never half. Raises FileNotFoundError where there is no
    checkpoint; ValueError where nothing can be promised or the file is damaged.
    """
    if found.threshold is None:
        raise DataError("there is no threshold to write: nothing can be promised with these answers")
    path, config = read_config(folder)
    promise = {k: v for k, v in (found.to_dict() | record).items() if k != "threshold"}
    config["reverse"] = {
        **(config.get("reverse") or {}),
        "threshold": found.threshold,
        "calibration": promise,
    }
    write_json(path, config)
    return path


def read_config(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """The config.json of a checkpoint that a threshold can be written to.

    Raises FileNotFoundError where there is none; ValueError where it is damaged.
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
        raise DataError(f'{path} holds no object with an object "reverse": it is no checkpoint\'s config')
    return path, config
