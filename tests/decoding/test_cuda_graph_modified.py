"""The captured steps read weights: whatever changes a model beside them is found and refused."""

import copy
import functools
import logging
import types

import pytest
import torch
import transformers
from accelerate import cpu_offload
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrizations, prune

import reverse
from reverse.decoding.backends import auto
from reverse.decoding.backends.cuda_graph.weights import unsupported
from reverse.models import family_of
from tests.decoding.worlds import picture, talkative

FAMILIES = ["llava", "qwen"]
SETTINGS = {"prompt": "Is there a dog?", "threshold": 0.3, "max_new_tokens": 12, "max_attempts": 3}
_world = functools.cache(talkative)


def parts(family):
    """A copy of the family's talkative model, to be changed: (model, processor, text decoder)."""
    model, processor = _world(family)
    model = copy.deepcopy(model)
    return model, processor, family_of(model).decoder(model)


def identity_hook(module, args, output):
    return None


def own_forward(self, hidden_states):
    return type(self).forward(self, hidden_states)


def wrap(model, targets, **options):
    config = LoraConfig(r=2, target_modules=[targets], init_lora_weights=False, **options)
    return get_peft_model(model, config).get_base_model()


def save_whole(model, name):
    tower = r".*(vision|visual).*(q_proj|qkv)"  # where pictures are encoded, modules run as they are
    config = LoraConfig(r=2, target_modules=tower, modules_to_save=[name])
    return get_peft_model(model, config).get_base_model()


def scale_attention(model, text):
    text.layers[1].self_attn.scaling *= 2


class OwnLinear(nn.Linear):
    pass


class OwnParameter(nn.Parameter):
    pass


