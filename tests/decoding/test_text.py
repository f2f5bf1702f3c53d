"""Sentence ends, token pieces and hints: what the layer around the policy reads and writes."""

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from experiments.tiny_models import SENTENCES, build_tiny_llava, build_tiny_qwen, train_tokenizer
from reverse.decoding.text.codec import TextCodec
from reverse.decoding.text.hints import HintWriter
from reverse.decoding.text.incremental_detokenizer import split_into_pieces
from reverse.decoding.text.sentence_ends import find_sentence_ends


def ends_of(*pieces, before=""):
    text, found = "", []
    for i, piece in enumerate(pieces):
        text += piece
        if i + 1 in find_sentence_ends(pieces, before):
            found.append(text)
    return found


@pytest.mark.parametrize(
    "pieces, ends",
    [
        (["A", " cup", ".", " Two", " dogs"], ["A cup."]),
        (["Look", "!", " Why", "?", " So", "."], ["Look!", "Look! Why?"]),
        (["It", " costs", " 3", ".", "5", " dollars"], []),
        (["Fruit", ",", " e", ".", "g", ".", " a", " pear"], []),
        (["Mr", ".", " Smith"], []),
        (["at", " the", " U.S.", " border"], []),
        (["狗", "。", "猫"], ["狗。"]),
        (["one", "\n", "two"], ["one\n"]),
        (['"Stop', '."', " Then"], ['"Stop."']),
        (["a", " dog", ".", "<SPAN>", "A. b. c", "</CN>", ".", " x"], None),
        (["wait", "...", " what"], ["wait..."]),
        ([".", " ", "<SPAN>"], ["."]),
    ],
)
def test_sentence_ends(pieces, ends):
    """A rewind would stop inside a number, an abbreviation or a phrase, or never at a sentence."""
    found = ends_of(*pieces)
    if ends is None:
        assert [f.count("<SPAN>") for f in found] == [0, 1] and all(f.endswith(".") for f in found)
    else:
        assert found == ends


def test_last_piece_is_only_looked_ahead_to():
    """ "3." would end a sentence before the 5 is seen."""
    assert find_sentence_ends(["It", " is", " 3", "."]) == ()


def test_abbreviation_across_the_segment_border():
    """ "e." "g." split over two segments would be taken for a sentence end."""
    assert find_sentence_ends([".", "g", ".", " a"], "fruit, e") == ()


@pytest.mark.parametrize("style", ["bytes", "sentencepiece"])
@given(text=st.text(min_size=0, max_size=60))
@example(text="\x80" + 14 * "\u0800" + "0")
@example(text=20 * "\u0800" + 9 * "\x80" + 12 * "\u0800" + "0")
def test_pieces_join_to_the_text(style, text):
    """Sentence ends would be told at the wrong token, for emoji and Chinese above all."""
    tokenizer = TOKENIZERS[style]

    def decode(ids):
        return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    ids = tokenizer.encode("A dog. " + text, add_special_tokens=False)
    pieces = split_into_pieces(decode, ids)
    assert len(pieces) == len(ids)
    if "\ufffd" not in decode(ids):
        assert "".join(pieces) == decode(ids)
        half = len(ids) // 2
        joined = "".join(
            split_into_pieces(decode, ids[:half]) + split_into_pieces(decode, ids[half:], ids[:half])
        )
        if half and not decode(ids[:half]).endswith("\ufffd"):
            assert joined == decode(ids)


TOKENIZERS = {style: train_tokenizer(SENTENCES, 600, style=style) for style in ("bytes", "sentencepiece")}


# ---------------------------------------------------------------------- hints
@pytest.fixture(scope="module", params=["llava", "qwen", "vicuna"])
def processor(request):
    if request.param == "vicuna":
        return build_tiny_llava(TOKENIZERS["sentencepiece"])[1]
    return {"llava": build_tiny_llava, "qwen": build_tiny_qwen}[request.param]()[1]


def prompt_ids(processor, question):
    turn = [{"role": "user", "content": [{"type": "text", "text": question}]}]
    text = processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    return processor.tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("question", ["Describe this image.", "How many? 7", "dogs", "Is it (red)"])
def test_hint_stands_at_the_end_of_the_users_turn(processor, question):
    """The hint would land inside the header of the answer, as with a fixed offset of five tokens."""
    writer, ids = HintWriter(processor), prompt_ids(processor, question)
    at = writer.insert_at(ids)
    rewritten = processor.tokenizer.decode(ids[:at] + writer.ids(["Two Cups", "a dog"]) + ids[at:])
    plain = processor.tokenizer.decode(ids)
    hint = " (Hint: potential incorrect phrases -> two cups, a dog)"
    assert rewritten == plain.replace(question, question + hint)


def test_hint_ids_are_those_of_the_joined_text(processor):
    """A model trained on text with hints would be shown other ids when decoding."""
    writer = HintWriter(processor)
    for question in ("Describe this image.", "Is there a cat?"):
        ids = prompt_ids(processor, question)
        at = writer.insert_at(ids)
        joined = prompt_ids(processor, question + writer.text(["a cat", "two dogs"]))
        assert ids[:at] + writer.ids(["a cat", "two dogs"]) + ids[at:] == joined


def test_only_the_last_hints_are_written(processor):
    """The hint would grow without end, or lose the newest phrases."""
    writer = HintWriter(processor, limit=2)
    assert writer.text(["a", "B", "b ", "c"]) == " (Hint: potential incorrect phrases -> b, c)"
    assert writer.ids([]) == [] and writer.text(["", " "]) == ""


def test_prompt_of_another_template_is_refused(processor):
    """The hint would be put somewhere into the question."""
    with pytest.raises(ValueError, match=r"apply_chat_template.*hints=0"):
        HintWriter(processor).insert_at(processor.tokenizer.encode("What is this?"))


def test_processor_without_template_is_refused():
    """The end of the user's turn would be guessed."""
    with pytest.raises(ValueError, match="no chat template"):
        HintWriter(TOKENIZERS["bytes"])


@pytest.mark.parametrize("build", [build_tiny_llava, build_tiny_qwen])
def test_text_is_decoded_as_transformers_does(build):
    """The short way through the Rust library would show special tokens, or pass a tokenizer's own by."""
    processor = build()[1]
    codec, tokenizer = TextCodec(processor), processor.tokenizer
    generator = random.Random(0)
    for length in range(40):
        ids = [generator.randrange(len(tokenizer)) for _ in range(length)]
        expected = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert codec.decode(ids) == expected
    kind = type("Own", (type(tokenizer),), {"decode": lambda self, ids, **options: "its own"})
    tokenizer.__class__ = kind
    assert TextCodec(processor).decode([5]) == "its own"
