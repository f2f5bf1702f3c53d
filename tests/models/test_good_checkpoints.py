"""Checks that are stricter than the checkpoints people have would refuse what has always worked."""

import json
import resource
import shutil
import sys
import types

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from reverse.models import load
from reverse.models.adapters.merging import merge_adapter
from reverse.models.checkpoints.config_checks import build_config, build_empty, check_config_values
from reverse.models.checkpoints.loading import find_dtype
from reverse.models.families import LLAVA, QWEN2_5_VL
from reverse.models.processors import template_sandbox

FAMILIES = ["llava", "qwen"]
# The keys and values of published configurations; layers are cut to two, which no check looks at.
LLAVA_1_5 = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "num_hidden_layers": 2,
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "torch_dtype": "float16",
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 2,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
}
_QWEN = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "image_token_id": 151655,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "model_type": "qwen2_5_vl",
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "video_token_id": 151656,
    "vision_config": {
        "depth": 2,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "hidden_size": 1280,
        "in_chans": 3,
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
    },
    "vision_token_id": 151654,
}


def qwen(width, inner, heads, shared, rows, tied):
    return _QWEN | {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "tie_word_embeddings": tied,
        "vision_config": _QWEN["vision_config"] | {"out_hidden_size": width},
        "vocab_size": rows,
    }


def as_saved_later(config):
    """The same as transformers 4.5x writes it: sections, nulls, and the attention of whoever saved it."""
    nulls = dict.fromkeys(("head_dim", "image_token_id", "pad_token_id", "sliding_window", "video_token_id"))
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers",
             "num_key_value_heads", "rms_norm_eps", "rope_theta", "vocab_size")  # fmt: skip
    text = {name: config[name] for name in names} | nulls
    text |= {"model_type": "qwen2_5_vl_text", "layer_types": ["full_attention"] * 2, "dtype": "bfloat16"}
    scaling = {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"}
    attention = {"_attn_implementation": "flash_attention_2", "attn_implementation": "flash_attention_2"}
    text |= {"rope_scaling": scaling, **attention}
    return config | attention | {"text_config": text, "rope_scaling": scaling, "quantization_config": None}


QWEN_3B = qwen(2048, 11008, 16, 2, 151936, True)
QWEN_7B = qwen(3584, 18944, 28, 4, 152064, False)
PUBLISHED = {
    "LLaVA-1.5-7B": (LLAVA_1_5, LLAVA, False),
    "Qwen2.5-VL-3B": (QWEN_3B, QWEN2_5_VL, True),
    "Qwen2.5-VL-7B": (QWEN_7B, QWEN2_5_VL, False),
    "Qwen2.5-VL-7B, saved later": (as_saved_later(QWEN_7B), QWEN2_5_VL, False),
}


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory):
    """Checkpoints on disk, by family; not to be changed."""
    root = tmp_path_factory.mktemp("good")
    for family in FAMILIES:
        model, processor = tiny(family)
        model.save_pretrained(root / family)
        processor.save_pretrained(root / family)
    return root


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_taken(name):
    """A range or a rule that is too narrow would refuse the very models this library is for."""
    config, family, tied = PUBLISHED[name]
    check_config_values("config.json", config, family)
    built = build_config("config.json", config, family)
    model = build_empty("config.json", built, family)
    assert built.tie_word_embeddings == tied
    assert model.get_input_embeddings().weight.shape[0] == built.get_text_config().vocab_size


@pytest.mark.parametrize("family", FAMILIES)
def test_the_attention_of_whoever_saved_it_is_not_needed(family, folders, tmp_path):
    """flash-attn was used in training and is not installed here: names and shapes could not be looked at."""
    folder = shutil.copytree(folders / family, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    attention = {"_attn_implementation": "flash_attention_2", "attn_implementation": "flash_attention_2"}
    config |= attention
    config["text_config"] |= attention
    (folder / "config.json").write_text(json.dumps(config))
    model, _ = load(folder)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["torch.bfloat16", "bfloat16", torch.bfloat16])
