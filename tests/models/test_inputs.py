"""Without these, a prompt could meet the wrong picture, the wrong side of the padding, or no clear error."""

import base64
import io

import pytest
import torch

from reverse.models import family_of, prepare_inputs

PROMPT = "Describe this image."


@pytest.fixture
def prepare(tiny_any):
    """`prepare_inputs` of one family; `.model`, `.processor` and `.family` beside it."""
    model, processor = tiny_any
    family = family_of(model)

    def call(images, prompts, **options):
        return prepare_inputs(processor, images, prompts, family, **options)

    call.model, call.processor, call.family = model, processor, family
    return call


def image_tokens(prepare, inputs):
    """How many image tokens each row has, after expansion."""
    return (inputs["input_ids"] == prepare.family.image_token_id(prepare.model.config)).sum(dim=1).tolist()


def same(first, second):
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


def test_one_prompt_one_picture(prepare, picture):
    """The prompt must be the chat template's, with one picture's tokens and the generation prompt."""
    inputs = prepare(picture(), PROMPT)
    assert inputs["input_ids"].shape[0] == 1
    assert image_tokens(prepare, inputs)[0] > 1
    text = prepare.processor.tokenizer.decode(inputs["input_ids"][0])
    assert PROMPT in text
    assert text.endswith(("ASSISTANT:", "assistant\n"))
    with torch.no_grad():
        assert prepare.model(**inputs).logits.isfinite().all()


def test_bos_comes_once(prepare, picture):
    """Llama-3.1's template writes `<s>` itself, and the tokenizer adds a second one."""
    processor = prepare.processor
    bos = processor.tokenizer.bos_token_id
    if bos is None:
        return
    plain = prepare(picture(), PROMPT)
    template = processor.chat_template
    try:
        processor.chat_template = "{{ bos_token }}" + template
        own = prepare(picture(), PROMPT)
    finally:
        processor.chat_template = template
    assert (plain["input_ids"] == bos).sum() == 1
    assert same(plain, own)


def test_rows_are_padded_on_the_left(prepare, picture):
    """Right padding would have the model go on from padding."""
    inputs = prepare([picture(0), picture(1)], [PROMPT, "Is there a dog? Answer with yes or no, please."])
    mask = inputs["attention_mask"]
    assert mask[:, -1].tolist() == [1, 1]
    assert mask[0, 0] == 0 and mask[1, 0] == 1
    alone = prepare(picture(0), PROMPT)
    assert torch.equal(inputs["input_ids"][0, mask[0].bool()], alone["input_ids"][0])


def test_a_row_says_the_same_in_a_batch(prepare, picture):
    """A picture would go to another row's prompt."""
    inputs = prepare([picture(0), picture(1, (60, 112))], [PROMPT, "Is there a dog?"])
    alone = [prepare(picture(0), PROMPT), prepare(picture(1, (60, 112)), "Is there a dog?")]
    with torch.no_grad():
        batch = prepare.model(**inputs).logits[:, -1]  # (2, vocab)
        single = torch.cat([prepare.model(**one).logits[:, -1] for one in alone])
    assert torch.allclose(batch, single, atol=1e-4)
    assert not torch.allclose(batch[0], batch[1], atol=1e-2)


def test_several_pictures_in_one_prompt(prepare, picture):
    """A list of pictures would be taken for a batch."""
    pair = [picture(0), picture(1)]
    one = image_tokens(prepare, prepare(picture(0), PROMPT))[0]
    assert image_tokens(prepare, prepare([pair], [PROMPT])) == [2 * one]
    assert image_tokens(prepare, prepare(pair, PROMPT)) == [2 * one]
    mixed = prepare([pair, picture(2)], [PROMPT, PROMPT])
    assert image_tokens(prepare, mixed) == [2 * one, one]


def test_prompts_without_pictures(prepare, picture):
    """Text-only rows must work, alone and beside rows with a picture."""
    assert image_tokens(prepare, prepare(None, [PROMPT, PROMPT])) == [0, 0]
    mixed = prepare([None, picture()], [PROMPT, PROMPT])
    assert image_tokens(prepare, mixed)[0] == 0 < image_tokens(prepare, mixed)[1]
    with torch.no_grad():
        assert prepare.model(**mixed).logits.isfinite().all()


def test_a_picture_may_come_in_any_form(prepare, picture, tmp_path):
    """Paths, addresses and data URIs are what chat messages carry."""
    path = tmp_path / "a picture.png"
    picture().save(path)
    data = path.read_bytes()
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    expected = prepare(picture(), PROMPT)
    for source in (path, str(path), data, f"file://{path}", uri):
        assert same(prepare([source], [PROMPT]), expected)


