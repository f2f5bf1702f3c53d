"""Captured steps on a CUDA device: kernels against plain torch, graphs against the `hf` backend."""

from itertools import chain
from types import SimpleNamespace

import pytest
import torch

from experiments.tiny_models import build_tiny_llava
from reverse.decoding.backends import auto
from reverse.decoding.backends.cuda_graph import ops, sequences
from reverse.decoding.backends.cuda_graph.graph_backend import CudaGraphBackend
from reverse.decoding.backends.cuda_graph.ops import CachePart
from reverse.decoding.backends.cuda_graph.row_state import (
    FIELDS,
    INSIDE,
    MASKED,
    PAIR,
    ROPE,
    CaptureConfig,
    Feed,
    RowState,
    StepPlan,
)
from reverse.decoding.backends.cuda_graph.runner import GraphRunner
from reverse.decoding.backends.cuda_graph.weights import text_model
from reverse.decoding.backends.hf.hf_backend import HfBackend
from reverse.decoding.backends.protocol import Picture, Prompt, SegmentParams
from reverse.models import family_of, prepare_inputs
from reverse.tokens import TokenIds, add_tokens, find_token_ids
from tests.decoding.worlds import picture, talkative

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
pytestmark = [pytest.mark.gpu, cuda]
SIZES = [(112, 112), (140, 84), (84, 168), (112, 56)]
SETTINGS = [
    {},
    {"temperature": 0.9, "seed": 3, "temperature_after_accept": 0.9},
    {"temperature": 1.2, "top_k": 5, "seed": 4, "score": "pair"},
    {"temperature": 0.8, "top_p": 0.6, "masks_tags": False, "path": (1, 2)},
    {"merges_closing_tags": True},
    {"temperature": 1.0, "seed": 5, "merges_closing_tags": True, "masks_tags": False},
]


