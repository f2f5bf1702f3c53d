"""Without these, a processor that is incomplete or another model's would fail at the first picture, or be
wrong without a word."""

import json
import shutil

import pytest
import torch
from transformers import AutoTokenizer

import reverse
import reverse.models.checkpoints.loading as loading
from reverse.models import load


@pytest.fixture
def llava(saved_checkpoints, tmp_path):
    """A LLaVA's folder, to be spoilt."""
    return shutil.copytree(saved_checkpoints / "llava", tmp_path / "copy")


@pytest.fixture
def qwen(saved_checkpoints, tmp_path):
    """A Qwen2.5-VL's folder, to be spoilt."""
    return shutil.copytree(saved_checkpoints / "qwen", tmp_path / "copy")


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def without(file, *names):
    return lambda folder: edit(folder / file, lambda content: [content.pop(name, None) for name in names])


def pictures(change):
    return lambda folder: edit(
        folder / "processor_config.json", lambda content: change(content["image_processor"])
    )


def settings(**changes):
    return lambda folder: edit(folder / "processor_config.json", lambda content: content.update(changes))


def no_pad(folder):
    without("tokenizer_config.json", "pad_token")(folder)
    without("tokenizer.json", "padding")(folder)


FILLED = {
    "patch_size": ("llava", without("processor_config.json", "patch_size")),
    "strategy": ("llava", without("processor_config.json", "vision_feature_select_strategy")),
    "class token": ("llava", without("processor_config.json", "num_additional_image_tokens")),
    "all three": (
        "llava",
        without(
            "processor_config.json",
            "patch_size",
            "vision_feature_select_strategy",
            "num_additional_image_tokens",
        ),
    ),
    "null": ("llava", settings(patch_size=None, vision_feature_select_strategy=None)),
    "pad token": ("llava", no_pad),
    "pad token of Qwen": ("qwen", no_pad),
    "patches": ("qwen", pictures(lambda one: [one.pop(name) for name in ("patch_size", "merge_size")])),
}


@pytest.mark.parametrize("kind", FILLED)
def test_what_the_model_says_is_filled_in(kind, saved_checkpoints, tmp_path, picture):
    """Processors of older versions lack fields: the first batch would end in an error of transformers."""
    family, spoil = FILLED[kind]
    folder = shutil.copytree(saved_checkpoints / family, tmp_path / "copy")
    spoil(folder)
    if spoil is no_pad:
        assert AutoTokenizer.from_pretrained(folder).pad_token is None
    question = {"images": [picture(), picture(1)], "prompt": ["What?", "What is in this picture?"]}
    answers = [
        reverse.generate(*load(place), **question, max_new_tokens=4, mode="plain")
        for place in (folder, saved_checkpoints / family)
    ]
    assert [one.text for one in answers[0]] == [one.text for one in answers[1]]


def no_template(folder):
    (folder / "chat_template.jinja").unlink()
    without("tokenizer_config.json", "chat_template")(folder)


def text_only(folder):
    (folder / "chat_template.jinja").write_text("{% for m in messages %}USER: {{ m['content'] }}{% endfor %}")


def without_picture(folder):
    template = "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)


def refuses_all(folder):
    (folder / "chat_template.jinja").write_text("{{ raise_exception('never') }}")


def no_pad_anywhere(folder):
    no_pad(folder)
    for file in ("config.json", "generation_config.json"):
        edit(folder / file, lambda content: content.pop("pad_token_id", None))
    edit(folder / "config.json", lambda content: content["text_config"].pop("pad_token_id", None))


def other_image_token(folder):
    edit(folder / "config.json", lambda content: content.update(image_token_index=7))


def smaller_pictures(one):
    one.update(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})


