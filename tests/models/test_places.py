"""Where pictures stand in prompts, alike for both families, and what else a prompt or chat may hold."""

import base64
import io

import numpy as np
import pytest
import torch

from reverse.data.records.schema import MODEL_PLACEHOLDERS
from reverse.models import family_of, prepare_inputs
from reverse.models.inputs.picture_places import split_at_places

PROMPT = "Describe this image."


@pytest.fixture
def prepare(tiny_any):
    model, processor = tiny_any

    def call(images, prompts, **options):
        return prepare_inputs(processor, images, prompts, family_of(model), **options)

    call.processor = processor
    return call


def same(first, second):
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


def decoded(prepare, inputs):
    return prepare.processor.tokenizer.decode(inputs["input_ids"][0])


@pytest.mark.parametrize("prompt", ["<image>\n{}", "{}\n<image>", "<image>{}", " <image> {} "])
def test_the_place_of_one_picture_is_no_text(prepare, picture, prompt):
    """LLaVA refused `<image>`, and Qwen2.5-VL took it for a word: one prompt, two meanings."""
    expected = prepare(picture(), PROMPT)
    assert same(prepare(picture(), prompt.format(PROMPT)), expected)
    chat = [{"role": "user", "content": prompt.format(PROMPT)}]
    assert same(prepare([picture()], [chat]), expected)
    parts = [{"type": "image", "image": picture()}, {"type": "text", "text": prompt.format(PROMPT)}]
    assert same(prepare(None, [{"role": "user", "content": parts}]), expected)


def test_places_before_the_words_are_those_of_pictures_in_order(prepare, picture):
    """The second of two pictures would be refused, or come first."""
    pair = [picture(0), picture(1)]
    assert same(prepare([pair], [f"<image>\n<image>\n{PROMPT}"]), prepare([pair], [PROMPT]))


def test_words_between_pictures_stay_between(tiny_qwen, picture):
    """ "First: A. Second: B." would become "A B First: Second:"."""
    model, processor = tiny_qwen
    prompt = "First: <image> Second: <image> Compare."
    for given in (prompt, [{"role": "user", "content": prompt}]):
        inputs = prepare_inputs(processor, [[picture(0), picture(1)]], [given], family_of(model))
        text = processor.tokenizer.decode(inputs["input_ids"][0])
        places = [text.index("First"), text.index("<|image_pad|>"), text.index("Second")]
        assert places == sorted(places)
        assert text.rindex("<|image_pad|>") > text.index("Second")
    assert split_at_places("a<image>b<image>", 2, "it") == [
        {"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}, {"type": "image"}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("images", "prompts", "message"),
    [
        (None, "<image>\nWhat?", "prompt 0 has 1 image placeholders for 0 pictures: .*take '<image>' out"),
        (None, [{"role": "user", "content": "<image> What?"}], "1 image placeholders for 0 pictures"),
        (
            None,
            [{"role": "assistant", "content": "An <image>."}, {"role": "user", "content": "And?"}],
            "prompt 0 holds '<image>' in the assistant's turn.*take it out",
        ),
        (
            None,
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "<image> <image>"}]}],
            "2 image placeholders .*beside 1 parts with a picture",
        ),
        *((None, ["What?", f"Is {token} here?"], "prompt 1 holds .*mark a picture's place with '<image>'")
          for token in MODEL_PLACEHOLDERS),
    ],
)  # fmt: skip
def test_places_that_fit_no_picture_are_refused_alike(prepare, images, prompts, message):
    """One family would crash in its processor, the other answer about the text `<image>`."""
    with pytest.raises(ValueError, match=message):
        prepare(images, prompts)


@pytest.mark.parametrize(
    ("prompts", "options", "where"),
    [
        (["What?", "a \ud83d dog"], {}, "prompt 1 holds half"),
        ("What?", {"system": "a \ude00 dog"}, "system holds half"),
        ([{"role": "user", "content": "a \ud83d dog"}], {}, "chat 0 holds half"),
        ([{"role": "user", "content": [{"type": "text", "text": "a \ud83d"}]}], {}, "chat 0 holds half"),
    ],
)
def test_half_a_surrogate_pair_is_named(prepare, prompts, options, where):
    """The tokenizer's error is a TypeError about its own input types."""
    with pytest.raises(ValueError, match=f"{where} of a surrogate pair .*take that half out") as error:
        prepare(None, prompts, **options)
    str(error.value).encode("utf-8")  # a terminal takes it


