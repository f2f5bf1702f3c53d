"""Streams and events: nothing that was shown is taken back, and what was shown is the answer."""

import functools
import gc
import threading
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor, TextIteratorStreamer

import reverse
from experiments.tiny_models import SENTENCES, train_tokenizer
from reverse.api import stream
from reverse.decoding.backends.hf.hf_backend import HfBackend
from reverse.decoding.backends.protocol import OutOfMemory, SegmentOutput
from reverse.decoding.calls.sinks import make_sinks
from reverse.decoding.config import ResamplingConfig
from reverse.decoding.events import Append, Commit, Complete, EventEmitter, Retract
from reverse.decoding.policies.policy import Answer, Attempt
from reverse.decoding.policies.policy import Finish as PolicyFinish
from reverse.decoding.preparing.preparing import Preparer
from reverse.decoding.sampling import choose, uniform
from reverse.decoding.text.answer_text import read_answer
from reverse.decoding.text.incremental_detokenizer import IncrementalDetokenizer, find_partial_byte_token
from reverse.tokens import TAGS, find_token_ids
from tests.decoding import mock
from tests.decoding.mock import CN, EOS, SPAN, UN, hashed
from tests.decoding.mock import TAGS as TAG_IDS
from tests.decoding.oracle import NaiveBackend, drive
from tests.decoding.test_backend import inputs_for
from tests.decoding.test_policy import configs
from tests.decoding.test_slots import until
from tests.decoding.worlds import picture, talkative

TOKENIZERS = {style: train_tokenizer(SENTENCES, 600, style=style) for style in ("bytes", "sentencepiece")}
for _tokenizer in TOKENIZERS.values():
    _tokenizer.add_tokens(list(TAGS))
WORDS = ["A dog", " two cups", " ", "\n", ".", "狗", "🦒🦒", "é", "<", "<SP", "AN>", "</", "N>", *TAGS]


def decoder(style):
    tokenizer = TOKENIZERS[style]
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def clean(style, ids):
    """What `build_result` makes of ids."""
    return read_answer(decoder(style), ids, find_token_ids(TOKENIZERS[style])).text


def shown_text(style):
    tokenizer = TOKENIZERS[style]
    return IncrementalDetokenizer(
        decoder(style), find_token_ids(tokenizer), find_partial_byte_token(tokenizer)
    )


def ids_of(style, data):
    """Ids of words that tokenizers and tags stumble over, some of them cut or out of place."""
    tokenizer = TOKENIZERS[style]
    text = "".join(data.draw(st.lists(st.sampled_from(WORDS) | st.text(max_size=3), max_size=24)))
    ids = tokenizer.encode(text, add_special_tokens=False)
    stray = st.tuples(st.integers(0, 200), st.integers(3, len(tokenizer) - 1))
    for at, token in data.draw(st.lists(stray, max_size=3)):
        ids.insert(min(at, len(ids)), token)
    return ids[: data.draw(st.integers(0, len(ids)))]


# ---------------------------------------------------------------------- the text of growing ids
@pytest.mark.parametrize("style", TOKENIZERS)
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_shown_text_is_never_put_right(style, data):
    """Half an emoji, half a tag or a blank at the end would be shown and then be wrong."""
    ids = ids_of(style, data)
    text, shown = shown_text(style), ""
    for token in ids:
        shown += text.feed([token])
        assert text.length == len(shown)
    assert clean(style, ids).startswith(shown)


@pytest.mark.parametrize("style", TOKENIZERS)
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_shown_text_does_not_depend_on_the_pieces(style, data):
    """After a rewind other text would count as shown than before it."""
    ids = ids_of(style, data)
    at = data.draw(st.integers(0, len(ids)))
    one, many = shown_text(style), shown_text(style)
    whole = one.feed(ids) if ids else ""
    pieces = "".join([many.feed([token]) for token in ids])
    assert whole == pieces
    head = shown_text(style).feed(ids[:at]) if at else ""
    assert one.cut(at) == len(head)
    assert head + (one.feed(ids[at:]) if at < len(ids) else "") == whole


@pytest.mark.parametrize("style", TOKENIZERS)
def test_shown_text_lags_behind_by_half_a_character_at_most(style):
    """Plain words would be held back until the next tag, and nothing would seem to stream."""
    tokenizer, decode = TOKENIZERS[style], decoder(style)
    text = shown_text(style)
    ids, shown = tokenizer.encode("There are two dogs on the sofa. " * 12, add_special_tokens=False), ""
    for i, token in enumerate(ids):
        shown += text.feed([token])
        assert shown.rstrip() == decode(ids[: i + 1]).strip()


