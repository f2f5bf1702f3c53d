"""What generate() takes and gives: one and many, batches, seeds, settings, blank answers."""

import functools
import json
from dataclasses import replace

import pytest
import torch

import reverse
from reverse.decoding.asks import Node
from reverse.decoding.backends.hf.hf_backend import HfBackend
from reverse.decoding.engine import Engine
from reverse.decoding.policies.policy import Rewind
from reverse.decoding.policies.resample_policy import ResamplePolicy
from reverse.decoding.preparing import preparing
from reverse.decoding.preparing.preparing import limit_new_tokens
from reverse.decoding.scheduling.branch import AnswerRules, Branch
from reverse.decoding.text.hints import HintWriter
from reverse.decoding.verifier import Verifier
from reverse.tokens import TAGS
from tests.decoding.mock import DOT, SPAN, always, run
from tests.decoding.mock import TAGS as TAG_IDS
from tests.decoding.worlds import talkative

WORD = 6

QUESTION = "Describe this image."
_talkative = functools.cache(talkative)


@pytest.fixture
def chatty():
    """`chatty(**settings)`: generate() with a model in float64 that opens and closes many phrases."""
    model, processor = _talkative("llava", torch.float64)

    def call(**settings):
        defaults = {"prompt": QUESTION, "threshold": 0.3, "max_new_tokens": 40, "max_attempts": 8}
        return reverse.generate(model, processor, **defaults | settings)

    return call


def test_one_and_many(chatty, picture):
    """One question would come back as a list, or a list of one as a bare Result."""
    one = chatty(images=picture())
    assert isinstance(one, reverse.Result)
    assert [r.ids for r in chatty(images=[picture()])] == [one.ids]
    assert [r.ids for r in chatty(images=picture(), prompt=[QUESTION])] == [one.ids]
    assert chatty(images=[], prompt=[]) == []


def test_one_prompt_of_many_pictures(chatty, picture):
    """One prompt with a list of pictures asks it of each: not one question about all of them."""
    pictures = [picture(seed) for seed in range(3)]
    together = chatty(images=pictures)
    assert [r.ids for r in together] == [chatty(images=p).ids for p in pictures]
    assert len({r.ids for r in together}) > 1


def test_several_pictures_of_one_request(ask, tiny_llava, picture):
    """A list inside the list is one request with several pictures."""
    results = ask(images=[[picture(0), picture(1)]], prompt=["What differs?"])
    assert len(results) == 1 and results[0].usage.kept > 0


def test_kinds_of_pictures(ask, picture, tmp_path):
    """Path, bytes and PIL image of one picture would be seen differently."""
    path = tmp_path / "a.png"
    picture().save(path)
    answers = {ask(images=kind).ids for kind in (picture(), str(path), path, path.read_bytes())}
    assert len(answers) == 1


def test_a_chat_is_one_request(ask, picture):
    """A chat, itself a list, would be taken for a list of prompts."""
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    assert ask(prompt=chat).ids == ask().ids


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batches_change_nothing(chatty, picture, batch_size):
    """A row's answer would depend on what stood beside it."""
    pictures = [picture(seed) for seed in range(5)]
    prompts = [f"Is there a {name} here?" for name in ("dog", "cat", "bus", "wine glass", "bird")]
    seeds = [3, 1, 4, 1, 5]
    finished = []
    whole = chatty(images=pictures, prompt=prompts, seed=seeds, batch_size=5)
    split = chatty(
        images=pictures, prompt=prompts, seed=seeds, batch_size=batch_size, progress=finished.append
    )
    assert [r.ids for r in split] == [r.ids for r in whole]
    assert [len(r.trace) for r in split] == [len(r.trace) for r in whole]
    assert any(r.trace for r in whole) and sum(finished) == 5


def test_seeds_decide(chatty, picture):
    """The same seed would give another answer, or two seeds the same one."""

    def sampled(seed):
        return chatty(images=picture(), do_sample=True, temperature=1.0, seed=seed).ids

    assert sampled(1) == sampled(1) and len({sampled(seed) for seed in range(4)}) > 1


def test_plain_is_unchecked(chatty, picture):
    """An answer nobody checked would be called resolved."""
    result = chatty(images=picture(), mode="plain")
    assert result.resolved is None and result.trace == () and result.usage.discarded == 0


