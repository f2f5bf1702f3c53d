"""The detector's figures, against counting pairs, thresholds and orders one by one."""

import json
from itertools import permutations

import numpy as np
import pytest

from reverse.data.scenes import make_scene
from reverse.evaluation.detector.detection import Detector, aurc, auroc, average_precision, ece, reliability
from reverse.evaluation.detector.phrase_truth import SceneTruth, read_phrases
from reverse.evaluation.stats.bootstrap import BootstrapSettings


def phrases(n=200, seed=0, digits=1, images=50):
    """With ties: p of one digit."""
    rng = np.random.default_rng(seed)
    wrong = (rng.random(n) < 0.3).astype(float)
    p = np.clip(np.round(rng.beta(1 + 2 * wrong, 3), digits), 0, 1)
    return Detector(p, wrong, rng.integers(0, images, n), tuple(map(str, range(images))))


def test_roc_and_auroc_count_pairs_and_thresholds():
    """Ties would be counted as found, or as missed."""
    found = phrases()
    bad, good = found.p[found.wrong == 1], found.p[found.wrong == 0]
    pairs = np.mean([(b > g) + 0.5 * (b == g) for b in bad for g in good])
    assert auroc(found.p, found.wrong) == pytest.approx(pairs)
    alarms, hits, thresholds = found.roc()
    for x, y, t in zip(alarms, hits, thresholds, strict=True):
        assert (x, y) == (pytest.approx((good >= t).mean()), pytest.approx((bad >= t).mean()))
    assert np.trapezoid(hits, alarms) == pytest.approx(pairs)


def test_average_precision_sums_steps():
    """Precision would be read between thresholds that nobody can set."""
    found = phrases(seed=1)
    total, before = 0.0, 0.0
    for t in sorted(set(found.p), reverse=True):
        taken = found.p >= t
        recall = found.wrong[taken].sum() / found.wrong.sum()
        total += (recall - before) * found.wrong[taken].mean()
        before = recall
    assert average_precision(found.p, found.wrong) == pytest.approx(total)


def test_ece_has_bins_of_equal_mass():
    """A detector that is sure of nearly everything would be judged by its few doubts."""
    rng = np.random.default_rng(0)
    p, wrong = rng.random(150) ** 3, rng.integers(0, 2, 150).astype(float)
    order = np.argsort(p)
    by_hand = sum(
        10 / 150 * abs(p[b].mean() - wrong[b].mean()) for b in np.array_split(order, 15)
    )  # fmt: skip
    assert ece(p, wrong, 15) == pytest.approx(by_hand)
    assert (reliability(p, wrong, 15)["count"] == 10).all()
    tied = reliability(phrases().p, phrases().wrong, 15)
    assert tied["count"].sum() == 200 and len(tied["p"]) <= 11  # equal p stay together
    assert ece(np.array([0.0, 0.0, 1.0]), np.array([0.0, 0.0, 1.0])) == 0


def test_aurc_is_the_mean_over_orders_of_tied_phrases():
    """The order of the file would decide how good the detector is."""
    p = np.array([0.1, 0.2, 0.2, 0.2, 0.7])
    wrong = np.array([0.0, 1.0, 0.0, 1.0, 1.0])
    values = []
    for order in permutations(range(5)):
        if (np.diff(p[list(order)]) >= 0).all():
            running = np.cumsum(wrong[list(order)]) / np.arange(1, 6)
            values.append(running.mean())
    assert aurc(p, wrong) == pytest.approx(np.mean(values))


