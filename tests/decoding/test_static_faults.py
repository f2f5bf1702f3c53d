"""The captured engine where something goes wrong: its answers are those of the dynamic engine."""

import functools

import pytest
import torch
from torch import nn

import reverse
from reverse.decoding import engines
from reverse.decoding.backend import Draw
from reverse.decoding.static import backend as static
from reverse.decoding.static.backend import StaticBackend
from reverse.decoding.static.engine import Engine
from reverse.decoding.static.state import Style
from reverse.decoding.static.weights import text_model
from reverse.tokens import token_ids
from tests.decoding.test_static import ROOM, Naive, prefilled
from tests.decoding.worlds import talkative

SETTINGS = {"threshold": 0.3, "max_new_tokens": 24, "local_attempts": 3, "max_attempts": 6}
PROMPTS = [f"Is there a {name}?" for name in ("dog", "cat", "bus", "bird", "cup")]
world = functools.cache(talkative)


def ask(model, processor, engine="static", **options):
    settings = SETTINGS | {"batch_size": 3} | options
    results = reverse.generate(model, processor, prompt=PROMPTS, engine=engine, **settings)
    return [result.ids for result in results]


def test_no_graph_of_gradients_grows():
    """Every token's activations would stay in memory, since nobody calls backward."""
    model, processor = talkative("llava", seed=4)
    list(
        reverse.generate_many(model, processor, [{"prompt": p} for p in PROMPTS], engine="static", **SETTINGS)
    )
    kept = engines._idle[model]
    for tensor in (kept.keys, kept.values, kept.side_keys, kept.state, kept._out):
        assert not tensor.requires_grad and tensor.grad_fn is None


@pytest.mark.parametrize("lacking", [63, 64, 65, 66, 128, 129, 130, 193])
def test_a_long_text_is_fed_in_parts(lacking, monkeypatch):
    """A part that leaves one id over would let the row go on from the middle of its text."""
    monkeypatch.setattr(static, "FEED_IDS", 64)
    model, processor = world("llava")
    tags = token_ids(processor.tokenizer)
    batch = prefilled(model, "llava", [0, 1])
    backend = StaticBackend(
        model, lambda lanes, slots: Engine(text_model(model), lanes, 512), style=Style(tags), slots=2
    )
    first, other = backend.admit(batch)
    backend.start(other, Draw(ROOM, 0.7, 1, 0, 0))  # goes on meanwhile
    text = list(backend.rows[first].ids)
    text += [20 + i % 50 for i in range(lacking - 1)]  # the last id of a prompt is always fed again
    backend.rewind(first, text)
    draw = Draw(ROOM, 0.0, 0, 0, 0)
    backend.start(first, draw)
    found = {}
    while first not in found:
        found.update((row, run) for row, _, run in backend.extend())
    with torch.no_grad():
        expected = Naive(model, "llava", 0, tags, batch.eos).run(text, draw)
    assert [token for token, _ in expected] == list(found[first].ids)


def test_an_engine_of_other_weights_is_not_used():
    """After a merge or a swap of adapters the old weights would go on talking."""
    model, processor = talkative("llava", seed=5)
    before = ask(model, processor)
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().flip(1).clone())
    after = ask(model, processor, "dynamic")
    assert after != before and ask(model, processor) == after


def test_nan_does_not_outlast_its_call():
    """A lane that once held NaN would spoil every later answer in it."""
    model, processor = talkative("llava", seed=6)
    expected = ask(model, processor)
    weight = (
        model.get_submodule(reverse.models.family_of(model).language_model).layers[0].self_attn.v_proj.weight
    )
    good = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"not finite at answer position 0: check the weights"):
        ask(model, processor)
    with torch.no_grad():
        weight.copy_(good)
    assert ask(model, processor) == expected


def test_lanes_are_no_longer_than_the_context():
    """A generous max_new_tokens would ask for memory that no answer can fill."""
    model, processor = talkative("llava", seed=7)
    reverse.generate(
        model,
        processor,
        prompt="?",
        engine="static",
        **SETTINGS | {"max_new_tokens": 10**7, "max_seconds": 0.1, "stop_strings": "e"},
    )
    context = reverse.models.family_of(model).context_length(model.config)
    assert engines._idle[model].slots == context


def memory():
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("options", [{}, {"candidates": 3}], ids=["alone", "forked"])
@pytest.mark.parametrize("where", ["make_candidates", "adopt", "set", "load", "step", "fork", "__init__"])
def test_memory_may_run_out_anywhere(where, options, monkeypatch):
    """An answer would be lost or told twice, or an error of torch escape, wherever memory is asked for."""
    model, processor = talkative("llava", seed=8)
    options = options | {"do_sample": True, "temperature": 0.8}
    expected = ask(model, processor, "dynamic", **options)
    original, seen = getattr(Engine, where), [0]

    def fails(self, *args, failing, **kwargs):
        seen[0] += 1
        if seen[0] == failing:
            raise memory()
        return original(self, *args, **kwargs)

    for failing in (1, 2, 5):
        seen[0] = 0
        engines.release(model)
        with monkeypatch.context() as patch:
            patch.setattr(Engine, where, functools.partialmethod(fails, failing=failing))
            assert ask(model, processor, **options) == expected
    assert seen[0] > 0 or not options.get("candidates")


def test_one_row_may_have_the_room_of_unused_lanes(monkeypatch):
    """A single request would fail for want of memory that empty lanes hold."""
    model, processor = talkative("llava", seed=9)
    options = SETTINGS | {"candidates": 3}
    results = reverse.generate(model, processor, prompt=PROMPTS, **options)
    expected, prompt = next((r.ids, p) for r, p in zip(results, PROMPTS, strict=True) if r.trace)
    make_candidates = Engine.make_candidates

    def small(self, count, slots):
        if self.lanes > 1:
            raise memory()
        make_candidates(self, count, slots)

    monkeypatch.setattr(Engine, "make_candidates", small)
    requests = [{"prompt": prompt}]
    (found,) = reverse.generate_many(model, processor, requests, slots=8, engine="static", **options)
    assert found.ids == expected and found.trace
    monkeypatch.setattr(Engine, "_pool", lambda *args: (_ for _ in ()).throw(memory()))
    engines.release(model)
    with pytest.raises(torch.OutOfMemoryError, match="single row"):
        ask(model, processor)
