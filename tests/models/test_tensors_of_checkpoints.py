"""Without these, a checkpoint that lacks a tensor, or spells it otherwise, would run with random weights."""

import json
import logging
import shutil

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import reverse.models.checkpoints.loading as loading
from reverse.models import add_tokens_to_checkpoint, family_of, load, prepare_inputs
from reverse.models.adapters.merging import merge_adapter
from reverse.models.checkpoints.tensor_names import canonical_name
from reverse.models.conversion.converter import convert
from reverse.training.checkpoints.resuming import load_weights as load_into


@pytest.fixture(scope="module", params=["llava", "qwen"])
def saved(request, tiny, tmp_path_factory):
    """(folder, model, processor) of a whole checkpoint; not to be changed."""
    folder = tmp_path_factory.mktemp(request.param) / "whole"
    model, processor = tiny(request.param)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, model, processor


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that may be spoilt."""
    return shutil.copytree(saved[0], tmp_path / "spoilt")


def rewrite(folder, change):
    """Write the weights again with `change` made to the dict of tensors."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, file, metadata={"format": "pt"})


def without(part):
    def change(tensors):
        names = [name for name in tensors if part in name]
        assert names
        del tensors[names[0]]

    return change


def prefixed(prefix):
    def change(tensors):
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    return change


def reshaped(tensors):
    name = next(name for name in tensors if name.endswith("norm.weight"))
    tensors[name] = torch.ones(7)


def twice(tensors):
    name = next(name for name in tensors if "layers.0.mlp" in name)
    other = (
        name.replace("language_model.model.", "model.language_model.")
        if name.startswith("language_model.")
        else name.replace("model.layers", "model.language_model.layers")
    )
    tensors[other] = tensors[name] + 1


