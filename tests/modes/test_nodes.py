"""Nodes: turns, samples and branches on a kept cache say what fresh sequences with the same ids say."""

import functools
from dataclasses import dataclass, replace

import pytest
import torch

import reverse
from reverse.decoding.asks import Generate, Node, Release, Sampling
from reverse.decoding.backends.hf.hf_backend import HfBackend
from reverse.models import family_of
from reverse.modes import Resample, Select
from tests.decoding.worlds import picture, talkative

FAMILIES = ["llava", "qwen"]
BACKENDS = ["hf", "cuda_graph"]
SETTINGS = {"threshold": 0.3, "max_new_tokens": 16, "local_attempts": 3, "max_attempts": 8}
SAMPLED = {"do_sample": True, "temperature": 0.8}
world = functools.cache(talkative)


def ask(family, images=None, **options):
    model, processor = world(family)
    images = picture(1, (140, 84)) if images is None else images
    return reverse.generate(model, processor, images, "What is there?", **SETTINGS | options)


@dataclass(frozen=True)
class Turns:
    """Answers, then asks again; `fresh` throws the first cache away, so the second turn is prefilled."""

    fresh: bool = False
    turns: int = 2
    name = "turns"
    inner: str = "resample"

    def run(self, request):
        said = []
        (outcome,) = yield [Generate(request.conversation)]
        for turn in range(1, self.turns):
            said.append(outcome)
            node = outcome.node.user(f"Are you sure, number {turn}?")
            if self.fresh:
                yield [Release(outcome.node)]
            else:
                yield [Release(Node((1,)))]  # as many asks, so that the noise is the same
            (outcome,) = yield [Generate(node, final=turn == self.turns - 1)]
        return outcome


def watched(monkeypatch):
    """Ids of every prompt that was prefilled, and how many pictures were encoded."""
    added, encoded = [], []
    add, encode = HfBackend.add, HfBackend.encode

    def adding(self, prompts):
        added.extend(list(prompt.ids) for prompt in prompts)
        return add(self, prompts)

    def encoding(self, pictures):
        encoded.extend(pictures)
        return encode(self, pictures)

    monkeypatch.setattr(HfBackend, "add", adding)
    monkeypatch.setattr(HfBackend, "encode", encoding)
    return added, encoded


# ------------------------------------------------------------------ second turns
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("hints", [0, 5])
@pytest.mark.parametrize("sampled", [False, True])
def test_a_second_turn_equals_the_same_conversation_prefilled(family, backend, hints, sampled):
    """A turn on a kept cache would stand behind a stale hint, at wrong positions, or see another text."""
    options = {"hints": hints, "backend": backend, "threshold": 0.1} | (SAMPLED if sampled else {})
    kept = ask(family, mode=Turns(turns=3), **options)
    fresh = ask(family, mode=Turns(turns=3, fresh=True), **options)
    assert kept.ids == fresh.ids and len(kept.trace) == len(fresh.trace)
    assert [p.p_un for p in kept.phrases] == pytest.approx([p.p_un for p in fresh.phrases], abs=2e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_turn_prefills_nothing_and_encodes_nothing(family, monkeypatch):
    """Every further turn would cost the picture and the whole conversation again."""
    added, encoded = watched(monkeypatch)
    ask(family, mode=Turns(turns=3), backend="hf")
    assert len(added) == 1 and len(encoded) == 1
    added.clear(), encoded.clear()
    ask(family, mode=Turns(turns=3, fresh=True), backend="hf")
    assert len(added) == 3 and len(encoded) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_turn_is_ids_and_no_text(family, monkeypatch):
    """The answer would be tokenised again, keep its end of text, or the hint of its first turn."""
    found = []

    @dataclass(frozen=True)
    class Looking(Turns):
        def run(self, request):
            (first,) = yield [Generate(request.conversation)]
            node = first.node.user("Are you sure?")
            found.append((first, node))
            (second,) = yield [Generate(node, final=True)]
            return second

    model, processor = world(family)
    ask(family, mode=Looking(), threshold=0.05)
    first, node = found[0]
    answer = list(first.result.ids)
    eos = model.generation_config.eos_token_id
    if answer[-1] in (eos if isinstance(eos, list) else [eos]):
        answer.pop()
    prompt = list(first.node.base.ids)
    assert first.result.trace  # a hint was in the prompt
    assert list(first.node.ids) == prompt + answer
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is there?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "XYZ"}]},
        {"role": "user", "content": [{"type": "text", "text": "Are you sure?"}]},
    ]
    shown = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    behind = processor.tokenizer.encode(shown.split("XYZ")[1], add_special_tokens=False)
    assert list(node.ids) == prompt + answer + behind
    assert node.ids[node.hint_at :] == processor_suffix(processor)