def test_system_stands_before_a_chat_too(prepare, picture):
    """`system=` was dropped without a word where the prompt is a chat."""
    chat = [
        {"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": PROMPT}]}
    ]
    assert same(prepare(None, chat, system="Be brief."), prepare(picture(), PROMPT, system="Be brief."))
    own = [{"role": "system", "content": "Be long."}, *chat]
    with pytest.raises(ValueError, match=r"chat 0 has a system turn, and system='Be brief\.' is given too"):
        prepare(None, own, system="Be brief.")
    with pytest.raises(TypeError, match="system must be a text or None, got 5"):
        prepare(picture(), PROMPT, system=5)
    with pytest.raises(ValueError, match="system holds '<image>'"):
        prepare(picture(), PROMPT, system="See <image>.")


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"role": "human", "content": "a"}, "turn of 'human': roles are system, user, assistant"),
        ({"role": "tool", "content": "a"}, "turn of 'tool'"),
        ({"role": "user", "content": "a", "images": ["a.png"]}, "'images' beside its content"),
        ({"role": "assistant", "content": "a", "tool_calls": [{}]}, "'tool_calls' beside its content"),
        (
            {"role": "user", "content": [{"type": "image", "source": {"data": "a"}}]},
            "has 'source' and none of",
        ),
        (
            {"role": "user", "content": [{"type": "image", "image": "a.png", "url": "b.png"}]},
            "names its picture by image and url: give one",
        ),
    ],
)
def test_what_a_model_would_not_see_is_refused(prepare, message, error):
    """A role of another library was rendered as the assistant's, its pictures were dropped."""
    with pytest.raises(ValueError, match=error):
        prepare(None, [message, {"role": "user", "content": "And?"}])


def test_pictures_come_in_any_form(prepare, picture, tmp_path, monkeypatch):
    """Notebooks have arrays and tensors, servers have streams, shells have `~`."""
    path = tmp_path / "dog.png"
    picture().save(path)
    monkeypatch.setenv("HOME", str(tmp_path))
    array = np.asarray(picture())
    expected = prepare(picture(), PROMPT)
    read = io.BytesIO(path.read_bytes())
    read.read()  # of which nothing is left
    with path.open("rb") as stream:
        for source in (path, "~/dog.png", read, stream, array, torch.tensor(array).permute(2, 0, 1),
                       memoryview(path.read_bytes())):  # fmt: skip
            assert same(prepare(source, PROMPT), expected)
            assert same(prepare([source], [PROMPT]), expected)
    assert not read.closed


@pytest.mark.parametrize("key", ["image", "url", "path", "image_url", "nested", "base64"])
def test_parts_name_their_picture_by_any_key(prepare, picture, tmp_path, key):
    """transformers, OpenAI and Qwen each call it otherwise, and a picture that was not found was dropped."""
    path = tmp_path / "dog.png"
    picture().save(path)
    data = base64.b64encode(path.read_bytes()).decode()
    part = {
        "nested": {
            "type": "image_url",
            "image_url": {"url": f"data:image/png;base64,{data}", "detail": "auto"},
        },
        "base64": {"type": "image", "base64": data},
    }.get(key, {"type": "image", key: str(path)})
    chat = [{"role": "user", "content": [part, {"type": "text", "text": PROMPT}]}]
    assert same(prepare(None, chat), prepare(picture(), PROMPT))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("iVBORw0KGgo" + "A" * 100_000, r"a text of 100011 characters and no path: give base64 as"),
        ("/9j/" + "A" * 80, "a text of 84 characters and no path"),
        ("A dog on the grass. " * 1000, "a text of 20000 characters and no path"),
        ("a dog\nand a cat", "characters and no path"),
        ("data:image/png;base64," + "@" * 100_000, "base64 of a data URI cannot be read"),
        ("data:image/png;base64,\u00e9", "base64 of a data URI cannot be read"),
        ("s3://bucket/" + "a" * 10_000, "is on the network"),
        ("https://example.org/?sign=" + "a" * 10_000, "is on the network.*download it first"),
    ],
)
def test_long_texts_are_not_echoed(prepare, source, message):
    """A megabyte of base64 filled the screen, inside an OSError about the length of a file's name."""
    with pytest.raises(ValueError, match=message) as error:
        prepare([source], [PROMPT])
    assert len(str(error.value)) < 300


def test_data_urls_are_bounded(prepare, picture, monkeypatch):
    """A request of gigabytes would be decoded in memory."""
    monkeypatch.setattr("reverse.models.inputs.picture_parts.MAX_DATA_URL", 1000)
    with pytest.raises(ValueError, match="data URL of 1022 characters, of at most 1000"):
        prepare(["data:image/png;base64," + "A" * 1000], [PROMPT])
