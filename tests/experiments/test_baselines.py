"""Baselines: each choice and each logit against the definition, computed the slow way."""

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList

import reverse
from experiments.baselines import NoisedPicture, best_of_n, candidates_for, contrastive, judge, noised
from reverse.models import family_of, prepare_inputs
from reverse.tokens import find_token_ids

ASK = "Describe this image."


def test_likelihood_and_confidence_are_those_of_the_answer(tiny_any, picture):
    """The wrong answer would be kept: the score would be of other tokens, or of the padding."""
    model, processor = tiny_any
    answers = [
        reverse.generate(
            model, processor, images=[picture()], prompt=[ASK], mode="plain", do_sample=True, seed=s,
            max_new_tokens=m,
        )[0]
        for s, m in ((0, 12), (1, 5), (2, 9))
    ]  # fmt: skip
    tags = find_token_ids(processor)
    answers = [
        reverse.Result(**{f: getattr(a, f) for f in a.__dataclass_fields__} | {"ids": (*a.ids, tags.cn)})
        for a in answers
    ]
    found = judge(model, processor, picture(), ASK, answers)
    for i, answer in enumerate(answers):
        inputs = prepare_inputs(processor, [picture()], [ASK], family_of(model))
        logp, sure = [], []
        for k, token in enumerate(answer.ids):
            grown = {
                name: torch.cat(
                    [v, torch.tensor([answer.ids[:k]], dtype=torch.long) if name == "input_ids"
                     else torch.full((1, k), int(name == "attention_mask"), dtype=torch.long)], dim=1,
                ) if v.shape == inputs["input_ids"].shape else v
                for name, v in inputs.items()
            }  # fmt: skip
            with torch.no_grad():
                p = model(**grown).logits[0, -1].float().log_softmax(-1)
            logp.append(p[token].item())
            if token in (tags.cn, tags.un):
                sure.append(p[tags.cn].exp().item())
        assert found["likelihood"][i] == pytest.approx(np.mean(logp), abs=1e-4)
        assert found["confidence"][i] == pytest.approx(np.mean(sure), abs=1e-4)


def test_the_best_is_kept_and_all_are_paid_for(tiny_llava, picture):
    """A baseline would cost less than it is said to, or not be the best of its candidates."""
    model, processor = tiny_llava
    pictures = [picture(0), picture(1)]
    options = {"n": 3, "temperature": 1.0, "max_new_tokens": 8, "seed": 5}
    both = best_of_n(model, processor, pictures, ASK, by=("likelihood", "confidence"), **options)
    assert both["likelihood"] and len(both["confidence"]) == 2
    greedy = reverse.generate(
        model, processor, images=pictures, prompt=[ASK] * 2, mode="plain", max_new_tokens=8
    )
    for i, result in enumerate(both["likelihood"]):
        scores = judge(model, processor, pictures[i], ASK, [result, greedy[i]])["likelihood"]
        assert scores[0] >= scores[1] - 1e-5
        assert result.usage.kept + result.usage.discarded >= result.usage.kept + len(greedy[i].ids)
    again = best_of_n(model, processor, pictures[::-1], ASK, by="likelihood", **(options | {"n": 1}))
    assert [r.text for r in again] == [r.text for r in greedy[::-1]]
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        best_of_n(model, processor, pictures, ASK, n=0)
    with pytest.raises(ValueError, match="got 'luck'"):
        best_of_n(model, processor, pictures, ASK, n=2, by="luck")


def test_equal_tokens_round_up():
    """The baseline would be given fewer tokens than what it is compared with."""
    assert [candidates_for(r) for r in (1.0, 1.2, 2.0, 2.01)] == [2, 2, 2, 3]


def test_contrast_follows_its_definition_step_by_step(tiny_any, picture):
    """The second stream would fall out of step with the first, and nobody see it."""
    model, processor = tiny_any
    inputs = prepare_inputs(processor, [picture(0), picture(1)], [ASK] * 2, family_of(model))
    contrast = NoisedPicture(model, inputs, alpha=1.0, beta=0.1, seed=3)
    ids = model.generate(
        **inputs, logits_processor=LogitsProcessorList([contrast]), do_sample=False, max_new_tokens=6,
        min_new_tokens=6,
    )  # fmt: skip
    blurred = {**inputs, "pixel_values": noised(inputs["pixel_values"], 500, 3)}
    length = inputs["input_ids"].shape[1]
    ends = model.generation_config.eos_token_id
    for k in range(6):
        tail = ids[:, length : length + k]
        clear, noisy = (
            _last(model, {n: _grown(n, v, tail, inputs) for n, v in each.items()})
            for each in (inputs, blurred)
        )
        clear[:, ends] = -torch.inf  # min_new_tokens comes first
        kept = clear.softmax(-1) >= 0.1 * clear.softmax(-1).max(-1, keepdim=True).values * (1 - 1e-4)
        expected = torch.where(kept, 2 * clear - noisy, -torch.inf).argmax(-1)
        assert ids[:, length + k].tolist() == expected.tolist()


def _grown(name, value, tail, inputs):
    if value.shape != inputs["input_ids"].shape:
        return value
    more = tail if name == "input_ids" else torch.full_like(tail, int(name == "attention_mask"))
    return torch.cat([value, more], dim=1)


def _last(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits[:, -1].float()


def test_without_contrast_it_is_greedy_decoding(tiny_llava, picture):
    """The peer would differ from plain decoding by more than its own rule."""
    model, processor = tiny_llava
    pictures = [picture(0), picture(1), picture(2)]
    plain = reverse.generate(
        model, processor, images=pictures, prompt=[ASK] * 3, mode="plain", max_new_tokens=8
    )
    same = contrastive(model, processor, pictures, ASK, alpha=0.0, max_new_tokens=8, batch_size=2)
    assert [r.ids for r in same] == [r.ids for r in plain]
    assert [r.text for r in same] == [r.text for r in plain]
    inputs = prepare_inputs(processor, pictures[:1], [ASK], family_of(model))
    with pytest.raises(ValueError, match="beta"):
        NoisedPicture(model, inputs, beta=0.0)
    inputs["attention_mask"][0, 0] = 0
    with pytest.raises(ValueError, match="different lengths"):
        NoisedPicture(model, inputs)
