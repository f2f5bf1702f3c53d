"""Ends that the caller asks for, and the processors that come with them: as plain generate() has them."""

import functools
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    StoppingCriteria,
    StoppingCriteriaList,
    WatermarkingConfig,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from experiments.tiny_models import SENTENCES, train_tokenizer
from reverse.custom_generate import Retrospective
from reverse.decoding.config import ResamplingConfig
from reverse.decoding.text.codec import TextCodec
from reverse.decoding.text.stopping import Stops, check_stop_strings
from reverse.decoding.verifier import NO_TAGS
from reverse.tokens import find_token_ids
from tests.decoding import mock
from tests.decoding.mock import CN, DOT, SPAN, TAGS, UN
from tests.decoding.oracle import drive, naive_generate
from tests.decoding.test_backend import ROOM, config, decode, inputs_for, world

A, B, C = 6, 7, 8
TOKENIZERS = {style: train_tokenizer(SENTENCES, 600, style=style) for style in ("bytes", "sentencepiece")}
LETTERS = "ab .\n狗🦒é"
PROMPT = torch.tensor([0, 0, A])


def stops(*strings, **settings):
    return Stops(PROMPT, mock.decode, TAGS, strings=strings, **settings)


def ended_at(asked, ids):
    """How many ids are said until the answer is stopped."""
    return next((n for n in range(1, len(ids) + 1) if asked(ids[:n])), None)


# ---------------------------------------------------------------------- strings
def test_stop_string_over_several_ids():
    """Only stop strings that are one token would ever be found."""
    assert ended_at(stops(" b."), [A, B, A, B, DOT, A]) == 5
    assert ended_at(stops(" c", " a b"), [B, A, B]) == 3
    assert ended_at(stops(" c"), [B, A, B]) is None


def test_stop_string_is_told_once():
    """An old match would stop an answer that was allowed to go on from it."""
    asked = stops(" a")
    assert asked([B, A]) and not asked([B, A, B])


def test_stop_string_is_looked_for_in_the_clean_text():
    """ "dog." would be missed where the phrase is marked: "dog</CN>."."""
    assert ended_at(stops(" a."), [B, SPAN, A, CN, DOT]) == 5


def test_stop_inside_a_phrase_is_told_at_its_end():
    """A phrase that is taken back would have stopped the answer."""
    assert ended_at(stops(" b"), [A, SPAN, B, C, CN, A]) == 5
    assert ended_at(stops(" b"), [A, SPAN, C, UN, A, B]) == 6
    assert ended_at(stops(" b", checking=False), [A, SPAN, B, C, CN, A]) == 3


@pytest.mark.parametrize("style", TOKENIZERS)
@settings(max_examples=200, deadline=None)
@given(
    text=st.text("ab .\n狗🦒é", min_size=1, max_size=30), stop=st.text("ab .\n狗🦒é", min_size=1, max_size=4)
)
def test_stop_strings_are_found_where_they_end(style, text, stop):
    """A stop would be missed at a joint of tokens or characters, or be told for text that is not there."""
    tokenizer = TOKENIZERS[style]

    def decode(ids):
        return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    ids = tokenizer.encode("A dog " + text, add_special_tokens=False)
    first = next((n for n in range(1, len(ids) + 1) if stop in decode(ids[:n])), None)
    if "\ufffd" in decode(ids):
        return
    assert ended_at(Stops(PROMPT, decode, NO_TAGS, strings=(stop,)), ids) == first


@pytest.mark.parametrize(
    "value, error, message",
    [
        ("", ValueError, "holds an empty text.*leave it out"),
        ([3], TypeError, "a text or a list of texts, got 3"),
        (["a</CN>"], ValueError, "take </CN> out"),
    ],
)
def test_stop_strings_that_cannot_be_meant(value, error, message):
    """An empty stop string would end every answer after one token, and a tag never be found."""
    with pytest.raises(error, match=message):
        check_stop_strings(value)
    assert (
        check_stop_strings(None) == ()
        and check_stop_strings("a") == ("a",)
        and check_stop_strings(["a", "b"]) == ("a", "b")
    )


# ---------------------------------------------------------------------- criteria, time, readers
def test_criteria_see_the_prompt_and_the_answer():
    """A criterion that looks at `input_ids` would be shown something else than in generate()."""
    seen = []

    def criterion(input_ids, scores, **_):
        seen.append(input_ids.tolist())
        return input_ids[:, -1] == B

    assert ended_at(stops(criteria=[criterion]), [A, C, B, A]) == 3
    assert seen[-1] == [[0, 0, A, A, C, B]]


def test_criterion_that_needs_scores_says_so():
    """It would fail with an error about NoneType from inside the caller's code."""

    def criterion(input_ids, scores, **_):
        return scores.max() > 3

    with pytest.raises(ValueError, match=r"stopping criterion function failed .*scores are None"):
        stops(criteria=[criterion])([A])