# ---------------------------------------------------------------------- a row's story
class Reader:
    """A sink that remembers."""

    closed = False

    def __init__(self):
        self.prompt, self.ids, self.text, self.result = None, [], "", None

    def begin(self, prompt):
        self.prompt = list(prompt)

    def write(self, ids, text):
        self.ids.extend(ids)
        self.text += text

    def done(self, result):
        self.result = result


CODEC = SimpleNamespace(decode=mock.decode, tags=TAG_IDS, partial_byte_token=None)


def emitter_of(row, events, sink, is_checked=True, holds_blank=False):
    return EventEmitter(
        row,
        CODEC,
        eos=frozenset({EOS}),
        on_event=events.append,
        on_text=sink.write,
        is_checked=is_checked,
        holds_blank=holds_blank,
    )


def follow(model, config, room, temperature=0.0, checking=True, keep_open=False):
    """Decode one answer of a mock model in the simplest way there is, watched.

    Returns the result, the policy, the events, the sink, and how much of the text the sink had after each
    action, with what the answer was then.
    """
    events, sink, steps = [], Reader(), []
    emitter = emitter_of(0, events, sink, checking, keep_open)
    branch = mock.branch(config, room, temperature, checking=checking, emitter=emitter)
    branch.begin()
    answer, decision = branch.policy.answer, None
    while decision is None or not isinstance(decision.action, PolicyFinish):
        branch.round.sequences = [0]
        (params, *_), run, ps, end = branch.round.params, [], [], None
        while end is None:
            logits = torch.tensor(model.logits([mock.BOS, *answer.ids, *run]), dtype=torch.float32)
            ps.append(float(logits.softmax(-1)[UN]))
            if checking:
                opened = SPAN in run
                logits[[SPAN] if opened else [CN, UN]] = -torch.inf
            noise = uniform(0, len(answer.ids) + len(run), params.attempt)
            token = int(choose(logits[None], [params.temperature], [noise]))
            run.append(token)
            full = len(run) == params.max_tokens
            end = {CN: "phrase", UN: "phrase", EOS: "eos"}.get(token, "length" if full else None)
            output = None if end is None else SegmentOutput(tuple(run), tuple(ps), end, 0)
            branch.take_token(0, token, ps[-1], output)
        decision = branch.judge()
        steps.append((sink.text, list(answer.ids), answer.committed_length))
    if not emitter.is_blank:
        events.append(Complete(0, branch.result))
        sink.done(branch.result)
    return branch.result, branch.policy, events, sink, steps


def replay(events):
    """Text, ids and how much of both is final, as a user interface would keep them."""
    text, ids, final = "", (), (0, 0)
    for event in events:
        if isinstance(event, Append):
            text, ids = text + event.text, ids + event.ids
        elif isinstance(event, Retract):
            assert event.to >= final[0] and event.keep >= final[1]
            text, ids = text[: event.keep], ids[: event.to]
        elif isinstance(event, Commit):
            assert final <= (event.to, event.keep) and event.to <= len(ids) and event.keep <= len(text)
            final = (event.to, event.keep)
    return text, ids, final


@settings(max_examples=250, deadline=None)
@given(st.integers(0, 2**32), configs, st.sampled_from([0.0, 0.7]), st.integers(1, 40), st.booleans())
def test_stream_equals_the_result_and_events_replay_it(salt, config, temperature, room, checking):
    """A stream would show other text than the answer, or a user interface end up with it."""
    result, _, events, sink, _ = follow(hashed(salt), config, room, temperature, checking)
    assert sink.text == result.text and sink.result is result
    assert sink.ids == [i for i in result.ids if i not in TAG_IDS]
    assert replay(events) == (result.text, result.ids, (len(result.ids), len(result.text)))
    assert events[-1] == Complete(0, result)
    retracted = [e for e in events if isinstance(e, Retract) and e.kind != "cut"]
    assert [(e.phrase, e.p_un, e.temperature) for e in retracted] == [
        (t.phrase, t.p_un, t.temperature) for t in result.trace
    ]