@pytest.fixture(scope="module")
def kernels():
    pytest.importorskip("triton")
    from reverse.decoding.backends.cuda_graph.triton_kernels import kernels

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
@pytest.mark.parametrize("block", [1, 4, 16])
def test_attention_sees_what_is_filled(kernels, heads, kv, d, block):
    """Slots that were taken back, or another row's, would be attended to."""
    rows, held, slots = 32, 9, 200
    keys, values = rand(held, kv, slots, d), rand(held, kv, slots, d)
    source = torch.randint(0, held, (rows // block,), device="cuda").repeat_interleave(block)
    prefix = torch.randint(1, slots // 2, (rows // block,), device="cuda").repeat_interleave(block)
    own = torch.randint(0, held, (rows,), device="cuda")
    length = prefix + torch.randint(1, slots // 2, (rows,), device="cuda")
    q = rand(rows, heads, d)
    shared = CachePart(keys, values, source, prefix, block)
    rest = CachePart(keys, values, own, length, 1, prefix)
    for parts in ([shared], [shared, rest], [CachePart(keys, values, own, length)]):
        splits = [kernels.splits_for(rows // part.block, kv, slots, part.block) for part in parts]
        exact_parts = [part._replace(keys=keys.float(), values=values.float()) for part in parts]
        exact = ops.attend(q.float(), exact_parts, d**-0.5)
        assert near(kernels.attend(q, parts, d**-0.5, splits), exact) < 1e-2


def state_of(rows):
    """A state of random places, ids and flags for rows 0 to `rows`."""
    state = torch.randint(0, 9, (FIELDS, rows + 1), device="cuda")
    state[ROPE] *= 200
    for flag in (INSIDE, PAIR, MASKED):
        state[flag] %= 2
    return state


def test_pick_is_argmax_and_softmax(kernels):
    """Greedy decoding would choose a banned tag, or p be off, or a row have its neighbour's settings."""
    logits, rows = rand(9, 32003, dtype=torch.float32) * 3, torch.randperm(12, device="cuda")[:9]
    tags = TokenIds(11, 12, 13)
    logits[0, 12] = logits[1, 11] = 60.0
    for _ in range(6):
        state = state_of(11)
        for known in (tags, TokenIds(-1, -1, -1)):
            found = kernels.pick(logits, rows, state, known)
            expected = ops.pick(logits, rows, state, known)
            assert torch.equal(found[0], expected[0])
            assert torch.allclose(found[1], expected[1], atol=1e-6)
            assert torch.allclose(found[2], expected[2], atol=1e-4)
    for bad in ("nan", "inf", "-inf"):
        for at in (0, 12, 2047, 2048, 32002):
            spoilt = logits.clone()
            spoilt[4, at] = float(bad)
            assert kernels.pick(spoilt, rows, state_of(11), tags)[1].isnan().nonzero().tolist() == [[4]]


def test_a_step_begins_and_ends_as_in_plain_torch(kernels):
    """Positions, the open phrase or the temperature after an accepted one would be another row's."""
    text = SimpleNamespace(
        embedding=rand(20, 1000), frequencies=torch.rand(64, device="cuda"), rope_scale=1.0, head_dim=128
    )
    rows, logits = torch.tensor([3, 0, 7, 1], device="cuda"), rand(4, 50, dtype=torch.float32)
    for _ in range(6):
        state = state_of(7)
        for found, exact in zip(
            kernels.begin(rows, state, 6, text), ops.begin(rows, state, 6, text), strict=True
        ):
            assert found.dtype == exact.dtype and torch.allclose(found.float(), exact.float(), atol=1e-2)
        other, token = state.clone(), torch.randint(10, 15, (4,), device="cuda")
        out = [torch.zeros(3, 9, device="cuda", dtype=torch.float64) for _ in range(2)]
        numbers = rand(4, dtype=torch.float32), rand(4, dtype=torch.float32)
        kernels.advance(rows, state, token, *numbers, logits, out[0], 6, TokenIds(11, 12, 13))
        ops.advance(rows, other, token, *numbers, logits, out[1], 6, TokenIds(11, 12, 13))
        assert torch.equal(state, other) and torch.allclose(*out, atol=1e-5)


def prompts_of(backend, processor, model, rows):
    """One prompt with a picture for each row."""
    prompts = []
    for row in rows:
        inputs = prepare_inputs(
            processor, [picture(row, SIZES[row % 4])], ["Describe this image."], family_of(model)
        )
        tensors = {
            name: value.to(model.dtype) if value.is_floating_point() else value
            for name, value in inputs.items()
            if name in ("pixel_values", "image_grid_thw")
        }
        prompts.append(Prompt(inputs["input_ids"][0].tolist(), backend.encode([Picture(tensors)])))
    return prompts


def params(model, tags, max_tokens, **settings):
    eos = model.generation_config.eos_token_id
    return SegmentParams(max_tokens, tags, frozenset([eos] if isinstance(eos, int) else eos), **settings)


def talk(backend, processor, model, attempts=3):
    """Ids and p of sequences with rewinds, branches and mixed settings."""
    tags, said = find_token_ids(processor.tokenizer), []
    prompts = prompts_of(backend, processor, model, range(4))
    names = backend.add(prompts)
    texts = {name: list(prompt.ids) for name, prompt in zip(names, prompts, strict=True)}
    for name in names[:2]:
        texts |= dict.fromkeys(backend.split(name, 3), texts[name])
    for attempt in range(attempts):
        for i, name in enumerate(texts):
            chosen = params(model, tags, 12, **SETTINGS[i % 4], position=attempt, attempt=attempt)
            backend.start(name, chosen)
        ended = {}
        while outputs := backend.step():
            ended |= {each.sequence: each.segment for each in outputs if each.segment}
        for i, name in enumerate(texts):
            said.append(ended[name])
            if (i + attempt) % 3:
                texts[name] = [*texts[name], *ended[name].ids]
            else:
                backend.set_tokens(name, [*texts[name], 40, 41, 42])
                texts[name] = [*texts[name], 40, 41, 42]
    for name in texts:
        backend.release(name)
    return said


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_graphs_say_what_the_other_backend_says(family, monkeypatch):
    """A captured step would read what stood there when it was captured."""
    monkeypatch.setattr(sequences, "_SHARED_AT_LEAST", 8)
    model, processor = talkative(family)
    model = model.cuda()
    graph = CudaGraphBackend(model, max_sequences=16, tags=find_token_ids(processor.tokenizer))
    expected = talk(HfBackend(model, max_sequences=16), processor, model)
    for _ in range(2):
        found = talk(graph, processor, model)
        assert [each.ids for each in found] == [each.ids for each in expected]
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.ps == pytest.approx(theirs.ps, abs=2e-6)


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_bfloat16_branches_are_fresh_sequences_but_for_rounding(family, monkeypatch):
    """The kernels would read another row's prefix where branches are grouped."""
    monkeypatch.setattr(sequences, "_SHARED_AT_LEAST", 8)
    model, processor = talkative(family, torch.bfloat16)
    model = model.cuda()
    tags = find_token_ids(processor.tokenizer)
    backend = CudaGraphBackend(model, max_sequences=32, tags=tags)
    prompts = prompts_of(backend, processor, model, range(4))
    roots = backend.add(prompts)
    branches = [[root, *backend.split(root, 3)] for root in roots]
    fresh = [backend.add([prompt] * 4) for prompt in prompts]
    for held in (*branches, *fresh):
        for i, name in enumerate(held):
            backend.start(name, params(model, tags, 1, temperature=1.0, path=(i,), position=2))
    p = {}
    while outputs := backend.step():
        p |= {each.sequence: (each.token, each.p) for each in outputs}
    pairs = [(p[a], p[b]) for a, b in zip(chain(*branches), chain(*fresh), strict=True)]
    assert sum(a[0] == b[0] for a, b in pairs) >= len(pairs) - 2
    assert max(abs(a[1] - b[1]) for a, b in pairs) < 0.1


@pytest.mark.parametrize("width", [1, 4, 16])
@pytest.mark.parametrize("group", [0, 4])
def test_a_step_after_a_rewind_has_the_same_bits(width, group):
    """What is said after a rewind would depend on what was taken back."""
    if group and width < group:
        return
    with torch.device("cuda"):
        model, processor = build_tiny_llava(text={"hidden_size": 256, "num_attention_heads": 4})
    add_tokens(model, processor)
    model = model.cuda().bfloat16()
    runner = GraphRunner(text_model(model), 16, 256)
    runner.keys.normal_()
    runner.values.normal_()
    tags = find_token_ids(processor.tokenizer)
    config, rows = CaptureConfig(tags), list(range(1, width + 1))
    if group:
        groups = [rows[i : i + group] for i in range(0, width, group)]
        plan = StepPlan([], groups, [90] * len(groups), group)
    else:
        plan = StepPlan(rows)
    chosen = SegmentParams(12, tags)

    def run():
        runner.write({row: RowState(40 + row, 100 + row, 100 + row, chosen) for row in rows}, {})
        return [runner.launch(plan, config).read() for _ in range(12)]

    with torch.no_grad():
        first = run()
        runner.launch(StepPlan(feeds=[Feed(1, list(range(30, 60)), 120, 120)]), config).read()
        assert run() == first


def test_the_cache_grows_under_captured_steps():
    """A graph would go on reading the memory of the smaller cache."""
    model, processor = talkative("llava")
    model, tags = model.cuda(), find_token_ids(processor.tokenizer)
    said = []
    for most in (16, 64):
        backend = CudaGraphBackend(model, max_sequences=most, tags=tags)
        prompts = prompts_of(backend, processor, model, range(4))
        names = backend.add(prompts)
        for name in names:
            backend.start(name, params(model, tags, 20, temperature=0.8, seed=2))
        outputs = [each for _ in range(4) for each in backend.step()]
        if most == 64:
            backend.split(names[0], 20)
        while more := backend.step():
            outputs += more
        said.append([{each.sequence: each.segment for each in outputs if each.segment}[n] for n in names])
    assert said[0] == said[1] and backend.runner.rows == 64


def test_auto_takes_captured_steps_for_bfloat16_and_keeps_them():
    """The fast backend would never be used, or every call capture its steps anew."""
    model, processor = talkative("llava", torch.bfloat16)
    model, tags = model.cuda(), find_token_ids(processor.tokenizer)
    for _ in range(2):
        backend = auto.choose_backend(model, "auto", max_sequences=4, tags=tags)
        (name,) = backend.add(prompts_of(backend, processor, model, [0]))
        backend.start(name, params(model, tags, 4))
        assert backend.step()
        runner = backend.inner.runner
        backend.release(name)
        assert auto._idle[model] is runner
    auto.release(model)
    assert model not in auto._idle
