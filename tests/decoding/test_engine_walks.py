"""Random walks through the engine on both backends, against forward passes without a cache."""

import functools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import reverse
from reverse.decoding import engine as engine_module
from reverse.decoding.asks import Generate, Release, Sampling
from reverse.decoding.backends.protocol import EncodedPicture
from reverse.decoding.policies.policy import Answer, Continue, Finish, Rewind
from tests.decoding.hf_driver import Oracle, features_of
from tests.decoding.oracle import NaiveBackend
from tests.decoding.worlds import picture, talkative

FAMILIES = ["llava", "qwen"]
SIZES = [(56, 56), (56, 84)]
MOST_REWINDS = 4  # of one answer


@functools.cache
def world(family):
    """A random model that also ends sentences."""
    model, processor = talkative(family)
    with torch.no_grad():
        model.get_output_embeddings().weight[processor.tokenizer.get_vocab()["."]] *= 3.0
    return model, processor


# ------------------------------------------------------------------ what is drawn
@dataclass(frozen=True)
class Step:
    """One `Generate` of a walk, and the decisions of its policies."""

    source: str  # "start", "user" or "continue"
    pick: int  # which earlier node the step goes on from
    n: int
    until: str
    temperature: float
    releases: bool  # drops the cache of the picked node first
    decisions: tuple[
        tuple[float, int, float], ...
    ]  # (where to rewind to; 1.0 accepts, candidates, temperature)


STEPS = st.builds(
    Step,
    source=st.sampled_from(["start", "user", "continue"]),
    pick=st.integers(0, 5),
    n=st.integers(1, 2),
    until=st.sampled_from(["end", "sentence"]),
    temperature=st.sampled_from([0.0, 0.9]),
    releases=st.booleans(),
    decisions=st.lists(
        st.tuples(st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.0]), st.integers(1, 3), st.sampled_from([0.4, 1.1])),
        min_size=1,
        max_size=4,
    ).map(tuple),
)
WALKS = st.lists(st.lists(STEPS, min_size=2, max_size=3), min_size=1, max_size=2)


class DrawnPolicy:
    """Accepts segments, or rewinds to any position outside a phrase, as its decisions say."""

    masks_tags = True

    def __init__(self, decisions, config, tags, max_new_tokens, temperature):
        self.decisions, self.tags, self.room = decisions, tags, max_new_tokens
        self.temperature, self.answer, self.segments, self.attempts = temperature, Answer(), 0, 0
        self.hints = ()

    def begin(self):
        return Continue(self.temperature, self.attempts, self.temperature, hints=self.hints)

    def next(self, segment):
        where, candidates, temperature = self.decisions[self.segments % len(self.decisions)]
        self.segments += 1
        if where < 1.0 and self.attempts < MOST_REWINDS:
            return self.rewind(segment, where, candidates, temperature)
        if segment.end == "phrase" and segment.ids.count(self.tags.span) == 1:
            self.answer.append_phrase(segment.ids, self.tags.span, segment.p, accepted=True)
        else:
            self.answer.append(segment.ids)
        if segment.end != "phrase":
            return Finish(segment.end)
        return self.begin() if len(self.answer.ids) < self.room else Finish("length")

    def rewind(self, segment, where, candidates, temperature):
        positions, is_open = [0], False
        for i, token in enumerate(self.answer.ids, 1):
            is_open = token == self.tags.span or (is_open and token not in self.tags.closing)
            if not is_open:
                positions.append(i)
        to = positions[int(where * len(positions))]
        self.attempts += 1
        self.hints = (*self.hints, segment.ids[:3])
        self.answer.cut(to)
        temperatures = tuple(temperature + 0.1 * i for i in range(candidates))
        return Rewind(to, temperatures, self.attempts, self.hints, self.temperature)


class DrawnMode:
    """Answers, samples, asks further turns and goes on inside answers, as its steps say."""

    name = "drawn"

    def __init__(self, steps):
        self.steps, self.outcomes = steps, []

    def run(self, request):
        nodes = []
        for step in self.steps:
            source = picked = nodes[step.pick % len(nodes)] if nodes else None
            if source is None or step.source == "start":
                source = request.conversation
            elif step.source == "user":
                source = source.user("Are you sure?")
            else:
                source = source.continue_assistant()
            if picked is not None and step.releases:
                yield [Release(picked)]
            policy = functools.partial(DrawnPolicy, step.decisions)
            sampling = Sampling(temperature=step.temperature)
            outcomes = yield [Generate(source, step.n, step.until, sampling, policy=policy)]
            nodes += [outcome.node for outcome in outcomes]
            self.outcomes += outcomes
        return self.outcomes[-1]


# ------------------------------------------------------------------ the oracle as a backend
class OracleBackend(NaiveBackend):
    """Runs the model on all tokens and pictures of a sequence for every token."""

    def __init__(self, family, max_sequences):
        super().__init__(world(family)[0], {}, max_sequences)
        self.family, self.oracle = family, Oracle(family)
        self.oracle.model = self.model
        self.pictures = {}  # encoded picture -> picture
        self.of_sequence = {}

    def encode(self, pictures):
        found = [EncodedPicture(features_of(self.family, each)) for each in pictures]
        self.pictures |= zip(found, pictures, strict=True)
        return found

    def add(self, prompts):
        names = super().add(prompts)
        for name, prompt in zip(names, prompts, strict=True):
            self.of_sequence[name] = [self.pictures[each] for each in prompt.pictures]
        return names

    def split(self, sequence, n):
        names = super().split(sequence, n)
        self.of_sequence |= dict.fromkeys(names, self.of_sequence[sequence])
        return names

    def _logits(self, sequence):
        return self.oracle.logits(self.texts[sequence], self.of_sequence[sequence], 1)[0].float()


def answers_of(family, backend, walks):
    """(ids, p of the phrases, finish reason) of all outcomes of concurrent requests."""
    model, processor = world(family)
    with pytest.MonkeyPatch.context() as patch:
        if backend == "oracle":
            patch.setattr(
                engine_module,
                "choose_backend",
                lambda model, name, *, max_sequences, **_: OracleBackend(family, max_sequences),
            )
        engine = reverse.Engine(
            model, processor, max_sequences=4, backend="hf" if backend == "oracle" else backend
        )
        modes = [DrawnMode(steps) for steps in walks]
        config = reverse.ResamplingConfig(threshold=0.3)
        handles = [
            engine.submit(
                reverse.Request(
                    picture(i, SIZES[i % 2]),
                    "What is there?",
                    config=config,
                    mode=mode,
                    max_new_tokens=8,
                    seed=i,
                )
            )
            for i, mode in enumerate(modes)
        ]
        for handle in handles:
            handle.result(timeout=60)
    return [outcome.result for mode in modes for outcome in mode.outcomes]


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(walks=WALKS)
def test_walks_say_what_a_model_without_a_cache_says(family, walks):
    """Some order of rewinds, splits, turns and sentence ends would leave stale keys or wrong positions."""
    expected = answers_of(family, "oracle", walks)
    for backend in ("hf", "cuda_graph"):
        found = answers_of(family, backend, walks)
        assert [result.ids for result in found] == [result.ids for result in expected]
        assert [result.finish_reason for result in found] == [result.finish_reason for result in expected]
        for one, other in zip(found, expected, strict=True):
            p = [phrase.p_un for phrase in other.phrases]
            assert [phrase.p_un for phrase in one.phrases] == pytest.approx(p, abs=2e-6)
