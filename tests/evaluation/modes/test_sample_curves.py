"""Accuracy of N samples from one set, against brute force over all subsets."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reverse.errors import DataError, RequestError
from reverse.evaluation.modes.sample_curves import (
    best_at,
    count_samples,
    oracle_at,
    select_at,
    usual_sizes,
    values_at,
    values_at_tokens,
    vote_at,
    weighted_vote_at,
)
from reverse.modes.shared.judging import find_vote_winner
from tests.evaluation.modes.recorded import answered, record, sample

# Confidences are eighths, whose sums are exact, so that ties are ties; answers and verdicts need not agree.
DRAFTS = st.lists(
    st.builds(
        sample,
        st.sampled_from(["1", "2", "3", None]),
        st.sampled_from([True, False, None]),
        st.integers(0, 8).map(lambda eighths: eighths / 8),
    ),
    min_size=1,
    max_size=7,
)


def by_brute_force(drafts, rule, n):
    """The share of subsets of n drafts for which the rule is right."""
    hits = []
    for subset in combinations(drafts, n):
        if rule == "oracle":
            hits.append(any(draft.verdict == "right" for draft in subset))
            continue
        if rule == "best":
            kept = max(range(n), key=lambda i, subset=subset: (subset[i].confidence, -i))
        else:
            kept = find_vote_winner(subset, weighted=rule == "weighted")
        hits.append(subset[kept].verdict == "right")
    return np.mean(hits)


@pytest.mark.parametrize("rule", ["oracle", "best", "vote", "weighted"])
@given(drafts=DRAFTS, data=st.data())
@settings(max_examples=150, deadline=None)
def test_curves_are_means_over_all_subsets(rule, drafts, data):
    """A figure for 4 of 8 samples would favour those that were made first, or break ties its own way."""
    n = data.draw(st.integers(1, len(drafts)))
    (value,) = values_at([record("a", *drafts)], rule, n)
    assert value == pytest.approx(by_brute_force(drafts, rule, n))


@given(drafts=DRAFTS)
@settings(max_examples=100, deadline=None)
def test_oracle_grows_and_bounds_every_rule(drafts):
    """More samples would lose right answers, or a vote find one that no sample gave."""
    sizes = range(1, len(drafts) + 1)
    values = {rule: [values_at([record("a", *drafts)], rule, n)[0] for n in sizes]
              for rule in ("oracle", "best", "vote", "weighted")}  # fmt: skip
    assert all(a <= b + 1e-12 for a, b in zip(values["oracle"], values["oracle"][1:], strict=False))
    mean = np.mean([draft.verdict == "right" for draft in drafts])
    for rule, found in values.items():
        assert found[0] == pytest.approx(mean)  # one sample needs no rule
        assert all(low <= high + 1e-12 for low, high in zip(found, values["oracle"], strict=True)), rule


def test_random_subsets_are_unbiased_and_seeded():
    """With 32 samples there are too many subsets: what is drawn of them must not move the figure."""
    drafts = [sample(str(i % 3), i % 3 == 0, (i * 5 % 8) / 8) for i in range(12)]
    exact = by_brute_force(drafts, "vote", 5)
    found = [values_at([record("a", *drafts)], "vote", 5, seed, 100)[0] for seed in range(200)]
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - exact) < 4 * error and np.std(found) > 0
    assert found[3] == values_at([record("a", *drafts)], "vote", 5, 3, 100)[0]


@given(drafts=DRAFTS, budget=st.floats(0, 200))
@settings(max_examples=60, deadline=None)
def test_values_at_equal_tokens_lie_between_two_sizes(drafts, budget):
    """A mode would be compared with a vote that costs more or less than it does."""
    records = [record("a", *(draft.model_copy(update={"tokens": 10}) for draft in drafts))]
    size = max(1.0, budget / 10)
    if size > len(drafts):
        with pytest.raises(DataError, match=r"pay for .* samples, the records have"):
            values_at_tokens(records, "vote", budget)
        return
    (value,) = values_at_tokens(records, "vote", budget)
    fewer, more = int(size), min(len(drafts), int(size) + 1)
    low, high = (by_brute_force(records[0].drafts, "vote", n) for n in (fewer, more))
    assert value == pytest.approx(low + (size - fewer) * (high - low))
    with pytest.raises(DataError, match="samples do not say what they cost"):
        values_at_tokens([record("a", *drafts)], "vote", 10)


def test_figures_have_intervals_by_picture():
    """Questions about one picture would count as independent, and intervals be too narrow."""
    drafts = [sample("1", True, 0.75), sample("2", False, 0.25)]
    wrong = [sample("2", False, 0.5), sample("3", False, 0.25)]
    apart = [record(str(i), *(drafts if i % 2 else wrong)) for i in range(60)]
    together = [record(str(i), *(drafts if i % 2 else wrong), image=f"{i % 6}.png") for i in range(60)]
    for figure in (oracle_at, best_at, vote_at, weighted_vote_at):
        narrow, wide = figure(apart, 2), figure(together, 2)
        assert narrow.point == wide.point == 0.5
        assert narrow.low < 0.5 < narrow.high and wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_select_with_the_model_as_judge_is_known_at_its_own_n():
    """A curve would be invented that nobody measured."""
    right = sample("1", True, role="judge", accepted=True)
    records = [
        record("a", sample("1", True), sample("2", False), right),
        record("b", *[sample("2", False)] * 2),
    ]
    found = select_at(records, "self")
    assert list(found) == [2] and found[2].point == 0.5
    assert list(select_at(records, "vote")) == [1, 2]


def test_sizes_and_refusals():
    """A figure for more samples than there are would be that of fewer."""
    assert usual_sizes(32) == [1, 2, 3, 4, 8, 16, 32] and usual_sizes(6) == [1, 2, 3, 4, 6]
    assert count_samples([answered("a", True)]) == count_samples([]) == 0
    records = [record("a", sample("1", True))]
    with pytest.raises(DataError, match=r"record 'a' has 1 samples, 2 are asked for: choose a smaller n"):
        oracle_at(records, 2)
    with pytest.raises(RequestError, match="rule must be one of oracle, best, vote, weighted, got 'luck'"):
        values_at(records, "luck", 1)
    with pytest.raises(DataError, match="there are no records"):
        oracle_at([], 1)
