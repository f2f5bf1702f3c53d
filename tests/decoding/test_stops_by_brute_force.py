"""Stop strings in answers of any ids: the last few ids tell what the whole text does."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.tiny_models import SENTENCES, train_tokenizer
from reverse.decoding.text.stopping import Stops
from reverse.tokens import TAGS, find_token_ids

TOKENIZERS = {style: train_tokenizer(SENTENCES, 500, style=style) for style in ("bytes", "sentencepiece")}
for _tokenizer in TOKENIZERS.values():
    _tokenizer.add_tokens(list(TAGS))
HALF = "\ufffd"


def decoder(tokenizer):
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def stops_at(decode, ids, strings):
    """Numbers of ids after which the whole text holds a stop string that it did not hold before."""
    found, before = [], ""
    for n in range(1, len(ids) + 1):
        text = decode(ids[:n])
        if any(text.find(s, max(0, len(before) - len(s) + 1)) >= 0 for s in strings):
            found.append(n)
        before = text.rstrip(HALF)
    return found


@pytest.mark.parametrize("style", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_last_ids_tell_what_the_whole_text_does(style, data):
    """A stop string behind bytes that are not text, with which an answer began, was not seen."""
    tokenizer = TOKENIZERS[style]
    decode, tags = decoder(tokenizer), find_token_ids(tokenizer)
    words = [" ", "\n", "A dog", " two cups", ".", "<", "SPAN"]
    parts = [tokenizer.encode(word, add_special_tokens=False) for word in words]
    parts += [[i] for i in tokenizer.encode("🦒é", add_special_tokens=False)]  # bytes of characters
    ids = [i for part in data.draw(st.lists(st.sampled_from(parts), min_size=1, max_size=30)) for i in part]
    text = decode(ids)
    at = data.draw(st.integers(0, max(0, len(text) - 1)))
    strings = [text[at : at + data.draw(st.integers(1, 8))]]
    if not strings[0] or HALF in strings[0]:
        return
    begin = data.draw(st.integers(0, len(ids) - 1))
    options = {"strings": strings, "checking": data.draw(st.booleans())}
    stops = Stops(torch.tensor([1]), decode, tags, **options)
    segment = stops.after(ids[:begin])
    grown = [n for n in range(begin + 1, len(ids) + 1) if segment(ids[begin:n])]
    assert grown == [n for n in range(begin + 1, len(ids) + 1) if stops(ids[:n])]
    assert grown == [n for n in stops_at(decode, ids, strings) if n > begin]


def test_a_stop_behind_broken_bytes_at_the_start_is_seen():
    """The blank behind them was taken for the start of a text, where SentencePiece writes none."""
    tokenizer = TOKENIZERS["sentencepiece"]
    half = tokenizer.encode("🦒", add_special_tokens=False)[-1]
    ids = [half, *tokenizer.encode("a b", add_special_tokens=False)]
    decode = decoder(tokenizer)
    stops = Stops(torch.tensor([1]), decode, find_token_ids(tokenizer), strings=[" a"])
    assert decode(ids).startswith(f"{HALF} a b")
    assert any(stops(ids[:n]) for n in range(1, len(ids) + 1))