@settings(max_examples=250, deadline=None)
@given(st.integers(0, 2**32), configs, st.sampled_from([0.0, 0.7]))
def test_exactly_what_may_change_is_held_back(salt, config, temperature):
    """A stream would show text that is taken back (stuck and exhausted paths included), or lag behind."""
    result, _, _, _, steps = follow(hashed(salt), config, 40, temperature)
    for i, (shown, ids, floor) in enumerate(steps):
        for _, later, _ in steps[i:]:
            assert later[:floor] == ids[:floor]
        assert result.text.startswith(shown)
        expected = IncrementalDetokenizer(mock.decode, TAG_IDS, silent=frozenset({EOS}))
        if i < len(steps) - 1:
            assert shown == (expected.feed(ids[:floor]) if floor else "")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_answer_commits_hold_all_back_until_nothing_can_change(salt):
    """commit="answer" would show text that escalation may still reach."""
    config = ResamplingConfig(threshold=0.2, commit="answer", max_attempts=6)
    _, _, _, _, steps = follow(hashed(salt), config, 40)
    attempts = 0
    for shown, _, floor in steps[:-1]:
        if floor == 0:
            assert shown == ""
            attempts += 1
    assert attempts > 0 or len(steps) == 1


def test_plain_text_streams_id_by_id():
    """A stream without checks would wait for the end of a phrase that nobody doubts."""
    result, _, events, _, _ = follow(hashed(3), ResamplingConfig(threshold=0.5), 30, checking=False)
    commits = [e.to for e in events if isinstance(e, Commit)]
    assert commits[: len(result.ids)] == list(range(1, len(result.ids) + 1))
    assert not any(isinstance(e, Retract) for e in events)


def test_a_blank_first_answer_leaves_the_stream_open():
    """The blank answer to an open-ended question would end the stream before the question is asked again."""
    blank = mock.always(SPAN, CN, EOS)
    config = ResamplingConfig(threshold=1.0)
    result, _, events, sink, _ = follow(blank, config, 8, keep_open=True)
    assert result.text == "" and sink.result is None
    assert isinstance(events[-1], Retract) and (events[-1].to, events[-1].keep) == (0, 0)
    assert replay(events)[2] == (0, 0)
    assert follow(blank, config, 8)[3].result is not None


def test_only_the_adopted_candidate_is_appended():
    """Losers decoded side by side would flicker through the text."""
    answer, events = Answer(), []
    emitter = emitter_of(0, events, Reader())
    for step in ((SPAN, SPAN, SPAN), (6, 7, 8), (UN, CN, CN)):
        for candidate, token in enumerate(step):
            emitter.token(candidate, token, 0.5)
    answer.attempts.append(Attempt("rejected", (6,), 0.5, 0, 0, 0.1, 0, 3))
    emitter.action(answer, False)
    answer.append((SPAN, 7, CN))
    emitter.action(answer, False)
    told = [e for e in events if not isinstance(e, Commit)]
    assert [type(e) for e in told] == [Append, Append, Append, Retract, Append]
    assert told[3].phrase == "a" and told[4].ids == (SPAN, 7, CN) and told[4].text == " b"
    assert replay(events)[:2] == (" b", (SPAN, 7, CN))


def test_what_is_no_stream_is_refused():
    """A file, say, would fail in the middle of the answer."""
    with pytest.raises(TypeError, match=r"stream must be a reverse.TextStream .*got int: try"):
        make_sinks(3)


# ---------------------------------------------------------------------- reading what the engine tells
@pytest.fixture
def prepared(monkeypatch):
    """How many questions were prepared, and how many forwards were made."""
    happened = SimpleNamespace(questions=0, steps=0)
    prepare, step = Preparer.prepare, HfBackend.step

    def noting(self, *args):
        happened.questions += 1
        return prepare(self, *args)

    def stepping(self):
        happened.steps += 1
        return step(self)

    monkeypatch.setattr(Preparer, "prepare", noting)
    monkeypatch.setattr(HfBackend, "step", stepping)
    return happened


def long_stream(**options):
    model, processor = _talkative("llava", rejects_rarely=True)
    plain = {"mode": "plain", "max_new_tokens": 700, "generation": {"suppress_tokens": [eos_of(model)]}}
    return stream(model, processor, picture(0), **plain | options)


def eos_of(model):
    eos = model.generation_config.eos_token_id
    return eos[0] if isinstance(eos, list) else eos


def test_stream_is_read_to_its_end(prepared):
    """Pieces would be lost, or the result not be there after the last of them."""
    model, processor = _talkative("llava")
    reader = stream(model, processor, picture(0), **SETTINGS)
    assert not prepared.questions  # nothing is decoded before it is asked for
    with pytest.raises(RuntimeError, match="no result yet: iterate it to its end"):
        reader.result  # noqa: B018
    assert "".join(reader) == reader.result.text
    assert list(reader) == []


