"""Ends that the caller asks for, and the processors that come with them: as plain generate() has them."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reverse.decoding.stopping import Stops, stop_texts
from reverse.decoding.verifier import NO_TAGS
from reverse.models.tiny import SENTENCES, train_tokenizer
from tests.decoding import mock
from tests.decoding.mock import CN, DOT, SPAN, TAGS, UN

A, B, C = 6, 7, 8
TOKENIZERS = {style: train_tokenizer(SENTENCES, 600, style=style) for style in ("bytes", "sentencepiece")}
LETTERS = "ab .\n狗🦒é"
PROMPT = torch.tensor([0, 0, A])


def stops(*strings, **settings):
    return Stops(PROMPT, mock.decode, TAGS, strings=strings, **settings)


def ended_at(asked, ids):
    """How many ids are said until the answer is stopped."""
    return next((n for n in range(1, len(ids) + 1) if asked(ids[:n])), None)


# ---------------------------------------------------------------------- strings
def test_stop_string_over_several_ids():
    """Only stop strings that are one token would ever be found."""
    assert ended_at(stops(" b."), [A, B, A, B, DOT, A]) == 5
    assert ended_at(stops(" c", " a b"), [B, A, B]) == 3
    assert ended_at(stops(" c"), [B, A, B]) is None


def test_stop_string_is_told_once():
    """An old match would stop an answer that was allowed to go on from it."""
    asked = stops(" a")
    assert asked([B, A]) and not asked([B, A, B])


def test_stop_string_is_looked_for_in_the_clean_text():
    """ "dog." would be missed where the phrase is marked: "dog</CN>."."""
    assert ended_at(stops(" a."), [B, SPAN, A, CN, DOT]) == 5


def test_stop_inside_a_phrase_is_told_at_its_end():
    """A phrase that is taken back would have stopped the answer."""
    assert ended_at(stops(" b"), [A, SPAN, B, C, CN, A]) == 5
    assert ended_at(stops(" b"), [A, SPAN, C, UN, A, B]) == 6
    assert ended_at(stops(" b", checking=False), [A, SPAN, B, C, CN, A]) == 3


@pytest.mark.parametrize("style", TOKENIZERS)
@settings(max_examples=200, deadline=None)
@given(
    text=st.text("ab .\n狗🦒é", min_size=1, max_size=30), stop=st.text("ab .\n狗🦒é", min_size=1, max_size=4)
)
def test_stop_strings_are_found_where_they_end(style, text, stop):
    """A stop would be missed at a joint of tokens or characters, or be told for text that is not there."""
    tokenizer = TOKENIZERS[style]

    def decode(ids):
        return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    ids = tokenizer.encode("A dog " + text, add_special_tokens=False)
    first = next((n for n in range(1, len(ids) + 1) if stop in decode(ids[:n])), None)
    if "\ufffd" in decode(ids):
        return
    assert ended_at(Stops(PROMPT, decode, NO_TAGS, strings=(stop,)), ids) == first


@pytest.mark.parametrize(
    "value, error, message",
    [
        ("", ValueError, "holds an empty text.*leave it out"),
        ([3], TypeError, "a text or a list of texts, got 3"),
        (["a</CN>"], ValueError, "take </CN> out"),
    ],
)
def test_stop_strings_that_cannot_be_meant(value, error, message):
    """An empty stop string would end every answer after one token, and a tag never be found."""
    with pytest.raises(error, match=message):
        stop_texts(value)
    assert stop_texts(None) == () and stop_texts("a") == ("a",) and stop_texts(["a", "b"]) == ("a", "b")


# ---------------------------------------------------------------------- criteria, time, readers
def test_criteria_see_the_prompt_and_the_answer():
    """A criterion that looks at `input_ids` would be shown something else than in generate()."""
    seen = []

    def criterion(input_ids, scores, **_):
        seen.append(input_ids.tolist())
        return input_ids[:, -1] == B

    assert ended_at(stops(criteria=[criterion]), [A, C, B, A]) == 3
    assert seen[-1] == [[0, 0, A, A, C, B]]


def test_criterion_that_needs_scores_says_so():
    """It would fail with an error about NoneType from inside the caller's code."""

    def criterion(input_ids, scores, **_):
        return scores.max() > 3

    with pytest.raises(ValueError, match=r"stopping criterion function failed .*scores are None"):
        stops(criteria=[criterion])([A])


def test_time_and_absent_readers_wait_for_nothing():
    """A stream nobody reads, or a call past `max_time`, would go on to the end of its phrase and beyond."""
    assert stops(deadline=time.time() - 1)([A, SPAN, B])
    assert not stops(deadline=time.time() + 60)([A])
    assert stops(left=lambda: True)([A, SPAN])
    assert not stops() and stops(left=lambda: False) and stops("x")
