"""Candidates side by side: the sequential answer, sooner; nothing lost in the books."""

import itertools

import pytest
import torch
from scipy.stats import chi2_contingency

from reverse.decoding.config import ResamplingConfig
from reverse.decoding.policies.resample_policy import ResamplePolicy
from reverse.decoding.scheduling.branch import Branch
from tests.decoding import mock
from tests.decoding.oracle import naive_generate
from tests.decoding.test_backend import FAMILIES, ROOM, config, decode, inputs_for, world

STRICT = {"local_attempts": 5, "max_attempts": 14, "threshold": 0.05, "hints": 0}


def outline(result):
    """All that must be the same whatever stood beside it: the answer and its trace, without times."""
    trace = [(t.kind, t.phrase, t.at, t.rewound_to, t.temperature, t.level, t.tokens) for t in result.trace]
    return result.ids, result.finish_reason, result.resolved, trace


@pytest.mark.parametrize("commit", ["phrase", "sentence", "answer"])
@pytest.mark.parametrize("on_exhausted", ["best", "drop"])
def test_scripted_answers_are_the_sequential_ones(commit, on_exhausted):
    """Candidates would be judged out of order, or k, n and R grow by those after the winner."""
    for salt, m in itertools.product(range(12), (2, 3, 16)):
        settings = STRICT | {"commit": commit, "on_exhausted": on_exhausted, "temperature_step": 0.3}
        model, temperature = mock.hashed(salt, scale=1.0), 0.5 * (salt % 3)
        one, _ = mock.run(model, ResamplingConfig(**settings), temperature=temperature, seed=salt)
        more = ResamplingConfig(**settings, candidates=m)
        side, policy = mock.run(model, more, temperature=temperature, seed=salt)
        assert outline(side) == outline(one)
        assert policy.rejections == len(side.trace) <= settings["max_attempts"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_models_give_the_sequential_answers(family, temperature):
    """Lanes of candidates would share slots, positions or noise."""
    rows = range(5)
    one, _ = decode(family, rows, config(**STRICT), temperature=temperature)
    assert sum(len(r.trace) for r in one) > 10
    for m in (2, 4):
        side, _ = decode(family, rows, config(**STRICT, candidates=m), temperature=temperature)
        assert [outline(r) for r in side] == [outline(r) for r in one]
        assert sum(r.usage.forwards for r in side) < sum(r.usage.forwards for r in one)


@pytest.mark.parametrize("family", FAMILIES)
def test_candidates_with_hints_equal_the_oracle(family):
    """A fork after a changed hint would continue another text than the row's."""
    settings = config(threshold=0.05, local_attempts=4, hints=5, candidates=3, commit="answer")
    rows = range(4)
    results, _ = decode(family, rows, settings, temperature=0.8)
    model, processor = world(family)
    for row, result in zip(rows, results, strict=True):
        expected = naive_generate(
            model, processor, inputs_for(family, [row]), settings, ROOM, 0.8, seed=100 + row
        )
        assert outline(result) == outline(expected)
    assert sum(len(r.trace) for r in results) > 5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_with_candidates_is_itself_in_any_batch(family):
    """A candidate's answer would depend on its sisters or on its neighbours' forks."""
    settings = config(threshold=0.05, candidates=3)
    together, _ = decode(family, range(4), settings, torch.float32)
    for row in range(4):
        alone, _ = decode(family, [row], settings, torch.float32)
        assert alone[0].ids == together[row].ids


def test_one_candidate_with_hints_changes_nothing():
    """candidates=1 would not be the sequential algorithm."""
    for salt in range(6):
        settings = {"threshold": 0.05, "local_attempts": 3, "max_attempts": 9}
        one, _ = mock.run(mock.hashed(salt), ResamplingConfig(**settings), seed=salt)
        same, _ = mock.run(mock.hashed(salt), ResamplingConfig(**settings, candidates=1), seed=salt)
        assert outline(one) == outline(same) and one.usage.unused == 0


def test_answers_are_distributed_as_sequential_ones():
    """Side by side, phrases that close sooner or score lower would be chosen more often than they should."""
    weights = torch.tensor([1.0, 0.7, 0.4, 0.1])

    def logits(prefix):
        """One phrase of one word and the end; the later the word in the alphabet, the surer the model."""
        row = [-30.0] * mock.SIZE
        said = prefix[1:]
        if not said:
            row[mock.SPAN] = 0.0
        elif len(said) == 1:
            for i, weight in enumerate(weights.tolist()):
                row[6 + i] = weight
        elif len(said) == 2:
            p = (0.9, 0.5, 0.2, 0.01)[said[1] - 6]
            row[mock.CN], row[mock.UN] = 0.0, float(torch.logit(torch.tensor(p)))
        else:
            row[mock.EOS] = 10.0
        return row

    counts = {}
    for m, first_seed in ((1, 0), (4, 10_000)):  # other seeds, or the answers would be the very same
        settings = ResamplingConfig(
            threshold=0.3, hints=0, local_attempts=4, max_attempts=6, candidates=m, temperature_step=0.3
        )
        counts[m] = [0] * 4
        for seed in range(first_seed, first_seed + 1200):
            result, _ = mock.run(mock.MockModel(logits), settings, temperature=1.0, seed=seed)
            counts[m][result.ids[1] - 6] += 1
    table = [column for column in zip(*counts.values(), strict=True) if sum(column)]
    assert len(table) >= 2 and chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_every_token_is_in_the_books(family, monkeypatch):
    """What candidates cost would be hidden: losers after the winner are generated too."""
    watched, take = [], Branch.take_token

    def watching(branch, *args):
        watched.append(branch.rules.seed - 100)
        return take(branch, *args)

    monkeypatch.setattr(Branch, "take_token", watching)
    results, _ = decode(family, range(4), config(**STRICT, candidates=4), temperature=0.8)
    assert sum(r.usage.unused for r in results) > 0
    for row, result in enumerate(results):
        assert watched.count(row) == result.usage.kept + result.usage.discarded
        if result.finish_reason != "length":  # the limit may cut a phrase that is open, without an attempt
            assert sum(t.tokens for t in result.trace) + result.usage.unused == result.usage.discarded


def test_unused_candidates_count_against_the_budget():
    """`max_extra_tokens` would be overrun by what nobody looked at."""
    told, found = [], []

    class Watched(ResamplePolicy):
        def next(self, segment):
            told.append(segment.unused)
            return super().next(segment)

    strict = ResamplingConfig(**STRICT, candidates=4)
    for seed in range(6):
        told.clear()
        result, policy = mock.run(mock.hashed(seed, 1.0), strict, seed=seed, factory=Watched)
        assert sum(told) <= result.usage.unused
        assert policy.budget.discarded == sum(t.tokens for t in result.trace) + sum(told)
        found.append(sum(told))
    assert sum(found) > 0  # the case would prove nothing