@pytest.mark.parametrize("kind", ["text", "events"])
@pytest.mark.parametrize("leave", ["close", "with", "break", "forget"])
def test_leaving_a_stream_ends_decoding(prepared, leave, kind):
    """The model would go on talking, and hold memory, for a reader who has gone."""
    reader = long_stream(events=kind == "events")
    if leave == "close":
        next(reader)
        reader.close()
        assert list(reader) == []
    elif leave == "with":
        with reader:
            next(reader)
    elif leave == "break":
        for _ in reader:
            break
        del reader
    else:
        next(reader)
        del reader
    gc.collect()
    until(lambda: not [t for t in threading.enumerate() if t.name == "reverse-decoding"])
    assert prepared.steps < 600


def test_errors_of_decoding_reach_the_reader(monkeypatch):
    """The reader would wait for ever, or take half an answer for a whole one."""
    reader, step, calls = long_stream(), HfBackend.step, []

    def failing(self):
        calls.append(1)
        if len(calls) > 30:
            raise RuntimeError("device-side assert")
        return step(self)

    monkeypatch.setattr(HfBackend, "step", failing)
    with pytest.raises(RuntimeError, match="device-side"):
        for _ in reader:
            pass
    assert list(reader) == []
    with pytest.raises(RuntimeError, match="no result"):
        reader.result  # noqa: B018


def test_events_are_iterated():
    """The iterator form would yield text instead, or end without its result."""
    model, processor = _talkative("llava")
    reader = stream(model, processor, picture(0), events=True, **SETTINGS)
    told = list(reader)
    assert replay(told)[:2] == (reader.result.text, reader.result.ids)
    assert told[-1] == Complete(0, reader.result)


def test_a_stream_never_read_costs_nothing(prepared):
    """A stream made and forgotten would decode."""
    long_stream().close()
    assert not prepared.questions


# ---------------------------------------------------------------------- whole answers
SETTINGS = {"threshold": 0.2, "max_new_tokens": 32, "local_attempts": 3, "max_attempts": 10}
_talkative = functools.cache(talkative)


def answers(family, **settings):
    model, processor = _talkative(family)
    return reverse.generate(model, processor, [picture(i) for i in range(4)], **SETTINGS | settings)


def replay_rows(events, rows):
    return [replay([e for e in events if e.row == row])[:2] for row in range(rows)]


@pytest.mark.parametrize("family", ["llava", "qwen"])
@pytest.mark.parametrize("commit", ["phrase", "sentence", "answer"])
@pytest.mark.parametrize("candidates", [1, 3])
def test_streams_and_events_of_a_batch(family, commit, candidates):
    """A row's stream would hold its neighbour's text, or that of a candidate that lost."""
    streams, events = [reverse.TextStream() for _ in range(4)], []
    settings = {"commit": commit, "candidates": candidates, "do_sample": True, "batch_size": 2}
    results = answers(family, stream=streams, events=events.append, **settings)
    assert ["".join(s) for s in streams] == [r.text for r in results]
    assert [s.result for s in streams] == results
    assert replay_rows(events, 4) == [(r.text, r.ids) for r in results]
    assert [r.ids for r in results] == [
        r.ids for r in answers(family, **settings)
    ]  # listening changes nothing
    assert sum(len(r.trace) for r in results) > 3


@pytest.mark.parametrize("mode", ["resample", "plain"])
def test_streamers_of_transformers(mode):
    """Code with a TextIteratorStreamer would get nothing, tags, or text that is taken back."""
    model, processor = _talkative("llava")
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    result = reverse.generate(model, processor, picture(0), mode=mode, stream=streamer, **SETTINGS)
    assert "".join(streamer).strip() == result.text.strip() != ""


