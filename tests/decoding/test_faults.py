"""Something goes wrong with one request: it is named, the others are answered, nothing is lost."""

import copy
import functools
import itertools

import pytest
import torch
import transformers

import reverse
from reverse.decoding.backends import auto
from reverse.decoding.backends.cuda_graph import ops
from reverse.decoding.backends.cuda_graph.row_state import INSIDE, MASKED, PAIR
from reverse.decoding.backends.hf.hf_backend import HfBackend
from reverse.decoding.backends.protocol import OutOfMemory
from reverse.decoding.calls.failures import name_request
from reverse.decoding.scheduling import branch
from reverse.decoding.verifier import NO_TAGS, Verifier
from reverse.tokens import TokenIds
from tests.decoding.worlds import picture, talkative

SETTINGS = {"threshold": 0.3, "max_new_tokens": 10, "local_attempts": 2, "max_attempts": 3}
PROMPTS = [f"Is there a {name}?" for name in ("dog", "cat", "bus", "bird", "cup", "tie")]
REQUESTS = [{"prompt": prompt} for prompt in PROMPTS]
BAD = {"nan": torch.nan, "inf": torch.inf, "-inf": -torch.inf}
world = functools.cache(talkative)


@pytest.fixture(scope="module", autouse=True)
def _answers_without_faults():
    """Answers to compare with, made before any test puts a fault into the backend."""
    answers()


@functools.cache
def answers():
    """The ids of every request, each asked alone."""
    model, processor = world("llava")
    return [reverse.generate(model, processor, prompt=prompt, **SETTINGS).ids for prompt in PROMPTS]


def mark_of(processor, index):
    """An id that only one of the prompts holds."""
    of_others = {i for p in PROMPTS if p != PROMPTS[index] for i in processor.tokenizer.encode(p)}
    return next(i for i in processor.tokenizer.encode(PROMPTS[index]) if i not in of_others)


@pytest.fixture
def spoilt(request):
    """(model, processor, index): the model gives logits that are not finite after one of PROMPTS."""
    model, processor = copy.deepcopy(world("llava")[0]), world("llava")[1]
    mark = mark_of(processor, 3)
    value = getattr(request, "param", torch.nan)
    seen = []

    def before(module, args, kwargs):
        seen.append(kwargs["input_ids"])

    def after(module, args, output):
        ids = seen.pop()
        rows = (ids == mark).any(dim=1)
        output.logits[rows, -1, 7] = value

    model.register_forward_pre_hook(before, with_kwargs=True)
    model.register_forward_hook(after)
    return model, processor, 3


# ------------------------------------------------------------------ logits that are not finite
@pytest.mark.parametrize("at", [0, 11, 12, 13, 99])
@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
@pytest.mark.parametrize("score", ["softmax", "pair", "none"])
def test_one_bad_logit_is_seen(score, value, at):
    """inf makes p zero and -inf leaves it as it is: both would pass for a sure phrase."""
    tags = NO_TAGS if score == "none" else TokenIds(11, 12, 13)
    logits = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    pair = score == "pair"
    verifier = Verifier(tags, "pair" if pair else "softmax")
    rows, held = torch.arange(3), torch.zeros(MASKED + 1, 3, dtype=torch.int64)
    held[INSIDE], held[MASKED], held[PAIR] = torch.tensor([0, 1, 0]), int(score != "none"), int(pair)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        good = logits.to(dtype)
        bad = good.clone()
        bad[1, at] = value
        for p in (verifier.p, lambda x: ops.pick(x, rows, held, tags)[1]):
            assert torch.isfinite(p(good)).all()
            assert p(bad).isnan().tolist() == [False, True, False]
    row = logits[:1].double()
    exact = torch.zeros(1) if score == "none" else row.softmax(-1)[:, 13]
    if pair:
        exact = torch.sigmoid(row[:, 13] - row[:, 12])
    assert torch.allclose(verifier.p(logits)[:1].double(), exact.double(), atol=1e-6)


