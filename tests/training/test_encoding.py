"""Rows: prompts are those that decoding prefills, answers stand where they were put."""

import re

import numpy as np
import pytest

from reverse.decoding.text.hints import HintWriter
from reverse.models import family_of, prepare_inputs
from reverse.training.data.encoding import Encoder
from reverse.training.data.labels import IGNORE
from reverse.training.data.picture_encoding import PictureEncoder
from reverse.training.data.record_turns import Turn, turns_of

QUESTION = "Describe this image."
ANSWER = "There is <SPAN>a dog</CN> and <SPAN>two cups</UN>"


def prefilled(model, processor, picture, question=QUESTION):
    return prepare_inputs(processor, [picture], [question], family_of(model))["input_ids"][0].tolist()


def encoded(processor, picture, turns, **options):
    _, tokens = PictureEncoder(processor)(picture)
    return Encoder(processor, **options).row(turns, tokens)


def test_prompt_is_what_decoding_prefills(tiny_any, picture):
    """A model trained on another prompt than it is asked with loses what it learnt."""
    model, processor = tiny_any
    prompt = prefilled(model, processor, picture())
    row = encoded(processor, picture(), [Turn(QUESTION, ANSWER)])
    assert row.ids[: len(prompt)].tolist() == prompt
    assert (row.labels[: len(prompt)] == IGNORE).all()
    answer = processor.tokenizer.decode(row.ids[len(prompt) :])
    assert answer.strip() == ANSWER + processor.tokenizer.eos_token


def test_targets_spell_the_answer_without_the_wrong_phrase(tiny_any, picture):
    """A shifted label would train the question, or the hallucination."""
    _, processor = tiny_any
    row = encoded(processor, picture(), [Turn(QUESTION, ANSWER)])
    targets = processor.tokenizer.decode(row.labels[row.labels != IGNORE])
    assert targets.strip() == ANSWER.replace("two cups", "") + processor.tokenizer.eos_token


def test_hints_stand_where_decoding_writes_them(tiny_any, picture):
    """Hints in another place, or tokenised otherwise, are not those that decoding writes."""
    model, processor = tiny_any
    hints = ("Two cups", "a fork")
    writer = HintWriter(processor)
    prompt = prefilled(model, processor, picture())
    at = writer.insert_at(prompt)
    hinted = prompt[:at] + writer.ids(hints) + prompt[at:]
    row = encoded(processor, picture(), [Turn(QUESTION, ANSWER, hints)])
    assert row.ids[: len(hinted)].tolist() == hinted
    assert (row.labels[: len(hinted)] == IGNORE).all()


def test_every_answer_of_a_conversation_is_trained(tiny_any, picture):
    """Only the last answer would be trained, or the questions between them too."""
    _, processor = tiny_any
    end = processor.tokenizer.eos_token
    turns = [Turn("Is there a dog?", "<SPAN>Yes</CN>"), Turn("And a cat?", "No", ("a cat",))]
    turns.append(Turn("How many?", "Two"))
    row = encoded(processor, picture(), turns)
    shown = processor.tokenizer.decode(row.labels[row.labels != IGNORE])
    assert shown.replace(" ", "") == f"<SPAN>Yes</CN>{end}No{end}Two{end}"
    text = processor.tokenizer.decode([i for i in row.ids if i != processor.image_token_id])
    assert "And a cat? (Hint: potential incorrect phrases -> a cat)" in text
    assert text.count("Hint") == 1


def test_llava_turns_read_as_the_template_writes_them(tiny_llava, picture):
    """Turns after the first would lose their header, or a second `<s>` would come in."""
    _, processor = tiny_llava
    row = encoded(processor, picture(), [Turn("One?", "A"), Turn("Two?", "B")])
    text = processor.tokenizer.decode([i for i in row.ids if i != processor.image_token_id])
    assert text == "<s>USER: \nOne? ASSISTANT: A</s>USER: Two? ASSISTANT: B</s>"


