"""`Plain(keep_phrases=True)`: `</CN>` is written where `</UN>` would be, and nothing else changes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reverse
from reverse.decoding.backends.hf.token_choice import choose_tokens
from reverse.decoding.backends.protocol import RunningSegment, SegmentParams
from reverse.decoding.config import ResamplingConfig
from reverse.decoding.policies.plain_policy import KeepPhrasesPolicy
from reverse.decoding.sampling import merge_closing_tags
from reverse.decoding.verifier import NO_TAGS
from reverse.modes import Plain
from tests.decoding import mock
from tests.decoding.worlds import picture, talkative

CONFIG = ResamplingConfig(threshold=0.5)


def doubtful(un: float, cn: float, other: float = 0.0) -> mock.MockModel:
    """Writes one phrase, closes it with these probabilities, ends after `</UN>` and goes on after `</CN>`."""

    def logits(prefix: list[int]) -> list[float]:
        row = [-30.0] * mock.SIZE
        if prefix[-1] == mock.BOS:
            row[mock.SPAN] = 0.0
        elif prefix[-1] == mock.SPAN:
            row[7] = 0.0
        elif prefix[-1] == 7 and mock.CN not in prefix and mock.UN not in prefix:
            row[mock.UN], row[mock.CN] = math.log(un), math.log(cn)
            if other:
                row[8] = math.log(other)
        elif prefix[-1] == mock.CN:
            row[9] = 0.0
        else:
            row[mock.EOS] = 0.0
        return row

    return mock.MockModel(logits)


def decode(model: mock.MockModel, policy: object = None, **options: object) -> reverse.Result:
    checking = policy is None
    return mock.run(model, CONFIG, checking=checking, factory=policy, **options)[0]


def test_the_answer_goes_on_after_a_phrase_that_the_model_doubts() -> None:
    """The answer would end at `</UN>`, and whatever corrects it would look too good."""
    model = doubtful(un=0.9, cn=0.1)
    cut = decode(model, Plain().policy)
    assert cut.ids == (mock.SPAN, 7, mock.UN, mock.EOS) and cut.phrases[0].p_un == pytest.approx(0.9)
    kept = decode(model, Plain(keep_phrases=True).policy)
    assert kept.ids == (mock.SPAN, 7, mock.CN, 9, mock.EOS)
    assert kept.phrases[0].p_un == pytest.approx(0.9) and kept.phrases[0].text.strip() == "b"
    assert kept.resolved is None and kept.usage.discarded == 0


def test_a_phrase_that_is_kept_in_the_end_is_followed_too() -> None:
    """`on_exhausted="best"` would leave `</UN>` in the text, after which the model ends."""
    model = doubtful(un=0.9, cn=0.1)
    for attempts in (0, 2):
        config = ResamplingConfig(threshold=0.5, max_attempts=attempts)
        result, _ = mock.run(model, config)
        assert result.ids == (mock.SPAN, 7, mock.CN, 9, mock.EOS) and result.resolved is False
        assert result.phrases[0].status == "unresolved"


def test_both_probabilities_are_added_before_a_choice() -> None:
    """A phrase would go on because its end is spelled in two ways: 0.3 and 0.3 against 0.4."""
    kept = decode(doubtful(un=0.3, cn=0.3, other=0.4), KeepPhrasesPolicy)
    assert kept.ids[:3] == (mock.SPAN, 7, mock.CN)
    assert decode(doubtful(un=0.3, cn=0.2, other=0.5001), KeepPhrasesPolicy).ids[:3] == (mock.SPAN, 7, 8)


def test_a_closing_tag_is_drawn_as_often_as_either_was() -> None:
    """Sampled phrases would end sooner or later than those of the model itself."""
    model = doubtful(un=0.35, cn=0.25, other=0.4)
    drawn = [decode(model, KeepPhrasesPolicy, temperature=1.0, seed=seed).ids[2] for seed in range(600)]
    plain = [decode(model, Plain().policy, temperature=1.0, seed=seed).ids[2] for seed in range(600)]
    assert mock.UN not in drawn and {mock.UN, mock.CN, 8} <= set(plain)
    share = drawn.count(mock.CN) / len(drawn)
    assert share == pytest.approx(0.6, abs=0.06)
    assert share == pytest.approx((plain.count(mock.CN) + plain.count(mock.UN)) / len(plain), abs=0.06)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=mock.SIZE, max_size=mock.SIZE), st.booleans())
def test_p_and_likelihood_are_those_of_the_model(values: list[float], inside: bool) -> None:
    """p(`</UN>`) would be read after `</UN>` was taken out: every phrase would pass for sure."""
    logits = torch.tensor([values])
    segments = []
    for merges in (False, True):
        segment = RunningSegment(SegmentParams(9, mock.TAGS, merges_closing_tags=merges, masks_tags=False))
        segment.is_inside = inside
        segments.append(segment)
    plain, merged = choose_tokens(logits.repeat(2, 1), segments)
    assert merged.p == plain.p == pytest.approx(float(logits.softmax(-1)[0, mock.UN]), abs=1e-6)
    both = merge_closing_tags(logits, mock.TAGS)
    assert torch.allclose(both.logsumexp(-1), logits.logsumexp(-1), atol=1e-4)
    assert merged.token != mock.UN
    assert merged.log_probability == pytest.approx(float(both.log_softmax(-1)[0, merged.token]), abs=1e-4)
    if plain.token in (mock.UN, mock.CN):
        assert merged.token == mock.CN
    none = RunningSegment(SegmentParams(9, NO_TAGS, merges_closing_tags=True, masks_tags=False))
    assert choose_tokens(logits, [none])[0].token == int(logits.argmax())


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_models_that_never_doubt_say_what_generate_says(family: str) -> None:
    """The option would change answers in which no phrase is doubtful."""
    sure = talkative(family, rejects_rarely=True)
    for seed in range(3):
        asked = {"images": picture(seed), "max_new_tokens": 24}
        free = reverse.generate(*sure, mode="plain", **asked)
        kept = reverse.generate(*sure, mode=Plain(keep_phrases=True), **asked)
        tags = reverse.generate(*talkative(family), mode=Plain(keep_phrases=True), **asked)
        assert "</UN>" not in tags.tagged
        assert kept.ids == free.ids
        assert [p.p_un for p in kept.phrases] == pytest.approx([p.p_un for p in free.phrases])