def test_a_chat_is_the_same_as_the_prompt(prepare, picture):
    """Message lists would be rendered otherwise than plain prompts."""
    expected = prepare(picture(), PROMPT)
    text = {"type": "text", "text": PROMPT}
    inside = [{"role": "user", "content": [{"type": "image", "image": picture()}, text]}]
    beside = [{"role": "user", "content": [{"type": "image"}, text]}]
    assert same(prepare(None, inside), expected)
    assert same(prepare(None, [inside]), expected)
    assert same(prepare([picture()], [beside]), expected)
    assert "image" in inside[0]["content"][0]  # the caller's messages stay as they were


def test_a_chat_of_several_turns(prepare, picture):
    """Earlier turns would be dropped."""
    chat = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "image", "image": picture()}, {"type": "text", "text": PROMPT}],
        },
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": "And what else?"},
    ]
    text = prepare.processor.tokenizer.decode(prepare(None, chat)["input_ids"][0])
    places = [text.index(part) for part in ("Be brief.", PROMPT, "A dog.", "And what else?")]
    assert places == sorted(places)


def test_the_system_turn(prepare, picture):
    """`system=` would be ignored."""
    text = prepare.processor.tokenizer.decode(prepare(picture(), PROMPT, system="Be brief.")["input_ids"][0])
    assert text.index("Be brief.") < text.index(PROMPT)
    assert "helpful" not in text


@pytest.mark.parametrize(
    ("images", "prompts", "message"),
    [
        (None, [], "prompts is empty"),
        (None, "", "prompt 0 is empty, got ''"),
        (None, ["a dog", " \n"], "prompt 1 is empty"),
        (["x", "y", "z"], ["a", "b"], "3 entries of images for 2 prompts"),
        (None, [[]], "ends with 'no message'"),
        (None, [{"role": "assistant", "content": "A dog."}], "ends with 'assistant'"),
        (None, [{"role": "user", "content": ""}], "is empty"),
        (None, [{"text": "a dog"}], "every message needs 'role' and 'content'"),
        (None, [{"role": "user", "content": [{"type": "video", "text": "a"}]}], "type 'video'"),
        (
            None,
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}],
            "prompt 0 has 1 image placeholders for 0 pictures",
        ),
        (
            None,
            [{"role": "user", "content": [{"type": "audio"}]}],
            "type 'audio' in chat 0 is not understood",
        ),
        (None, [{"role": "user", "content": [{"type": "text"}]}], "text part of chat 0 has the text None"),
        (None, [{"role": "user", "content": [{"type": "text", "text": None}]}], "has the text None: give"),
        (
            None,
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            r"given as \{\}: give",
        ),
        ({"a": "b.png"}, "a dog", r"given as \{'a': 'b.png'\}: give a path"),
        ("", "a dog", "image path is empty, got ''"),
        (["https://example.org/a.png"], ["a dog"], "download it first"),
        (["HTTPS://example.org/a.png"], ["a dog"], "download it first"),
        (["data:image/png,abc"], ["a dog"], "data URI starts with"),
        (["data:image/png;base64,@@"], ["a dog"], "base64 of a data URI"),
    ],
)
def test_mistakes_are_named(prepare, images, prompts, message):
    """The user would see an error of the template, the tokenizer or the tensor library."""
    with pytest.raises(ValueError, match=message):
        prepare(images, prompts)


def test_the_longest_picture_that_is_taken_is_seen(prepare, picture):
    """A strip that passes the check would still fail in the image processor, without a file's name."""
    with pytest.raises(ValueError, match=r"8x808 pixels.*crop it"):
        prepare(picture(0, (8, 808)), PROMPT)
    assert image_tokens(prepare, prepare(picture(0, (8, 800)), PROMPT))[0] > 0


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (None, "prompts must be a text.*got NoneType"),
        ({"role": "user", "content": "a"}, "prompts must be a text.*got dict"),
        ([None], "prompt 0 must be a text or a chat .*got None: try"),
        (["a dog", 5], "prompt 1 must be a text or a chat .*got 5"),
        ([["a"]], "chat 0 holds 'a', which is not a message: give"),
        ([{"role": "user", "content": None}], "content of a message of chat 0 must be .*got None"),
        ([{"role": "user", "content": ["hello"]}], "chat 0 holds the part 'hello': give"),
    ],
)
def test_wrong_kinds_are_named(prepare, prompts, message):
    """The error would be Python's own, `'NoneType' object is not iterable`, from a helper."""
    with pytest.raises(TypeError, match=message):
        prepare(None, prompts)


@pytest.mark.parametrize("kind", ["video", "video_url"])
def test_videos_are_refused_before_anything_else(prepare, kind):
    """The first error would be about an empty turn or a missing picture, and the second about the video."""
    part = {"type": kind, kind: "a.mp4"}
    for prompts in (
        [{"role": "user", "content": [part]}],
        [[{"role": "assistant", "content": [part]}]],
        ["", [{"role": "user", "content": [part, 5]}]],
    ):
        with pytest.raises(ValueError, match=rf"type '{kind}': videos are not supported yet, give pictures"):
            prepare(["a.png", "b.png", "c.png"], prompts)


