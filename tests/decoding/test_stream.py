"""Streams and events: nothing that was shown is taken back, and what was shown is the answer."""

import functools
import gc
import threading
import time
import weakref
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor, TextIteratorStreamer

import reverse
from reverse.decoding.answer_text import read_answer
from reverse.decoding.backend import OutOfMemory
from reverse.decoding.config import ResamplingConfig
from reverse.decoding.events import Append, Commit, Finish, Retract, Watch, sinks_of
from reverse.decoding.loop import Request
from reverse.decoding.policy import Attempt, Policy, Segment
from reverse.decoding.policy import Finish as PolicyFinish
from reverse.decoding.retrospective import Retrospective
from reverse.decoding.sampling import choose, uniform
from reverse.decoding.shown import ShownText, half_character
from reverse.decoding.stream import stream
from reverse.decoding.trace import build_result
from reverse.decoding.transformers import TransformersBackend
from reverse.decoding.verifier import Verifier
from reverse.models.tiny import SENTENCES, train_tokenizer
from reverse.tokens import TAGS, token_ids
from tests.decoding import mock
from tests.decoding.mock import CN, EOS, SPAN, UN, hashed
from tests.decoding.mock import TAGS as TAG_IDS
from tests.decoding.oracle import NaiveBackend, resample
from tests.decoding.test_backend import inputs_for
from tests.decoding.test_policy import configs
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
    return read_answer(decoder(style), ids, token_ids(TOKENIZERS[style])).text


def shown_text(style):
    tokenizer = TOKENIZERS[style]
    return ShownText(decoder(style), half_character(tokenizer), tags=token_ids(tokenizer))


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

    def final(self, ids, text):
        self.ids.extend(ids)
        self.text += text

    def done(self, result):
        self.result = result


def follow(model, config, room, temperature=0.0, checking=True, keep_open=False):
    """Decode one answer of a mock model in the simplest way there is, watched.

    Returns the result, the policy, the events, the sink, and how much of the text the sink had after each
    action, with what the answer was then.
    """
    policy = Policy(config, TAG_IDS, room, temperature, checking)
    events, sink, steps = [], Reader(), []
    watch = Watch(
        0,
        policy,
        mock.decode,
        TAG_IDS,
        eos=frozenset({EOS}),
        events=events.append,
        sink=sink,
        keep_open=keep_open,
    )
    generated, reason = 0, None
    while reason is None:
        run, ps, end = [], [], None
        while end is None:
            logits = torch.tensor(model.logits([mock.BOS, *policy.ids, *run]), dtype=torch.float32)
            ps.append(float(logits.softmax(-1)[UN]))
            if checking:
                opened = SPAN in run
                logits[[SPAN] if opened else [CN, UN]] = -torch.inf
            noise = uniform(0, len(policy.ids) + len(run), policy.total)
            token = int(choose(logits[None], [policy.temperature], [noise]))
            run.append(token)
            watch.token(0, token, ps[-1])
            full = len(run) == policy.room
            end = {CN: "phrase", UN: "phrase", EOS: "eos"}.get(token, "length" if full else None)
        p = ps[-1] if end == "phrase" else None
        ends = tuple(i for i in range(1, len(run)) if run[i - 1] == mock.DOT and SPAN not in run[: i - 1])
        generated += len(run)
        action = policy.next(Segment(tuple(run), end, p, ends))
        reason = action.reason if isinstance(action, PolicyFinish) else None
        watch.action(policy, reason is not None)
        steps.append((sink.text, list(policy.ids), policy.floor))
    seconds = [0.0] * len(policy.attempts)
    result = build_result(policy, mock.decode, frozenset({EOS}), reason, seconds, generated, 0, 0.0)
    watch.finish(result)
    return result, policy, events, sink, steps


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
    assert events[-1] == Finish(0, result)
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
        expected = ShownText(mock.decode, None, frozenset({EOS}), TAG_IDS)
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


class Candidates:
    """A policy that is told what to answer."""

    checking, floor, unchanged = True, 0, 0

    def __init__(self):
        self.ids, self.attempts = [], []


def test_only_the_adopted_candidate_is_appended():
    """Losers decoded side by side would flicker through the text."""
    policy, events = Candidates(), []
    watch = Watch(0, policy, mock.decode, TAG_IDS, events=events.append)
    for step in ((SPAN, SPAN, SPAN), (6, 7, 8), (UN, CN, CN)):
        for candidate, token in enumerate(step):
            watch.token(candidate, token, 0.5)
    policy.attempts.append(Attempt("rejected", (6,), 0.5, 0, 0, 0.1, 0, 3))
    watch.action(policy, False)
    policy.ids = [SPAN, 7, CN]
    watch.action(policy, False)
    told = [e for e in events if not isinstance(e, Commit)]
    assert [type(e) for e in told] == [Append, Append, Append, Retract, Append]
    assert told[3].phrase == "a" and told[4].ids == (SPAN, 7, CN) and told[4].text == " b"
    assert replay(events)[:2] == (" b", (SPAN, 7, CN))


def test_what_is_no_stream_is_refused():
    """A file, say, would fail in the middle of the answer."""
    with pytest.raises(TypeError, match=r"stream must be a reverse.TextStream .*got int: try"):
        sinks_of(3)