@pytest.mark.parametrize("spoilt", BAD.values(), ids=BAD, indirect=True)
@pytest.mark.parametrize("mode", ["resample", "plain"])
@pytest.mark.parametrize("sampled", [False, True])
def test_bad_logits_in_any_row_raise(spoilt, mode, sampled):
    """An infinite logit in one row of a batch would be chosen, sampled from or read as p = 0."""
    model, processor, bad = spoilt
    options = SETTINGS | {"mode": mode, "do_sample": sampled}
    with pytest.raises(
        ValueError, match=rf"request {bad}: logits are not finite at answer position 0: check"
    ):
        reverse.generate(model, processor, prompt=PROMPTS, **options)
    with pytest.raises(ValueError, match=r"^logits are not finite at answer position 0"):
        reverse.generate(model, processor, prompt=PROMPTS[bad], **options)


def infect(model, value):
    with torch.no_grad():
        model.get_output_embeddings().weight[9] = value


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
@pytest.mark.parametrize("backend", ["hf", "cuda_graph"])
@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_bad_weights_raise_on_every_backend(family, backend, value):
    """One weight of the head that overflowed would be sampled for ever, or never noticed."""
    model, processor = copy.deepcopy(world(family)[0]), world(family)[1]
    infect(model, value)
    with pytest.raises(ValueError, match="not finite at answer position 0"):
        reverse.generate(model, processor, picture(0), backend=backend, **SETTINGS)


def to_nan(ids, scores):
    return torch.full_like(scores, torch.nan)


def to_infinity(ids, scores):
    scores = scores.clone()
    scores[:, 5] = torch.inf
    return scores


@pytest.mark.parametrize("processor_of", [to_nan, to_infinity])
def test_scores_of_a_processor_that_are_not_finite_raise(processor_of):
    """A processor's NaN would choose whatever id argmax falls on."""
    model, processor = world("llava")

    class Own(transformers.LogitsProcessorList):
        def __call__(self, ids, scores):
            return processor_of(ids, scores)

    own = [Own()]
    with pytest.raises(ValueError, match="Own made scores that are NaN or inf: give finite ones"):
        reverse.generate(model, processor, prompt="?", generation={"logits_processor": own}, **SETTINGS)


# ------------------------------------------------------------------ on_error
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("max_sequences", [1, 2, 8])
def test_one_bad_request_does_not_end_the_others(max_sequences, ordered):
    """A thousand answers would be lost for a file that is not there."""
    model, processor = world("llava")
    bad = {
        1: {"images": "/nowhere/a.png", "prompt": "?"},
        3: "no request",
        4: {"image": "a.png"},
        6: {"prompt": "?", "seed": "x"},
        7: {"prompt": "word " * 3000},
    }
    words = {1: "/nowhere/a.png", 3: "is a str", 4: "'image'", 6: "seed must be", 7: "context"}
    good = iter(REQUESTS)
    requests = [bad[i] if i in bad else next(good) for i in range(len(bad) + len(REQUESTS))]
    found = reverse.generate_many(
        model,
        processor,
        iter(requests),
        max_sequences=max_sequences,
        ordered=ordered,
        on_error="yield",
        **SETTINGS,
    )
    pairs = list(enumerate(found)) if ordered else sorted(found)
    assert [i for i, _ in pairs] == list(range(len(requests)))
    failed = {i: result for i, result in pairs if isinstance(result, reverse.FailedRequest)}
    assert sorted(failed) == sorted(bad)
    for i, failure in failed.items():
        assert failure.index == i and failure.request is bad[i]
        assert str(failure.error).startswith(f"request {i}") and words[i] in str(failure.error)
        assert str(failure.error).count(f"request {i}") == 1
    assert isinstance(failed[1].error, FileNotFoundError) and isinstance(failed[3].error, TypeError)
    assert [result.ids for i, result in pairs if i not in failed] == answers()


def test_only_bad_requests_end_too():
    """A loop without rows would think that it is done, or go round for ever."""
    model, processor = world("llava")
    requests = [None] * 5 + REQUESTS[:1] + [None] * 5
    found = list(
        reverse.generate_many(model, processor, requests, max_sequences=2, on_error="yield", **SETTINGS)
    )
    assert [isinstance(each, reverse.FailedRequest) for each in found] == [r is None for r in requests]
    assert found[5].ids == answers()[0]


