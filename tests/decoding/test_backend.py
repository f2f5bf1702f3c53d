"""The transformers engine against the naive oracle, plain generate(), and itself in batches."""

import functools

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from reverse.custom_generate import Retrospective
from reverse.decoding.backends.hf import shared_cache
from reverse.decoding.config import ResamplingConfig
from reverse.models import family_of
from reverse.tokens import find_token_ids
from tests.decoding.oracle import naive_generate
from tests.decoding.worlds import picture, talkative

FAMILIES = ["llava", "qwen"]
QUESTIONS = [
    "Describe this image.",
    "What is on the left, and how many dogs are there in the picture?",
    "Is there a cat?",
    "Where is the bus?",
]
SIZES = [(112, 112), (140, 84), (84, 168), (112, 56)]
ROOM = 48


_talkative = functools.cache(talkative)


def world(family, dtype=torch.float64, seed=0, rejects_rarely=False):
    return _talkative(family, dtype, seed, rejects_rarely)


def inputs_for(family, rows, dtype=torch.float64):
    _, processor = world(family, dtype)
    processor.tokenizer.padding_side = "left"
    texts, pictures = [], []
    for i in rows:
        turn = [{"type": "image"}, {"type": "text", "text": QUESTIONS[i % 4]}]
        texts.append(
            processor.apply_chat_template(
                [{"role": "user", "content": turn}], add_generation_prompt=True, tokenize=False
            )
        )
        pictures.append(picture(i, SIZES[i % 4]))
    batch = processor(text=texts, images=pictures, return_tensors="pt", padding=True)
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}


def decode(
    family,
    rows,
    config,
    dtype=torch.float64,
    checking=True,
    temperature=0.0,
    seed=0,
    rejects_rarely=False,
    **options,
):
    model, processor = world(family, dtype, seed, rejects_rarely)
    decoder = Retrospective(processor, config, [100 + i for i in rows], checking)
    if temperature:
        options |= {"do_sample": True, "temperature": temperature}
    inputs = inputs_for(family, rows, dtype)
    ids = model.generate(**inputs, custom_generate=decoder, max_new_tokens=ROOM, **options)
    return decoder.results, ids[:, inputs["input_ids"].shape[1] :]


def config(**settings):
    return ResamplingConfig(**{"threshold": 0.3, "local_attempts": 3, "max_attempts": 14} | settings)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("hints", [0, 5])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("threshold", [0.05, 0.3])
