"""A merge that does not say what was trained: tied matrices, biases, and whatever nobody foresaw."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from typer.testing import CliRunner

import reverse
from reverse.models import family_of, load, prepare_inputs
from reverse.models.adapters.merging import merge_adapter
from tests.decoding.worlds import picture

ROWS = [5, 6, 7]
# name: (base, options of the adapter, whether embeddings and head still share a matrix)
KINDS = {
    "tied, embeddings": ("tied", {"target_modules": ["embed_tokens", "q_proj"]}, False),
    "tied, head": ("tied", {"target_modules": ["lm_head", "q_proj"]}, False),
    "tied, both": ("tied", {"target_modules": ["embed_tokens", "lm_head"]}, False),
    "tied, both as one": (
        "tied",
        {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
        None,
    ),
    "tied, neither": ("tied", {"target_modules": ["q_proj"]}, True),
    "tied, head whole": ("tied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, False),
    "tied, embeddings whole": (
        "tied",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        False,
    ),
    "tied, rows of the embeddings": (
        "tied",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": ROWS}},
        None,
    ),
    "untied, both": ("untied", {"target_modules": ["embed_tokens", "lm_head"]}, False),
    "llava, both": ("llava", {"target_modules": ["embed_tokens", "lm_head"]}, False),
    "llava, tower": ("llava", {"target_modules": r".*vision.*(q_proj|fc1)"}, False),
    "bias where there is one": ("tied", {"target_modules": ["q_proj"], "lora_bias": True}, True),
    "DoRA": ("tied", {"target_modules": ["q_proj", "up_proj"], "use_dora": True}, True),
}
_BASES = {"tied": ("qwen", True), "untied": ("qwen", False), "llava": ("llava", False)}


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory):
    """`base(name)`: the folder of a base, written once."""
    root = tmp_path_factory.mktemp("bases")

    def folder(name):
        if not (root / name).exists():
            family, tied = _BASES[name]
            model, processor = tiny(family, init_std=0.1, **{"tied": tied} if family == "qwen" else {})
            model.save_pretrained(root / name)
            processor.save_pretrained(root / name)
        return root / name

    return folder


def train(folder, out, size=0.2, **options):
    """An adapter on the base in `folder`, moved at random and written to `out`; returns it with its base."""
    model, processor = load(folder)
    torch.manual_seed(1)
    wrapped = get_peft_model(model, LoraConfig(r=4, init_lora_weights=False, **options)).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:  # logits of the usual size, since differences are told in units of 1
                parameter *= size
            if "modules_to_save" in name or "trainable_tokens" in name or "lora_B.default.bias" in name:
                parameter += 0.1 * torch.randn(parameter.shape)
    wrapped.save_pretrained(out)
    return wrapped, processor


def logits_of(model, processor):
    inputs = prepare_inputs(processor, [picture(0)], ["What is <SPAN>there</CN>?"], family_of(model))
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_back_is_what_was_trained(kind, base, tmp_path):
    """A shared matrix would be merged for embeddings and head at once: logits off by 0.4 to 9."""
    name, options, tied = KINDS[kind]
    wrapped, processor = train(base(name), tmp_path / "adapter", **options)
    expected = logits_of(wrapped, processor)
    done = merge_adapter(tmp_path / "adapter", tmp_path / "out", base=base(name))
    merged, _ = load(tmp_path / "out")
    assert (logits_of(merged, processor) - expected).abs().max() <= 2e-5
    assert (logits_of(load(base(name))[0], processor) - expected).abs().max() > 1e-2
    shared = merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
    assert tied is None or shared == tied
    assert shared == json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"]
    assert done.probe.exact and done.probe.difference <= done.probe.allowed < 1e-2
    answers = [
        reverse.generate(model, processor, picture(0), threshold=0.5, max_new_tokens=6).ids
        for model in (wrapped, merged)
    ]
    assert answers[0] == answers[1]


def test_biases_without_a_place_are_refused(base, tmp_path):
    """`lora_bias=True` ended in a bare RuntimeError of peft."""
    train(base("tied"), tmp_path / "adapter", target_modules=["down_proj"], lora_bias=True)
    words = r"lora_bias=True, and .*layers\.0\.mlp\.down_proj has no bias .*unmerged"
    with pytest.raises(ValueError, match=words):
        merge_adapter(tmp_path / "adapter", tmp_path / "out", base=base("tied"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("part", ["up_proj", "q_proj"])
def test_a_merge_that_went_wrong_is_refused(part, dtype, base, tmp_path, monkeypatch):
    """A layer that peft merges wrongly would be written, and nothing say so."""
    train(base("llava"), tmp_path / "adapter", target_modules=r".*(up_proj|vision.*q_proj)", size=1)
    good = merge_adapter(tmp_path / "adapter", tmp_path / "good", base=base("llava"), dtype=dtype)
    assert good.probe.exact == (dtype == "float32") and good.probe.relative < 0.05
    delta = Linear.get_delta_weight

    def without(self, adapter):
        found = delta(self, adapter)
        square = found.shape[0] == found.shape[1]
        return found * 0 if square == (part == "q_proj") else found

    monkeypatch.setattr(Linear, "get_delta_weight", without)
    what = "logits" if part == "up_proj" else "picture features"
    with pytest.raises(ValueError, match=rf"{what} of the merged model differ .* nothing is written"):
        merge_adapter(tmp_path / "adapter", tmp_path / "out", base=base("llava"), dtype=dtype)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "good"]


def test_the_command_prints_the_difference(base, tmp_path):
    """Nobody would see how exact a merge is."""
    from reverse.cli import app

    train(base("tied"), tmp_path / "adapter", target_modules=["embed_tokens"])
    arguments = ["merge", str(tmp_path / "adapter"), str(tmp_path / "out"), "--base", str(base("tied"))]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "merged and unmerged differ by at most" in result.output and "(allowed " in result.output