# ---------------------------------------------------------------------- reading in another thread
@pytest.fixture
def decoding(monkeypatch):
    """`decoding(pieces)`: lets generate() say these; returns what became of it."""

    def install(*pieces, error=None):
        happened = SimpleNamespace(said=0, ended=threading.Event(), threads=[])

        def fake(model, processor, images, prompt, *, stream=None, events=None, **settings):
            happened.threads.append(threading.current_thread())
            try:
                for piece in pieces:
                    if stream is not None:
                        if stream.closed:
                            return None
                        stream.final([1], piece)
                    else:
                        events(piece)
                    happened.said += 1
                    time.sleep(settings.get("pause", 0))
                if error is not None:
                    raise error
                return "the result"
            finally:
                happened.ended.set()

        monkeypatch.setattr(
            "reverse.decoding.stream.prepare_call", functools.partial(functools.partial, fake)
        )
        return happened

    return install


def test_stream_is_read_to_its_end(decoding):
    """Pieces would be lost, or the result not be there after the last of them."""
    happened = decoding("A dog", " and", " a cup.")
    reader = stream(None, None)
    assert not happened.threads  # nothing is decoded before it is asked for
    with pytest.raises(RuntimeError, match="no result yet: iterate it to its end"):
        reader.result  # noqa: B018
    assert "".join(reader) == "A dog and a cup." and reader.result == "the result"
    assert list(reader) == [] and not happened.threads[0].is_alive()


@pytest.mark.parametrize("kind", ["text", "events"])
@pytest.mark.parametrize("leave", ["close", "with", "break", "forget"])
def test_leaving_a_stream_ends_decoding(decoding, leave, kind):
    """The model would go on talking, and hold memory and lock, for a reader who has gone."""
    happened = decoding(*["x"] * 10_000)
    reader = stream(None, None, events=kind == "events", pause=0.001)
    if leave == "close":
        next(reader)
        reader.close()
        assert happened.ended.is_set() and not happened.threads[0].is_alive() and list(reader) == []
    elif leave == "with":
        with reader:
            next(reader)
        assert happened.ended.is_set()
    elif leave == "break":
        for _ in reader:
            break
        del reader
    else:
        next(reader)
        del reader
    gc.collect()
    assert happened.ended.wait(5) and happened.said < 5_000


def test_errors_of_decoding_reach_the_reader(decoding):
    """The reader would wait for ever, or take half an answer for a whole one."""
    decoding("A dog", error=ValueError("logits are not finite"))
    reader = stream(None, None)
    assert next(reader) == "A dog"
    with pytest.raises(ValueError, match="not finite"):
        next(reader)
    assert list(reader) == []
    with pytest.raises(RuntimeError, match="no result"):
        reader.result  # noqa: B018


def test_events_are_iterated(decoding):
    """The iterator form would yield text instead, or end without its result."""
    decoding("one", "two")
    reader = stream(None, None, events=True)
    assert list(reader) == ["one", "two"] and reader.result == "the result"


def test_a_stream_never_read_costs_nothing(decoding):
    """A stream made and forgotten would decode."""
    happened = decoding("A")
    stream(None, None).close()
    assert not happened.threads


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
    with pytest.raises(ValueError, match="got 1 streams for 2 rows: give a list with one a row"):
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
    made, original = [], TransformersBackend.__init__

    def noted(self, *args, **kwargs):
        original(self, *args, **kwargs)
        made.append(weakref.ref(self))

    monkeypatch.setattr(TransformersBackend, "__init__", noted)
    model, processor = _talkative("llava")
    settings = {"mode": "plain", "max_new_tokens": 800, "events": events}
    with reverse.stream(model, processor, picture(0), **settings) as reader:
        next(reader)
    gc.collect()
    assert len(made) == 1 and made[0]() is None
    assert not [t for t in threading.enumerate() if t.name == "reverse-stream" and t.is_alive()]
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
    eos = model.generation_config.eos_token_id
    prepare = Retrospective.prepare

    def short_first(self, *args):
        requests, prefill = prepare(self, *args)
        asked.append(requests)
        if len(asked) == 1:  # nothing but the end of the text
            silence = SuppressTokensLogitsProcessor([i for i in range(size) if i != eos])
            prefill.processors = [LogitsProcessorList([silence])]
        return requests, prefill

    monkeypatch.setattr(Retrospective, "prepare", short_first)
    stream, events = reverse.TextStream(), []
    result = reverse.generate(
        model, processor, picture(0), open_ended=True, stream=stream, events=events.append, **SETTINGS
    )
    assert len(asked) == 2 and "".join(stream) == result.text != ""
    assert replay(events)[:2] == (result.text, result.ids)
    assert sum(isinstance(e, Finish) for e in events) == 1


@pytest.mark.parametrize("checking", [True, False])
def test_running_out_of_memory_is_not_heard_of(checking):
    """What was told before memory ran out would be told twice."""

    class Tight(NaiveBackend):
        left = 2

        def extend(self):
            ended = super().extend()
            if self.left:
                self.left -= 1
                for row in list(self.texts):
                    self.finish(row)
                raise OutOfMemory("full")
            return ended

    config = ResamplingConfig(threshold=0.1)
    policies = [Policy(config, TAG_IDS, 30, checking=checking) for _ in range(4)]
    told, sinks, requests = [], [Reader() for _ in policies], []
    for row, policy in enumerate(policies):
        watch = Watch(
            row, policy, mock.decode, TAG_IDS, eos=frozenset({EOS}), events=told.append, sink=sinks[row]
        )
        request = Request([mock.BOS], policy, row)
        request.on_token, request.on_action, request.on_finish = watch.token, watch.action, watch.finish
        requests.append(request)
    prompt = {"input_ids": torch.tensor([[mock.BOS]])}
    backend = Tight(hashed(5), prompt, TAG_IDS, frozenset({EOS}), slots=4)
    results = resample(backend, requests, mock.decode, Verifier(TAG_IDS), frozenset({EOS}))
    assert backend.left == 0 and [sink.text for sink in sinks] == [r.text for r in results]
    assert replay_rows(told, 4) == [(r.text, r.ids) for r in results]
