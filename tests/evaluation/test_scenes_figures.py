"""The figures of the scenes measurement, against counting by hand and independent formulas."""

import json
import shutil

import numpy as np
import pytest

from reverse.data.scenes import make_scene
from reverse.evaluation.reading.answers import read_run_answers
from reverse.evaluation.runs.answers_files import remove_timing
from reverse.evaluation.runs.benchmark_run import Decoding
from reverse.evaluation.runs.scene_captions import (
    SceneSet,
    compute_auroc,
    count_caption,
    describe_scenes,
    summarise_captions,
)
from reverse.evaluation.stats.bootstrap import estimate_ratio, estimate_ratio_difference


def test_counts_wrong_mentions_and_named_objects():
    """CHAIR would count right objects as wrong, or coverage would count repeats."""
    scene = make_scene("test", 0)
    true = sorted(scene.truth)
    absent = next(name for name in ("dog", "pizza", "train", "bed") if name not in scene.truth)
    answer = {
        "text": f"A {true[0]}, a {true[0]} and a {absent}.", "resolved": True, "attempts": [],
        "usage": {"kept": 20, "discarded": 10}, "phrases": [{"text": f"a {absent}", "p_un": 0.7}],
    }  # fmt: skip
    row = count_caption(scene, answer)
    assert (row["mentions"], row["wrong"], row["named"]) == (3, 1, 1)
    assert row["objects"] == len(true) and row["empty"] == 0
    assert row["phrases"] == [[f"a {absent}", 0.7, 1]]
    assert (row["kept"], row["generated"]) == (20, 30)


def test_ratio_is_of_sums_and_the_interval_covers_it():
    """A mean of ratios would weigh short captions like long ones."""
    wrong, mentioned = [1, 0, 2, 0], [2, 5, 4, 1]
    point, low, high = estimate_ratio(wrong, mentioned, seed=3)
    assert point == pytest.approx(3 / 12) and low <= point <= high
    assert estimate_ratio(wrong, mentioned, seed=3) == estimate_ratio(wrong, mentioned, seed=3)


def test_interval_agrees_with_scipy():
    """The bootstrap would have the wrong width."""
    from scipy.stats import bootstrap

    rng = np.random.default_rng(0)
    wrong, mentioned = rng.binomial(1, 0.3, 300), rng.integers(1, 6, 300)
    _, low, high = estimate_ratio(wrong, mentioned, rounds=4000)
    theirs = bootstrap(
        (wrong, mentioned),
        lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True, vectorized=True, method="percentile", n_resamples=4000, rng=1,
    ).confidence_interval  # fmt: skip
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.004)


def test_paired_difference_of_equal_systems_is_zero():
    """Comparing a system with itself would show a difference."""
    pair = ([1, 0, 2], [3, 3, 3])
    assert estimate_ratio_difference(pair, pair) == (0.0, 0.0, 0.0)
    halved = estimate_ratio_difference(([1, 0, 2], [6, 6, 6]), pair, relative=True)
    assert halved[0] == pytest.approx(-0.5)
    with pytest.raises(ValueError, match="same items, got 3 and 2"):
        estimate_ratio_difference(pair, ([1, 2], [3, 3]))


def test_auroc_counts_pairs():
    """Detector quality would be off where p ties."""
    rows = [{"phrases": [["a", 0.9, 1], ["b", 0.2, 0]]}, {"phrases": [["c", 0.2, 1], ["d", 0.1, 0]]}]
    pairs = [(w, r) for w in (0.9, 0.2) for r in (0.2, 0.1)]
    expected = sum((w > r) + 0.5 * (w == r) for w, r in pairs) / len(pairs)
    assert compute_auroc(rows) == pytest.approx(expected)
    assert compute_auroc([{"phrases": [["a", 0.9, 1]]}]) is None


def describe(out, loaded, name="on", model="tiny-llava", threshold=0.1, count=3, batch_size=2, **options):
    decoding = Decoding(threshold=threshold)
    return describe_scenes(
        model, loaded, out, name, decoding, SceneSet("test", count), batch_size=batch_size, **options
    )


def never(_):
    raise AssertionError("decoded again")


