"""Hints are text: a rejected phrase that spells a token of the tokenizer's own is written as text."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reverse
from experiments.tiny_models import SENTENCES, build_tiny_llava, build_tiny_qwen, train_tokenizer
from reverse.decoding.text.hints import HintWriter
from reverse.tokens import add_tokens
from reverse.training.data.encoding import Encoder, Turn

CONTROL = ["<image>", "</s>", "<s>", "<|im_end|>", "<|im_start|>", "<|image_pad|>", "<pad>", "<unk>"]
CONTROL += ["<SPAN>", "</CN>", "</UN>", "<|im_end|>\n<|im_start|>assistant\n", "[obj]", "<mine>"]


def build(name):
    if name == "vicuna":
        model, processor = build_tiny_llava(train_tokenizer(SENTENCES, 500, style="sentencepiece"))
    else:
        model, processor = {"llava": build_tiny_llava, "qwen": build_tiny_qwen}[name]()
    add_tokens(model, processor)
    processor.tokenizer.add_tokens(["[obj]", "</cn>", "<span>"])  # a user's own; tags as hints spell them
    processor.tokenizer.add_tokens(["<mine>"], special_tokens=True)
    return model, processor


MODELS = {name: build(name) for name in ("llava", "vicuna", "qwen")}
PROCESSORS = {name: processor for name, (_, processor) in MODELS.items()}
WRITERS = {name: HintWriter(processor) for name, processor in PROCESSORS.items()}
OURS = {
    name: {i for i, token in processor.tokenizer.added_tokens_decoder.items() if token.content.strip()}
    for name, processor in PROCESSORS.items()
}


@pytest.mark.parametrize("name", PROCESSORS)
@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(CONTROL) | st.sampled_from(["two cups", " ", "a"]), max_size=5).map("".join),
        min_size=1,
        max_size=4,
    )
)
def test_hints_never_hold_tokens_of_the_tokenizers_own(name, phrases):
    """A phrase that spells `</s>` or `<image>` would end the user's turn or ask for a second picture."""
    writer, tokenizer = WRITERS[name], PROCESSORS[name].tokenizer
    ids = writer.ids(phrases)
    assert not OURS[name] & set(ids)
    head = tokenizer.encode("a", add_special_tokens=False)
    assert tokenizer.decode(head + ids, clean_up_tokenization_spaces=False) == "a" + writer.text(phrases)


@pytest.mark.parametrize("name", PROCESSORS)
def test_ordinary_hints_keep_their_ids(name):
    """Plain encoding would change what models were trained on for every phrase."""
    tokenizer = PROCESSORS[name].tokenizer
    hint = " (Hint: potential incorrect phrases -> two cups, 3 < 4)"
    joined = tokenizer.encode("a" + hint, add_special_tokens=False)
    head = len(tokenizer.encode("a", add_special_tokens=False))
    assert WRITERS[name].ids(["two cups", "3 < 4"]) == joined[head:]


@pytest.mark.parametrize("name", PROCESSORS)
def test_training_writes_no_control_tokens_as_hints_either(name):
    """A record's hint `</s>` would train an end of turn in the question: refused, or text."""
    encoder = Encoder(PROCESSORS[name])
    clean = encoder.row([Turn("What is it?", "A dog.", ("a cat",))], None)
    for spelled in CONTROL:
        try:
            row = encoder.row([Turn("What is it?", "A dog.", (f"a {spelled}",))], None)
        except ValueError as error:
            assert "hint" in str(error)
            continue
        for own in OURS[name]:
            assert (row.ids == own).sum() == (clean.ids == own).sum()


@pytest.mark.parametrize("name, token", [("llava", "<image>"), ("vicuna", "</s>"), ("qwen", "<|im_end|>")])
def test_second_question_with_a_control_token_is_refused(name, token):
    """The instruction of the second question would end the turn, found out in mid-run or never."""
    asked = {"prompt": "What is it?", "threshold": 0.5}  # streams that are not read decode nothing
    with pytest.raises(ValueError, match=r"false_premise holds .*not as text"):
        reverse.stream(*MODELS[name], open_ended=True, false_premise=f"Say {token} instead.", **asked)
    reverse.stream(*MODELS[name], false_premise=f"unused {token}", **asked)
    with pytest.raises(ValueError, match="false_premise must be a text"):
        reverse.stream(*MODELS[name], false_premise=" ", **asked)


def test_a_tokenizer_that_cannot_write_it_as_text_says_so(monkeypatch):
    """A control token would slip through where the vocabulary itself spells it."""
    writer = copy.copy(WRITERS["llava"])
    monkeypatch.setattr(HintWriter, "_encode_plainly", HintWriter._encode)
    with pytest.raises(ValueError, match=r"tokens of its own, \['<image>'\].*hints=0"):
        writer.ids(["an <image>"])


def test_a_phrase_without_end_is_left_out_of_the_hint():
    """A phrase of a whole answer would be tokenised anew after every rejection and fill the context."""
    writer = WRITERS["llava"]
    assert writer.text(["x" * 1001, "a cat"]) == writer.text(["a cat"])
    assert writer.ids(["x" * 1001]) == [] and writer.text(["x" * 1000])
