"""Answers on captured steps where something goes wrong: they are those of the `hf` backend."""

import functools

import pytest
import torch
from torch import nn

import reverse
from reverse.decoding.backends import auto
from reverse.decoding.backends.cuda_graph import graph_backend
from reverse.decoding.backends.cuda_graph.runner import GraphRunner
from reverse.models import family_of
from tests.decoding.worlds import talkative

SETTINGS = {"threshold": 0.3, "max_new_tokens": 24, "local_attempts": 3, "max_attempts": 6}
PROMPTS = [f"Is there a {name}?" for name in ("dog", "cat", "bus", "bird", "cup")]


def ask(model, processor, backend="cuda_graph", **options):
    settings = SETTINGS | {"batch_size": 3} | options
    results = reverse.generate(model, processor, prompt=PROMPTS, backend=backend, **settings)
    return [result.ids for result in results]


def test_no_graph_of_gradients_grows():
    """Every token's activations would stay in memory, since nobody calls backward."""
    model, processor = talkative("llava", seed=4)
    requests = [{"prompt": prompt} for prompt in PROMPTS]
    list(reverse.generate_many(model, processor, requests, backend="cuda_graph", candidates=2, **SETTINGS))
    kept = auto._idle[model]
    for tensor in (kept.keys, kept.values, kept.state, kept.noise, kept.inputs, kept.out, kept.feeds):
        assert not tensor.requires_grad and tensor.grad_fn is None


def test_a_runner_of_other_weights_is_not_used():
    """After a merge or a swap of adapters the old weights would go on talking."""
    model, processor = talkative("llava", seed=5)
    before = ask(model, processor)
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().flip(1).clone())
    after = ask(model, processor, "hf")
    assert after != before and ask(model, processor) == after


def test_nan_does_not_outlast_its_call():
    """A row that once held NaN would spoil every later answer in it."""
    model, processor = talkative("llava", seed=6)
    expected = ask(model, processor)
    weight = family_of(model).decoder(model).layers[0].self_attn.v_proj.weight
    good = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"not finite at answer position 0: check the weights"):
        ask(model, processor)
    with torch.no_grad():
        weight.copy_(good)
    assert ask(model, processor) == expected


def test_rows_are_no_longer_than_the_context():
    """A generous max_new_tokens would ask for memory that no answer can fill."""
    model, processor = talkative("llava", seed=7)
    reverse.generate(
        model,
        processor,
        prompt="?",
        backend="cuda_graph",
        **SETTINGS | {"max_new_tokens": 10**7, "max_seconds": 0.1, "stop_strings": "e"},
    )
    assert auto._idle[model].length == family_of(model).context_length(model.config)


@functools.cache
def sampled_world(candidates):
    """(model, processor, options, answers of the hf backend)."""
    model, processor = talkative("llava", seed=8)
    options = {"do_sample": True, "temperature": 0.8, "candidates": candidates}
    return model, processor, options, ask(model, processor, "hf", **options)


def memory():
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize(
    "where, candidates",
    [
        ("__init__", 1),
        ("resize", 3),
        ("_new_state", 3),
        ("load", 1),
        ("feed_one", 1),
        ("copy_row", 3),
        ("write", 3),
        ("launch", 1),
        ("launch", 3),
    ],
)
def test_memory_may_run_out_anywhere(where, candidates, monkeypatch):
    """An answer would be lost or told twice, or an error of torch escape, wherever memory is asked for."""
    model, processor, options, expected = sampled_world(candidates)
    monkeypatch.setattr(graph_backend, "_FIRST_ROWS", 4)  # so that candidates make the cache grow
    original, seen = getattr(GraphRunner, where), [0]

    def fails(self, *args, failing, **kwargs):
        seen[0] += 1
        if seen[0] == failing:
            raise memory()
        return original(self, *args, **kwargs)

    for failing in (1, 2, 5):
        seen[0] = 0
        auto.release(model)
        with monkeypatch.context() as patch:
            patch.setattr(GraphRunner, where, functools.partialmethod(fails, failing=failing))
            assert ask(model, processor, **options) == expected
    assert seen[0] > 0 or candidates == 1


def test_one_answer_may_have_the_room_of_unused_rows(monkeypatch):
    """A single request would fail for want of memory that empty rows would hold."""
    model, processor = talkative("llava", seed=9)
    options = SETTINGS | {"candidates": 3}
    results = reverse.generate(model, processor, prompt=PROMPTS, **options)
    expected, prompt = next((r.ids, p) for r, p in zip(results, PROMPTS, strict=True) if r.trace)
    new_pool = GraphRunner._new_pool

    def small(self, rows, length):
        if rows > 3:  # one for each candidate
            raise memory()
        return new_pool(self, rows, length)

    monkeypatch.setattr(GraphRunner, "_new_pool", small)
    requests = [{"prompt": prompt}]
    (found,) = reverse.generate_many(
        model, processor, requests, max_sequences=8, backend="cuda_graph", **options
    )
    assert found.ids == expected and found.trace
    assert auto._idle[model].rows <= 3
    monkeypatch.setattr(GraphRunner, "_new_pool", lambda *args: (_ for _ in ()).throw(memory()))
    auto.release(model)
    with pytest.raises(torch.OutOfMemoryError, match="single row"):
        ask(model, processor)