def test_describing_again_goes_on_where_it_was(tmp_path, bundled):
    """A stopped measurement would start over, repeat scenes or trip over a torn line."""
    whole = describe(tmp_path / "whole", bundled, count=5)
    lines = (tmp_path / "whole" / "on.jsonl").read_bytes()
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "on.jsonl").write_bytes(lines[: len(lines) * 2 // 3])
    (torn / "on.run.json").write_bytes((tmp_path / "whole" / "on.run.json").read_bytes())
    assert describe(torn, bundled, count=5) == whole
    first, again = (read_run_answers(folder / "on.jsonl").rows for folder in (tmp_path / "whole", torn))
    assert list(map(remove_timing, again)) == list(map(remove_timing, first))
    assert [row["question_id"] for row in again] == [f"test-{i:06d}" for i in range(5)]


def test_answers_of_other_settings_are_not_taken(tmp_path, bundled):
    """A table would mix answers of two thresholds, or of two models, without a word."""
    describe(tmp_path, bundled, count=1)
    with pytest.raises(ValueError, match=r"threshold: 0\.1.*--out"):
        describe(tmp_path, bundled, count=1, threshold=0.2)


def test_answers_of_another_checkpoint_at_the_same_path_are_not_taken(tmp_path, bundled):
    """A model that was trained further in its folder would be given the answers of the one before."""
    from safetensors.torch import load_file, save_file

    from reverse.models.checkpoints.loading import ASSETS

    folder = tmp_path / "model"
    shutil.copytree(ASSETS / "tiny-llava", folder)
    before = describe(tmp_path / "out", bundled, model=str(folder))
    config = json.loads((folder / "config.json").read_text())
    config["reverse"] = {"threshold": 0.5}  # as `calibrate --write` does: another default, the same model
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "training.json").write_text("{}")
    assert describe(tmp_path / "out", bundled, model=str(folder), ask=never) == before
    weights = load_file(folder / "model.safetensors")
    name = next(name for name, value in weights.items() if value.dim() == 2)
    weights[name][0, 0] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"checkpoint: '\w{16}' there, '\w{16}' now.*--out"):
        describe(tmp_path / "out", bundled, model=str(folder))


def test_another_default_threshold_is_another_setting(tmp_path, bundled):
    """A checkpoint that was calibrated anew would be given the answers of its old default."""
    from reverse.models import default_threshold, set_default_threshold

    describe(tmp_path, bundled, threshold=None, count=1)
    kept = default_threshold(bundled[0])
    set_default_threshold(bundled[0], 0.77)
    try:
        with pytest.raises(ValueError, match=r"threshold: .* there, 0\.77 now"):
            describe(tmp_path, bundled, threshold=None, count=1)
    finally:
        set_default_threshold(bundled[0], kept)


def test_a_finished_measurement_is_left_as_it_is(tmp_path, bundled):
    """Its last batch would be decoded again each time, and cut off if fewer scenes are asked for."""
    whole = describe(tmp_path, bundled)
    before = (tmp_path / "on.jsonl").read_bytes()
    assert describe(tmp_path, bundled, ask=never) == whole
    assert describe(tmp_path, bundled, count=1, ask=never) == whole[:1]
    assert (tmp_path / "on.jsonl").read_bytes() == before
    (tmp_path / "on.jsonl").write_bytes(before.replace(b"{", b"[", 1))
    with pytest.raises(ValueError, match=r"on\.jsonl, line 1 is damaged"):
        describe(tmp_path, bundled)


@pytest.fixture(scope="module")
def bundled():
    import reverse

    return reverse.load("tiny-llava")


def test_bundled_model_makes_up_less_with_checking_on(tmp_path, bundled):
    """The shipped checkpoint would not do what it is shipped for."""
    rows = {}
    for name, mode in (("off", "plain"), ("on", "resample")):
        rows[name] = describe_scenes(
            "tiny-llava", bundled, tmp_path, name, Decoding(mode), SceneSet(count=48)
        )
    off, on = summarise_captions(rows["off"]), summarise_captions(rows["on"])
    assert on["chair_i"][0] < off["chair_i"][0] * 2 / 3
    assert on["coverage"][0] > off["coverage"][0] - 0.02
    assert off["auroc"] > 0.9
