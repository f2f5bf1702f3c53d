"""Without these, the projector or the tower that was trained beside a LoRA would be left behind unseen."""

import json
import re
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import reverse.models.adapters.merging as merging
from reverse.models import family_of, load, prepare_inputs
from reverse.models.adapters.loose_weights import find_loose_weights
from reverse.models.adapters.merging import merge_adapter
from reverse.models.conversion.original_llava.llava_layout import read_layout

TRAINED = {"llava": "multi_modal_projector", "qwen": "visual.merger"}


@pytest.fixture(scope="module", params=["llava"])
def trained(request, tiny, tmp_path_factory, picture):
    """(base folder, adapter folder, what was trained beside the LoRA, inputs, logits); not to be changed."""
    root = tmp_path_factory.mktemp(request.param)
    model, processor = tiny(request.param, init_std=0.05)
    model.save_pretrained(root / "base")
    processor.save_pretrained(root / "base")
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=r".*language_model.*\.q_proj")).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name or TRAINED[request.param] in name:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    rest = {n: v.detach().clone() for n, v in wrapped.named_parameters() if TRAINED[request.param] in n}
    wrapped.save_pretrained(root / "adapter")
    inputs = prepare_inputs(processor, [picture()], ["What?"], family_of(model))
    with torch.no_grad():
        logits = wrapped(**inputs).logits
    return root / "base", root / "adapter", rest, inputs, logits


@pytest.fixture
def adapter(trained, tmp_path):
    """A copy of the adapter, to be added to."""
    return shutil.copytree(trained[1], tmp_path / "adapter")


NAMES = ["non_lora_trainables", "non_lora_state_dict", "mm_projector", "projector", "vit", "anything"]
PREFIXES = ["base_model.model.", "", "base_model.model.module.", "_orig_mod."]


CASES = [
    *[("llava", name, PREFIXES[0]) for name in NAMES],
    *[("qwen", "vit", prefix) for prefix in PREFIXES],
]


@pytest.mark.parametrize(("trained", "file", "prefix"), CASES, indirect=["trained"])
def test_safetensors_beside_an_adapter_are_merged(file, prefix, trained, adapter, tmp_path):
    """Answers would come from the untrained projector, whatever the file is called."""
    base, _, rest, inputs, logits = trained
    tensors = {prefix + name.removeprefix("base_model.model."): value for name, value in rest.items()}
    save_file(tensors, adapter / f"{file}.safetensors")
    merge_adapter(adapter, tmp_path / "out", base=base)
    with torch.no_grad():
        assert (load(tmp_path / "out")[0](**inputs).logits - logits).abs().max() <= 1e-5


def test_without_them_it_is_another_model(trained, adapter, tmp_path):
    """The test above could not fail if the projector made no difference."""
    base, _, _, inputs, logits = trained
    merge_adapter(adapter, tmp_path / "out", base=base)
    with torch.no_grad():
        assert (load(tmp_path / "out")[0](**inputs).logits - logits).abs().max() > 1e-3


def test_weights_in_the_folder_above_are_merged(trained, adapter, tmp_path):
    """`merge RUN` takes the adapter in RUN/checkpoint-7, and would pass over RUN/projector.safetensors."""
    base, _, rest, inputs, logits = trained
    (tmp_path / "run").mkdir()
    adapter.rename(tmp_path / "run" / "checkpoint-7")
    save_file(rest, tmp_path / "run" / "projector.safetensors")
    merge_adapter(tmp_path / "run", tmp_path / "out", base=base)
    with torch.no_grad():
        assert (load(tmp_path / "out")[0](**inputs).logits - logits).abs().max() <= 1e-5


PICKLES = ["non_lora_trainables.bin", "non_lora_state_dict.bin", "mm_projector.bin", "value_head.bin", "x.pt"]


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_beside_an_adapter_are_refused_by_name(name, trained, adapter, tmp_path, monkeypatch):
    """They would be ignored, or run code; and the remedy that the message gives must work."""
    base, _, rest, *_ = trained
    torch.save(rest, adapter / name)
    words = rf"as pickles \({re.escape(name)}\).*if you trust them, convert them"
    with pytest.raises(ValueError, match=words) as caught:
        merge_adapter(adapter, tmp_path / "out", base=base)
    remedy = re.search("`(from safetensors.torch .*?)`", str(caught.value))[1]
    monkeypatch.chdir(adapter)
    exec("import torch; " + remedy)
    (adapter / name).unlink()
    assert set(find_loose_weights(adapter)) == set(rest)


