"""A user's turn of pictures alone: prefilled as it is trained, and with a place for hints."""

import pytest

from reverse.decoding.text.hints import HintWriter
from reverse.models import family_of, prepare_inputs
from reverse.training.data.encoding import Encoder, Turn
from reverse.training.data.record_turns import split_questions
from tests.decoding.worlds import picture


def chats(image):
    part = {"type": "image", "image": image}
    return {
        "a prompt": ([image], ["<image>"]),
        "a prompt with blanks": ([image], [" <image>\n"]),
        "a chat": ([image], [[{"role": "user", "content": "<image>"}]]),
        "a part": (None, [[{"role": "user", "content": [part]}]]),
        "a part beside its place": (
            None,
            [[{"role": "user", "content": [part, {"type": "text", "text": "<image>"}]}]],
        ),
    }


@pytest.mark.parametrize("name", chats(None))
def test_a_picture_alone_is_prefilled_as_it_is_trained(tiny_any, name):
    """LLaVA was trained on `<image>\\n ASSISTANT:` and asked with `<image>\\nASSISTANT:`."""
    model, processor = tiny_any
    images, prompts = chats(picture(0))[name]
    asked = prepare_inputs(processor, images, prompts, family_of(model))["input_ids"][0].tolist()
    encoder = Encoder(processor)
    row = encoder.row([Turn("", "A dog.")], asked.count(processor.image_token_id))
    assert row.ids.tolist()[: len(asked)] == asked


def test_several_pictures_alone_are_prefilled_as_they_are_trained(tiny_any):
    """The same for two pictures, and for one that stands alone in a later question."""
    model, processor = tiny_any
    questions = ["<image>\n<image>", "And?", "<image>"]
    turns = [
        Turn(question.replace("<image>", ""), "A dog.", content=content)
        for question, content in zip(questions, split_questions(questions, 3), strict=True)
    ]
    chat = []
    for question in questions:
        chat += [{"role": "user", "content": question}, {"role": "assistant", "content": "A dog."}]
    given = [picture(i) for i in range(3)]
    asked = prepare_inputs(processor, [given], [chat[:-1]], family_of(model))["input_ids"][0].tolist()
    each = asked.count(processor.image_token_id) // 3
    row = Encoder(processor).row(turns, [each] * 3)
    assert row.ids.tolist()[: len(asked)] == asked


def test_hints_have_a_place_behind_a_picture_alone(tiny_any):
    """With hints on, as they are by default, `generate()` refused the prompt `<image>`."""
    model, processor = tiny_any
    asked = prepare_inputs(processor, [picture(0)], ["<image>"], family_of(model))["input_ids"][0].tolist()
    writer, hints = HintWriter(processor), ("two cups",)
    at = writer.insert_at(asked)
    hinted = asked[:at] + writer.ids(hints) + asked[at:]
    row = Encoder(processor).row([Turn("", "A dog.", hints)], asked.count(processor.image_token_id))
    assert row.ids.tolist()[: len(hinted)] == hinted
    assert "two cups" in processor.tokenizer.decode(hinted[at:])