def test_plain_prompts_and_chats_stand_in_one_batch(prepare, picture):
    """Requests of a server come in both forms, and would have to be sorted."""
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
    mixed = prepare([picture(0), picture(1)], [PROMPT, chat])
    assert same(mixed, prepare([picture(0), picture(1)], [PROMPT, PROMPT]))


def test_addresses_with_escapes(prepare, picture, tmp_path):
    """`file:///a%20b.png`, as browsers and file managers write it, would not be found."""
    for name in ("a b.png", "a%20c.png"):
        picture().save(tmp_path / name)
    expected = prepare(picture(), PROMPT)
    for name in ("a%20b.png", "a b.png", "a%20c.png"):
        assert same(prepare([f"file://{tmp_path / name}"], [PROMPT]), expected)


def test_a_turn_of_a_picture_alone(prepare, picture, tmp_path):
    """A picture given as `image_url` would count as nothing, and the turn as empty."""
    picture().save(tmp_path / "a.png")
    for part in (
        {"type": "image", "image": picture()},
        {"type": "image_url", "image_url": {"url": str(tmp_path / "a.png")}},
    ):
        inputs = prepare(None, [{"role": "user", "content": [part]}])
        assert image_tokens(prepare, inputs)[0] > 0


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"resized_height": 0, "resized_width": 56}, "resized_height=0, which must be a whole number"),
        ({"resized_height": 56}, "resized_height and resized_width go together"),
        ({"min_pixels": 9000, "max_pixels": 5000}, "min_pixels may not be above max_pixels"),
        ({"max_pixels": "x"}, "max_pixels='x', which must be a whole number"),
        ({"max_pixels": True}, "max_pixels=True, which must be"),
        ({"min_pixels": 10**12}, "min_pixels=1000000000000, which must be .* to 50000000"),
        ({"max_pixels": 10}, r"which cannot be met .*leave it out"),
    ],
)
def test_sizes_that_cannot_be_met(tiny_qwen, picture, sizes, message):
    """The error would be an assertion or a division by zero of another library."""
    pytest.importorskip("qwen_vl_utils")
    model, processor = tiny_qwen
    content = [{"type": "image", "image": picture(), **sizes}, {"type": "text", "text": PROMPT}]
    with pytest.raises(ValueError, match=message):
        prepare_inputs(processor, None, [{"role": "user", "content": content}], family_of(model))


def test_more_pictures_than_placeholders(prepare, picture):
    """The last picture would silently go unseen."""
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
    with pytest.raises(ValueError, match="1 image placeholders for 2 pictures: give fewer"):
        prepare([[picture(0), picture(1)]], [chat])


def test_a_prompt_beyond_the_context(prepare, picture):
    """Positions beyond the trained ones give nonsense without any error."""
    context = prepare.family.context_length(prepare.model.config)
    prepare(picture(), PROMPT, context_length=context)
    with pytest.raises(ValueError, match=rf"context is {context}: shorten"):
        prepare(picture(), "dog " * context, context_length=context)


def test_what_qwen_vl_utils_makes_is_what_we_make(tiny_qwen, picture):
    """Qwen users bring messages and pictures prepared with qwen-vl-utils."""
    utils = pytest.importorskip("qwen_vl_utils")
    model, processor = tiny_qwen
    buffer = io.BytesIO()
    picture().save(buffer, "PNG")
    uri = "data:image;base64," + base64.b64encode(buffer.getvalue()).decode()
    chat = [{"role": "user", "content": [{"type": "image", "image": uri}, {"type": "text", "text": PROMPT}]}]
    images, _ = utils.process_vision_info(chat, image_patch_size=14)
    assert images[0].size == (112, 112)
    text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    theirs = processor(images=images, text=[text], return_tensors="pt", padding=True)
    assert same(prepare_inputs(processor, None, chat, family_of(model)), theirs)


def test_sizes_in_messages_are_followed(tiny_qwen, tiny_llava, picture):
    """`max_pixels` in a message would be dropped, and the answer be about another picture than asked for."""
    pytest.importorskip("qwen_vl_utils")
    part = {"type": "image", "image": picture(), "resized_height": 56, "resized_width": 84}
    chat = [{"role": "user", "content": [part, {"type": "text", "text": PROMPT}]}]
    model, processor = tiny_qwen
    inputs = prepare_inputs(processor, None, chat, family_of(model))
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 6]]
    model, processor = tiny_llava
    with pytest.raises(ValueError, match="one size"):
        prepare_inputs(processor, None, chat, family_of(model))