SPOILT = {
    "an MLP matrix": (without("mlp.up_proj"), r"lacks 1 tensor .*mlp.up_proj.weight"),
    "the projector": (without("m"), r"lacks 1 tensor that"),
    "a norm": (without("norm"), r"lacks 1 tensor .*norm"),
    "a tensor of another model": (
        lambda tensors: tensors.update({"classifier.weight": torch.ones(2)}),
        r"holds 1 tensor that its config.json does not know .classifier.weight",
    ),
    "a shape": (reshaped, r"holds 1 tensor of another shape .*\(7,\) in the files, \(\d+,\) by config.json"),
    "two spellings": (twice, "holds 1 tensor twice under two names"),
    "torch.compile": (prefixed("_orig_mod."), r"with '_orig_mod\.' .*unwrap it .*save_pretrained"),
    "DDP": (prefixed("module."), r"with 'module\.' .*unwrap it"),
    "FSDP": (prefixed("_fsdp_wrapped_module."), r"with '_fsdp_wrapped_module\.'"),
    "peft": (prefixed("base_model.model."), r"with 'base_model\.model\.' .*reverse merge"),
    "nothing": (
        lambda tensors: [tensors.pop(name) for name in list(tensors)[1:]],
        r"lacks \d\d+ tensors|layers",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_other_tensors_are_refused_by_name(name, folder, monkeypatch):
    """transformers fills what is missing with random numbers and only logs it: garbage is generated."""
    change, words = SPOILT[name]
    rewrite(folder, change)
    family = loading.find_checkpoint(folder)[1]
    monkeypatch.setattr(getattr(transformers, family.model_class), "from_pretrained", None)  # before weights
    with pytest.raises(ValueError, match=words):
        load(folder)


@pytest.mark.parametrize("part", ["lm_head", "vision_tower.", "multi_modal_projector."])
def test_whole_parts_of_a_llava_are_missed(part, tiny_llava, tmp_path):
    """The head, the tower or the projector of a LLaVA that was saved without it would be random."""
    model, processor = tiny_llava
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    names = [name for name in load_file(tmp_path / "model.safetensors") if part in name]
    rewrite(tmp_path, lambda tensors: [tensors.pop(name) for name in names])
    with pytest.raises(
        ValueError, match=rf"lacks {len(names)} tensors? that its config.json asks for .*{part}"
    ):
        load(tmp_path)


def test_the_report_of_transformers_is_checked_too(folder, monkeypatch):
    """A version of transformers that renames a tensor once more would leave it random."""
    family = loading.find_checkpoint(folder)[1]
    model_class = getattr(transformers, family.model_class)
    real = model_class.from_pretrained

    def renamed(*args, **kwargs):
        model, info = real(*args, **kwargs)
        return model, {**info, "missing_keys": {"model.new_name.weight"}}

    monkeypatch.setattr(model_class, "from_pretrained", renamed)
    with pytest.raises(ValueError, match=r"lacks 1 tensor .*model.new_name.weight"):
        load(folder)


@pytest.mark.parametrize("name", ["an MLP matrix", "torch.compile", "a tensor of another model"])
def test_the_same_is_refused_wherever_weights_are_read(name, folder, saved, tmp_path):
    """`tokens add`, `merge --base`, a resumed training and `convert` would copy random weights."""
    _, model, _ = saved
    change, words = SPOILT[name]
    rewrite(folder, change)
    out = tmp_path / "out"
    wrapped = get_peft_model(load(saved[0])[0], LoraConfig(r=2, target_modules=["q_proj"]))
    wrapped.save_pretrained(tmp_path / "adapter")
    calls = [
        lambda: add_tokens_to_checkpoint(folder, out),
        lambda: merge_adapter(tmp_path / "adapter", out, base=folder),
        lambda: load_into(model, str(folder)),
    ]
    if family_of(model).name == "Qwen2.5-VL":
        calls.append(lambda: convert(folder, out))
    for call in calls:
        with pytest.raises(ValueError, match=words):
            call()
    assert not out.exists()


def test_spellings_of_all_versions_load(folder, saved, picture):
    """A checkpoint of another version of transformers would be refused although it is whole."""
    _, model, processor = saved
    family = family_of(model)
    inputs = prepare_inputs(processor, [picture()], ["What?"], family)
    with torch.no_grad():
        expected = model(**inputs).logits

    def in_memory(tensors):
        tensors.clear()
        tensors.update({name: value.clone() for name, value in model.state_dict().items()})

    def with_buffers(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
        tensors["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(3)

    for change in (in_memory, with_buffers):
        rewrite(folder, change)
        with torch.no_grad():
            assert torch.equal(load(folder)[0](**inputs).logits, expected)


def test_one_name_for_all_spellings(tiny_any):
    """Two tensors under one name, or one under two, would be compared with the wrong shape."""
    model, _ = tiny_any
    names = list(model.state_dict())
    assert len({canonical_name(name, family_of(model)) for name in names}) == len(names)


def test_a_tied_head_of_its_own_is_refused(tiny, tmp_path):
    """The head in the file would be dropped without a word where the config ties it."""
    model, processor = tiny("qwen", tied=True)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    load(tmp_path)  # a copy, as some trainers save it
    rewrite(tmp_path, lambda t: t["lm_head.weight"].add_(1))
    with pytest.raises(ValueError, match=r"lm_head.weight differs from .*set tie_word_embeddings to false"):
        load(tmp_path)


def test_an_adapter_beside_merged_weights_is_not_applied_again(folder, saved, picture, caplog, monkeypatch):
    """transformers applies adapter_config.json to weights that hold it already: logits are off by 3."""
    _, model, processor = saved
    inputs = prepare_inputs(processor, [picture()], ["What?"], family_of(model))
    wrapped = get_peft_model(load(folder)[0], LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    wrapped.save_pretrained(folder)
    with torch.no_grad():
        changed = transformers.AutoModelForImageTextToText.from_pretrained(folder)(**inputs).logits
        expected = model(**inputs).logits
        assert (changed - expected).abs().max() > 0.1  # what stock transformers does
        monkeypatch.setattr(loading, "_warned", set())
        for _ in range(2):
            with caplog.at_level(logging.WARNING, logger="reverse.models.checkpoints.loading"):
                again, _ = load(folder)
            assert torch.equal(again(**inputs).logits, expected)
            assert again.name_or_path == str(folder)
    warnings = [r.getMessage() for r in caplog.records if r.name == "reverse.models.checkpoints.loading"]
    assert len(warnings) == 1 and "adapter_config.json, adapter_model.safetensors" in warnings[0]


def test_only_weights_beside_the_model_are_named(folder, caplog, monkeypatch):
    """Weights that nobody reads (a value head, a projector of its own) would be ignored without a word."""
    monkeypatch.setattr(loading, "_warned", set())
    save_file({"a": torch.ones(1)}, folder / "vit.safetensors")
    (folder / "non_lora_trainables.bin").write_bytes(b"")
    with caplog.at_level(logging.WARNING, logger="reverse.models.checkpoints.loading"):
        load(folder)
    assert "non_lora_trainables.bin, vit.safetensors" in caplog.text


def test_an_adapter_alone_is_sent_to_merge(folder):
    """A folder with config.json and an adapter would end in a missing file of transformers."""
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ValueError, match=r"holds a LoRA adapter and no weights .*reverse merge"):
        load(folder)


@pytest.mark.parametrize("option", ["output_loading_info", "adapter_kwargs", "gguf_file", "state_dict"])
def test_options_that_would_go_around_the_checks(option, folder):
    """`output_loading_info=True` would end in an AttributeError after the weights were read."""
    with pytest.raises(TypeError, match=f"{option} is not accepted: .*leave it out"):
        load(folder, **{option: {}})


def test_a_variant_is_read_and_checked(folder):
    """`variant="fp16"` would be refused for a file that is not asked for, or go unchecked."""
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no \*.safetensors .*it has model.fp16.safetensors"):
        load(folder)
    load(folder, variant="fp16")
    (folder / "model.fp16.safetensors").rename(folder / "model.safetensors")
    rewrite(folder, without("norm"))
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    with pytest.raises(ValueError, match=r"lacks 1 tensor "):
        load(folder, variant="fp16")
    with pytest.raises(ValueError, match=r"variant='../x' is not a part of a file's name"):
        load(folder, variant="../x")