def test_endless_bad_requests_are_read_as_they_are_handed_out():
    """An endless iterable of bad requests would be read for ever before the first is told."""
    model, processor = world("llava")
    found = reverse.generate_many(
        model, processor, itertools.repeat(None), max_sequences=2, on_error="yield", **SETTINGS
    )
    assert [next(found).index for _ in range(7)] == list(range(7))
    found.close()


@pytest.mark.parametrize("spoilt", BAD.values(), ids=BAD, indirect=True)
@pytest.mark.parametrize("ordered", [True, False])
def test_a_row_that_fails_leaves_the_others_alone(spoilt, ordered):
    """NaN in one row would end a run of thousands, or spoil its neighbours."""
    model, processor, bad = spoilt
    found = reverse.generate_many(
        model, processor, REQUESTS, max_sequences=4, ordered=ordered, on_error="yield", **SETTINGS
    )
    pairs = dict(enumerate(found) if ordered else found)
    assert isinstance(pairs[bad], reverse.FailedRequest) and "not finite" in str(pairs[bad].error)
    assert pairs[bad].request is REQUESTS[bad]
    assert {i: r.ids for i, r in pairs.items() if i != bad} == {
        i: ids for i, ids in enumerate(answers()) if i != bad
    }


def test_a_lane_of_the_static_engine_is_clean_after_nan():
    """What a masked NaN is multiplied with is NaN: the next request in that lane would fail too."""
    model, processor = copy.deepcopy(world("llava")[0]), world("llava")[1]
    mark = mark_of(processor, 3)
    with torch.no_grad():
        model.get_input_embeddings().weight[mark] = torch.nan
    for candidates in (1, 3):
        found = list(
            reverse.generate_many(
                model, processor, REQUESTS * 2, max_sequences=2, on_error="yield", backend="cuda_graph",
                candidates=candidates, **SETTINGS | {"hints": 0},
            )
        )  # fmt: skip
        failed = [i for i, each in enumerate(found) if isinstance(each, reverse.FailedRequest)]
        assert failed == [3, 9]
        alone = reverse.generate_many(
            model,
            processor,
            [REQUESTS[i] for i in (0, 1, 2, 4, 5)],
            backend="hf",
            **SETTINGS | {"hints": 0},
        )
        assert [r.ids for i, r in enumerate(found[:6]) if i != 3] == [r.ids for r in alone]
    auto.release(model)


def test_raise_names_the_request_and_hands_out_what_came_before():
    """ "on_error='raise'", the default, would lose the answers under way, or not say whose error it is."""
    model, processor = world("llava")
    requests = [*REQUESTS[:3], {"images": "/nowhere.png"}, *REQUESTS[3:]]
    for max_sequences in (1, 2, 8):
        handed = []
        with pytest.raises(FileNotFoundError, match=r"^request 3: .*/nowhere.png"):
            for result in reverse.generate_many(
                model, processor, requests, max_sequences=max_sequences, **SETTINGS
            ):
                handed.append(result.ids)
        assert handed == answers()[:3]
    with pytest.raises(ValueError, match="on_error must be one of raise, yield, got 'skip'"):
        reverse.generate_many(model, processor, requests, on_error="skip")


def test_errors_of_a_batch_name_the_request():
    """Which of a hundred pictures is missing, nobody could tell."""
    model, processor = world("llava")
    with pytest.raises(FileNotFoundError, match=r"^request 1: .*/nowhere.png"):
        reverse.generate(model, processor, [picture(0), "/nowhere.png", picture(1)], **SETTINGS)
    with pytest.raises(FileNotFoundError, match=r"^(?!request)"):
        reverse.generate(model, processor, "/nowhere.png", **SETTINGS)


def test_errors_keep_their_type():
    """A handler for PermissionError would not be called."""
    for error in (
        ValueError("no"),
        FileNotFoundError("no"),
        PermissionError(13, "no", "a.png"),
        KeyError("no"),
    ):
        named = name_request(error, 4)
        assert named is error and "request 4: " in str(named)
        assert name_request(named, 4) is named and str(named).count("request 4") == 1
    named = name_request(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), 4)
    assert isinstance(named, ValueError) and "request 4: UnicodeDecodeError" in str(named)