def test_results_are_json(chatty, picture):
    """A tensor or numpy number in a result would only fail when it is written to a log."""
    result = chatty(images=picture())
    assert result.trace
    again = json.loads(json.dumps(result.to_dict()))
    assert again["text"] == result.text and len(again["trace"]) == len(result.trace)
    assert list(again["ids"]) == list(result.ids)


@pytest.mark.parametrize("mode", ["resample", "plain"])
def test_text_has_no_tags(chatty, picture, mode):
    """Tags would be read to users, and phrases point beside their words."""
    results = chatty(images=[picture(seed) for seed in range(6)], mode=mode)
    assert any(r.phrases for r in results) and any(tag in r.tagged for r in results for tag in TAGS)
    for result in results:
        assert not any(tag in result.text for tag in TAGS)
        assert all(result.text[p.start : p.end] == p.text for p in result.phrases)


def blank_first(monkeypatch, blank_rows):
    """Let `blank_rows` answer blank the first time; returns the questions in their order."""
    asked, finished, numbers = [], [], []
    end, prepare, submit = Branch._finish, preparing.prepare_inputs, Engine.submit_to

    def fake_end(self, reason):
        end(self, reason)
        row = numbers.index(self.order[0])
        if row in blank_rows and row not in finished:
            self.result = replace(self.result, text=" ")
        finished.append(row)

    def fake_prepare(processor, images, prompts, *args, **kwargs):
        asked.append(prompts)
        return prepare(processor, images, prompts, *args, **kwargs)

    def noting(self, *args, **kwargs):
        numbers.append(self._last_number + 1)
        return submit(self, *args, **kwargs)

    monkeypatch.setattr(Engine, "submit_to", noting)
    monkeypatch.setattr(Branch, "_finish", fake_end)
    monkeypatch.setattr(preparing, "prepare_inputs", fake_prepare)
    return asked


def test_blank_answers_are_asked_again(ask, picture, monkeypatch):
    """An open-ended question would be left without an answer (paper §4), or all of the batch asked twice."""
    asked = blank_first(monkeypatch, {1})
    results = ask(
        images=[picture(0), picture(1)],
        prompt=["Why is it red?", "Why is it blue?"],
        open_ended=True,
        false_premise="Say so if it is not.",
    )
    assert asked == [["Why is it red?"], ["Why is it blue?"], ["Why is it blue? Say so if it is not."]]
    assert all(r.text.strip() for r in results)


def test_a_blank_answer_to_a_chat_is_asked_again(ask, monkeypatch):
    """The instruction would go into the wrong turn, or the caller's chat be changed."""
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    asked = blank_first(monkeypatch, {0})
    ask(prompt=chat, open_ended=True, false_premise="Look again.")
    assert asked[0] == [chat] and len(chat[0]["content"]) == 2
    assert asked[1][0][0]["content"][-1] == {"type": "text", "text": " Look again."}


def test_blank_answers_stay_unless_open_ended(ask, monkeypatch):
    """A closed question would be asked twice, with an instruction nobody gave."""
    asked = blank_first(monkeypatch, {0})
    assert ask().text == " " and len(asked) == 1


# ------------------------------------------------------------------ settings
def test_yes_no_questions_have_their_own_threshold(chatty, picture):
    """Yes/no answers would be judged by the threshold of descriptions, a hundredth of theirs."""

    def answers(**settings):
        return [(r.ids, len(r.trace)) for r in chatty(images=[picture(i) for i in range(12)], **settings)]

    family = reverse.models.default_threshold(_talkative("llava", torch.float64)[0])
    half, strict = answers(threshold=0.5), answers(threshold=family)
    assert half != strict
    assert answers(threshold=None, yes_no=True) == half
    assert answers(threshold=None) == strict == answers(threshold=family, yes_no=True)


def test_minimum_length_counts_the_answer_alone(chatty, picture):
    """Padding or hints would count as words of the answer, and it would end too early."""
    prompts = [QUESTION, "What is on the left, and how many dogs are there in the picture?"]
    settings = {"images": [picture(0), picture(1)], "prompt": prompts}
    free = chatty(**settings)
    least = min(r.usage.kept for r in free) + 8
    long = chatty(generation={"min_new_tokens": least}, **settings)
    assert any(r.usage.kept < least for r in free) and any(r.trace for r in long)
    assert all(r.usage.kept >= least for r in long if r.finish_reason == "eos")
    alone = [
        chatty(images=picture(i), prompt=prompts[i], generation={"min_new_tokens": least}) for i in (0, 1)
    ]
    assert [r.ids for r in long] == [r.ids for r in alone]


