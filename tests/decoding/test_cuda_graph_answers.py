"""Whole answers on captured steps, called on the CPU in float64, against those of the `hf` backend."""

import functools

import pytest
from torch import nn

import reverse
from experiments.tiny_models import build_tiny_llava
from reverse.decoding.backends import auto
from reverse.decoding.backends.cuda_graph.runner import GraphRunner
from reverse.decoding.backends.cuda_graph.weights import unsupported
from reverse.modes import Plain
from tests.decoding.worlds import picture, talkative

FAMILIES = ["llava", "qwen"]
world = functools.cache(talkative)


def test_a_rejection_costs_one_step_beside_what_is_said_again(monkeypatch):
    """The step ahead would be thrown away for accepted phrases too, as when the temperature falls back."""
    model, processor = talkative("llava", seed=1)
    made = []
    launch = GraphRunner.launch

    def counted(self, plan, config):
        made.append(len(plan.plain) + sum(map(len, plan.groups)) + len(plan.feeds))
        return launch(self, plan, config)

    monkeypatch.setattr(GraphRunner, "launch", counted)
    settings = {"threshold": 0.3, "max_new_tokens": 40, "hints": 0, "max_attempts": 8}
    rejections = 0
    for seed in range(6):
        made.clear()
        result = reverse.generate(model, processor, picture(seed), backend="cuda_graph", **settings)
        rejections += len(result.trace)
        kept = sum(phrase.status == "unresolved" for phrase in result.phrases)
        # a suspect phrase that is kept may get another closing tag; one more for the end of the text
        assert sum(made) <= result.usage.forwards + len(result.trace) + kept + 1
    assert rejections > 5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hints": 0},
        {"do_sample": True},
        {"candidates": 3},
        {"mode": "plain"},
        {"mode": Plain(keep_phrases=True)},
    ],
)
def test_captured_steps_say_what_the_hf_backend_says(family, options):
    """The choice of the backend would change answers."""
    model, processor = world(family)
    pictures = [
        picture(i, size) for i, size in enumerate([(112, 112), (140, 84), (84, 168), (112, 56), (98, 98)])
    ]
    settings = {
        "threshold": 0.3,
        "max_new_tokens": 40,
        "local_attempts": 3,
        "max_attempts": 10,
        "batch_size": 3,
    }
    found = [
        reverse.generate(model, processor, pictures, backend=backend, **settings | options)
        for backend in ("hf", "cuda_graph")
    ]
    for expected, captured in zip(*found, strict=True):
        assert captured.ids == expected.ids
        assert [e.phrase for e in captured.trace] == [e.phrase for e in expected.trace]
        assert [e.p_un for e in captured.trace] == pytest.approx([e.p_un for e in expected.trace], abs=1e-5)
    assert "mode" in options or any(r.trace for r in found[0])


def test_the_runner_is_kept_and_let_go():
    """Every call would capture its steps anew, or the cache of a dropped model stay in memory."""
    model, processor = talkative("llava", seed=3)
    settings = {"backend": "cuda_graph", "threshold": 0.3, "max_new_tokens": 8}
    for _ in range(2):
        reverse.generate(model, processor, picture(0), **settings)
    kept = auto._idle[model]
    reverse.generate(model, processor, picture(0), **settings)
    assert auto._idle[model] is kept
    auto.release(model)
    assert model not in auto._idle


def test_what_cannot_be_captured_is_named():
    """An adapter, a quantised layer or a caller's processor would be ignored in silence."""
    model, processor = build_tiny_llava()
    reverse.add_tokens(model, processor)
    assert unsupported(model) is None
    with pytest.raises(ValueError, match=r"backend='cuda_graph'.*RepetitionPenalty.*auto"):
        reverse.generate(
            model,
            processor,
            picture(0),
            backend="cuda_graph",
            threshold=0.3,
            generation={"repetition_penalty": 1.5},
        )
    with pytest.raises(ValueError, match=r"backend must be 'auto', 'hf' or 'cuda_graph', got 'fast'"):
        reverse.generate(model, processor, picture(0), backend="fast")
    text = model.config.get_text_config()
    text.use_sliding_window, text.sliding_window = True, 64
    assert unsupported(model) == "sliding_window=64"
    text.use_sliding_window = False
    layer = model.model.language_model.layers[0]

    class Wrapped(nn.Linear):
        pass

    layer.self_attn.q_proj = Wrapped(64, 64, bias=False)
    assert "q_proj is a Wrapped" in unsupported(model)