# name: (what is done to (model, text decoder), what the message names)
CHANGES = {
    "hook on a layer": (
        lambda model, text: text.layers[1].register_forward_hook(identity_hook),
        r"layers\.1 has a forward hook \(identity_hook\)",
    ),
    "hook with kwargs": (
        lambda model, text: text.layers[0].mlp.register_forward_hook(lambda *a: None, with_kwargs=True),
        r"layers\.0\.mlp has a forward hook",
    ),
    "pre-hook": (
        lambda model, text: text.norm.register_forward_pre_hook(lambda *a: None),
        "norm has a forward hook",
    ),
    "hook on the head": (
        lambda model, text: model.lm_head.register_forward_hook(identity_hook),
        "lm_head has a forward hook",
    ),
    "hook on the embeddings": (
        lambda model, text: text.embed_tokens.register_forward_hook(identity_hook),
        "embed_tokens has a forward hook",
    ),
    "hook on the whole": (
        lambda model, text: model.register_forward_hook(identity_hook),
        "ForConditionalGeneration has a forward hook",
    ),
    "hook on the middle": (
        lambda model, text: model.model.register_forward_pre_hook(lambda *a: None),
        "model has a forward hook",
    ),
    "forward of one module": (
        lambda model, text: setattr(
            text.layers[0].mlp, "forward", types.MethodType(own_forward, text.layers[0].mlp)
        ),
        r"layers\.0\.mlp has another forward \(own_forward\)",
    ),
    "forward of another module": (
        lambda model, text: setattr(text.layers[0].mlp, "forward", text.layers[1].mlp.forward),
        r"layers\.0\.mlp has another forward",
    ),
    "forward of the whole": (
        lambda model, text: setattr(model, "forward", functools.partial(model.forward)),
        "has another forward",
    ),
    "parametrization": (
        lambda model, text: parametrizations.weight_norm(text.layers[1].mlp.up_proj),
        r"up_proj is parametrized \(weight\)",
    ),
    "parametrized norm": (
        lambda model, text: nn.utils.parametrize.register_parametrization(text.norm, "weight", nn.Identity()),
        r"norm is parametrized \(weight\)",
    ),
    "pruning": (
        lambda model, text: prune.l1_unstructured(text.layers[0].self_attn.k_proj, "weight", 0.5),
        "k_proj has a forward hook",
    ),
    "LoRA on a projection": (lambda model, text: wrap(model, "up_proj"), "up_proj is a Linear of peft"),
    "LoRA on embeddings": (
        lambda model, text: wrap(model, "embed_tokens"),
        r"embed_tokens is a .* of peft",
    ),
    "LoRA on the head": (lambda model, text: wrap(model, "lm_head"), r"lm_head is a .* of peft"),
    "rows of tokens": (
        lambda model, text: wrap(model, "up_proj", trainable_token_indices={"embed_tokens": [5, 6]}),
        r"embed_tokens is a .* of peft",
    ),
    "a head of its own": (
        lambda model, text: save_whole(model, "lm_head"),
        r"lm_head is a .* of peft",
    ),
    "a norm of its own": (
        lambda model, text: save_whole(model, "language_model.norm"),
        r"language_model\.norm is a .* of peft",
    ),
    "another class of layer": (
        lambda model, text: setattr(text.layers[0].mlp, "down_proj", OwnLinear(8, 8)),
        r"down_proj is a OwnLinear of tests.*: merge adapters, load without quantisation",
    ),
    "another kind of weight": (
        lambda model, text: setattr(text.norm, "weight", OwnParameter(text.norm.weight.data)),
        "norm has a OwnParameter for its weight",
    ),
    "offloading": (
        lambda model, text: cpu_offload(model, execution_device=torch.device("cpu")),
        "offloaded by accelerate",
    ),
    "attention of the caller's": (
        lambda model, text: setattr(model.config.get_text_config(), "_attn_implementation", "mine"),
        "attn_implementation='mine'",
    ),
    "scale of attention": (scale_attention, "layer 1 scales attention by"),
    "eps of a norm": (
        lambda model, text: setattr(text.norm, "variance_epsilon", 0.1),
        r"adds 0\.1, not 1e-0",
    ),
    "fewer layers": (
        lambda model, text: setattr(model.config.get_text_config(), "num_hidden_layers", 1),
        "has 2 layers and num_hidden_layers=1",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_change_beside_the_weights_is_refused_by_name(change, family):
    """The captured steps would go on saying what the unchanged model says."""
    model, processor, text = parts(family)
    assert unsupported(model) is None
    apply, words = CHANGES[change]
    apply(model, text)
    with pytest.raises(
        ValueError, match=rf"backend='cuda_graph' cannot decode this: .*{words}.*backend='auto'"
    ):
        reverse.generate(model, processor, picture(0), backend="cuda_graph", **SETTINGS)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_hook_on_all_modules_is_refused(family):
    """A hook that no module lists itself would be overlooked."""
    model, _, _ = parts(family)
    for register in (
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
    ):
        handle = register(lambda *args: None)
        try:
            assert "a hook on every module is registered" in unsupported(model)
        finally:
            handle.remove()
    assert unsupported(model) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_patched_in_its_class_is_found(family, monkeypatch):
    """Libraries that patch the classes of transformers would be overlooked, also where they use `wraps`."""
    model, _, text = parts(family)
    kind = type(text.layers[0].mlp)
    original = kind.forward

    @functools.wraps(original)
    def patched(self, x):
        return original(self, x) * 2

    monkeypatch.setattr(kind, "forward", patched)
    assert f"has another forward ({original.__qualname__}, of {__name__})" in unsupported(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_does_not_change_the_answer_is_captured(family):
    """Training hooks, compiled forwards, onlookers and hooks on the tower would cost the fast backend."""
    model, processor, text = parts(family)
    expected = reverse.generate(model, processor, picture(0), backend="hf", **SETTINGS).ids
    text.layers[0].register_full_backward_hook(lambda *args: None)
    model(input_ids=torch.tensor([[5, 6]]), output_hidden_states=True)  # transformers registers onlookers
    family_of(model).vision_tower(model).register_forward_hook(identity_hook)
    model.forward = torch.compile(model.forward, backend="eager")
    assert unsupported(model) is None
    del model.forward  # compiling takes longer than this test is worth
    model.train()
    assert reverse.generate(model, processor, picture(0), backend="cuda_graph", **SETTINGS).ids == expected
    wrapped = torch.compile(model, backend="eager")
    assert reverse.generate(wrapped, processor, picture(0), backend="cuda_graph", **SETTINGS).ids == expected


def test_auto_falls_back_with_one_line(monkeypatch, caplog):
    """A hooked model would be decoded as if it had no hook, or the reason be told at every call."""
    monkeypatch.setattr(auto, "_why_not_worth_it", lambda model: None)
    monkeypatch.setattr(auto, "_logged", set())
    model, processor, text = parts("llava")
    with caplog.at_level(logging.WARNING, "reverse"):
        plain = reverse.generate(model, processor, picture(0), **SETTINGS).ids
        assert model in auto._idle and not caplog.records
        text.layers[0].register_forward_hook(lambda module, args, output: output + 1.0)
        found = [reverse.generate(model, processor, picture(0), **SETTINGS).ids for _ in range(2)]
    assert found[0] == found[1] != plain
    assert found[0] == reverse.generate(model, processor, picture(0), backend="hf", **SETTINGS).ids
    (record,) = caplog.records
    assert "decoding with backend 'hf': model.language_model.layers.0 has a forward" in record.message


def patch_rotary(monkeypatch, family):
    """Change the model in a place where no module shows it: a function of its file."""
    kind = "llama.modeling_llama" if family == "llava" else "qwen2_5_vl.modeling_qwen2_5_vl"
    module = transformers.models
    for name in kind.split("."):
        module = getattr(module, name)
    name = "rotate_half"
    original = getattr(module, name)
    monkeypatch.setattr(module, name, lambda x: original(x) * 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_nobody_foresaw_is_found_by_comparing_logits(family, monkeypatch, caplog):
    """Any change that no check knows of would make the captured steps talk of another model."""
    model, processor, _ = parts(family)
    plain = reverse.generate(model, processor, picture(0), backend="cuda_graph", **SETTINGS).ids
    auto.release(model)
    patch_rotary(monkeypatch, family)
    assert unsupported(model) is None
    expected = reverse.generate(model, processor, picture(0), backend="hf", **SETTINGS).ids
    assert expected != plain
    with pytest.raises(ValueError, match=r"gives other logits than the model's forward pass \(by \d+.*auto"):
        reverse.generate(model, processor, picture(0), backend="cuda_graph", **SETTINGS)
    monkeypatch.setattr(auto, "_why_not_worth_it", lambda model: None)
    monkeypatch.setattr(auto, "_logged", set())
    with caplog.at_level(logging.WARNING, "reverse"):
        assert reverse.generate(model, processor, picture(0), **SETTINGS).ids == expected
    assert "gives other logits" in caplog.text and model not in auto._idle


def test_a_refusal_comes_before_the_pictures(monkeypatch):
    """A thousand pictures would be opened and encoded for a model that cannot be captured."""
    model, processor, text = parts("llava")
    text.norm.register_forward_hook(identity_hook)
    monkeypatch.setattr(type(model), "generate", lambda *args, **kwargs: pytest.fail("was encoded"))
    with pytest.raises(ValueError, match="norm has a forward hook"):
        reverse.generate(model, processor, "/nowhere.png", backend="cuda_graph", **SETTINGS)


def test_gradient_checkpointing_leaves_nothing_behind():
    """transformers' hook for it stays on the embeddings, and no trained model would be captured again."""
    model, _, text = parts("llava")
    model.gradient_checkpointing_enable()
    assert text.embed_tokens._forward_hooks
    assert unsupported(model) is None
    model.gradient_checkpointing_disable()
    assert unsupported(model) is None
