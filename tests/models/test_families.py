"""Without these, a model could be taken for one of the other family, or for a known one when it is not."""

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig

from reverse.models import FAMILIES, default_threshold, family_of, set_default_threshold


def test_each_family_finds_itself(tiny_any):
    """Decoding would use the other family's placeholder and threshold."""
    model, processor = tiny_any
    family = family_of(model)
    assert family_of(model.config) is family
    assert type(model).__name__ == family.model_class
    assert type(processor).__name__ == family.processor_class
    assert processor.image_token == family.image_token
    assert processor.image_token_id == family.image_token_id(model.config)
    assert family.context_length(model.config) == 1024


def test_paths_lead_to_modules(tiny_any):
    """Hooks, freezing and learning rates would go to the wrong part, or nowhere."""
    model, _ = tiny_any
    family = family_of(model)
    parts = [family.vision_tower(model), family.image_projector(model), family.decoder(model)]
    assert all(isinstance(part, torch.nn.Module) for part in parts)
    assert family.decoder(model).get_input_embeddings() is model.get_input_embeddings()


def test_paths_lead_through_an_adapter(tiny):
    """Under LoRA the same paths start two modules deeper."""
    from peft import LoraConfig, get_peft_model

    model, _ = tiny("llava")
    tower = family_of(model).vision_tower(model)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    assert family_of(wrapped).vision_tower(wrapped) is tower


def test_the_tower_runs_once_a_forward(tiny_any, picture):
    """The promise that a picture is encoded once is counted with this hook."""
    model, processor = tiny_any
    family = family_of(model)
    text = processor.apply_chat_template(
        family.messages("Describe this image.", ["a picture"]), tokenize=False, add_generation_prompt=True
    )
    assert text.count(family.image_token) == family.placeholders_per_image
    inputs = processor(images=[picture()], text=[text], return_tensors="pt")
    assert ("mm_token_type_ids" in inputs) == (family.name == "Qwen2.5-VL")
    calls = []
    hook = family.vision_tower(model).register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    assert len(calls) == 1


@pytest.mark.parametrize("config", [LlamaConfig(), CLIPVisionConfig()])
def test_unknown_architectures_are_refused_with_the_known_ones(config):
    """A text model would be loaded and fail much later."""
    with pytest.raises(ValueError, match=r"known are LLaVA \(llava\), Qwen2.5-VL \(qwen2_5_vl\)"):
        family_of(config)


def test_families_are_frozen_and_apart():
    """Two records answering to one model_type would make the order decide."""
    types = [name for family in FAMILIES for name in family.model_types]
    assert len(set(types)) == len(types)
    with pytest.raises(AttributeError):
        FAMILIES[0].threshold = 1.0


def test_the_checkpoints_threshold_precedes_the_familys(tiny, tmp_path):
    """A calibrated checkpoint would be decoded at the published threshold."""
    for name, published in (("llava", 0.003), ("qwen", 0.01)):
        model, _ = tiny(name)
        assert default_threshold(model) == published
        set_default_threshold(model, 0.05)
        assert default_threshold(model) == 0.05
        model.save_pretrained(tmp_path / name)
        assert default_threshold(type(model).from_pretrained(tmp_path / name)) == 0.05


def test_thresholds_are_probabilities(tiny):
    """A threshold of 3 (per cent, or per mille) would switch checking off."""
    model, _ = tiny("llava")
    with pytest.raises(ValueError, match=r"\(0, 1\], got 3.0"):
        set_default_threshold(model, 3.0)
    model.config.reverse = {"threshold": 3.0}
    with pytest.raises(ValueError, match=r"config.json gives the threshold 3.0"):
        default_threshold(model)
