"""PeftModel, compiled, dispatched, hooked and training models: the answers of the model inside of them."""

import copy
import functools

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from peft import LoraConfig, PeftMixedModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import nn

import reverse
from reverse.decoding.scheduling.worker import find_worker
from reverse.models import family_of, prepare_inputs, set_default_threshold
from reverse.models.unwrapping import input_device, unwrap_model
from tests.decoding.worlds import picture, talkative

FAMILIES = ["llava", "qwen"]
LENGTH = 14
SETTINGS = {"threshold": 0.1, "max_new_tokens": LENGTH, "local_attempts": 3, "max_attempts": 4}
SAMPLED = {"do_sample": True, "temperature": 0.8, "seed": 5}
PROMPT = "Describe this image."
_world = functools.cache(talkative)


def fresh(family):
    """A copy of the family's talkative model, to be changed, and its processor."""
    model, processor = _world(family)
    return copy.deepcopy(model), processor


def lora(model, task=None, seed=1, name="default", targets="q_proj|v_proj|down_proj"):
    """The model under a LoRA that changes what it says."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=4,
        lora_alpha=16,
        task_type=task,
        target_modules=rf".*language_model.*\.({targets})",
        init_lora_weights=False,
    )
    if hasattr(model, "peft_config"):
        model.add_adapter(name, config)
        return model.eval()
    return get_peft_model(model, config, adapter_name=name).eval()


def told(result):
    """Ids, phrases with p, and the trace: all that an answer says."""
    return (
        result.ids,
        [(p.text, p.status, pytest.approx(p.p_un, abs=1e-9)) for p in result.phrases],
        [(e.kind, e.phrase, e.at, e.rewound_to, pytest.approx(e.p_un, abs=1e-9)) for e in result.trace],
    )


def ask(model, processor, **options):
    results = reverse.generate(model, processor, [picture(0), picture(1)], PROMPT, **SETTINGS | options)
    return [told(result) for result in results]


@functools.cache
def expected(family, sampled=False):
    """The bare model's answers; something of them is taken back."""
    found = ask(*_world(family), **SAMPLED if sampled else {})
    assert any(trace for _, _, trace in found)
    return found


# ------------------------------------------------------------------ peft
@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize(("family", "task"), [("llava", None), ("qwen", "CAUSAL_LM")])
def test_a_peft_model_says_what_it_says_merged(family, task, sampled):
    """A PeftModel would crash, or answer without its adapter, or keep it where it is disabled."""
    options = SAMPLED if sampled else {}
    model, processor = fresh(family)
    wrapped = lora(model, task)
    adapted = ask(wrapped, processor, **options)
    assert [ids for ids, *_ in adapted] != [ids for ids, *_ in expected(family, sampled)]
    with wrapped.disable_adapter():
        assert ask(wrapped, processor, **options) == expected(family, sampled)
    assert ask(wrapped, processor, **options) == adapted
    merged = wrapped.merge_and_unload()
    assert [ids for ids, *_ in ask(merged, processor, **options)] == [ids for ids, *_ in adapted]


def test_the_active_one_of_several_adapters_answers():
    """The first adapter would go on answering, or both at once."""
    model, processor = fresh("llava")
    wrapped = lora(model, name="one")
    one = ask(wrapped, processor)
    lora(wrapped, seed=2, name="two")
    assert ask(wrapped, processor) == one
    wrapped.set_adapter("two")
    two = ask(wrapped, processor)
    assert two != one
    wrapped.base_model.set_adapter(["one", "two"])
    both = ask(wrapped, processor)
    assert both not in (one, two)
    assert [ids for ids, *_ in ask(wrapped.merge_and_unload(), processor)] == [ids for ids, *_ in both]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_call_takes_a_peft_model(family):
    """Of the public calls some would see the wrapper and crash ("no attribute 'language_model'")."""
    model, processor = fresh(family)
    wrapped = lora(model, "CAUSAL_LM")
    first, second = (r[0] for r in ask(wrapped, processor))
    requests = [(picture(0), PROMPT), (picture(1), PROMPT)]
    many = reverse.generate_many(wrapped, processor, requests, max_sequences=1, **SETTINGS)
    assert [r.ids for r in many] == [first, second]
    reader = reverse.stream(wrapped, processor, picture(0), PROMPT, **SETTINGS)
    text = "".join(reader)
    assert reader.result.ids == first and text == reader.result.text
    settings = {name: value for name, value in SETTINGS.items() if name != "max_new_tokens"}
    decoder = reverse.retrospective(processor, **settings)
    inputs = prepare_inputs(processor, [picture(0)], [PROMPT], family_of(wrapped))
    wrapped.generate(**inputs, custom_generate=decoder, max_new_tokens=LENGTH)
    assert decoder.results[0].ids == first
    assert family_of(wrapped).decoder(wrapped) is family_of(model).decoder(model)