def test_sweep_says_what_every_threshold_keeps():
    """A threshold would be chosen by figures of its neighbour."""
    found = phrases(seed=2)
    sweep = found.tabulate_thresholds()
    for i, t in enumerate(sweep["threshold"]):
        kept = found.p <= t
        assert sweep["kept"][i] == pytest.approx(kept.mean())
        assert sweep["risk"][i] == pytest.approx(found.wrong[kept].mean())
        assert sweep["hit_rate"][i] == pytest.approx((found.wrong * ~kept).sum() / found.wrong.sum())
        if (~kept).any():
            assert sweep["precision"][i] == pytest.approx(found.wrong[~kept].mean())
    coverage, risk, _ = found.risk_coverage()
    assert (coverage[-1], risk[-1]) == (1, pytest.approx(found.wrong.mean()))


def test_one_kind_of_phrase_has_no_auroc():
    """A model that is never wrong would crash the report."""
    right = np.zeros(5)
    assert np.isnan(auroc(np.linspace(0, 1, 5), right)) and np.isnan(average_precision(right, right))
    figures = Detector(right + 0.1, right, np.arange(5), tuple("abcde")).estimate_figures(
        BootstrapSettings(rounds=50)
    )
    assert figures["auroc"].method == "none" and figures["ece"].point == pytest.approx(0.1)


def test_intervals_are_over_images():
    """Phrases of one picture would count as independent."""
    found = phrases(100, images=20, digits=3)
    double = Detector(*(np.tile(x, 2) for x in (found.p, found.wrong, found.image)), found.images)
    ours, theirs = (
        d.estimate_figures(BootstrapSettings("percentile", rounds=100))["auroc"] for d in (found, double)
    )
    assert tuple(ours) == pytest.approx(tuple(theirs))


def test_phrases_are_judged_by_the_scene(tmp_path):
    """A right phrase would be counted as a wrong one, or a phrase without an object as either."""
    scene = make_scene("test", 3)
    there = sorted(scene.truth)[0]
    absent = next(n for n in ("dog", "pizza", "train", "bed") if n not in scene.truth)
    row = {
        "question_id": 1, "image_id": f"images/{scene.id}.png", "text": "…",
        "phrases": [
            {"text": f"a {there}", "p_un": 0.1}, {"text": f"a {absent}", "p_un": 0.9},
            {"text": "in a kitchen", "p_un": 0.5}, {"text": f"a {absent}", "p_un": None},
        ],
    }  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_text(
        json.dumps(row) + "\n" + json.dumps(row | {"phrases": [], "image_id": "test-000004"}) + "\n"
    )
    found = read_phrases(path, SceneTruth())
    assert found.p.tolist() == [0.1, 0.9] and found.wrong.tolist() == [0, 1] and len(found.images) == 2
    judged = {"id": "test-000001", "phrases": [["a dog", 0.25, 1]]}
    path.write_text(json.dumps(judged) + "\n")
    assert read_phrases(path).wrong.tolist() == [1]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            '{"image_id": "test-000001", "phrases": [{"text": "a dog", "p_un": 0.1}]',
            "line 1 is not JSON.*torn",
        ),
        ('{"image_id": "test-000001", "text": "a dog"}\n', "no list of phrases"),
        ('{"image_id": "x.jpg", "phrases": [{"text": "a dog", "p_un": 0.1}]}\n', "'x.jpg' is not a scene"),
        ('{"image_id": "test-000001", "phrases": [{"text": "hm", "p_un": 0.1}]}\n', "no phrase has a p"),
        ('{"image_id": "test-000001", "phrases": [], "successful_correction": true}\n', "checking on"),
        (
            '{"image_id": "test-000001", "phrases": [], "successful_correction": null, "resolved": true}\n',
            "checking on",
        ),
        ('{"image_id": "test-000001", "phrases": [], "generation_history": ["a dog"]}\n', "checking on"),
        ('{"id": "test-000001", "phrases": [["a dog", 0.2, 1]], "attempts": 2}\n', "checking on"),
        ('{"id": "test-000001", "phrases": [["a dog", 0.2, 1]], "unresolved": 1}\n', "checking on"),
        ('{"image_id": "test-000001", "phrases": [7]}\n', "another shape"),
        ('{"image_id": "test-000001", "phrases": [{"text": "a dog", "p_un": "0.1"}]}\n', "another shape"),
        ('{"id": "test-000001", "phrases": [["a dog", null, 1]]}\n', "another shape"),
        ('{"id": "test-000001", "phrases": []}\n' * 2, "answered in line 1 already"),
        ('{"image_id": "test-000001", "phrases": [{"text": "a dog", "p_un": 1.5}]}\n', r"outside \[0, 1\]"),
    ],
)
def test_files_that_cannot_be_judged_are_refused(tmp_path, row, says):
    """The figures would be of something else than the detector."""
    path = tmp_path / "a.jsonl"
    path.write_text(row)
    with pytest.raises(ValueError, match=says):
        read_phrases(path, SceneTruth())