def test_what_a_trainer_keeps_is_no_weight(trained, adapter, tmp_path):
    """A checkpoint of the Trainer would be refused for its optimizer's state."""
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_1.pth"):
        torch.save({}, adapter / name)
    merge_adapter(adapter, tmp_path / "out", base=trained[0])


def a_value_head(rest):
    return {"v_head.summary.weight": torch.zeros(1, 4)}


def another_shape(rest):
    return {next(iter(rest)): torch.zeros(3)}


def not_finite(rest):
    name = next(iter(rest))
    return {name: rest[name] * float("nan")}


def a_matrix_of_lora(rest):
    return {
        "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 2)
    }


WRONG = {
    a_value_head: r"value_head.safetensors.* hold 'v_head.summary.weight', which is not a tensor of .*move",
    another_shape: r"of shape \(3,\), and the base has",
    not_finite: r"not finite",
    a_matrix_of_lora: r"lora_A.weight', which is not a tensor of the base",
}


@pytest.mark.parametrize("make", WRONG, ids=lambda one: one.__name__)
def test_what_does_not_fit_is_refused(make, trained, adapter, tmp_path):
    """Half of it would be merged, or none."""
    base, _, rest, *_ = trained
    save_file(make(rest), adapter / "value_head.safetensors")
    with pytest.raises(ValueError, match=WRONG[make]):
        merge_adapter(adapter, tmp_path / "out", base=base)
    assert not (tmp_path / "out").exists()


def test_complete_weights_beside_an_adapter(trained, adapter, tmp_path):
    """Nobody can tell whether the adapter is in them already: merging would apply it twice."""
    shutil.copy(trained[0] / "model.safetensors", adapter)
    with pytest.raises(
        ValueError, match=r"an adapter and complete weights .model.safetensors.*load the folder"
    ):
        merge_adapter(adapter, tmp_path / "out", base=trained[0])


def test_the_original_layout_ignores_nothing_either(tmp_path):
    """`convert` reads non_lora_trainables only: other weights of a LoRA folder would be left behind."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_llama"}))
    settings = {"peft_type": "LORA", "lora_alpha": 1, "r": 1}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    for name in ("adapter_model.safetensors", "non_lora_trainables.safetensors", "vit.safetensors"):
        save_file({"model.mm_projector.0.weight": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(ValueError, match=r"no place in this layout .vit.safetensors"):
        read_layout(tmp_path)
    (tmp_path / "vit.safetensors").unlink()
    torch.save(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "non_lora_trainables.bin")
    with pytest.raises(ValueError, match=r"holds both non_lora_trainables.bin and .*delete one"):
        read_layout(tmp_path)


SETTINGS = {
    "a rank of 10 million": (
        {"r": 10**7},
        r"has r=10000000, which must be .* matrices have 2",
    ),
    "no rank": ({"r": 0}, r"has r=0, which must be"),
    "a rank that is a text": ({"r": "2"}, r"has r='2', which must be"),
    "ranks that are a list": ({"rank_pattern": [1]}, r"has rank_pattern=\[1\], which must be an object"),
    "one layer's rank": ({"rank_pattern": {"q_proj": 10**7}}, r"has rank_pattern.q_proj=10000000"),
    "a factor that is a text": ({"lora_alpha": "x"}, r"has lora_alpha='x', which must be a number"),
    "nested settings": ({"x": json.loads("[" * 100 + "]" * 100)}, r"adapter_config.json is damaged .*nested"),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_hostile_settings_of_an_adapter(kind, trained, adapter, tmp_path):
    """peft would build matrices of any rank before it looks at the files, or end in a traceback."""
    changes, words = SETTINGS[kind]
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=words):
        merge_adapter(adapter, tmp_path / "out", base=trained[0])


def test_a_base_without_tokens_is_refused_before_weights_are_read(trained, adapter, tmp_path, monkeypatch):
    """A large base would be read for minutes before its tokenizer is looked at."""
    base = shutil.copytree(trained[0], tmp_path / "base")
    text = (base / "tokenizer.json").read_text()
    (base / "tokenizer.json").write_text(text.replace("<SPAN>", "<NOPE>"))
    monkeypatch.setattr(merging, "load_weights", None)
    with pytest.raises(ValueError, match=r"does not know <SPAN>"):
        merge_adapter(adapter, tmp_path / "out", base=base)
    with pytest.raises(ValueError, match=r"dtype 'banana' is not a type"):
        merge_adapter(adapter, tmp_path / "out", base=base, dtype="banana")
