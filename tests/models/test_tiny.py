"""Without these, tests and training would stand on models that are not what the large ones are."""

import pytest
import torch
from transformers import AutoTokenizer

from experiments.tiny_models import (
    QWEN2_5_VL,
    SENTENCES,
    build_tiny_llava,
    build_tiny_qwen,
    train_tokenizer,
)

BUILDERS = [build_tiny_llava, build_tiny_qwen]


@pytest.mark.parametrize("build", BUILDERS)
def test_the_seed_decides_the_weights(build):
    """A test could pass or fail by chance, and training could not be repeated."""
    torch.manual_seed(5)
    first = build(seed=3)[0].state_dict()
    torch.manual_seed(6)
    again = build(seed=3)[0].state_dict()
    other = build(seed=4)[0].state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("build", BUILDERS)
def test_building_leaves_the_random_state_alone(build):
    """Whoever builds a model between two draws would change the second."""
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    first = torch.rand(1)
    build()
    assert torch.equal(torch.cat([first, torch.rand(1)]), expected)


def test_llava_geometry(picture):
    """The processor would write more or fewer image tokens than the tower gives features."""
    model, processor = build_tiny_llava(image_size=112, patch_size=8)
    for size in [(112, 112), (200, 90), (30, 60)]:
        inputs = processor(images=[picture(size=size)], text=["<image> a dog"], return_tensors="pt")
        assert inputs["pixel_values"].shape == (1, 3, 112, 112)
        assert (inputs["input_ids"] == model.config.image_token_index).sum() == 196
        with torch.no_grad():
            assert model(**inputs).logits.shape == (*inputs["input_ids"].shape, len(processor.tokenizer))


@pytest.mark.parametrize("patch_size", [8, 14])
def test_qwen_geometry(picture, patch_size):
    """As for LLaVA; and pictures of several shapes must keep them."""
    model, processor = build_tiny_qwen(image_size=112, patch_size=patch_size)
    marks = "<|vision_start|><|image_pad|><|vision_end|>"
    grids = []
    for size in [(112, 112), (200, 90), (60, 120)]:
        inputs = processor(images=[picture(size=size)], text=[marks], return_tensors="pt")
        grid = inputs["image_grid_thw"][0]
        grids.append(tuple(grid.tolist()))
        assert grid.prod() * patch_size**2 <= 112**2
        assert (inputs["input_ids"] == model.config.image_token_id).sum() == grid.prod() // 4
        with torch.no_grad():
            assert model(**inputs).logits.isfinite().all()
    assert len(set(grids)) == 3


@pytest.mark.parametrize("build", BUILDERS)
def test_sizes_can_be_set(build):
    """Training would silently get the test size."""
    model, _ = build(
        text={"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6},
        vision={"hidden_size": 48, "num_hidden_layers": 3},
    )
    text = model.config.get_text_config()
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (96, 3, 6)
    assert model.config.vision_config.hidden_size == 48


@pytest.mark.parametrize("name", ["llava", "qwen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_answers_depend_on_picture_and_prompt(tiny, name, dtype, picture):
    """A model that says the same whatever it sees cannot show a rollback gone wrong."""
    model, processor = tiny(name, dtype=dtype)
    answers = set()
    for seed, question in [(0, "Describe this image."), (1, "Describe this image."), (0, "Is there a dog?")]:
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        inputs = processor(images=[picture(seed)], text=[text], return_tensors="pt")
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
        out = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        answer = out[0, inputs["input_ids"].shape[1] :].tolist()
        assert len(set(answer)) > 3
        answers.add(tuple(answer))
    assert len(answers) == 3


def test_llava_template_ends_the_answer_with_eos():
    """Training would never teach the model to stop."""
    _, processor = build_tiny_llava()
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
        {"role": "user", "content": "Sure?"},
    ]
    rendered = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == "USER: <image>\nWhat is it? ASSISTANT: A dog.</s>USER: Sure? ASSISTANT:"


def test_qwen_template_is_the_published_one():
    """A checkpoint trained here would not be asked as published ones are."""
    _, processor = build_tiny_qwen()
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    rendered = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is it?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("build", BUILDERS)
def test_templates_mark_what_is_trained(build):
    """`return_assistant_tokens_mask` would be empty, and nothing would be learnt."""
    _, processor = build()
    tokenizer = processor.tokenizer
    chat = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A dog."}]
    out = tokenizer.apply_chat_template(
        chat, chat_template=processor.chat_template, return_dict=True, return_assistant_tokens_mask=True
    )
    trained = [i for i, m in zip(out["input_ids"], out["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(trained).replace("\n", "").strip() == "A dog." + tokenizer.eos_token


@pytest.mark.parametrize("style", ["bytes", "sentencepiece"])
def test_tokenizers_are_deterministic(style):
    """Two trainings of one corpus would give models that do not fit together."""
    first, again = (train_tokenizer(SENTENCES, 500, style=style).get_vocab() for _ in range(2))
    assert first == again
    assert max(first.values()) < 500


def test_llava_tokenizers_begin_with_bos(tmp_path):
    """Llama's prompt begins with `<s>`; Qwen's with nothing."""
    for style in ("bytes", "sentencepiece"):
        tokenizer = train_tokenizer(SENTENCES, 500, style=style)
        assert tokenizer("a dog")["input_ids"][0] == tokenizer.bos_token_id
        tokenizer.save_pretrained(tmp_path / style)
        again = AutoTokenizer.from_pretrained(tmp_path / style)
        assert again("a dog")["input_ids"] == tokenizer("a dog")["input_ids"]
    assert train_tokenizer(SENTENCES, 500, family=QWEN2_5_VL).bos_token_id is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "words"}, "style must be"),
        ({"style": "sentencepiece", "family": QWEN2_5_VL}, "for Qwen2.5-VL"),
        ({"vocab_size": 100}, "got 100"),
    ],
)
def test_wrong_tokenizer_options_are_named(options, message):
    """The trainer's own error speaks of C++ sources."""
    with pytest.raises(ValueError, match=message):
        train_tokenizer(SENTENCES, **options)
