"""Rows: prompts are those that decoding prefills, answers stand where they were put."""

import numpy as np
import pytest

from reverse.decoding.rewriting import HintWriter
from reverse.models import family_of, prepare_inputs
from reverse.training.encoding import Encoder, Turn, turns_of
from reverse.training.labels import IGNORE
from reverse.training.pictures import PictureEncoder

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
    assert np.array_equal(Encoder(processor, max_length=len(short.ids)).row(both, None).ids, short.ids)
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
    from reverse.models.tiny import SENTENCES, build_tiny_llava, train_tokenizer
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
