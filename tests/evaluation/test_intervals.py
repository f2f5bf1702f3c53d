"""Intervals of any metric: against scipy, against worlds whose truth is known, and where there is none."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from benchmarks import coverage as simulation
from reverse.evaluation.stats.bootstrap import BootstrapSettings
from reverse.evaluation.stats.intervals import estimate_interval, estimate_intervals, estimate_over_seeds
from reverse.evaluation.stats.scored_tables import (
    Metric,
    Table,
    f1,
    load_scored,
    macro,
    ratio,
    save_scored,
    total,
)

CHAIR_I = ratio("chair_i", "wrong", "mentions", "low")
ONES = ratio("mean", "score", "ones", "high")


def captions(images=200, seed=0, rows=1):
    rng = np.random.default_rng(seed)
    mentions = 1 + rng.poisson(4, images * rows)
    wrong = rng.binomial(mentions, np.repeat(rng.beta(0.6, 5.4, images), rows))
    clusters = [str(i) for i in range(images) for _ in range(rows)]
    keys = [f"{i}/{j}" for i in range(images) for j in range(rows)]
    return Table("captions", clusters, {"wrong": wrong, "mentions": mentions}, keys=keys)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_intervals_agree_with_scipy(method):
    """The interval would have the wrong width, or BCa the wrong shift."""
    table = captions(150, 3)
    ours = estimate_interval(table, CHAIR_I, BootstrapSettings(method, rounds=8000, seed=1))
    theirs = bootstrap(
        (table.columns["wrong"], table.columns["mentions"]),
        lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True, vectorized=True, method=method, n_resamples=8000, rng=2,
    )  # fmt: skip
    limits = theirs.confidence_interval
    assert (ours.low, ours.high) == pytest.approx((limits.low, limits.high), abs=0.002)
    assert ours.sd == pytest.approx(theirs.standard_error, rel=0.05) and ours.method == method


def test_acceleration_of_strata_agrees_with_scipy_on_several_samples():
    """BCa of a macro average would be shifted by the wrong amount."""
    rng = np.random.default_rng(0)
    parts = [rng.exponential(size=60), rng.exponential(size=30) * 2]
    table = Table(
        "t", list(map(str, range(90))), {"score": np.concatenate(parts), "ones": np.ones(90)},
        ["x"] * 60 + ["y"] * 30,
    )  # fmt: skip
    ours = estimate_interval(table, macro(ONES), BootstrapSettings(rounds=20_000))
    theirs = bootstrap(
        parts, lambda a, b, axis: (a.mean(axis=axis) + b.mean(axis=axis)) / 2,
        vectorized=True, method="BCa", n_resamples=20_000, rng=2,
    ).confidence_interval  # fmt: skip
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)


def test_rows_of_an_image_are_drawn_together():
    """Six questions about one image would count as six images, and the interval come out too narrow."""
    once = captions(100, 1)
    again = Table(
        "captions", [c for c in once.clusters for _ in range(6)],
        {name: np.repeat(column, 6) for name, column in once.columns.items()},
    )  # fmt: skip
    first, second = estimate_interval(once, CHAIR_I), estimate_interval(again, CHAIR_I)
    assert tuple(second) == pytest.approx(tuple(first))


def test_a_metric_of_rows_is_resampled_like_one_of_sums():
    """What cannot be written as sums would have an interval of its own kind."""
    table = captions(60, 2, rows=2)
    as_rows = Metric("chair_i", "low", rows=lambda c: c["wrong"].sum() / c["mentions"].sum())
    for method in ("percentile", "bca"):
        settings = BootstrapSettings(method, rounds=300)
        assert tuple(estimate_interval(table, as_rows, settings)) == pytest.approx(
            tuple(estimate_interval(table, CHAIR_I, settings))
        )


def test_an_image_in_several_parts_is_drawn_once_for_all_of_them():
    """The macro average over POPE's settings would look more certain than one setting's images allow."""
    rng = np.random.default_rng(0)
    score = rng.normal(size=200)
    shared = Table(
        "t", [str(i) for _ in range(3) for i in range(200)],
        {"score": np.tile(score, 3), "ones": np.ones(600)}, [p for p in "abc" for _ in range(200)],
    )  # fmt: skip
    apart = Table("t", list(map(str, range(600))), shared.columns, shared.parts)
    alone = Table("t", list(map(str, range(200))), {"score": score, "ones": np.ones(200)})
    one = estimate_interval(alone, ONES).sd
    assert estimate_interval(shared, macro(ONES)).sd == pytest.approx(one)
    assert estimate_interval(apart, macro(ONES)).sd == pytest.approx(one / np.sqrt(3), rel=0.08)


def test_parts_keep_their_numbers_of_images():
    """A small part would vanish from some rounds, and the macro average with it."""
    table = Table(
        "t", list(map(str, range(103))), {"score": np.arange(103.0), "ones": np.ones(103)},
        ["large"] * 91 + ["small"] * 12,
    )  # fmt: skip
    assert estimate_interval(table, macro(ONES)).note == ""


def test_the_published_form_and_the_mean_of_its_rounds():
    """A published score that is the mean of 100 rounds could not be shown beside the point."""
    found = estimate_interval(captions(), CHAIR_I, BootstrapSettings("percentile", rounds=100, seed=42))
    assert found.rounds == 100 and found.mean != found.point
    assert found.mean == pytest.approx(found.point, abs=0.01) and found.low < found.mean < found.high


def test_intervals_share_draws_and_repeat():
    """The same seed would give another interval, or the order of metrics change it."""
    table = captions()
    words = ratio("words", "mentions", "ones", "neither")
    table.columns["ones"] = np.ones(200)
    both = estimate_intervals(table, [CHAIR_I, words], BootstrapSettings(seed=5))
    assert both["chair_i"] == estimate_interval(table, CHAIR_I, BootstrapSettings(seed=5))
    assert both["chair_i"] != estimate_interval(table, CHAIR_I, BootstrapSettings(seed=6))


@pytest.mark.parametrize(
    ("wrong", "mentions", "says", "limits"),
    [
        ([1, 0, 2], [0, 0, 0], "not defined on these rows", False),
        ([0, 0, 0], [1, 2, 3], "the width is not known, not zero", True),
        ([1, 0, 0], [2, 0, 0], "rounds, which were left out", True),
    ],
)
def test_what_cannot_be_said_is_said(wrong, mentions, says, limits):
    """A figure without a spread would be shown as a certain one."""
    found = estimate_interval(Table("t", ["a", "b", "c"], {"wrong": wrong, "mentions": mentions}), CHAIR_I)
    assert says in found.note and np.isfinite(found.low) == limits


def test_one_image_has_no_interval():
    """Ten questions about one image would get the width zero."""
    found = estimate_interval(Table("t", ["a"] * 10, {"wrong": [1] * 10, "mentions": range(1, 11)}), CHAIR_I)
    assert found.method == "none" and np.isnan(found.low) and "one cluster" in found.note
    with pytest.raises(ValueError, match="no rows"):
        estimate_interval(Table("t", [], {"wrong": [], "mentions": []}), CHAIR_I)
    with pytest.raises(ValueError, match="bca or percentile, got 'normal'"):
        BootstrapSettings("normal")


def test_variance_of_decoding_is_told_from_that_of_items():
    """What sampling adds would be hidden in the width, or counted twice."""
    rng = np.random.default_rng(0)
    n, seeds = 800, 3
    items, noise = rng.normal(size=n), rng.normal(size=(seeds, n)) * 0.5
    ids = list(map(str, range(n)))
    runs = [Table("t", ids, {"score": items + noise[s], "ones": np.ones(n)}, keys=ids) for s in range(seeds)]
    runs[1] = Table("t", ids[::-1], {k: v[::-1] for k, v in runs[1].columns.items()}, keys=ids[::-1])
    found = estimate_over_seeds(runs, ONES)
    assert found.sd_items == pytest.approx(1 / np.sqrt(n), rel=0.1)
    assert found.sd_decoding == pytest.approx(0.5 / np.sqrt(n), rel=0.15)
    assert found.sd_single == pytest.approx(np.sqrt(1.25 / n), rel=0.1)
    assert found.mean.point == pytest.approx(np.mean(found.points))
    assert found.between == pytest.approx(np.std(found.points, ddof=1))
    same = estimate_over_seeds([runs[0], runs[0]], ONES)
    assert same.between == 0 and same.sd_decoding < 1e-6
    with pytest.raises(ValueError, match="at least two seeds"):
        estimate_over_seeds(runs[:1], ONES)


def test_95_percent_intervals_hold_what_they_promise():
    """Intervals would be too narrow for a kind of metric, and nobody would see it."""
    for kind in simulation.kinds():
        if kind.name not in ("mean_96", "ratio", "f1", "macro_apart"):
            continue
        found = simulation.coverage(kind, runs=120, rounds=500, seed=1)
        for method in ("percentile", "bca"):
            assert 0.90 <= found[method]["coverage"] <= 0.99, (kind.name, method, found[method])


def test_a_scored_file_holds_table_and_metrics(tmp_path):
    """compare and report would compute other figures from a file than scoring did."""
    rng = np.random.default_rng(0)
    table = Table(
        "pope", ["a", "a", "b", "b"], {c: rng.integers(0, 5, 4).astype(float) for c in ("tp", "fp", "fn")},
        ["x", "y", "x", "y"], ["1", "2", "3", "4"], {"parser": "strict", "köln": 1},
    )  # fmt: skip
    metrics = [f1("f1", "tp", "fp", "fn"), macro(ratio("precision", "tp", "fp", "high", title="P"))]
    save_scored(tmp_path / "a.json", table, metrics)
    read, known = load_scored(tmp_path / "a.json")
    assert (read.clusters, read.parts, read.keys, read.notes) == (
        table.clusters, table.parts, table.keys, table.notes,
    )  # fmt: skip
    for ours, theirs in zip(known, metrics, strict=True):
        assert (ours.name, ours.title, ours.better) == (theirs.name, theirs.title, theirs.better)
        assert ours.of(read.sums()) == pytest.approx(theirs.of(table.sums()))


def test_a_metric_without_a_form_is_not_made_up(tmp_path):
    """A figure that nothing in the file says how to compute would be lost, or be computed by its code."""
    table = Table("mme", ["a"], {"score": np.ones(1), "asked": np.full(1, 4.0)})
    made = Metric("total", "high", of=lambda sums: sums["score"].sum(axis=-1))
    save_scored(tmp_path / "a.json", table, [made])
    with pytest.raises(ValueError, match="'total' of 'mme'"):
        load_scored(tmp_path / "a.json")
    formed = total("total", [("score", "asked"), ("asked", "score")], "high", 100.0)
    save_scored(tmp_path / "a.json", table, [formed])
    (found,) = load_scored(tmp_path / "a.json")[1]
    assert found.form == formed.form
    assert found.of(table.sums()) == formed.of(table.sums()) == 100 * (1 / 4 + 4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t[: len(t) // 2], "not a scored file"),
        (lambda t: "[]", "not a scored file"),
        (lambda t: t.replace('"clusters"', '"klusters"'), "damaged"),
        (lambda t: t.replace('"wrong": [', '"wrong": [1,'), "column 'wrong' has 201 rows"),
        (lambda t: t.replace('"better": "low"', '"better": "up"'), "better='up'"),
        (lambda t: t.replace('"wrong": [', '"wrung": ['), "needs the columns wrong"),
    ],
)
def test_a_damaged_scored_file_is_refused(tmp_path, change, says):
    """Half a file would be compared as a whole one."""
    path = tmp_path / "a.json"
    save_scored(path, captions(), [CHAIR_I])
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ValueError, match=says):
        load_scored(path)
