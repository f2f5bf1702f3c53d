"""Calibration: promises kept in a world whose risk is known, p-values by their formulas, what is written."""

import json

import numpy as np
import pytest
from scipy.stats import binom

from reverse.evaluation.detector.calibration import (
    GRID,
    Calibration,
    RiskTarget,
    betting,
    calibrate,
    choose_threshold,
    compute_losses,
    hoeffding_bentkus,
    resplit,
    write_threshold,
)
from reverse.evaluation.detector.detection import Detector
from reverse.models.families import stored_threshold


def world(images, rng):
    """1 to 6 phrases a picture; p tells wrong from right well but not perfectly."""
    size = rng.integers(1, 7, images)
    image = np.repeat(np.arange(images), size)
    wrong = rng.random(len(image)) < np.repeat(rng.beta(0.5, 2.5, images), size)
    p = rng.beta(np.where(wrong, 2.0, 0.4), np.where(wrong, 2.0, 6.0))
    return Detector(p, wrong.astype(float), image, tuple(map(str, range(images))))


def test_losses_by_hand():
    """The share of false phrases would be of all phrases instead of those kept."""
    found = Detector(
        np.array([0.1, 0.5, 0.9, 0.2]),
        np.array([0.0, 1.0, 1.0, 1.0]),
        np.array([0, 0, 0, 1]),
        ("a", "b", "c"),
    )
    grid = np.array([0.05, 0.1, 0.2, 0.5, 1.0])
    assert compute_losses(found, grid).tolist() == [
        [0, 0, 0, 1 / 2, 2 / 3], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "images"), [("betting", 250), ("hoeffding-bentkus", 250), ("conformal", 100)]
)
def test_promises_are_kept(rule, images):
    """One calibration in five would let through more than it promised."""
    rng = np.random.default_rng(0)
    risk, grid = 0.08, GRID[::5]
    truth = compute_losses(world(60_000, rng), grid).mean(axis=0)
    assert truth[-1] > 1.5 * risk  # without a threshold the promise would not hold
    true_risks = []
    for _ in range(300):
        found = choose_threshold(compute_losses(world(images, rng), grid), RiskTarget(risk, 0.9, rule))
        true_risks.append(0.0 if found is None else truth[found])
    if rule == "conformal":
        assert np.mean(true_risks) <= risk + 0.003
    else:
        assert np.mean(np.array(true_risks) > risk) <= 0.1 + 2 * np.sqrt(0.09 / 300)
    assert np.mean(true_risks) > risk / 3  # a promise of nothing is kept too


def test_betting_rejects_more_than_hoeffding_and_bentkus():
    """The better of two bounds would be the one that is not the default."""
    loss = compute_losses(world(300, np.random.default_rng(1)))
    found = [choose_threshold(loss, RiskTarget(0.08, rule=rule)) for rule in ("betting", "hoeffding-bentkus")]
    assert found[0] >= found[1]


def test_p_values_are_the_formulas():
    """A p that is too small breaks the promise without a trace."""
    loss = (np.arange(100) < 2).astype(float)[:, None]
    bentkus = np.e * binom.cdf(2, 100, 0.05)
    h = 0.02 * np.log(0.02 / 0.05) + 0.98 * np.log(0.98 / 0.95)
    assert hoeffding_bentkus(loss, 0.05)[0] == pytest.approx(min(bentkus, np.exp(-100 * h)))
    assert hoeffding_bentkus(loss, 0.05)[0] >= binom.cdf(2, 100, 0.05)  # the exact test of 0/1 losses
    assert hoeffding_bentkus(loss * 0 + 0.5, 0.05)[0] == 1
    capital, best, mean, square, seen = 1.0, 1.0, 0.5, 0.25, []
    for i, each in enumerate(loss[:, 0], 1):
        stake = min(1.0, np.sqrt(2 * np.log(20) / (100 * (square / i))))
        capital *= 1 - stake * (each - 0.05)
        best = max(best, capital)
        seen.append(each)
        mean = (0.5 + sum(seen)) / (1 + i)
        square += (each - mean) ** 2
    assert betting(loss, 0.05)[0] == pytest.approx(1 / best)


def test_under_the_null_p_is_not_too_small():
    """A test would reject true hypotheses more often than it says."""
    rng = np.random.default_rng(0)
    loss = rng.binomial(4, 0.05, (200, 2000)) / 4  # every column's mean is the risk itself
    for test in (betting, hoeffding_bentkus):
        assert np.mean(test(loss, 0.05) <= 0.05) <= 0.06


def test_too_few_pictures_promise_nothing():
    """Ten lucky pictures would make a promise for all."""
    found = world(10, np.random.default_rng(0))
    chosen = calibrate(found, RiskTarget(0.05))
    assert chosen.threshold is None and np.isnan(chosen.observed) and chosen.kept == 0
    with pytest.raises(ValueError, match="risk must lie between 0 and 1, got 5"):
        RiskTarget(5)
    with pytest.raises(ValueError, match="rule must be one of"):
        RiskTarget(rule="hope")


def test_resplits_show_promised_beside_observed():
    """The promise would never be looked at again."""
    found = world(600, np.random.default_rng(2))
    shown = resplit(found, RiskTarget(0.08), times=60, seed=1)
    assert shown == resplit(found, RiskTarget(0.08), times=60, seed=1)
    assert shown["calibration_images"] == shown["test_images"] == 300
    assert 0 < shown["observed"] <= 0.08 and shown["over"] < 0.3 and 0 < shown["kept"] <= 1
    with pytest.raises(ValueError, match="cannot be split"):
        resplit(found, share=0.0)


def test_the_threshold_is_written_and_read(tmp_path):
    """A calibrated checkpoint would be loaded with the family's threshold, or lose its other settings."""
    config = {"model_type": "llava", "reverse": {"note": 1}, "vocab_size": 7}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    chosen = Calibration(0.021, RiskTarget(), 400, 0.03, 0.8)
    write_threshold(tmp_path, chosen, split="val")
    written = json.loads(path.read_text())
    assert stored_threshold(written["reverse"]) == 0.021 and written["vocab_size"] == 7
    assert written["reverse"]["note"] == 1 and written["reverse"]["calibration"]["split"] == "val"
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_what_cannot_be_written_is_refused(tmp_path):
    """A folder that is not a checkpoint would get a config.json, or a damaged one be overwritten."""
    chosen = Calibration(0.02, RiskTarget(), 400, 0.03, 0.8)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        write_threshold(tmp_path, chosen)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        write_threshold(tmp_path, chosen)
    (tmp_path / "config.json").write_text('{"reverse": 3}')
    with pytest.raises(ValueError, match="not a checkpoint"):
        write_threshold(tmp_path, chosen)
    with pytest.raises(ValueError, match="these answers allow no guarantee"):
        write_threshold(tmp_path, Calibration(None, RiskTarget(), 4, float("nan"), 0))
