"""Random walks over the verbs of the transformers backend, against forwards without a cache."""

import random

import pytest

from reverse.decoding.backends.protocol import OutOfMemory, Prompt, RunningSegment
from tests.decoding.hf_driver import FAMILIES, FailAt, backend_of, oracle_of, params, question

ROWS = [(0, 0), (1, 0), (0, 1), (1, 2)]  # of `question`
WALKS, VERBS = 110, 14  # of each family


class Model:
    """What a sequence must be: its ids, its pictures, and the segment that it decodes."""

    def __init__(self, ids, pictures, first):
        self.ids, self.pictures, self.first = (
            list(ids),
            pictures,
            first,
        )  # ids before `first` stay as they are
        self.running = None

    def copy(self):
        return Model(self.ids, self.pictures, self.first)


class Walk:
    """One backend, the model of each of its sequences, and verbs that are chosen at random."""

    def __init__(self, family, seed):
        self.family, self.rng = family, random.Random(seed)
        self.backend, self.models, self.said = backend_of(family, 8), {}, []
        self.oracle = oracle_of(family)
        self.image_token = self.oracle.image_token

    def call(self, verb, *args):
        """Call a verb; where memory runs out in the middle of it, call it again."""
        if self.rng.random() < 0.15:
            try:
                with FailAt(self.rng.randrange(250)):
                    return verb(*args)
            except OutOfMemory:
                pass
        return verb(*args)

    def add(self):
        rows = [self.rng.choice(ROWS) for _ in range(self.rng.randint(1, 2))]
        if len(self.models) + len(rows) > 8:
            return
        asked = [question(self.family, *row) for row in rows]
        encoded = iter(self.call(self.backend.encode, [each for _, pictures in asked for each in pictures]))
        prompts = [Prompt(ids, [next(encoded) for _ in pictures]) for ids, pictures in asked]
        for name, (ids, pictures) in zip(self.call(self.backend.add, prompts), asked, strict=True):
            assert name not in self.models
            first = max((i + 1 for i, token in enumerate(ids) if token == self.image_token), default=0)
            self.models[name] = Model(ids, pictures, first)

    def split(self, name):
        n = self.rng.randint(1, 2)
        if len(self.models) + n <= 8:
            for branch in self.call(self.backend.split, name, n):
                self.models[branch] = self.models[name].copy()

    def set_tokens(self, name):
        """Take a sequence back, further, or back and on, with other ids than before."""
        model = self.models[name]
        keep = self.rng.randint(model.first, len(model.ids))
        fresh = [self.rng.randint(30, 60) for _ in range(self.rng.choice([0, 0, 1, 5]))]
        if keep + len(fresh) > model.first:
            model.ids, model.running = model.ids[:keep] + fresh, None
            self.call(self.backend.set_tokens, name, model.ids)

    def start(self, name):
        setting = params(
            self.family,
            self.rng.randint(1, 8),
            temperature=self.rng.choice([0.0, 0.7, 1.3]),
            top_k=self.rng.choice([0, 0, 4]),
            top_p=self.rng.choice([1.0, 1.0, 0.7]),
            score=self.rng.choice(["softmax", "pair"]),
            masks_tags=self.rng.random() < 0.8,
            seed=self.rng.randrange(100),
            path=self.rng.choice([(), (1,), (0, 3)]),
        )
        self.models[name].running = RunningSegment(setting)
        self.call(self.backend.start, name, setting)

    def step(self):
        running = {name for name, model in self.models.items() if model.running is not None}
        outputs = self.call(self.backend.step)
        assert len({each.sequence for each in outputs}) == len(outputs) and bool(outputs) == bool(running)
        for output in outputs:
            model = self.models[output.sequence]
            segment = model.running.append(output.token, output.p)
            model.ids.append(output.token)
            assert output.error is None and output.segment == segment
            if segment is not None:
                self.check(model, segment)
                model.running = None

    def check(self, model, segment):
        before = model.ids[: len(model.ids) - len(segment.ids)]
        self.oracle.check(segment, before, model.pictures, model.running.params)

    def release(self, name):
        del self.models[name]
        self.backend.release(name)

    def go(self):
        for _ in range(VERBS):
            verb = self.rng.choices(
                [self.add, self.split, self.set_tokens, self.start, self.step, self.release],
                [3, 2, 3, 4, 8, 1],
            )[0]
            if verb in (self.add, self.step):
                verb()
            elif self.models:
                verb(self.rng.choice(list(self.models)))
        while any(model.running for model in self.models.values()):
            self.step()
        return len(self.models)


@pytest.mark.parametrize("family", FAMILIES)
def test_sequences_say_what_fresh_ones_say_whatever_was_done_before(family):
    """Some order of verbs would leave a sequence with keys, positions or logits of another text."""
    assert sum(Walk(family, seed).go() for seed in range(WALKS)) > WALKS
