"""The captured engine on a CUDA device: kernels against plain torch, graphs against the dynamic engine."""

import pytest
import torch

import reverse
from reverse.decoding.static import ops
from reverse.decoding.static.engine import Engine
from reverse.decoding.static.state import Feed, Reading, Style
from reverse.decoding.static.weights import text_model
from reverse.models.tiny import build_tiny_llava
from reverse.tokens import TokenIds, add_tokens, token_ids
from tests.decoding.worlds import picture, talkative

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
pytestmark = [pytest.mark.gpu, cuda]


@pytest.fixture(scope="module")
def kernels():
    pytest.importorskip("triton")
    from reverse.decoding.static import kernels

    return kernels


def rand(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape, device="cuda").to(dtype)


def near(found, exact):
    return (found.float() - exact.float()).norm() / exact.float().norm()


@pytest.mark.parametrize("rows", [1, 3, 16, 33, 64, 100])
@pytest.mark.parametrize("k, sizes", [(512, (512, 256, 256)), (1000, (48,)), (11008, (1024,)), (256, (603,))])
def test_linear_is_linear(kernels, rows, k, sizes):
    """A shape off the beaten track would be computed wrongly."""
    x, weights = rand(rows, k), [rand(n, k) / k**0.5 for n in sizes]
    biases = [rand(n) for n in sizes]
    norm, residual = rand(k), rand(rows, sum(sizes))
    wide = [w.float() for w in weights]
    exact = ops.linear(x.float(), wide, [b.float() for b in biases], norm.float(), 1e-6, residual.float())
    assert near(kernels.linear(x, weights, biases, norm, 1e-6, residual), exact) < 1e-2
    assert near(kernels.linear(x, weights, f32=True), ops.linear(x.float(), wide)) < 1e-2
    if len(sizes) == 1:
        up = rand(*weights[0].shape) / k**0.5
        exact = ops.gated(x.float(), wide[0], up.float(), norm.float(), 1e-6)
        assert near(kernels.gated(x, weights[0], up, norm, 1e-6), exact) < 1e-2


@pytest.mark.parametrize("heads, kv, d", [(8, 8, 128), (16, 2, 128), (28, 4, 128), (4, 2, 16)])
@pytest.mark.parametrize("block", [1, 16])
def test_attention_sees_what_is_filled(kernels, heads, kv, d, block):
    """Slots that were taken back, or another row's, would be attended to."""
    rows, lanes, slots = 32, 5, 200
    pool = [rand(lanes, kv, slots, d) for _ in range(4)]
    lane = torch.randint(0, lanes, (rows // block,), device="cuda").repeat_interleave(block)
    length = torch.randint(1, slots, (rows,), device="cuda", dtype=torch.int32)
    own, few = torch.randint(0, lanes, (rows,), device="cuda"), length % 7
    q = rand(rows, heads, d)
    parts = [(pool[0], pool[1], lane, length, block), (pool[2], pool[3], own, few, 1)]
    splits = kernels.splits_for(rows // block, kv, slots, block)
    for seen in (parts[:1], parts):
        exact = ops.attend(q.float(), [(k.float(), v.float(), *rest) for k, v, *rest in seen], d**-0.5)
        assert near(kernels.attend(q, seen, d**-0.5, splits), exact) < 1e-2


def test_pick_is_argmax_and_softmax(kernels):
    """Greedy decoding would choose a banned tag, or p be off."""
    logits = rand(9, 32003, dtype=torch.float32) * 3
    inside = torch.arange(9, device="cuda", dtype=torch.int32) % 2
    tags = TokenIds(11, 12, 13)
    logits[0, 12] = logits[1, 11] = 60.0
    for mask in (True, False):
        for pair in (True, False):
            token, p = kernels.pick(logits, inside, tags, mask, pair)
            expected, exact = ops.pick(logits, inside, tags, mask, pair)
            assert torch.equal(token, expected) and torch.allclose(p, exact, atol=1e-6)
    for bad in ("nan", "inf", "-inf"):
        for at in (0, 12, 2047, 2048, 32002):
            spoilt = logits.clone()
            spoilt[4, at] = float(bad)
            for pair in (True, False):
                assert kernels.pick(spoilt, inside, tags, True, pair)[1].isnan().nonzero().tolist() == [[4]]


@pytest.mark.parametrize("family", ["llava", "qwen"])
@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"candidates": 3}])
def test_graphs_say_what_the_dynamic_engine_says(family, options):
    """A captured step would read what stood there when it was captured."""
    model, processor = talkative(family)
    model = model.cuda()
    pictures = [picture(i, size) for i, size in enumerate([(112, 112), (140, 84), (84, 168), (112, 56)])]
    settings = {"threshold": 0.3, "max_new_tokens": 40, "local_attempts": 3, "max_attempts": 10}
    found = [
        reverse.generate(model, processor, pictures, engine=engine, batch_size=3, **settings | options)
        for engine in ("dynamic", "static", "static")
    ]
    assert [r.ids for r in found[0]] == [r.ids for r in found[1]] == [r.ids for r in found[2]]
    assert any(r.trace for r in found[0])


@pytest.mark.parametrize("width", [1, 4, 16])
def test_a_step_after_a_rewind_has_the_same_bits(width):
    """What is said after a rewind would depend on what was taken back."""
    with torch.device("cuda"):
        model, processor = build_tiny_llava(text={"hidden_size": 256, "num_attention_heads": 4})
    add_tokens(model, processor)
    model = model.cuda().bfloat16()
    engine = Engine(text_model(model), 16, 256)
    engine.keys.normal_()
    engine.values.normal_()
    style, strands = Style(token_ids(processor.tokenizer)), list(range(width))

    def run():
        engine.set({s: Reading(40 + s, 100 + s, 100 + s, 0, 0, 0.0) for s in strands})
        return [engine.step(strands, [], style, False).read() for _ in range(12)]

    with torch.no_grad():
        first = run()
        engine.step([], [Feed(0, list(range(30, 60)), 120, 120)], style, False).read()
        assert run() == first


def test_auto_takes_the_captured_engine_for_bfloat16():
    """The fast engine would never be used, or its log line come for every call."""
    from reverse.decoding import engines

    model, processor = talkative("llava", torch.bfloat16)
    model = model.cuda()
    reverse.generate(model, processor, picture(0), threshold=0.3, max_new_tokens=8)
    assert model in engines._idle
    engines.release(model)
