"""Labels: targets are what the definition says, compared with the slow obvious way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reverse.training.data.labels import IGNORE, LabelledPart, join, span_mask

SPAN, CN, UN, EOS = 1, 2, 3, 4
TAGS = {"span_id": SPAN, "cn_id": CN, "un_id": UN}
answers = st.lists(st.integers(0, 7), max_size=40)


def slow_mask(ids):
    mask = [True] * len(ids)
    opened = None
    for i, token in enumerate(ids):
        if token == SPAN:
            opened = i
        elif token in (CN, UN):
            if token == UN and opened is not None:
                for j in range(opened + 1, i):
                    mask[j] = False
            opened = None
    return mask


def closed(ids):
    """`ids` without the `</UN>`s that close nothing, which `join` refuses."""
    kept, opened = [], False
    for token in ids:
        if token != UN or opened:
            kept.append(token)
        opened = token == SPAN or (opened and token not in (CN, UN))
    return kept


@given(answers)
def test_mask_equals_the_slow_reference(ids):
    """A vectorised mask off by one would train the wrong phrase, or leave `</UN>` untrained."""
    assert span_mask(ids, **TAGS).tolist() == slow_mask(ids)


@given(st.lists(st.lists(st.integers(0, 7), min_size=9, max_size=9), min_size=1, max_size=5))
def test_mask_of_a_batch_is_that_of_its_rows(rows):
    """A tag of one row would reach into the next."""
    assert span_mask(np.array(rows), **TAGS).tolist() == [slow_mask(row) for row in rows]


def test_close_without_open_masks_nothing():
    """The released code masked everything before a `</UN>` that closes nothing."""
    assert span_mask([5, 6, UN, EOS], **TAGS).all()
    assert span_mask([SPAN, 5, CN, 6, UN, EOS], **TAGS).all()


def test_wrong_phrase_is_input_and_no_target():
    """`<SPAN>`, `</UN>` and the end must stay targets, the phrase between them must not."""
    ids = [5, SPAN, 6, 7, UN, EOS]
    assert span_mask(ids, **TAGS).tolist() == [True, True, False, False, True, True]


@given(st.lists(st.tuples(answers, st.booleans()), max_size=6))
def test_only_answers_are_targets_and_phrases_end_with_their_segment(pieces):
    """A question would be trained, or a `<SPAN>` in one turn would mask the next."""
    pieces = [(closed(ids) if target else ids, target) for ids, target in pieces]
    segments = [LabelledPart(ids, target) for ids, target in pieces]
    expected = [
        token if target and kept else IGNORE
        for ids, target in pieces
        for token, kept in zip(ids, slow_mask(ids), strict=True)
    ]
    if all(label == IGNORE for label in expected):
        with pytest.raises(ValueError, match="target"):
            join(segments, **TAGS)
        return
    ids, labels = join(segments, **TAGS)
    assert ids.tolist() == [token for piece, _ in pieces for token in piece]
    assert labels.tolist() == expected


def test_a_closing_tag_that_closes_nothing_is_refused():
    """Half an answer would be masked, or a hallucination trained, without a word."""
    for ids in ([5, UN, EOS], [SPAN, 5, CN, 6, UN, EOS], [SPAN, 5, UN, 6, UN]):
        with pytest.raises(ValueError, match="closes no open <SPAN>"):
            join([LabelledPart([7], False), LabelledPart(ids, True)], **TAGS)
    join(
        [LabelledPart([UN], False), LabelledPart([SPAN, SPAN, 5, UN, EOS], True)], **TAGS
    )  # prompts may say what they like
