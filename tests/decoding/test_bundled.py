"""The trained models that ship with the package."""

import torch
from PIL import Image

import reverse
from reverse.data.scenes import make_scene, render_scene
from reverse.data.scenes.reasoning import (
    annotate,
    draw_reasoning_picture,
    make_reasoning_picture,
    make_reasoning_questions,
)
from reverse.grading import grade
from reverse.models import family_of, prepare_inputs
from reverse.modes import Plain, Refine
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


def is_right(text, question):
    return grade(text, question.gold.key()).verdict == "right"


def test_the_bundled_reasoner_mends_its_answers():
    """Modes would be shown on a model that they do not help."""
    model, processor = reverse.load("tiny-reasoner")
    pictures = [make_reasoning_picture("val", index) for index in range(80)]
    asked = [(each, question) for each in pictures for question in make_reasoning_questions(each)[:3]]
    # The model was taught the annotator's errors.
    asked = [
        each for each in asked if each[0].kind == "scene" and not is_right(annotate(*each).text, each[1])
    ]
    asked = asked[:24]
    requests = [
        {"images": Image.fromarray(draw_reasoning_picture(picture)), "prompt": question.text}
        for picture, question in asked
    ]
    plain, right = Plain(keep_phrases=True), []
    for mode in (plain, Refine(inner=plain, gate=0.3)):
        results = reverse.generate_many(
            model, processor, requests, mode=mode, max_new_tokens=96, max_sequences=16
        )
        graded = [
            is_right(result.text, question) for result, (_, question) in zip(results, asked, strict=True)
        ]
        right.append(sum(graded) / len(asked))
    assert right[0] < 0.5
    assert right[1] > right[0] + 0.2