def test_adapters_on_pictures_embeddings_and_head_count():
    """Modules saved whole, token rows and LoRA on embeddings would be passed over."""
    model, processor = fresh("llava")
    config = LoraConfig(
        r=4,
        target_modules=r".*(embed_tokens|lm_head|k_proj)",
        modules_to_save=["multi_modal_projector"],
        init_lora_weights=False,
    )
    wrapped = get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "modules_to_save" in name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    adapted = ask(wrapped, processor)
    assert adapted != expected("llava")
    merged = wrapped.merge_and_unload()
    assert [ids for ids, *_ in ask(merged, processor)] == [ids for ids, *_ in adapted]


def test_a_mixed_model_answers():
    """The wrapper for adapters of several kinds has no `get_base_model`."""
    model, processor = fresh("llava")
    config = LoraConfig(r=4, target_modules=r".*language_model.*v_proj", init_lora_weights=False)
    torch.manual_seed(0)
    wrapped = PeftMixedModel(model, config, adapter_name="default").eval()
    adapted = ask(wrapped, processor)
    assert adapted != expected("llava")
    assert ask(unwrap_model(wrapped), processor) == adapted


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=4, token_dim=64, num_layers=2, num_attention_heads=4
        ),
    ],
    ids=["prompt", "prefix"],
)
def test_virtual_tokens_are_refused(config):
    """What prompt learning puts before the prompt would silently be left out."""
    model, processor = fresh("llava")
    wrapped = get_peft_model(model, config).eval()
    with pytest.raises(
        ValueError, match=r"'default' is of type P\w+ and puts virtual tokens.*disable_adapter"
    ):
        ask(wrapped, processor)
    with wrapped.disable_adapter():
        assert ask(wrapped, processor) == expected("llava")
    inputs = prepare_inputs(processor, [picture(0)], [PROMPT], family_of(model))
    with pytest.raises(ValueError, match="puts virtual tokens"):
        wrapped.generate(**inputs, custom_generate=reverse.retrospective(processor), max_new_tokens=5)


def test_adapters_that_follow_the_prompt_are_refused():
    """An adapter for each row would meet other rows than its own, one for certain tokens none at all."""
    model, processor = fresh("llava")
    wrapped = lora(model, name="one")
    lora(wrapped, seed=2, name="two")
    inputs = prepare_inputs(processor, [picture(0), picture(1)], [PROMPT] * 2, family_of(model))
    with pytest.raises(ValueError, match=r"adapter_names gives the rows.*set_adapter"):
        wrapped.generate(
            **inputs, custom_generate=reverse.retrospective(processor), adapter_names=["one", "two"]
        )
    with pytest.raises(ValueError, match="adapter_names gives the rows"):
        ask(wrapped, processor, generation={"adapter_names": ["one", "two"]})
    config = LoraConfig(
        r=4, task_type="CAUSAL_LM", target_modules=r".*language_model.*v_proj", alora_invocation_tokens=[5, 6]
    )
    activated = get_peft_model(fresh("llava")[0], config)
    with pytest.raises(ValueError, match="switched on by tokens of the prompt"):
        ask(activated, processor)


# ------------------------------------------------------------------ compiled, parallel, dispatched
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sampled", [False, True])
def test_a_compiled_model_says_the_same(family, sampled):
    """The wrapper of torch.compile would crash, or a compiled forward answer otherwise."""
    model, processor = fresh(family)
    options = SAMPLED if sampled else {}
    assert ask(torch.compile(model, backend="eager"), processor, **options) == expected(family, sampled)