def test_equals_the_oracle(family, hints, temperature, threshold):
    """Text after a rewind would not be what a fresh run from there says: stale slots, wrong positions."""
    settings = config(hints=hints, threshold=threshold, commit="answer")
    rows = [0, 1, 2, 3, 4]
    results, _ = decode(family, rows, settings, temperature=temperature)
    model, processor = world(family)
    for row, result in zip(rows, results, strict=True):
        single = inputs_for(family, [row])
        expected = naive_generate(model, processor, single, settings, ROOM, temperature, seed=100 + row)
        assert result.ids == expected.ids
        assert [(t.phrase, t.rewound_to) for t in result.trace] == [
            (t.phrase, t.rewound_to) for t in expected.trace
        ]
        assert [t.p_un for t in result.trace] == pytest.approx([t.p_un for t in expected.trace], abs=2e-6)
    assert sum(len(r.trace) for r in results) > 5  # the case would prove nothing


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_batch_equals_rows_alone(family, dtype, temperature):
    """A row's answer would depend on its neighbours and their rewinds."""
    for size in (2, 8):
        together, _ = decode(family, range(size), config(), dtype, temperature=temperature)
        for row in range(size):
            alone, _ = decode(family, [row], config(), dtype, temperature=temperature)
            assert alone[0].ids == together[row].ids


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_equals_generate(family):
    """Checking off would not be plain decoding, and every comparison with it would be unfair."""
    rows = range(6)
    _, ours = decode(family, rows, config(), checking=False)
    theirs = _greedy(family, rows)
    assert torch.equal(ours[:, : theirs.shape[1]], theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_threshold_one_equals_generate(family):
    """A check that never objects would change well-formed answers."""
    rows, compared = range(8), 0
    for seed in range(6):  # random models are not well-formed for long: look at several
        model, processor = world(family, seed=seed, rejects_rarely=True)
        tags = find_token_ids(processor.tokenizer)
        eos = _eos(model)
        settings = config(threshold=1.0, commit="phrase")
        results, _ = decode(family, rows, settings, seed=seed, rejects_rarely=True)
        for result, row in zip(
            results, _greedy(family, rows, seed, rejects_rarely=True).tolist(), strict=True
        ):
            text = row[: row.index(eos) + 1] if eos in row else row
            good = _well_formed(text, tags, eos)
            if good == len(text):
                assert list(result.ids) == text
            assert list(result.ids[:good]) == text[:good]
            compared += text[:good].count(tags.cn)
    assert compared >= 5


class _WellFormed(LogitsProcessor):
    """Tags where they belong, no `</UN>`, no end inside a phrase: what the promise of equality is about."""

    def __init__(self, tags, eos):
        self.tags, self.eos = tags, eos

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        for ids, row in zip(input_ids.tolist(), scores, strict=True):
            inside = [i for i in ids if i in self.tags][-1:] == [self.tags.span]
            row[[self.tags.span, self.eos] if inside else [self.tags.cn]] = -torch.inf
            row[self.tags.un] = -torch.inf
        return scores


@pytest.mark.parametrize("family", FAMILIES)
def test_threshold_one_samples_as_plain_decoding_does(family):
    """A check that never objects would bend the probabilities of a sampled answer, or shift its noise."""
    model, processor = world(family, rejects_rarely=True)
    tags = find_token_ids(processor.tokenizer)
    options = {
        "temperature": 1.0, "rejects_rarely": True,
        "logits_processor": LogitsProcessorList([_WellFormed(tags, _eos(model))]),
    }  # fmt: skip
    checked, _ = decode(family, range(8), config(threshold=1.0), **options)
    plain, _ = decode(family, range(8), config(threshold=1.0), checking=False, **options)
    for one, other in zip(checked, plain, strict=True):
        whole = other.ids.count(tags.cn) == other.ids.count(tags.span)
        assert one.ids == (other.ids if whole else other.ids[: len(one.ids)])
        assert one.ids.count(tags.cn) == other.ids.count(tags.cn) and one.trace == ()
    assert sum(r.ids.count(tags.cn) for r in checked) >= 5 and len({r.ids for r in checked}) == 8


def _eos(model):
    eos = model.generation_config.eos_token_id
    return eos[0] if isinstance(eos, list) else eos


def _greedy(family, rows, seed=0, rejects_rarely=False):
    model, _ = world(family, seed=seed, rejects_rarely=rejects_rarely)
    inputs = inputs_for(family, rows)
    return model.generate(**inputs, max_new_tokens=ROOM, do_sample=False)[:, inputs["input_ids"].shape[1] :]


def _well_formed(ids, tags, eos):
    """How many ids the promise of equality covers: up to the last phrase before anything malformed."""
    opened, good = False, 0
    for i, token in enumerate(ids):
        if token == tags.un or (token == tags.span and opened) or (token == tags.cn and not opened):
            return good
        if token == eos and opened:
            return good
        opened = token == tags.span or (opened and token != tags.cn)
        good = i + 1 if token == tags.cn else good
    return good if opened else len(ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_vision_tower_runs_once(family):
    """An attempt would encode the picture again: the cost the method is meant to save."""
    model, _ = world(family)
    calls = []
    hook = family_of(model).vision_tower(model).register_forward_hook(lambda *_: calls.append(1))
    try:
        results, _ = decode(family, [0, 1, 2], config(threshold=0.05))
    finally:
        hook.remove()
    assert sum(len(r.trace) for r in results) > 3
    assert len(calls) == 1  # one call for the whole batch of pictures


@pytest.mark.parametrize("family", FAMILIES)
def test_compaction_changes_nothing(family, monkeypatch):
    """Moving live slots together would change keys, masks or the order of rows."""
    rows, kept, made = range(5), [], shared_cache.SlotCache.__init__

    def noting(self, *args):
        made(self, *args)
        kept.append(self)

    monkeypatch.setattr(shared_cache.SlotCache, "__init__", noting)
    answers = []
    for waste, least in ((10.0, 10_000), (0.0, 0)):  # as seldom as can be, and before every step
        monkeypatch.setattr(shared_cache, "_WASTE", waste)
        monkeypatch.setattr(shared_cache, "_WASTE_SLOTS", least)
        answers.append([r.ids for r in decode(family, rows, config(threshold=0.05, commit="answer"))[0]])
    assert answers[0] == answers[1]
    assert kept[1].moves > kept[0].moves + 3


def test_same_seed_same_answer_and_another_seed_another():
    """Sampled answers could not be repeated, or all seeds would give the same one."""
    model, processor = world("llava")
    inputs = inputs_for("llava", [1])
    answers = []
    for seed in (7, 7, 8):
        decoder = Retrospective(processor, config(seed=seed))
        model.generate(
            **inputs, custom_generate=decoder, max_new_tokens=ROOM, do_sample=True, temperature=1.5
        )
        answers.append(decoder.results[0].ids)
    assert answers[0] == answers[1] != answers[2]


def test_return_types_are_those_of_generate():
    """Code written for model.generate() would break on what the drop-in returns."""
    model, processor = world("llava")
    inputs = inputs_for("llava", [0, 1])
    decoder = Retrospective(processor, config())
    ids = model.generate(**inputs, custom_generate=decoder, max_new_tokens=8)
    assert torch.equal(ids[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    out = model.generate(**inputs, custom_generate=decoder, max_new_tokens=8, return_dict_in_generate=True)
    assert torch.equal(out.sequences, ids)


def test_several_answers_of_one_request_differ():
    """num_return_sequences would return one answer several times."""
    model, processor = world("llava")
    decoder = Retrospective(processor, config())
    options = {"do_sample": True, "temperature": 2.0, "num_return_sequences": 3, "max_new_tokens": 24}
    model.generate(**inputs_for("llava", [0]), custom_generate=decoder, **options)
    assert len({r.ids for r in decoder.results}) == 3


def test_repetition_penalty_of_the_caller_is_honoured():
    """Options of model.generate() that are processors would be silently dropped."""
    settings = config(threshold=1.0)
    penalised, _ = decode("llava", [0, 1], settings, repetition_penalty=1.8)
    free, _ = decode("llava", [0, 1], settings)
    assert [r.ids for r in penalised] != [r.ids for r in free]
    alone, _ = decode("llava", [1], settings, repetition_penalty=1.8)
    assert alone[0].ids == penalised[1].ids


@pytest.mark.parametrize("score", ["softmax", "pair"])
@pytest.mark.parametrize("where", ["everywhere", "beside the tags"])
def test_nan_logits_say_so(score, where):
    """A broken checkpoint would answer with garbage instead of an error."""
    model, processor = talkative("llava")
    tags = find_token_ids(processor.tokenizer)
    weight = model.get_output_embeddings().weight
    with torch.no_grad():
        rows = [i for i in range(len(weight)) if where == "everywhere" or i not in tags]
        weight[rows] = float("nan")
    decoder = Retrospective(processor, config(score=score))
    with pytest.raises(ValueError, match=r"not finite.*float32"):
        model.generate(**inputs_for("llava", [0]), custom_generate=decoder, max_new_tokens=8)