def test_corrected_answers_do_not_pass_for_plain_ones(tmp_path):
    """Phrases above the threshold are gone from them: AUROC and promises would be of what is left."""
    from reverse.evaluation.runs.scene_captions import count_caption

    path = tmp_path / "on_0.1.jsonl"
    scene = make_scene("test", 1)
    answer = {"text": "a dog", "attempts": [], "usage": {"kept": 9, "discarded": 0}}
    answer["phrases"] = [{"text": "a dog", "p_un": 0.05}]
    for resolved, refused in ((None, False), (True, True)):  # nothing was taken back, all was checked
        row = count_caption(scene, answer | {"resolved": resolved})
        path.write_text(json.dumps(row) + "\n")
        if refused:
            with pytest.raises(ValueError, match=r"line 1 was made with checking on.*--mode plain"):
                read_phrases(path)
    del row["resolved"]  # as older files are: what they were made with lies beside them
    path.write_text(json.dumps(row) + "\n")
    assert len(read_phrases(path).p) == 1
    path.with_suffix(".settings.json").write_text(json.dumps({"name": "on", "mode": "resample"}))
    with pytest.raises(
        ValueError, match=r"on_0\.1\.jsonl was not made with checking off \(mode 'resample'\)"
    ):
        read_phrases(path)
    run = {"questions": {"ids": [scene.id, "test-000002"]}, "config": {"mode": "resample"}}
    path.with_suffix(".run.json").write_text(json.dumps(run))
    with pytest.raises(ValueError, match="not made with checking off"):
        read_phrases(path)
    path.with_suffix(".run.json").write_text(json.dumps(run | {"config": {"mode": "plain"}}))
    with pytest.raises(ValueError, match=r"not finished, 1 questions have no answer \(first: test-000002\)"):
        read_phrases(path)


def test_phrases_of_another_benchmark_are_not_judged(tmp_path):
    """AMBER knows answers by number: captions of another list would be judged by other pictures."""
    from reverse.evaluation.detector.phrase_truth import BenchmarkTruth

    row = {"question_id": 1, "phrases": [{"text": "a dog", "p_un": 0.1}], "metadata": {"benchmark": "chair"}}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="question 1 is one of chair, not of amber-g"):
        read_phrases(path, BenchmarkTruth(tmp_path, "amber-g"))


def test_plots_of_the_detector(tmp_path):
    """A plot would fail on ties."""
    from reverse.evaluation.reports.plots import (
        plot_reliability,
        plot_risk_coverage,
        plot_roc,
        plot_tradeoff,
    )

    found = phrases()
    point = {"threshold": 0.1, "chair_i": [0.1, 0.05, 0.2], "coverage": [0.8, 0.7, 0.9]}
    point["tokens_ratio"] = [1.5, 1.4, 1.6]
    written = [
        *plot_roc(found, tmp_path / "roc"), *plot_reliability(found, tmp_path / "rel"),
        *plot_risk_coverage(found, tmp_path / "rc"),
        *plot_tradeoff([point, point | {"threshold": None}], tmp_path / "trade"),
    ]  # fmt: skip
    assert len(written) == 8 and all(path.stat().st_size > 1000 for path in written)