def test_wrappers_may_be_nested():
    """Only the outermost wrapper would be taken off."""
    model, processor = fresh("llava")
    wrapped = lora(model)
    adapted = ask(wrapped, processor)
    assert ask(torch.compile(wrapped, backend="eager"), processor) == adapted
    assert ask(nn.DataParallel(wrapped), processor) == adapted
    inner = lora(torch.compile(fresh("llava")[0], backend="eager"))
    assert ask(inner, processor) == adapted


class FullyShardedDataParallel(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


def test_a_model_in_pieces_is_refused():
    """The model inside would be asked with the piece of its weights that this process holds."""
    model, processor = _world("llava")
    with pytest.raises(ValueError, match=r"FullyShardedDataParallel.*summon_full_params"):
        ask(FullyShardedDataParallel(model), processor)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_offloaded_model_says_the_same(family, sampled):
    """Its weights are on the meta device, and inputs would be sent there."""
    model, processor = fresh(family)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.device.type == "meta" and input_device(model) == torch.device("cpu")
    options = SAMPLED if sampled else {}
    assert ask(model, processor, **options) == expected(family, sampled)
    assert "".join(reverse.stream(model, processor, picture(0), PROMPT, **SETTINGS | options))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dispatched_model_with_embeddings_on_disk_says_the_same(family, tmp_path):
    """Offloaded embeddings are the first that meets the ids."""
    model, processor = fresh(family)
    places = {name: "cpu" for name, _ in model.named_children()} | {"model": "cpu"}
    language = family_of(model).language_model
    places = {name: "cpu" for name, _ in model.model.named_children()}
    places = {f"model.{name}": "cpu" for name in places} | {"lm_head": "cpu"}
    del places[language]
    places |= {f"{language}.{name}": "cpu" for name, _ in family_of(model).decoder(model).named_children()}
    places[f"{language}.embed_tokens"] = "disk"
    if family == "qwen":  # tied to the embeddings
        places["lm_head"] = "disk"
    dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    assert model.get_input_embeddings().weight.device.type == "meta"
    assert ask(model, processor) == expected(family)


def test_a_wrapped_offloaded_model_says_the_same():
    """An adapter over offloaded layers would be left on the meta device, or its inputs."""
    model, processor = fresh("llava")
    wrapped = lora(model)
    adapted = ask(wrapped, processor)
    cpu_offload(wrapped, execution_device=torch.device("cpu"))
    assert ask(wrapped, processor) == adapted


# ------------------------------------------------------------------ hooks
def steer(module, args, output):
    """Add the same vector to what a decoder layer gives."""
    hidden = output[0] if isinstance(output, tuple) else output
    direction = torch.linspace(-2, 2, hidden.shape[-1], dtype=hidden.dtype)
    changed = hidden + direction
    return (changed, *output[1:]) if isinstance(output, tuple) else changed


def steer_before(module, args, kwargs):
    hidden = args[0] if args else kwargs["hidden_states"]
    changed = steer(module, (), hidden)
    return ((changed, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": changed})


HOOKS = {
    "hook": lambda model, layer: layer.register_forward_hook(steer),
    "pre-hook": lambda model, layer: layer.register_forward_pre_hook(steer_before, with_kwargs=True),
    "global": lambda model, layer: nn.modules.module.register_module_forward_hook(
        lambda module, args, output: steer(module, args, output) if module is layer else None
    ),
    "head": lambda model, layer: model.lm_head.register_forward_hook(
        lambda m, args, out: out.roll(1, -1) * 1.5
    ),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_a_hook_changes_the_answer_as_in_generate(kind):
    """A hook would act on the prompt alone, or not at all."""
    model, processor = fresh("llava")
    inputs = prepare_inputs(processor, [picture(0)], [PROMPT], family_of(model))
    plain = {"mode": "plain", "max_new_tokens": 12, "images": picture(0), "prompt": PROMPT}
    layer = family_of(model).decoder(model).layers[0]
    before = reverse.generate(model, processor, **plain).ids
    handle = HOOKS[kind](model, layer)
    try:
        found = reverse.generate(model, processor, **plain).ids
        assert found != before
        ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        assert list(found) == ids[0, inputs["input_ids"].shape[1] :].tolist()
    finally:
        handle.remove()
    assert reverse.generate(model, processor, **plain).ids == before


def test_backward_hooks_do_no_harm():
    """Hooks for a backward pass that never comes would change or stop an answer."""
    model, processor = fresh("llava")
    for layer in family_of(model).decoder(model).layers:
        layer.register_full_backward_hook(lambda *args: pytest.fail("there is no backward pass"))
    assert ask(model, processor) == expected("llava")


# ------------------------------------------------------------------ train mode
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_in_training_is_decoded_in_eval_mode(family):
    """Gradient checkpointing turns the cache off in train mode, and dropout changes every answer."""
    model, processor = fresh(family)
    wrapped = lora(model, "CAUSAL_LM")
    for layer in family_of(model).decoder(model).layers:
        layer.self_attn.attention_dropout = 0.5
    adapted = ask(wrapped, processor)
    wrapped.train()
    family_of(model).vision_tower(model).eval()  # as where it is frozen
    model.gradient_checkpointing_enable()
    modes = [module.training for module in wrapped.modules()]
    assert ask(wrapped, processor) == adapted
    many = reverse.generate_many(wrapped, processor, [(picture(0), PROMPT)] * 2, max_sequences=2, **SETTINGS)
    next(many)
    assert [module.training for module in wrapped.modules()] == modes  # between two answers too
    many.close()
    inputs = prepare_inputs(processor, [picture(0)], [PROMPT], family_of(model))
    settings = {name: value for name, value in SETTINGS.items() if name != "max_new_tokens"}
    decoder = reverse.retrospective(processor, **settings)
    wrapped.generate(**inputs, custom_generate=decoder, max_new_tokens=LENGTH)
    assert decoder.results[0].ids == adapted[0][0]
    with pytest.raises(ValueError, match="hints"):
        ask(wrapped, processor, hints=-1)
    assert [module.training for module in wrapped.modules()] == modes


def test_train_mode_comes_back_after_an_error(monkeypatch):
    """A failed call would leave a training without dropout."""
    model, processor = fresh("llava")
    model.train()
    layer = family_of(model).decoder(model).layers[0]
    layer.register_forward_hook(lambda *args: (_ for _ in ()).throw(RuntimeError("a fault")))
    with pytest.raises(RuntimeError, match="a fault"):
        ask(model, processor)
    assert all(module.training for module in model.modules())


def test_pictures_encoded_with_dropout_are_refused():
    """model.generate() encodes pictures before the decoding loop can put the tower into eval mode."""
    model, processor = fresh("llava")
    model.train()
    inputs = prepare_inputs(processor, [picture(0)], [PROMPT], family_of(model))
    decoder = reverse.retrospective(processor, threshold=0.3)
    model.generate(**inputs, custom_generate=decoder, max_new_tokens=5)  # no dropout there: as it is
    for module in family_of(model).vision_tower(model).modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.1
    with pytest.raises(ValueError, match=r"encoded in train mode, with dropout.*model.eval"):
        model.generate(**inputs, custom_generate=decoder, max_new_tokens=5)


# ------------------------------------------------------------------ what belongs to a model
def test_worker_threshold_and_family_are_the_inner_models():
    """Two threads with a model and its wrapper would decode at once, and each judge by its own threshold."""
    model, _ = fresh("qwen")
    wrapped = lora(model)
    others = [wrapped, torch.compile(wrapped, backend="eager"), nn.DataParallel(model), wrapped.base_model]
    assert all(find_worker(other) is find_worker(model) for other in others)
    assert find_worker(fresh("qwen")[0]) is not find_worker(model)
    set_default_threshold(nn.DataParallel(wrapped), 0.25)
    for other in (model, *others):
        assert reverse.models.default_threshold(other) == 0.25
        assert family_of(other).name == "Qwen2.5-VL"


def test_the_generation_config_of_the_wrapper_counts():
    """peft's wrapper may have one of its own, which its generate() follows."""
    model, processor = fresh("llava")
    wrapped = lora(model, "CAUSAL_LM")
    free = ask(wrapped, processor, mode="plain")[0][0]
    wrapped.generation_config = copy.deepcopy(model.generation_config)
    wrapped.generation_config.suppress_tokens = [free[0]]
    assert free[0] not in ask(wrapped, processor, mode="plain")[0][0]