def test_streams_of_the_drop_in():
    """model.generate() cannot hand a streamer on; ours would be forgotten as well."""
    model, processor = _talkative("llava")
    inputs = inputs_for("llava", [0, 1])
    streams, events = [reverse.TextStream(), reverse.TextStream()], []
    decoder = reverse.retrospective(processor, threshold=0.2, stream=streams, events=events.append)
    model.generate(**inputs, custom_generate=decoder, max_new_tokens=24)
    assert ["".join(s) for s in streams] == [r.text for r in decoder.results]
    assert replay_rows(events, 2) == [(r.text, r.ids) for r in decoder.results]
    with pytest.raises(ValueError, match="got 1 streams for 2 rows: give a list with one per row"):
        late = reverse.TextStream()
        decoder = reverse.retrospective(processor, threshold=0.2, stream=late)
        model.generate(**inputs, custom_generate=decoder, max_new_tokens=24)
    with pytest.raises(ValueError, match="got 1 streams"):
        list(late)  # who reads it does not wait for ever
    with pytest.raises(ValueError, match="got 1 streams for 4 requests"):
        answers("llava", stream=reverse.TextStream())


def test_a_closed_stream_ends_its_own_answer_only():
    """A reader who leaves would end the answers of others, or keep the row for nobody."""
    streams = [reverse.TextStream() for _ in range(4)]
    streams[1].close()
    results, free = answers("llava", stream=streams), answers("llava")
    assert (results[1].finish_reason, len(results[1].ids)) == ("stop", 1) or results[1].ids == ()
    assert [r.ids for i, r in enumerate(results) if i != 1] == [r.ids for i, r in enumerate(free) if i != 1]


@pytest.mark.parametrize("events", [False, True])
def test_leaving_a_real_stream_frees_everything(events, monkeypatch):
    """Cache, rows and lock would stay with a reader who has gone."""
    made, original = [], HfBackend.__init__

    def noted(self, *args, **kwargs):
        original(self, *args, **kwargs)
        made.append(weakref.ref(self))

    monkeypatch.setattr(HfBackend, "__init__", noted)
    model, processor = _talkative("llava")
    settings = {"mode": "plain", "max_new_tokens": 800, "events": events}
    with reverse.stream(model, processor, picture(0), **settings) as reader:
        next(reader)
    until(lambda: gc.collect() is None or made[0]() is None)
    assert len(made) == 1
    until(lambda: not [t for t in threading.enumerate() if t.name == "reverse-decoding"])
    assert reverse.generate(model, processor, picture(0), mode="plain", max_new_tokens=4).ids


def test_a_broken_model_is_heard_of(tiny):
    """The reader of a stream would wait for ever."""
    model, processor = tiny("llava")
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        list(reverse.stream(model, processor, picture(0), threshold=0.5))


def test_a_question_asked_again_is_one_stream(monkeypatch):
    """The stream of an open-ended question would end with the blank first answer, or hold both."""
    model, processor = _talkative("llava")
    size, asked = model.get_output_embeddings().weight.shape[0], []
    eos, prepare = eos_of(model), Preparer.prepare

    def short_first(self, *args):
        found = prepare(self, *args)
        asked.append(found)
        if len(asked) == 1:  # nothing but the end of the text
            silence = SuppressTokensLogitsProcessor([i for i in range(size) if i != eos])
            options = replace(found.options, processors=LogitsProcessorList([silence]))
            return replace(found, options=options)
        return found

    monkeypatch.setattr(Preparer, "prepare", short_first)
    stream, events = reverse.TextStream(), []
    result = reverse.generate(
        model, processor, picture(0), open_ended=True, stream=stream, events=events.append, **SETTINGS
    )
    assert len(asked) == 2 and "".join(stream) == result.text != ""
    assert replay(events)[:2] == (result.text, result.ids)
    assert sum(isinstance(e, Complete) for e in events) == 1


@pytest.mark.parametrize("checking", [True, False])
def test_running_out_of_memory_is_not_heard_of(checking):
    """What was told before memory ran out would be told twice."""

    class Tight(NaiveBackend):
        left = 2

        def step(self):
            outputs = super().step()
            if self.left and any(output.segment for output in outputs):
                self.left -= 1
                self.reset()
                error = OutOfMemory("full")
                error.lost_everything = True
                raise error
            return outputs

    told, sinks = [], [Reader() for _ in range(4)]
    branches = [
        mock.branch(
            ResamplingConfig(threshold=0.1),
            30,
            seed=row,
            checking=checking,
            emitter=emitter_of(row, told, sinks[row], checking),
            order=(row,),
        )
        for row in range(4)
    ]
    backend = Tight(hashed(5), {"input_ids": torch.tensor([[mock.BOS]])})
    results = drive(backend, branches, limit=4)
    assert backend.left == 0 and [sink.text for sink in sinks] == [r.text for r in results]
    assert replay_rows(told, 4) == [(r.text, r.ids) for r in results]