def test_time_and_absent_readers_wait_for_nothing():
    """A stream nobody reads, or a call past `max_time`, would go on to the end of its phrase and beyond."""
    assert stops(deadline=time.time() - 1)([A, SPAN, B])
    assert not stops(deadline=time.time() + 60)([A])
    assert stops(has_left=lambda: True)([A, SPAN])
    assert not stops() and stops(has_left=lambda: False) and stops("x")


# ---------------------------------------------------------------------- against plain generate()
def plain(options):
    """Answers of the drop-in with checking off, in one batch, and of generate(), each row alone, as lists."""
    model, _ = world("llava")
    results, _ = decode("llava", range(4), config(), checking=False, **options)
    eos, theirs = eos_of(model), []
    for row in range(4):
        inputs = inputs_for("llava", [row])
        ids = model.generate(**inputs, max_new_tokens=ROOM, do_sample=False, **options)[0].tolist()
        ids = ids[inputs["input_ids"].shape[1] :]
        theirs.append(ids[: ids.index(eos) + 1] if eos in ids else ids)
    return [list(r.ids) for r in results], theirs


def eos_of(model):
    eos = model.generation_config.eos_token_id
    return eos[0] if isinstance(eos, list) else eos


HURRY = {"sequence_bias": [[[2], 6.0]]}  # a penalty that grows makes NaN of a ban in transformers 5.18
PROCESSORS = {
    "repetition_penalty": 1.8,
    "encoder_repetition_penalty": 1.5,
    "min_new_tokens": 30,
    "min_length": 90,
    "no_repeat_ngram_size": 2,
    "encoder_no_repeat_ngram_size": 1,
    "bad_words_ids": [[123], [321], [118], [516, 516]],
    "sequence_bias": [[[100], 20.0], [[516, 517], -50.0]],
    "suppress_tokens": list(range(100, 400)),
    "begin_suppress_tokens": list(range(50, 516)),
    "forced_eos_token_id": 2,
    "exponential_decay_length_penalty": (4, 1.3),
    "renormalize_logits": True,
    "remove_invalid_values": True,
}
NEUTRAL = ("renormalize_logits", "remove_invalid_values", "encoder_no_repeat_ngram_size")


def with_option(option):
    hurry = HURRY if option.startswith("min_") else {}
    return {option: PROCESSORS[option]} | hurry, hurry


@functools.cache
def without(hurry):
    return plain(HURRY if hurry else {})[1]


@pytest.mark.parametrize("option", PROCESSORS)
def test_processors_are_those_of_generate(option):
    """An option of model.generate() would be dropped, or be shown another text than there."""
    options, hurry = with_option(option)
    ours, theirs = plain(options)
    assert ours == theirs
    if option not in NEUTRAL:
        assert ours != without(bool(hurry))  # or the case would prove nothing


@pytest.mark.parametrize("option", PROCESSORS)
def test_processors_forget_what_was_taken_back(option):
    """A processor would count words that the answer no longer has."""
    options, _ = with_option(option)
    resampling = config(threshold=0.05, hints=0, commit="answer")
    results, _ = decode("llava", range(4), resampling, **options)
    model, processor = world("llava")
    rejected = 0
    for row, result in enumerate(results):
        inputs = inputs_for("llava", [row])
        expected = naive_generate(
            model,
            processor,
            inputs,
            resampling,
            ROOM,
            seed=100 + row,
            process=processors_of(model, inputs, options),
        )
        assert result.ids == expected.ids
        rejected += len(result.trace)
    assert rejected > 3


def processors_of(model, inputs, options):
    """The processors that generate() makes of options, in a plain function of (answer, logits)."""
    held = []

    def capture(model, input_ids, logits_processor, stopping_criteria, generation_config, **_):
        held.append(logits_processor)
        return input_ids

    model.generate(**inputs, custom_generate=capture, max_new_tokens=ROOM, do_sample=False, **options)
    prompt = inputs["input_ids"]

    def process(answer, logits):
        ids = torch.cat((prompt, torch.tensor([answer], dtype=prompt.dtype)), dim=1)
        return held[0](ids, logits[None])[0]

    return process


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("guidance_scale", 2.0, "UnbatchedClassifierFreeGuidanceLogitsProcessor keeps a state"),
        (
            "prefix_allowed_tokens_fn",
            lambda batch, ids: [5],
            "PrefixConstrainedLogitsProcessor keeps a state",
        ),
        ("watermarking_config", WatermarkingConfig(), "WatermarkLogitsProcessor keeps a state"),
        ("min_p", 0.1, r"min_p=0\.1 is not supported.*the settings top_k, top_p"),
        ("typical_p", 0.5, "typical_p=0.5 is not supported.*the settings top_k, top_p"),
        (
            "logits_processor",
            LogitsProcessorList([MinPLogitsWarper(0.1)]),
            r"min_p \(MinPLogitsWarper\) narrows the choice after temperature",
        ),
        ("epsilon_cutoff", 0.01, "epsilon_cutoff"),
        ("eta_cutoff", 0.01, "eta_cutoff"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isidentifier() else "",
)
def test_processors_that_cannot_be_rewound_are_refused(drop_in, option, value, message):
    """It would act on text that is gone, or be left out without a word."""
    with pytest.raises(ValueError, match=message):
        drop_in(do_sample=True, **{option: value})


