"""Paired comparison: against scipy's tests, against worlds without a difference, and on what does not fit."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import permutation_test

from reverse.evaluation.stats.bootstrap import BootstrapSettings
from reverse.evaluation.stats.intervals import Resampling
from reverse.evaluation.stats.paired_comparison import (
    adjust_by_holm,
    compare_runs,
    run_mcnemar_test,
    run_permutation_test,
)
from reverse.evaluation.stats.scored_tables import Metric, Table, ratio

CHAIR_I = ratio("chair_i", "wrong", "mentions", "low", title="CHAIRi")
ACCURACY = ratio("accuracy", "right", "ones", "high")


def table(columns, clusters=None, keys=None, **kwargs):
    n = len(next(iter(columns.values())))
    keys = keys or list(map(str, range(n)))
    columns = {name: np.asarray(column, float) for name, column in columns.items()}
    return Table("t", clusters or keys, columns | {"ones": np.ones(n)}, keys=keys, **kwargs)


def pair(images=120, effect=0.0, seed=0):
    rng = np.random.default_rng(seed)
    rate = rng.beta(1, 4, images)
    runs = []
    for gain in (effect, 0.0):
        mentions = 2 + rng.poisson(3, images)
        runs.append(
            table({"wrong": rng.binomial(mentions, np.clip(rate - gain, 0, 1)), "mentions": mentions})
        )
    return runs


def test_exact_permutation_counts_every_swap():
    """A p of few images would be an estimate, or leave the observed swap out."""
    rng = np.random.default_rng(1)
    a, b = (table({"wrong": rng.integers(0, 4, 7), "mentions": rng.integers(4, 9, 7)}) for _ in range(2))
    observed = CHAIR_I.of(a.sums()) - CHAIR_I.of(b.sums())
    extreme = 0
    for swap in product((False, True), repeat=7):
        mine, theirs = (
            {n: np.where(swap, y.columns[n], x.columns[n]).sum() for n in ("wrong", "mentions")}
            for x, y in ((a, b), (b, a))
        )
        d = mine["wrong"] / mine["mentions"] - theirs["wrong"] / theirs["mentions"]
        extreme += abs(d) >= abs(observed) - 1e-12
    assert run_permutation_test(Resampling(a), Resampling(b), CHAIR_I) == (extreme / 2**7, True)


def test_sampled_permutation_agrees_with_scipy():
    """p would be of another hypothesis than that who answered what means nothing."""
    a, b = pair(60, 0.05, seed=3)
    p, exact = run_permutation_test(Resampling(a), Resampling(b), CHAIR_I, rounds=9999)
    columns = [np.stack([t.columns["wrong"], t.columns["mentions"]]) for t in (a, b)]

    def statistic(x, y, axis):
        w, m = np.take(wide, x, axis=1), np.take(wide, y, axis=1)
        return w[0].sum(-1) / w[1].sum(-1) - m[0].sum(-1) / m[1].sum(-1)

    wide = np.concatenate(columns, axis=1)
    theirs = permutation_test(
        (np.arange(60), np.arange(60) + 60), statistic, permutation_type="samples", vectorized=True,
        n_resamples=9999, rng=0,
    )  # fmt: skip
    assert not exact and p == pytest.approx(theirs.pvalue, abs=0.015)


def test_p_is_uniform_where_there_is_no_difference():
    """One comparison in five would be called significant at 5 %."""
    ps = []
    for seed in range(300):
        a, b = pair(30, 0.0, seed)
        ps.append(run_permutation_test(Resampling(a), Resampling(b), CHAIR_I, rounds=199, seed=seed)[0])
    assert np.mean(np.array(ps) <= 0.05) < 0.09 and np.mean(ps) == pytest.approx(0.5, abs=0.06)


def test_paired_interval_is_narrower_than_two_apart():
    """What both runs share would hide what they differ in."""
    a, b = pair(300, 0.04, seed=1)
    (found,) = compare_runs(a, b, [CHAIR_I])
    from reverse.evaluation.stats.intervals import estimate_interval

    apart = np.hypot(estimate_interval(a, CHAIR_I).sd, estimate_interval(b, CHAIR_I).sd)
    assert found.difference.sd < 0.95 * apart
    assert found.difference.point == pytest.approx(found.first - found.second)
    assert found.verdict == "better" and found.p < 0.01 and found.p_mcnemar is None


def test_a_run_against_itself_is_no_difference():
    """A difference would come out of the method itself."""
    a, _ = pair()
    (found,) = compare_runs(a, a, [CHAIR_I])
    assert tuple(found.difference) == (0, 0, 0) and found.p == 1 and found.exact and found.verdict == ""


def test_order_of_the_rows_does_not_matter():
    """Two files in different order would be compared row by wrong row."""
    a, b = pair(50, 0.1)
    order = np.random.default_rng(0).permutation(50)
    mixed = table({n: b.columns[n][order] for n in ("wrong", "mentions")}, keys=[b.keys[i] for i in order])
    assert compare_runs(a, mixed, [CHAIR_I]) == compare_runs(a, b, [CHAIR_I])


def test_swaps_keep_an_image_whole():
    """Questions about one image would be swapped apart, and p come out too small."""
    rng = np.random.default_rng(0)
    images = 12
    gains = rng.normal(0.3, 1, images)
    a, b = (
        table({"right": np.repeat(g, 10)}, [str(i) for i in range(images) for _ in range(10)])
        for g in (gains, gains * 0)
    )
    p, exact = run_permutation_test(Resampling(a), Resampling(b), ACCURACY)
    alone = [table({"right": g}) for g in (gains, gains * 0)]
    assert exact and p == run_permutation_test(Resampling(alone[0]), Resampling(alone[1]), ACCURACY)[0]


def test_metrics_of_rows_are_compared_too():
    """AUROC and its like could not be compared."""
    a, b = pair(10, 0.2)
    as_rows = Metric("chair_i", "low", rows=lambda c: c["wrong"].sum() / c["mentions"].sum())
    few = BootstrapSettings(rounds=200)
    ours, theirs = compare_runs(a, b, [as_rows], few), compare_runs(a, b, [CHAIR_I], few)
    assert (ours[0].p, ours[0].exact) == (theirs[0].p, theirs[0].exact)
    assert tuple(ours[0].difference) == pytest.approx(tuple(theirs[0].difference))


def test_mcnemar_is_for_yes_or_no_alone():
    """A test for 0/1 would be made of counts, or not be made of accuracies."""
    a = table({"right": [1, 1, 1, 1, 1, 1, 0, 1, 0, 1]})
    b = table({"right": [0, 0, 0, 0, 0, 1, 1, 1, 0, 1]})
    assert run_mcnemar_test(a, b, ACCURACY) == ((5, 1), pytest.approx(2 * (1 + 6) / 2**6))
    assert run_mcnemar_test(a, a, ACCURACY) == ((0, 0), 1.0)
    counts = table({"right": [2, 1, 0, 1, 1, 1, 0, 1, 0, 1]})
    assert run_mcnemar_test(counts, b, ACCURACY) is None
    assert compare_runs(a, b, [ACCURACY])[0].discordant == (5, 1)


def test_few_events_are_no_verdict():
    """Five unresolved answers against none would be called worse: chance does that one time in sixteen."""
    a = table({"right": [1] * 5 + [0] * 55})
    b = table({"right": [0] * 60})
    (found,) = compare_runs(a, b, [ACCURACY])
    assert found.difference.low > 0 and found.p == 2 / 2**5 and found.exact and found.verdict == ""


def test_holm_by_hand():
    """One of twenty metrics would be significant by chance."""
    assert adjust_by_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_by_holm([0.5, float("nan"), 0.9]) == pytest.approx([1.0, float("nan"), 1.0], nan_ok=True)


def test_other_questions_are_refused_by_name():
    """Runs over different images would be compared as pairs."""
    a, _ = pair(10)
    fewer = table({n: a.columns[n][:8] for n in ("wrong", "mentions")})
    with pytest.raises(ValueError, match=r"ours lacks 2 \(8, 9\)"):
        compare_runs(a, fewer, [CHAIR_I], names=("theirs", "ours"))
    twice = table({n: a.columns[n] for n in ("wrong", "mentions")}, keys=["0", *map(str, range(9))])
    with pytest.raises(ValueError, match="'0' twice"):
        compare_runs(a, twice, [CHAIR_I])
    moved = table(dict(a.columns), clusters=["x"] * 10)
    with pytest.raises(ValueError, match="other images"):
        compare_runs(a, moved, [CHAIR_I])
    with pytest.raises(ValueError, match="'accuracy' needs right"):
        compare_runs(a, a, [ACCURACY])
    with pytest.raises(ValueError, match="no metrics"):
        compare_runs(a, a, [])


def test_forest_plot_is_drawn_and_the_same_again(tmp_path):
    """The plot would be missing, or change without a change in the figures."""
    from reverse.evaluation.reports.plots import plot_forest

    a, b = pair(60, 0.1)
    words = ratio("words", "mentions", "ones", "neither", unit="words", title="length <&> $5")
    found = compare_runs(a, b, [CHAIR_I, words])
    first = [p.read_bytes() for p in plot_forest(found, tmp_path / "x" / "forest", "A against B")]
    again = [p.read_bytes() for p in plot_forest(found, tmp_path / "y" / "forest", "A against B")]
    assert first == again and first[0].startswith(b"\x89PNG") and b"CHAIRi" in first[1]