REFUSED = {
    "no template": ("llava", no_template, r"no chat template.*copy chat_template.jinja"),
    "no template of Qwen": ("qwen", no_template, r"no chat template.*copy chat_template.jinja"),
    "a template for text": (
        "llava",
        text_only,
        r"chat template .*for a question with one picture: '<image>'",
    ),
    "a template without pictures": (
        "qwen",
        without_picture,
        r"chat template .*'<\|image_pad\|>' must stand there 1",
    ),
    "a template that refuses": ("llava", refuses_all, r"cannot write a question with a picture .*never"),
    "no pad token": ("llava", no_pad_anywhere, r"no pad token.*write \"pad_token\": \"</s>\" into"),
    "patch size": (
        "llava",
        settings(patch_size=7),
        r"has patch_size=7, and its model needs 1\d:.*\"patch_size\": 1",
    ),
    "strategy": (
        "llava",
        settings(vision_feature_select_strategy="full"),
        r"strategy='full', and .* needs 'default'.*\"vision_feature_select_strategy\": \"default\" into",
    ),
    "class token": ("llava", settings(num_additional_image_tokens=0), r"tokens=0, and its model needs 1"),
    "smaller pictures": (
        "llava",
        pictures(smaller_pictures),
        r"makes pictures of 56x56 pixels, and .* takes",
    ),
    "huge pictures": (
        "llava",
        pictures(lambda one: one.update(size={"shortest_edge": 5000})),
        r"scales pictures to 5000 pixels a side",
    ),
    "image token": ("llava", other_image_token, r"gives '<image>' the id \d+, and config.json says .*=7"),
    "marks": (
        "llava",
        settings(image_token="<pic>"),
        r"marks pictures by '<pic>'.*\"image_token\": \"<image>\"",
    ),
    "merging": (
        "qwen",
        pictures(lambda one: one.update(merge_size=1)),
        r"merge_size=1, and its model needs 2",
    ),
    "patches": (
        "qwen",
        pictures(lambda one: one.update(patch_size=16)),
        r"patch_size=16, and its model needs 14",
    ),
    "limits the wrong way round": (
        "qwen",
        pictures(lambda one: one.update(size={"shortest_edge": 9999, "longest_edge": 99})),
        r"at least 9999 and at most 99 pixels .*set both",
    ),
    "a filter that is none": (
        "qwen",
        pictures(lambda one: one.update(resample="x")),
        r"resample='x', which must be a filter of Pillow",
    ),
    "a switch that is a text": (
        "qwen",
        pictures(lambda one: one.update(do_resize="no")),
        r"do_resize='no', which must be true or false",
    ),
    "one mean for three channels": (
        "llava",
        pictures(lambda one: one.update(image_mean=[0.5, 0.5])),
        r"cannot prepare a picture|are damaged",
    ),
    "frames": (
        "qwen",
        pictures(lambda one: one.update(temporal_patch_size=1)),
        r"temporal_patch_size=1, and",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_contradicts_the_model_is_refused_at_load(kind, saved_checkpoints, tmp_path, monkeypatch):
    """It would come out in the middle of decoding, with a remedy that does not help, or not at all."""
    family, spoil, words = REFUSED[kind]
    folder = shutil.copytree(saved_checkpoints / family, tmp_path / "copy")
    spoil(folder)
    monkeypatch.setattr(loading, "load_weights", None)  # before the weights are read
    with pytest.raises(ValueError, match=words):
        load(folder)


def test_the_remedy_for_a_missing_pad_token_works(llava):
    """The message would name a file that nothing reads."""
    no_pad_anywhere(llava)
    edit(llava / "tokenizer_config.json", lambda content: content.update(pad_token="</s>"))
    assert load(llava)[1].tokenizer.pad_token == "</s>"


def test_the_remedy_for_a_missing_template_works(llava, saved_checkpoints):
    """The message would name a file that nothing reads."""
    no_template(llava)
    shutil.copy(saved_checkpoints / "llava" / "chat_template.jinja", llava)
    load(llava)


def test_a_template_that_only_the_tokenizer_has_is_taken(llava, saved_checkpoints):
    """transformers' processor would say that there is none."""
    template = (llava / "chat_template.jinja").read_text()
    no_template(llava)
    edit(llava / "tokenizer_config.json", lambda content: content.update(chat_template=template))
    assert load(llava)[1].chat_template == template


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "banana"}, "dtype 'banana' is not a type of weights: try 'bfloat16'"),
        ({"dtype": torch.int8}, "dtype torch.int8 is not a type of weights"),
    ],
)
def test_a_wrong_dtype_is_refused_before_anything_is_read(options, words, llava, monkeypatch):
    """An AttributeError of torch would come after the processor was read, and whole numbers load."""
    monkeypatch.setattr(loading, "find_checkpoint", None)
    with pytest.raises(ValueError, match=words):
        load(llava, **options)


def drop_template(processor):
    processor.chat_template = None


def drop_pad(processor):
    processor.tokenizer.pad_token = None


def drop_patches(processor):
    processor.patch_size = None


UNUSABLE = {drop_template: "no chat template", drop_pad: "no pad token", drop_patches: "no patch_size"}


@pytest.mark.parametrize("drop", UNUSABLE, ids=lambda one: one.__name__)
def test_a_processor_that_was_not_loaded_here_is_checked_too(drop, tiny, picture):
    """A caller's own processor would end in an error of transformers, or with `hints=0` as a remedy that
    does not help."""
    model, processor = tiny("llava")
    drop(processor)
    for hints in (5, 0):
        with pytest.raises(ValueError, match=rf"{UNUSABLE[drop]}.*(reverse\.load|set processor)"):
            reverse.generate(model, processor, picture(), hints=hints, threshold=0.5, max_new_tokens=2)
