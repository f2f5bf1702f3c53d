"""Models that spell tags in ordinary tokens: phrases come from ids, spelled tags stay text."""

from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.tiny_models import SENTENCES, train_tokenizer
from reverse.decoding.config import ResamplingConfig
from reverse.decoding.text.answer_text import read_answer
from reverse.decoding.text.incremental_detokenizer import (
    IncrementalDetokenizer,
    find_partial_byte_token,
    split_into_pieces,
)
from reverse.decoding.text.sentence_ends import find_sentence_ends
from reverse.tokens import TAGS, TokenIds, break_tags, find_problems, find_token_ids, parse_tags, remove_tags
from tests.decoding import mock
from tests.decoding.mock import CN, DOT, SPAN, UN, always, hashed
from tests.decoding.mock import TAGS as TAG_IDS
from tests.decoding.test_policy import configs
from tests.decoding.test_stream import follow, replay

# In place of the mock's words: parts of tags, and a token that spells one alone.
SPELLING = [*mock.TEXTS[:6], "<", "SPAN", ">", "/CN", "</", "UN>", "<SP", "AN>", " a", "<SPAN>"]
OPEN, NAME, SHUT, SLASH_CN, WHOLE = 6, 7, 8, 9, 15


def spelling(model, config, **options):
    with patch.object(mock, "TEXTS", SPELLING):
        return follow(model, config, options.pop("room", 40), **options)


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32), configs, st.sampled_from([0.0, 0.7]), st.booleans())
def test_phrases_are_those_of_the_ids(salt, config, temperature, checking):
    """A spelled phrase would count as accepted without a p, or hide one that was never resolved."""
    result, policy, events, sink, _ = spelling(
        hashed(salt), config, temperature=temperature, checking=checking
    )
    if checking:
        assert len(result.phrases) == sum(i in (CN, UN) for i in result.ids) == len(policy.answer.spans)
        assert all(p.p_un is not None or p.status == "unresolved" for p in result.phrases)
    if result.resolved:
        assert all(p.status == "accepted" and p.p_un <= config.threshold for p in result.phrases)
    said = "".join(SPELLING[i] for i in result.ids if i not in TAG_IDS and i not in (mock.BOS, mock.EOS))
    assert result.text.strip() == break_tags(said).strip()
    # Nobody who reads text again is fooled.
    assert remove_tags(result.text) == result.text
    read = parse_tags(result.tagged)
    assert read.text == result.text
    assert [(p.text, p.start, p.end) for p in read.phrases] == [
        (p.text, p.start, p.end) for p in result.phrases
    ]
    assert all(remove_tags(entry.phrase) == entry.phrase for entry in result.trace)
    assert sink.text == result.text and replay(events)[:2] == (result.text, result.ids)


def test_a_spelled_phrase_is_no_phrase():
    """The finding itself: `<SPAN> a</CN>` in ordinary tokens was an accepted phrase without a p."""
    spelled = always(OPEN, NAME, SHUT, 14, OPEN, SLASH_CN, SHUT, DOT, mock.EOS)
    result, *_ = spelling(spelled, ResamplingConfig(threshold=0.5))
    assert result.phrases == () and result.resolved is True
    assert result.text == result.tagged == "< SPAN> a< /CN>."


def test_an_unresolved_phrase_cannot_be_hidden():
    """Spelled tags made the numbers of phrases differ, and every p and status was lost."""
    model = always(WHOLE, SPAN, 14, UN, WHOLE, DOT, mock.EOS)
    result, *_ = spelling(model, ResamplingConfig(threshold=0.5, max_attempts=0))
    (phrase,) = result.phrases
    assert phrase.status == "unresolved" and phrase.p_un > 0.5 and result.resolved is False
    assert result.text[phrase.start : phrase.end] == phrase.text == " a"
    assert result.text == "< SPAN> a< SPAN>."


def test_a_tag_spelled_around_a_tag_is_text():
    """Taken out of the middle, a tag would leave one behind that no one wrote."""
    ids = [12, SPAN, 14, CN, 13]  # "<SP" SPAN " a" CN "AN>"
    with patch.object(mock, "TEXTS", SPELLING):
        read = read_answer(mock.decode, ids, TAG_IDS)
        around = read_answer(mock.decode, [12, SPAN, CN, 13], TAG_IDS)
    assert (read.text, read.tagged) == ("<SP aAN>", "<SP<SPAN> a</CN>AN>")
    assert around.text == "< SPAN>" and parse_tags(around.tagged).text == "< SPAN>"
    assert len(around.phrases) == 1 and parse_tags(around.tagged).phrases[0].text == around.phrases[0].text


def test_sentences_end_by_ids_and_not_by_spelled_tags():
    """A token that reads `<SPAN>` would open a phrase that never ends, and no sentence would end after it."""
    ids, tags = [WHOLE, 14, DOT, 14, SPAN, 14, DOT, CN, DOT, 14], TokenIds(SPAN, CN, UN)
    pieces = [SPELLING[i] for i in ids]
    assert find_sentence_ends(pieces, ids=ids, tags=tags) == (3, 9)


