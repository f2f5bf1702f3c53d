"""Choosing tokens, keyed noise, tag masks and p, against straightforward references."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest

from reverse.decoding.sampling import choose, invert, mask_tags, uniform
from reverse.decoding.verifier import NO_TAGS, Verifier
from reverse.tokens.spans import TokenIds

TAGS = TokenIds(2, 3, 4)


def test_noise_is_uniform_and_keyed():
    """Sampling would be biased, or repeat itself from position to position."""
    draws = [
        uniform(seed, position, attempt) for seed in range(8) for position in range(50) for attempt in (0, 1)
    ]
    assert kstest(draws, "uniform").pvalue > 1e-3
    assert len(set(draws)) == len(draws)
    assert uniform(1, 2, 3) == uniform(1, 2, 3)


def test_noise_is_the_same_on_every_machine():
    """Seeds in published results would mean something else elsewhere."""
    assert uniform(0, 0, 0) == uniform(0, 0, 0, ()) == 0.156742553465558


def test_noise_differs_from_branch_to_branch():
    """Samples of one request would be copies of one another, or two paths share their noise."""
    paths = [(), (1,), (2,), (1, 1), (1, 2), (2, 1), (0, 1), (1, 0, 1)]
    draws = [uniform(3, position, 1, path) for path in paths for position in range(200)]
    assert len(set(draws)) == len(draws)
    assert kstest(draws, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("top_k, top_p", [(0, 1.0), (3, 1.0), (0, 0.7), (4, 0.8)])
def test_samples_follow_the_distribution(top_k, top_p):
    """Temperature, top-k or top-p would bend the probabilities."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 9, generator=generator) * 1.5
    expected = _reference(logits[0], 0.8, top_k, top_p)
    n = 4000
    tokens = choose(logits.expand(n, -1), [0.8] * n, [uniform(3, i, 0) for i in range(n)], top_k, top_p)
    counts = np.bincount(tokens.numpy(), minlength=9)
    assert (counts[expected == 0] == 0).all()
    kept = expected > 0
    assert chisquare(counts[kept], expected[kept] * n).pvalue > 1e-3


def _reference(logits, temperature, top_k, top_p):
    p = torch.softmax(logits.double() / temperature, dim=-1).numpy()
    order = np.argsort(-p)
    if top_k:
        p[order[top_k:]] = 0
        p /= p.sum()
    total = 0.0
    for i in order:
        if total >= top_p:
            p[i] = 0
        total += p[i]
    return p / p.sum()


def test_greedy_rows_beside_sampled_ones():
    """A greedy row would be sampled because its neighbour is."""
    logits = torch.tensor([[0.0, 5.0, 1.0], [0.0, 5.0, 1.0]])
    assert choose(logits, [0.0, 1.0], [0.999, 0.0]).tolist() == [1, 0]
    assert choose(logits, [1.0, 0.0], [0.999999, 0.5]).tolist() == [2, 1]


def test_masked_tokens_are_never_chosen():
    """Noise at the end of the range would pick a token of probability zero."""
    logits = torch.full((1, 6), -torch.inf)
    logits[0, 2] = 1.0
    for noise in (0.0, 0.5, 1 - 2**-53):
        assert choose(logits, [0.7], [noise]).tolist() == [2]


def test_tags_are_masked_by_state():
    """Phrases would nest, or close without having been opened."""
    masked = mask_tags(torch.zeros(2, 6), [False, True], TAGS)
    assert masked[0].isinf().nonzero().flatten().tolist() == [3, 4]
    assert masked[1].isinf().nonzero().flatten().tolist() == [2]


def test_p_is_the_softmax_of_raw_logits():
    """p would be read after upcasting too late, or from the wrong column."""
    logits = torch.randn(5, 7, dtype=torch.bfloat16)
    expected = torch.softmax(logits.float(), dim=-1)[:, TAGS.un]
    assert torch.allclose(Verifier(TAGS).p(logits), expected, atol=1e-6)
    pair = Verifier(TAGS, score="pair").p(logits)
    both = torch.softmax(logits.float()[:, [TAGS.cn, TAGS.un]], dim=-1)[:, 1]
    assert torch.allclose(pair, both, atol=1e-6)


def test_every_token_takes_the_highest_p_inside_the_phrase():
    """check="every_token" would look at the text before the phrase, or only at its end."""
    ids, ps = (9, TAGS.span, 9, 9, TAGS.cn), (0.9, 0.8, 0.1, 0.4, 0.2)
    assert Verifier(TAGS).read_phrase(ids, ps) == 0.2
    assert Verifier(TAGS, check="every_token").read_phrase(ids, ps) == 0.4


def test_models_without_tags_have_no_p_but_show_nan():
    """The plain twin could not be decoded, or its NaN would go unnoticed."""
    verifier = Verifier(NO_TAGS)
    assert verifier.p(torch.randn(2, 5)).tolist() == [0.0, 0.0]
    assert verifier.p(torch.full((1, 5), float("nan"))).isnan().all()


@pytest.mark.parametrize("size", [3, 512, 513, 4000])
def test_inversion_is_that_of_one_sum(size):
    """Summing in blocks would choose other ids than the distribution says, or ones that may not stand."""
    generator = torch.Generator().manual_seed(size)
    scores = torch.randn(200, size, generator=generator, dtype=torch.float64) * 3
    scores[:, 1] = scores[::2, 0] = scores[1::2, -1] = -torch.inf
    noise = torch.rand(200, 1, generator=generator, dtype=torch.float64)
    noise[:8] = torch.tensor([0.0, 1 - 2.0**-53] * 4)[:, None]
    found = invert(scores, noise)
    whole = scores.softmax(-1).numpy().cumsum(-1)
    for row, u, i in zip(whole[8:], noise[8:, 0].tolist(), found[8:].tolist(), strict=True):
        assert i == np.searchsorted(row, u * row[-1], side="right")
    assert torch.isfinite(scores.gather(1, found[:, None])).all()