def test_every_name_of_a_type_is_understood(name, folders):
    """`str(torch.bfloat16)` passed the check and was refused by transformers, without a remedy."""
    assert load(folders / "llava", dtype=name)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["bf16", "float8_e4m3fn", "int8", torch.int8, 3])
def test_other_types_are_refused_before_the_weights(name, folders):
    """Weights in 8 bits end in a TypeError about storage."""
    with pytest.raises(ValueError, match="is not a type of weights: try 'bfloat16'"):
        load(folders / "llava", dtype=name)


def adapter_of(folder, out, size, dtype):
    """The base in `dtype`, written beside an adapter whose matrices are of `size`; returns their folders."""
    model, processor = load(folder, dtype=dtype)
    model.save_pretrained(out / "base")
    processor.save_pretrained(out / "base")
    torch.manual_seed(0)
    wrapped = get_peft_model(model, LoraConfig(target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter += size * torch.randn(parameter.shape)
    wrapped.save_pretrained(out / "adapter")
    return out / "adapter", out / "base"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [0, 1e-3])
def test_an_adapter_that_changes_little_is_merged_in_half_precision(size, family, folders, tmp_path):
    """After a few steps an adapter changes less than rounding does; one of zeros was refused as another's."""
    adapter, base = adapter_of(folders / family, tmp_path, size, "bfloat16")
    probe = merge_adapter(adapter, tmp_path / "out", base=base).probe
    assert (probe.relative == 0) == (probe.effect == 0) == (size == 0)
    assert f"the adapter changes {probe.effect:.1%}" in str(probe)


def test_an_adapter_that_half_precision_loses_is_refused(folders, tmp_path, monkeypatch):
    """The base would be written under another name where no matrix of the adapter survives rounding."""
    from peft.tuners.lora import Linear

    adapter, base = adapter_of(folders / "llava", tmp_path, 3e-3, "bfloat16")
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, name: torch.zeros_like(self.weight))
    with pytest.raises(ValueError, match=r"\(the adapter changes .*merge in float32 \(--dtype float32"):
        merge_adapter(adapter, tmp_path / "out", base=base)


def test_merge_understands_the_same_types_as_load(folders, tmp_path):
    """ "torch.float32" and "auto" passed the check and ended in an AttributeError once the base was read."""
    adapter, base = adapter_of(folders / "llava", tmp_path, 0.1, "bfloat16")
    merge_adapter(adapter, tmp_path / "out", base=base, dtype="torch.float32")
    assert load(tmp_path / "out")[0].dtype == torch.float32


@pytest.mark.parametrize("name", [None, "auto"])
def test_no_type_means_as_saved(name):
    """`merge --dtype auto` looked for `torch.auto`."""
    assert find_dtype(name) is None


def test_templates_are_tried_where_no_limit_can_be_set(monkeypatch):
    """macOS refuses a limit of memory: every published checkpoint would be refused there."""
    tried = []

    def refuse(kind, limits):
        tried.append(kind)
        raise ValueError("current limit exceeds maximum limit")

    names = {name: getattr(resource, name) for name in ("RLIMIT_CPU", "RLIMIT_AS")}
    monkeypatch.setitem(sys.modules, "resource", types.SimpleNamespace(setrlimit=refuse, **names))
    template_sandbox._limit(2, 1 << 30)
    assert tried == [resource.RLIMIT_CPU, resource.RLIMIT_AS]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_that_is_missing_may_be_a_tied_one(family, folders, tmp_path):
    """Fetching it again does not help where config.json forgot to say that head and embeddings are one."""
    folder = shutil.copytree(folders / family, tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "lm_head" not in k}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    for section in (config, config["text_config"]):
        section.pop("tie_word_embeddings", None)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r'lacks 1 tensor .*"tie_word_embeddings": true into config\.json'):
        load(folder)
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    model, _ = load(folder)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_a_tied_head_named_in_the_text_section_is_tied(folders, tmp_path):
    """transformers 4.5x wrote it there alone, and a good checkpoint would lack its head."""
    folder = shutil.copytree(folders / "qwen", tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = config.pop("tie_word_embeddings")
    (folder / "config.json").write_text(json.dumps(config))
    model, _ = load(folder)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