TOKENIZERS = {style: train_tokenizer(SENTENCES, 500, style=style) for style in ("bytes", "sentencepiece")}
for _tokenizer in TOKENIZERS.values():
    _tokenizer.add_tokens(list(TAGS))


@pytest.mark.parametrize("style", TOKENIZERS)
@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.sampled_from([*TAGS, "<", "SPAN>", "</C", "N>", " two cups", "A", " ", "狗", "."]), max_size=16
    ),
    st.lists(st.sampled_from(TAGS), max_size=4),
)
def test_text_of_an_answer_tokenises_to_its_own_tags_only(style, words, real):
    """In a chat or a training record a spelled tag would become the token, a phrase that nobody marked."""
    tokenizer = TOKENIZERS[style]
    tags = find_token_ids(tokenizer)
    ids: list[int] = []
    for k, word in enumerate(words):  # ordinary tokens only, whatever they spell
        for part in (word[:2], word[2:]):
            ids += (
                [i for i in tokenizer.encode(part, add_special_tokens=False) if i not in tags] if part else []
            )
        if k < len(real):
            ids.append(tokenizer.convert_tokens_to_ids(real[k]))

    def decode(some):
        return tokenizer.decode(some, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    read = read_answer(decode, ids, tags)
    assert [i for i in tokenizer.encode(read.text, add_special_tokens=False) if i in tags] == []
    again = [i for i in tokenizer.encode(read.tagged, add_special_tokens=False) if i in tags]
    assert again == [i for i in ids if i in tags]
    shown = IncrementalDetokenizer(decode, tags, find_partial_byte_token(tokenizer))
    told = "".join(shown.feed([i]) for i in ids)
    assert read.text.startswith(told)


def test_a_record_of_a_spelled_tag_is_refused_and_not_trained():
    """`data check` would pass a tagged answer in which a spelled tag reads like a mark."""
    assert [p.kind for p in find_problems(break_tags("a <SPAN>dog</CN> and <SPAN>a cat</UN>"))] == [
        "near_tag"
    ] * 4


# ---------------------------------------------------------------------- every id costs the same
def count_decoded(style, ids, half=True):
    """How many ids are decoded in all while `ids` are shown one by one."""
    tokenizer, counted = TOKENIZERS[style], [0]

    def decode(some):
        counted[0] += len(some)
        return tokenizer.decode(some, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    shown = IncrementalDetokenizer(decode, find_token_ids(tokenizer), find_partial_byte_token(tokenizer))
    for token in ids:
        shown.feed([token])
    split_into_pieces(decode, ids)
    return counted[0]


@pytest.mark.parametrize("style", TOKENIZERS)
@pytest.mark.parametrize("kind", ["words", "half", "blanks", "tags"])
def test_work_on_a_growing_text_is_linear(style, kind):
    """An answer of 100 kB, or one of halves of characters, would be decoded from its start again."""
    tokenizer = TOKENIZERS[style]
    half = find_partial_byte_token(tokenizer)
    unit = {
        "words": tokenizer.encode("There are two dogs on the sofa. ", add_special_tokens=False),
        "half": [half],
        "blanks": tokenizer.encode("\n", add_special_tokens=False)[-1:],
        "tags": list(find_token_ids(tokenizer))[:2],
    }[kind]
    small, large = (count_decoded(style, (unit * size)[:size]) for size in (700, 2800))
    assert large < 6 * small


@pytest.mark.parametrize("style", TOKENIZERS)
@settings(max_examples=8, deadline=None)
@given(st.data())
def test_going_back_in_a_long_text_keeps_what_was_told(style, data):
    """After a rewind in a long answer, of halves of characters too, text would be told twice or be lost."""
    tokenizer = TOKENIZERS[style]
    tags, half = find_token_ids(tokenizer), find_partial_byte_token(tokenizer)
    units = [
        tokenizer.encode("two dogs. 狗 ", add_special_tokens=False),
        [half],
        list(tags)[:2],
        [half] * 270,
    ]
    drawn = data.draw(st.lists(st.sampled_from(units), min_size=6, max_size=14))
    ids = [i for unit in drawn for i in unit]

    def decode(some):
        return tokenizer.decode(some, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    shown, text = IncrementalDetokenizer(decode, tags, half), ""
    for _ in range(3):
        to = data.draw(st.integers(0, len(ids)))
        for token in ids[len(shown.ids) :]:
            text += shown.feed([token])
            assert shown.length == len(text)
        keep = shown.cut(to)
        assert keep <= len(text)
        text = text[:keep]
        assert read_answer(decode, ids[:to], tags).text.startswith(text)
    rest = ids[len(shown.ids) :]
    text += shown.feed(rest) if rest else ""
    assert read_answer(decode, ids, tags).text.startswith(text)
