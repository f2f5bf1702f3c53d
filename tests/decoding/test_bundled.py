"""The trained model that ships with the package: plain generate() against the same loop with threshold 1."""

import torch
from PIL import Image

import reverse
from reverse.data.scenes import make_scene, render_scene
from reverse.models import family_of, prepare_inputs
from reverse.tokens import find_token_ids


def test_threshold_one_equals_generate_on_a_trained_model():
    """Well-formed text of a real checkpoint would be changed by a check that never objects."""
    model, processor = reverse.load("tiny-llava", dtype=torch.float64)
    tags = find_token_ids(processor.tokenizer)
    pictures = [Image.fromarray(render_scene(make_scene("test", i))) for i in range(12)]
    inputs = prepare_inputs(processor, pictures, ["Describe this image."] * 12, family_of(model))
    inputs["pixel_values"] = inputs["pixel_values"].double()
    length = inputs["input_ids"].shape[1]
    plain = model.generate(**inputs, max_new_tokens=96, do_sample=False)[:, length:]
    ours = model.generate(
        **inputs,
        custom_generate=reverse.retrospective(processor, threshold=1.0),
        max_new_tokens=96,
        do_sample=False,
    )[:, length:]
    compared = 0
    for row, other in zip(plain.tolist(), ours.tolist(), strict=True):
        if tags.un not in row:
            width = min(len(row), len(other))
            assert row[:width] == other[:width]
            compared += row.count(tags.cn)
    assert compared > 30