def test_text_only_and_too_long(tiny_llava, picture):
    """A record without a picture would be lost; a long one would be cut inside an answer."""
    _, processor = tiny_llava
    encoder = Encoder(processor)
    short = encoder.row([Turn("Hello?", "Hi")], None)
    assert not (short.ids == processor.image_token_id).any()
    both = [Turn("Hello?", "Hi"), Turn("Again?", "Hi again")]
    cut = Encoder(processor, max_length=len(short.ids)).row(both, None)
    assert np.array_equal(cut.ids, short.ids) and (short.cut, cut.cut) == (0, 1)
    with pytest.raises(ValueError, match="max_length"):
        Encoder(processor, max_length=3).row(both, None)


def test_template_without_end_of_turn_gets_one(tiny_llava):
    """llava-1.5-hf's template writes no `</s>`: the model would never learn to stop."""
    import copy

    processor = copy.deepcopy(tiny_llava[1])
    processor.chat_template = (
        "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ c['text'] + ' ' }}{% endif %}{% endfor %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )
    row = Encoder(processor).row([Turn("One?", "A"), Turn("Two?", "B")], None)
    assert processor.tokenizer.decode(row.ids) == "<s>USER: One? ASSISTANT: A</s>USER: Two? ASSISTANT: B</s>"


def test_sentencepiece_answers_have_one_space():
    """A Llama-2 tokenizer puts a space of its own before a text: answers would begin with two."""
    from experiments.tiny_models import SENTENCES, build_tiny_llava, train_tokenizer
    from reverse.tokens import add_tokens

    model, processor = build_tiny_llava(train_tokenizer(SENTENCES, 400, style="sentencepiece"))
    add_tokens(model, processor)
    row = Encoder(processor).row([Turn("What is it?", "A dog and <SPAN>two cups</CN>.")], None)
    whole = "USER: What is it? ASSISTANT: A dog and <SPAN>two cups</CN>."
    assert row.ids.tolist() == [*processor.tokenizer(whole)["input_ids"], processor.tokenizer.eos_token_id]


def test_malformed_records_are_refused():
    """A record whose turns do not alternate would train questions as answers."""
    human, gpt = {"from": "human", "value": "<image>\nOne?"}, {"from": "gpt", "value": "A"}
    assert turns_of({"image": "a.png", "conversations": [human, gpt]}) == [Turn("One?", "A")]
    for turns in ([human], [gpt, human], [human, gpt, human, gpt]):
        with pytest.raises(ValueError, match="record"):
            turns_of({"id": "7", "image": "a.png", "conversations": turns})
    with pytest.raises(ValueError, match="record"):
        turns_of({"conversations": [human, gpt]})


LLAMA31 = (  # header, blank line, trimmed text, <|eot_id|>; the template itself writes the beginning of text
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<image>\n' }}"
    "{% else %}{{ c['text'] | trim }}{% endif %}{% endfor %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


@pytest.fixture
def llama31(tiny_llava):
    """The processor of a LLaVA over Llama-3.1, but for its vocabulary."""
    import copy

    processor = copy.deepcopy(tiny_llava[1])
    processor.tokenizer.add_tokens(["<|start_header_id|>", "<|end_header_id|>"], special_tokens=True)
    processor.chat_template = LLAMA31
    return processor


@pytest.mark.parametrize("picture_tokens", [None, 3])
@pytest.mark.parametrize("template", ["vicuna", "llama31", "qwen"])
def test_every_template_trains_answers_and_their_ends_alone(
    request, tiny_llava, tiny_qwen, template, picture_tokens
):
    """Labels shifted by a header, a second beginning of text, a question trained, an answer left out."""
    processor = {"vicuna": tiny_llava[1], "qwen": tiny_qwen[1]}.get(template)
    processor = processor if processor is not None else request.getfixturevalue("llama31")
    tokenizer = processor.tokenizer
    turns = [
        Turn("Is there a dog?", "There is <SPAN>a dog</CN> and <SPAN>two cups</UN>"),
        Turn("And a cat?", "No.", ("a cat",)),
        Turn("How many are there?", "<SPAN>Two</CN>"),
    ]
    row = Encoder(processor).row(turns, picture_tokens)
    assert (row.ids == processor.image_token_id).sum() == (picture_tokens or 0)
    targets = tokenizer.decode(row.labels[row.labels != IGNORE]).replace(" ", "")
    end = tokenizer.eos_token
    assert targets == f"Thereis<SPAN>adog</CN>and<SPAN></UN>{end}No.{end}<SPAN>Two</CN>{end}"
    if tokenizer.bos_token_id is not None:
        assert (row.ids == tokenizer.bos_token_id).nonzero()[0].tolist() == [0]
    # The oracle: the template's own text of the whole conversation, tokenised at once.
    messages = []
    for k, turn in enumerate(turns):
        hint = " (Hint: potential incorrect phrases -> a cat)" if turn.hints else ""
        content = [{"type": "image"}] if picture_tokens and k == 0 else []
        messages += [
            {"role": "user", "content": [*content, {"type": "text", "text": turn.question + hint}]},
            {"role": "assistant", "content": [{"type": "text", "text": turn.answer}]},
        ]
    text = processor.apply_chat_template(messages, tokenize=False)
    whole = tokenizer.encode(text, add_special_tokens=not text.startswith(tokenizer.bos_token or "\0"))
    once = [i for n, i in enumerate(row.ids.tolist()) if i != processor.image_token_id
            or row.ids[n - 1] != processor.image_token_id]  # fmt: skip
    assert tokenizer.decode(once) == tokenizer.decode(whole[: len(once)])
    assert tokenizer.decode(whole[len(once) :]).strip() == ""


def test_samples_that_cannot_be_labelled_are_shown(tiny_llava, tmp_path):
    """A malformed sample would be masked in silence, and nobody could find it among 1.3 million."""
    import json

    from reverse.training.data.training_sets import RecordDataset

    encoder = Encoder(tiny_llava[1])
    with pytest.raises(ValueError, match=r"closes no open <SPAN>.*the sample: Q\? -> A dog</UN>"):
        encoder.row([Turn("Q?", "A dog</UN>")], None)
    said = [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A dog</UN>"}]
    (tmp_path / "r.jsonl").write_text("\n".join(
        json.dumps({"id": str(k), "conversations": [*said[:1], {"from": "gpt", "value": a}]})
        for k, a in enumerate(["Fine.", "A dog</UN>"])
    ))  # fmt: skip
    records = RecordDataset(tmp_path / "r.jsonl", tmp_path, encoder)
    assert len(records[0].rows[0].ids) and (records.lengths() < 0).all()
    with pytest.raises(ValueError, match=r'r.jsonl, record 1: .*"id": "1"'):
        records[1]


def test_items_of_one_length_come_together():
    """Batches would be padded to the longest of all, or items be lost and repeated."""
    from reverse.training.data.item_order import grouped_order

    lengths = np.random.default_rng(0).integers(10, 1000, 500) * np.where(np.arange(500) % 5, 1, -1)
    order = grouped_order(lengths, 8, seed=3, epochs=2)
    assert np.bincount(order).tolist() == [2] * 500
    assert len(set(order[:496])) == len(set(order[496:992])) == 496  # a pass, but for what makes no batch
    assert not np.array_equal(order[:496], order[496:992])
    assert np.array_equal(order, grouped_order(lengths, 8, seed=3, epochs=2))
    batches = lengths[order[:992]].reshape(-1, 8)
    assert all((batch > 0).all() or (batch < 0).all() for batch in batches)
    padding = np.abs(batches).max(1, keepdims=True) - np.abs(batches)
    assert padding.mean() < 60  # at random: about 330


def with_llama31(processor):
    """A copy of `processor` that chats as LLaVA-MORE does; its end of sequence is not its end of turn."""
    import copy

    from reverse.models.conversion.original_llava.llava_tokenizer import chat_template

    processor = copy.deepcopy(processor)
    tokens = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    processor.tokenizer.add_tokens(tokens, special_tokens=True)
    processor.chat_template = chat_template(processor.tokenizer, None)
    return processor


def with_vicuna(processor):
    """A copy that chats as the published LLaVA-1.5 does, its system prompt before the first question."""
    import copy

    from reverse.models.conversion.original_llava.llava_tokenizer import chat_template

    processor = copy.deepcopy(processor)
    processor.chat_template = chat_template(processor.tokenizer, None)
    return processor


def with_other_eos(processor):
    """A copy whose tokenizer calls `<|endoftext|>` its end of sequence, as Qwen's base models do."""
    import copy

    processor = copy.deepcopy(processor)
    processor.tokenizer.eos_token = "<|endoftext|>"
    return processor


ENDS = {
    "llava_more": ("tiny_llava", with_llama31, "<|eot_id|>", "<|eot_id|><|start_header_id|>user"),
    "vicuna": ("tiny_llava", with_vicuna, "</s>", "</s>USER:"),
    "qwen": ("tiny_qwen", lambda processor: processor, "<|im_end|>", "<|im_end|>\n<|im_start|>user"),
    "qwen_base": ("tiny_qwen", with_other_eos, "<|im_end|>", "<|im_end|>\n<|im_start|>user"),
}


@pytest.mark.parametrize("name", ENDS)
def test_turns_end_as_the_template_ends_them(request, name):
    """A model trained to end with the tokenizer's eos would meet `<|eot_id|>` in every earlier turn."""
    fixture, change, end, after = ENDS[name]
    processor = change(request.getfixturevalue(fixture)[1])
    tokenizer = processor.tokenizer
    encoder = Encoder(processor)
    assert encoder.end.tolist() == [tokenizer.convert_tokens_to_ids(end)]
    row = encoder.row([Turn("One?", "A dog"), Turn("Two?", "B cups")], 3)
    targets = tokenizer.decode(row.labels[row.labels != IGNORE])
    assert targets.replace(" ", "") == f"Adog{end}Bcups{end}"
    assert tokenizer.decode(row.ids).count(f"A dog{after}") == 1


def test_a_turn_without_an_end_of_its_own_is_shown(tiny_llava):
    """The words after an answer would be taken for its end, and generation would not stop there."""
    import copy

    processor = copy.deepcopy(tiny_llava[1])
    processor.chat_template = processor.chat_template.replace("eos_token", "' over and out'")
    with pytest.raises(ValueError, match=r"ends the assistant's turn with 'over and out'.*USER: question"):
        Encoder(processor)
    processor = copy.deepcopy(tiny_llava[1])
    processor.chat_template = processor.chat_template.replace("{{ eos_token }}", "")
    assert Encoder(processor).end_text == "</s>"
    processor.tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"nothing ends the assistant's turn.*USER: question"):
        Encoder(processor)


def test_image_is_a_place_and_no_text(tiny_any):
    """In an answer or twice in a question it would ask for a second picture, hours into a run."""
    human, gpt = {"from": "human", "value": "<image>\nOne?"}, {"from": "gpt", "value": "A"}
    asked = {"id": "7", "image": "a.png"}
    turns = [human | {"value": "Where?\n<image>"}, gpt, human | {"value": "And?"}, gpt]
    assert turns_of(asked | {"conversations": turns})[0] == Turn("Where?", "A")
    assert turns_of(asked | {"conversations": [human | {"value": "One?"}, gpt]}) == [Turn("One?", "A")]
    wrong = {
        "part of an answer": [human, gpt | {"value": "An <image> tag"}],
        "first question": [human | {"value": "<image>\nWhat is <image>?"}, gpt],
        "got turn 1": [human, gpt, human, gpt],
    }
    for said, conversation in wrong.items():
        with pytest.raises(ValueError, match=rf"record '7': .*{said}.*<image>"):
            turns_of(asked | {"conversations": conversation})
    with pytest.raises(ValueError, match="with an image, got turn 0"):
        turns_of({"id": "8", "conversations": [human, gpt]})
    processor = tiny_any[1]
    encoder, token = Encoder(processor), processor.image_token  # <image> or <|image_pad|>
    for tokens in (None, 3):
        with pytest.raises(ValueError, match=rf"says '{re.escape(token)}' in its answer"):
            encoder.row([Turn("One?", f"See {token}.")], tokens)
        with pytest.raises(ValueError, match=rf"says '{re.escape(token)}' in its question"):
            encoder.row([Turn(f"See {token}?", "A")], tokens)


OWN = {
    "tiny_llava": ("<s>", "</s>", "<unk>", "<pad>", "<image>"),
    "tiny_qwen": ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|video_pad|>", "<|vision_start|>"),
}


@pytest.mark.parametrize("name", OWN)
def test_tokens_in_a_text_are_refused(request, name):
    """`<s>old</s>` of HTML taught an end of turn in mid-sentence; others a picture, a beginning."""
    encoder = Encoder(request.getfixturevalue(name)[1])
    for token in OWN[name]:
        shown = re.escape(repr(token))
        for place, turn in (
            ("answer", Turn("What?", f"It is {token}new.")),
            ("answer", Turn("What?", f"<SPAN>It {token}</CN>")),
            ("question", Turn(f"What is a{token}b?", "A")),
            ("hint", Turn("What?", "A", ("cat", f"a {token.upper()}"))),
        ):
            with pytest.raises(
                ValueError, match=rf"turn 1 says {shown} in its {place}.*leave the record out"
            ):
                encoder.row([Turn("One?", "A"), turn], 3)
    with pytest.raises(ValueError, match="turn 0 says '</CN>' in its question"):
        encoder.row([Turn("A dog</CN>?", "A")], None)
    text = "A < b, <b>bold</b>, < s>, <S>, </SPAN>, <|im|>, <|im_END|>, [INST], <tool>"
    row = encoder.row([Turn(text, f"{text} <SPAN>a dog</CN>")], None)
    ends = (row.labels == encoder.end).nonzero()[0].tolist()
    assert ends == [len(row.ids) - 1]


def test_added_words_are_text(tiny_llava):
    """Tokenizers that keep runs of spaces or a user's own words as tokens would refuse every text."""
    import copy

    processor = copy.deepcopy(tiny_llava[1])
    processor.tokenizer.add_tokens(["  ", "brontosaurus"])
    processor.tokenizer.add_tokens(["[INST]"], special_tokens=True)
    encoder = Encoder(processor)
    assert len(encoder.row([Turn("A  brontosaurus?", "No  brontosaurus")], None).ids)
    with pytest.raises(ValueError, match=r"says '\[INST\]' in its answer"):
        encoder.row([Turn("A?", "No [INST]")], None)


def test_turns_that_say_nothing_are_refused(tiny_any):
    """A blank answer teaches silence; LLaVA's template took it, Qwen's failed in the middle of a run."""
    encoder = Encoder(tiny_any[1])
    for answer in ("", " \n"):
        with pytest.raises(ValueError, match=r"turn 1 has a blank answer.*Two\?"):
            encoder.row([Turn("One?", "A"), Turn("Two?", answer)], 3)
    with pytest.raises(ValueError, match="turn 0 has a blank question"):
        encoder.row([Turn("", "A")], None)
    with pytest.raises(ValueError, match="turn 1 has a blank question"):
        encoder.row([Turn("", "A"), Turn(" ", "B")], 3)
    assert len(encoder.row([Turn("", "A")], 3).ids)  # a picture says enough