def processor_suffix(processor):
    from reverse.decoding.text.hints import HintWriter

    return HintWriter(processor).suffix_ids


def test_an_answer_may_go_on_inside_its_turn():
    """A continued answer would begin a turn, or repeat what was said."""

    @dataclass(frozen=True)
    class GoOn:
        fresh: bool
        name = "go_on"
        policy = staticmethod(reverse.modes.Plain().policy)

        def run(self, request):
            short = Sampling(max_new_tokens=5)
            (first,) = yield [Generate(request.conversation, sampling=short)]
            node = first.node.continue_assistant()
            if self.fresh:
                node = Node(node.ids, node.pictures, node.hint_at, node.writer)
            (second,) = yield [Generate(node, final=True)]
            return second

    whole = ask("llava", mode="plain", max_new_tokens=21, generation={"min_new_tokens": 21})
    parts = ask("llava", mode=GoOn(False), generation={"min_new_tokens": 16})
    assert whole.ids[5:] == parts.ids == ask("llava", mode=GoOn(True), generation={"min_new_tokens": 16}).ids


# ------------------------------------------------------------------ samples and branches
@dataclass(frozen=True)
class Samples:
    """`n` answers behind one prefill, all of them looked at."""

    found: list
    n: int = 4
    name = "samples"
    policy: object = None

    def run(self, request):
        outcomes = yield [Generate(request.conversation, n=self.n)]
        self.found.extend(outcome.result.ids for outcome in outcomes)
        return outcomes[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_behind_one_prefill_equal_those_alone(family, backend):
    """A branch would share slots, positions or noise with its siblings."""
    together, alone = [], []
    options = SAMPLED | {"backend": backend, "threshold": 0.1}
    ask(family, mode=Samples(together), batch_size=4, **options)
    engine = reverse.Engine(*world(family), max_sequences=1, backend=backend)
    config = reverse.ResamplingConfig(
        **{k: v for k, v in SETTINGS.items() if k != "max_new_tokens"} | {"threshold": 0.1}
    )
    request = reverse.Request(
        picture(1, (140, 84)),
        "What is there?",
        config=config,
        mode=Samples(alone),
        max_new_tokens=16,
        **SAMPLED,
    )
    engine.submit(request).result()
    assert together == alone and len(set(together)) > 1
    assert together[0] == ask(family, **options).ids  # the first sample is the answer of one alone


def test_samples_share_one_prefill_and_one_picture(monkeypatch):
    """n samples would cost n prefills, and the tower n runs."""
    added, encoded = watched(monkeypatch)
    model, processor = world("llava")
    engine = reverse.Engine(model, processor, max_sequences=4, backend="hf")
    config = reverse.ResamplingConfig(threshold=0.3)
    request = reverse.Request(picture(0), "?", config=config, mode=Select(n=4), max_new_tokens=8)
    engine.submit(request).result()
    assert len(added) == 1 and len(encoded) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tower_runs_once_a_picture_whatever_the_mode(family):
    """The dearest part of a prompt would be paid for every draft."""
    model, _ = world(family)
    calls = []
    hook = family_of(model).vision_tower(model).register_forward_hook(lambda *_: calls.append(1))
    try:
        for mode in (Resample(), Select(n=3), Turns(turns=3), Turns(turns=2, fresh=True)):
            calls.clear()
            ask(family, mode=mode, threshold=0.05)
            assert len(calls) == 1, mode
    finally:
        hook.remove()


@dataclass(frozen=True)
class Return:
    """Keeps its first answer while it asks something else, and then goes on from it."""

    name = "return"
    inner: str = "resample"

    def run(self, request):
        (first,) = yield [Generate(request.conversation)]
        (_,) = yield [Generate(request.conversation.with_instruction("Be brief."))]
        (second,) = yield [Generate(first.node.user("Are you sure?"), final=True)]
        return second


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_idle_caches_are_dropped_and_recomputed(family, backend, monkeypatch):
    """Kept answers would fill the memory, or be wrong once their cache is made anew."""
    added, encoded = watched(monkeypatch)
    requests = [{"images": picture(i), "prompt": "What is there?", "seed": i} for i in range(3)]
    settings = SETTINGS | SAMPLED | {"threshold": 0.1, "mode": Return(), "backend": backend}

    def answers(max_sequences):
        added.clear(), encoded.clear()
        many = reverse.generate_many(*world(family), requests, max_sequences=max_sequences, **settings)
        return [result.ids for result in many], len(added), len(encoded)

    roomy, tight = answers(8), answers(1)
    assert tight[0] == roomy[0] and tight[2] == roomy[2]
    if backend == "hf":
        assert (roomy[1], tight[1]) == (6, 9)


# ------------------------------------------------------------------ sentences
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sentence_ends_where_the_next_token_says_so(backend):
    """The token that was looked at would stay in the text, or be drawn with another's number."""
    found = []

    @dataclass(frozen=True)
    class Sentences:
        name = "sentences"
        policy = staticmethod(reverse.modes.Plain().policy)

        def run(self, request):
            (outcome,) = yield [Generate(request.conversation, until="sentence")]
            while outcome.result.finish_reason == "stop":
                found.append(outcome.result)
                node = outcome.node.continue_assistant()
                (outcome,) = yield [Generate(node, until="sentence", final=True)]
            found.append(outcome.result)
            return outcome

    model, processor = reverse.load("tiny-llava")
    from PIL import Image

    from reverse.data.scenes import make_scene, render_scene

    image = Image.fromarray(render_scene(make_scene("test", 3)))
    prompt, options = "Describe this image.", {"max_new_tokens": 200, "backend": backend}
    whole = reverse.generate(model, processor, image, prompt, mode="plain", **options)
    reverse.generate(model, processor, image, prompt, mode=Sentences(), **options)
    assert len(found) > 2
    assert sum((result.ids for result in found), ()) == whole.ids
    assert all(result.text.rstrip().endswith((".", "!", "?")) for result in found[:-1])


def test_a_stop_string_in_the_same_segment_wins():
    """An answer that was to end at a word would go on to the end of its sentence."""
    from PIL import Image

    from reverse.data.scenes import make_scene, render_scene

    @dataclass(frozen=True)
    class Sentence:
        name = "sentence"
        policy = staticmethod(reverse.modes.Plain().policy)

        def run(self, request):
            (outcome,) = yield [Generate(request.conversation, until="sentence", final=True)]
            return outcome

    model, processor = reverse.load("tiny-llava")
    image = Image.fromarray(render_scene(make_scene("test", 3)))
    free = reverse.generate(model, processor, image, mode=Sentence(), max_new_tokens=60)
    word = free.text.split()[1]
    cut = reverse.generate(model, processor, image, mode=Sentence(), max_new_tokens=60, stop_strings=word)
    assert cut.finish_reason == "stop" and cut.text.endswith(word) and free.text.startswith(cut.text)


def test_float32_turns_agree_with_float64():
    """A second turn would be right by chance of one precision only."""
    model, processor = world("qwen", torch.float32)
    settings = SETTINGS | {"mode": Turns()}
    kept = reverse.generate(model, processor, picture(2), "What is there?", **settings)
    fresh = reverse.generate(
        model, processor, picture(2), "What is there?", **settings | {"mode": replace(Turns(), fresh=True)}
    )
    assert kept.ids == fresh.ids
