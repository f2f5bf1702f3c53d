"""Without these, a further family would need more than one record: VipLLaVA, not built in, decodes."""

import dataclasses

import pytest
import torch
from transformers import VipLlavaConfig, VipLlavaForConditionalGeneration

import reverse
from experiments.tiny_models import build_tiny_llava
from reverse.models import FAMILIES, add_tokens_to_checkpoint, default_threshold, family_of, load
from reverse.models.families import LLAVA

VIP_LLAVA = dataclasses.replace(
    LLAVA,
    name="VipLLaVA",
    model_types=("vipllava",),
    model_class="VipLlavaForConditionalGeneration",
    threshold=0.02,
    processor_fields=(("patch_size", "vision_config.patch_size"),),
    joined_features=True,
)
ASKED = {"prompt": "Describe this image.", "max_new_tokens": 12}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny VipLLaVA with random weights and the three tokens on disk; the record is registered."""
    llava, processor = build_tiny_llava(seed=0, text={"initializer_range": 0.2})
    config = VipLlavaConfig(
        vision_config=llava.config.vision_config,
        text_config=llava.config.text_config,
        image_token_index=llava.config.image_token_index,
        image_seq_length=llava.config.image_seq_length,
        vision_feature_layers=[-2, -1],
    )
    torch.manual_seed(0)
    model = VipLlavaForConditionalGeneration(config)
    model.generation_config = llava.generation_config
    folder = tmp_path_factory.mktemp("vip")
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    FAMILIES.append(VIP_LLAVA)
    add_tokens_to_checkpoint(folder / "base", folder / "tokens")
    yield folder / "tokens"
    FAMILIES.remove(VIP_LLAVA)


def test_it_loads_as_its_own_family(checkpoint):
    """A model would be taken for a LLaVA, with its threshold."""
    model, processor = load(checkpoint)
    assert type(model) is VipLlavaForConditionalGeneration and processor.tokenizer.padding_side == "left"
    assert family_of(model) is VIP_LLAVA and default_threshold(model) == 0.02


def test_plain_decoding_is_generate(checkpoint, picture):
    """Picture features would be passed in the wrong form, or positions be wrong."""
    model, processor = load(checkpoint, dtype=torch.float64)
    inputs = reverse.models.prepare_inputs(processor, [picture()], [ASKED["prompt"]], VIP_LLAVA)
    inputs["pixel_values"] = inputs["pixel_values"].double()
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    result = reverse.generate(model, processor, images=picture(), mode="plain", **ASKED)
    assert result.text == processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_a_batch_is_its_prompts_alone(checkpoint, picture):
    """Features of several pictures would be mixed up when they are joined."""
    model, processor = load(checkpoint, dtype=torch.float64)
    pictures = [picture(seed) for seed in range(3)]
    requests = [(one, ASKED["prompt"]) for one in pictures]
    together = list(reverse.generate_many(model, processor, requests, threshold=0.5, max_new_tokens=12))
    alone = [reverse.generate(model, processor, images=one, threshold=0.5, **ASKED) for one in pictures]
    assert [result.text for result in together] == [result.text for result in alone]
    assert [result.trace for result in together] == [result.trace for result in alone]


def test_a_processor_of_another_family_is_refused(checkpoint, tiny_qwen):
    """Two families may share a processor's class, and a third one's must still be refused."""
    model, processor = load(checkpoint)
    reverse.models.prepare_inputs(processor, None, ["Hello?"], VIP_LLAVA)
    with pytest.raises(ValueError, match="takes a LlavaProcessor"):
        reverse.generate(model, tiny_qwen[1], prompt="Hello?")