def test_nothing_left_to_choose(drop_in, tiny_any):
    """With every token banned, token 0 would be said over and over."""
    size = tiny_any[0].get_output_embeddings().weight.shape[0]
    with pytest.raises(ValueError, match=r"SuppressTokensLogitsProcessor and the mask .*ban fewer of them"):
        drop_in(suppress_tokens=list(range(size)))


# ---------------------------------------------------------------------- stops of a whole answer
def words_of(ids, tags, decode):
    """Texts of one to three ids in a row without tags, that come up in an answer."""
    for n in (1, 2, 3):
        for i in range(2, len(ids) - n):
            if not set(ids[i - 1 : i + n]) & set(tags):
                text = decode(list(ids[i : i + n]))
                if text.strip() and "\ufffd" not in text:
                    yield text


def test_stop_strings_are_those_of_generate():
    """The answer would end elsewhere than with `model.generate(stop_strings=..., tokenizer=...)`."""
    model, processor = world("llava")
    tags, compared = find_token_ids(processor.tokenizer), 0
    free, _ = decode("llava", range(4), config(), checking=False)
    for result in free:
        for text in list(words_of(result.ids, tags, TextCodec(processor).decode))[::5]:
            decoder = Retrospective(processor, config(), checking=False, stop_strings=text)
            inputs = inputs_for("llava", range(4))
            ours = model.generate(**inputs, custom_generate=decoder, max_new_tokens=ROOM)
            theirs = model.generate(
                **inputs,
                max_new_tokens=ROOM,
                do_sample=False,
                stop_strings=text,
                tokenizer=processor.tokenizer,
            )
            assert torch.equal(ours, theirs)
            compared += any(r.finish_reason == "stop" for r in decoder.results)
    assert compared > 2


def test_criteria_are_those_of_generate():
    """A stopping criterion of the caller would be refused, never asked, or asked about other ids."""
    free = without(False)
    wanted = free[2][4]

    class Said(StoppingCriteria):
        def __call__(self, input_ids, scores, **_):
            return (input_ids[:, -1] == wanted) & (input_ids[:, -3] != wanted)

    for row, criterion in ((2, Said()), (1, MaxLengthCriteria(90))):  # row 1 has no padding, which counts
        ours, theirs = plain({"stopping_criteria": StoppingCriteriaList([criterion])})
        assert ours[row] == theirs[row] != free[row]
    ours, _ = plain({"stopping_criteria": StoppingCriteriaList([EosTokenCriteria(wanted)])})
    assert ours[2] == free[2][:5]


def test_a_stop_that_is_taken_back_stops_nothing():
    """The answer would end with a phrase that is no longer there."""
    told = []

    def logits(prefix):
        told.append(prefix)
        said, row = prefix[1:], [-20.0] * mock.SIZE
        tries = sum(1 for before in told if len(before) == 3)
        wanted = [SPAN, C if tries else B, CN, DOT, B, mock.EOS][min(len(said), 5)]
        row[wanted] = 20.0
        if wanted == CN and said[-1] == B:
            row[UN] = 20.0  # p is a half
        return row

    request_stops = Stops(torch.tensor([mock.BOS]), mock.decode, TAGS, strings=(" b",))
    asked = mock.branch(ResamplingConfig(threshold=0.3), 20, stops=request_stops)
    (result,) = drive(mock.backend(mock.MockModel(logits)), [asked])
    assert [t.phrase for t in result.trace] == ["b"]
    assert (result.text, result.finish_reason) == (" c. b", "stop")


def test_max_time_ends_the_answer(drop_in):
    """`max_time` would be refused, or the answer go on to its last token."""
    ids = drop_in(max_time=1e-9, max_new_tokens=64)
    free = drop_in(max_new_tokens=64)
    assert ids.shape[1] <= free.shape[1] - 60


def test_stop_strings_of_generate(ask):
    """The keyword would be taken for an unknown setting, or the option of model.generate() fail far away."""
    free = ask(max_new_tokens=30, mode="plain")
    word = free.text[4:6]
    stopped = ask(max_new_tokens=30, mode="plain", stop_strings=[word])
    assert stopped.finish_reason == "stop" and word in stopped.text and len(stopped.ids) < len(free.ids)
    with pytest.raises(ValueError, match=r"generation holds stop_strings.*argument"):
        ask(generation={"stop_strings": ["a"]})
    with pytest.raises(ValueError, match="empty text"):
        ask(stop_strings="")