# ------------------------------------------------------------------ faults of the model
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("on_error", ["raise", "yield"])
def test_what_was_finished_before_a_model_fault_is_handed_out(ordered, on_error, monkeypatch):
    """Hours of answers would be lost, or an error of the device be yielded for ever."""
    model, processor = world("llava")
    step, finished = HfBackend.step, []

    def failing(self):
        if len(finished) >= 3:
            raise RuntimeError("device-side assert")
        return step(self)

    monkeypatch.setattr(HfBackend, "step", failing)
    build = branch.build_result

    def noting(*args, **kwargs):
        finished.append(build(*args, **kwargs))
        return finished[-1]

    monkeypatch.setattr(branch, "build_result", noting)
    handed = []
    with pytest.raises(RuntimeError, match="device-side assert") as caught:
        for each in reverse.generate_many(
            model,
            processor,
            itertools.cycle(REQUESTS),
            max_sequences=4,
            ordered=ordered,
            on_error=on_error,
            **SETTINGS,
        ):
            handed.append(each)
    results = [each if ordered else each[1] for each in handed]
    results += caught.value.results.values()
    assert {id(result) for result in results} == {id(result) for result in finished} and len(finished) >= 3
    if ordered:
        assert [r.ids for r in handed] == answers()[: len(handed)]
        assert all(r.ids == answers()[i % 6] for i, r in caught.value.results.items())


def test_an_end_in_the_step_of_a_fault_is_not_lost(monkeypatch):
    """What one row finished in the very step in which another fails would be thrown away."""
    model, processor = world("llava")
    p, calls = Verifier.p, []

    def last_is_bad(self, logits):
        found = p(self, logits)
        calls.append(len(found))
        if len(calls) == 1:
            found[-1] = torch.nan
        return found

    monkeypatch.setattr(Verifier, "p", last_is_bad)
    options = SETTINGS | {"max_new_tokens": 1, "mode": "plain"}
    found = list(
        reverse.generate_many(model, processor, REQUESTS[:3], max_sequences=3, on_error="yield", **options)
    )
    assert [isinstance(each, reverse.FailedRequest) for each in found] == [False, False, True]


@pytest.mark.parametrize("on_error", ["raise", "yield"])
def test_a_request_too_large_for_the_memory_fails_alone(on_error, monkeypatch):
    """One picture of 50 megapixels would end a run of thousands."""
    model, processor = world("llava")
    add = HfBackend.add
    mark = mark_of(processor, 3)

    def full(self, prompts):
        if any(mark in prompt.ids for prompt in prompts):
            raise OutOfMemory("CUDA out of memory. Tried to allocate 20 GiB")
        return add(self, prompts)

    others = [*PROMPTS[:3], *PROMPTS[4:]]
    requests = [{"prompt": p} for p in [*others[:2], PROMPTS[3], *others[2:]]]
    monkeypatch.setattr(HfBackend, "add", full)
    found = reverse.generate_many(model, processor, requests, max_sequences=2, on_error=on_error, **SETTINGS)
    handed = [next(found).ids for _ in range(2)]
    assert handed == [answers()[PROMPTS.index(p)] for p in others[:2]]
    if on_error == "raise":
        with pytest.raises(torch.OutOfMemoryError, match="request 2: out of memory with a single row"):
            list(found)
        return
    failure, *rest = found
    assert isinstance(failure.error, torch.OutOfMemoryError) and failure.index == 2
    assert [r.ids for r in rest] == [answers()[PROMPTS.index(p)] for p in others[2:]]


def test_a_failure_holds_no_picture_or_cache():
    """A list of failures would keep the tensors of every frame that the error passed."""
    model, processor = world("llava")
    requests = [{"images": "/nowhere.png"}, *REQUESTS[:1]]
    failure, _ = reverse.generate_many(
        model, processor, requests, max_sequences=2, on_error="yield", **SETTINGS
    )
    frame = failure.error.__traceback__
    while frame is not None:
        held = [value for value in frame.tb_frame.f_locals.values() if isinstance(value, torch.Tensor)]
        assert not held and "inputs" not in frame.tb_frame.f_locals
        frame = frame.tb_next