def test_hints_give_way_to_the_context():
    """A prompt near the end of the context would be pushed over it by its own hints."""
    _, processor = _talkative("llava", torch.float64)
    writer = HintWriter(processor)
    turn = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    prompt = processor.tokenizer.encode(
        processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False),
        add_special_tokens=False,
    )
    phrases = ["two cups", "a dog", "three cats"]
    rejected = [processor.tokenizer.encode(p, add_special_tokens=False) for p in phrases]
    config, answer = reverse.ResamplingConfig(threshold=0.3), [9, 9]

    def text(context):
        tags, at = TAG_IDS, writer.insert_at(prompt)
        rules = AnswerRules(
            processor.tokenizer.decode, tags, Verifier(tags), 20, hints=writer, context=context
        )
        one = Branch(Node(tuple(prompt), hint_at=at), ResamplePolicy(config, tags, 20), rules)
        one.policy.answer.append(answer)
        return one._plan(Rewind(2, (0.0,), 1, tuple(map(tuple, rejected)))).text

    def with_hints(kept):
        at = writer.insert_at(prompt)
        return prompt[:at] + writer.ids(kept) + prompt[at:] + answer

    full = len(prompt) + 20 + len(writer.ids(phrases))
    assert text(None) == text(full) == with_hints(phrases)
    assert text(full - 1) == with_hints(phrases[1:])
    assert text(len(prompt) + 20 + len(writer.ids(phrases[2:]))) == with_hints(phrases[2:])
    assert text(len(prompt) + 20) == prompt + answer


def test_a_generous_length_leaves_room_for_hints(chatty, picture, monkeypatch):
    """Where max_new_tokens takes in all of the context, hints would vanish without a word."""
    _, processor = _talkative("llava", torch.float64)
    open_hint = HintWriter(processor).ids(["a"])[:4]
    shown, set_tokens = [], HfBackend.set_tokens

    def watched(self, sequence, ids):
        shown.append(any(list(ids[i : i + 4]) == open_hint for i in range(len(ids))))
        set_tokens(self, sequence, ids)

    monkeypatch.setattr(HfBackend, "set_tokens", watched)
    result = chatty(images=picture(), threshold=0.05, max_new_tokens=2000)
    assert any(entry.kind == "rejected" for entry in result.trace) and any(shown)


@pytest.mark.parametrize(
    ("prompt", "asked", "hints", "room"),
    [
        (100, 50, True, 50),
        (100, 2000, True, 1024 - 100 - 128),
        (100, 2000, False, 1024 - 100),
        (768, 2000, True, 128),
        (769, 2000, True, 255),  # hints would take more than half of what is left
        (1000, 2000, True, 24),
    ],
)
def test_the_room_of_an_answer(prompt, asked, hints, room):
    """An answer would overrun the context, or near its end give way to hints altogether."""
    assert limit_new_tokens(prompt, 1024, asked, hints) == room


def test_what_the_length_limit_cuts_is_discarded_beside_the_trace():
    """The trace would be said to add up, and the cost of a phrase cut by the limit be in no account."""
    result, _ = run(always(DOT, SPAN, WORD, WORD), reverse.ResamplingConfig(threshold=0.5), 3)
    assert result.finish_reason == "length" and result.trace == ()
    assert (result.usage.kept, result.usage.discarded) == (1, 2)


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_the_trace_adds_up(family, picture):
    """What correcting cost would be under- or over-stated."""
    model, processor = _talkative(family, torch.float64)
    pictures = [picture(seed) for seed in range(4)]
    results = reverse.generate(
        model, processor, pictures, threshold=0.05, max_new_tokens=40, local_attempts=3, max_attempts=12
    )
    assert sum(len(r.trace) for r in results) > 1
    for result in results:
        lost = sum(entry.tokens for entry in result.trace)
        assert lost == result.usage.discarded or (
            result.finish_reason == "length" and lost < result.usage.discarded
        )
        assert all(entry.rewound_to <= entry.at for entry in result.trace)
        assert result.usage.kept == len(result.ids)
