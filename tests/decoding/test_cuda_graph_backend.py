"""Captured steps, called on the CPU, against forwards without a cache and against the `hf` backend."""

import math
import random
from collections import Counter

import pytest
import torch
from torch.overrides import TorchFunctionMode

from reverse.decoding.backends.cuda_graph import sequences, step_queue
from reverse.decoding.backends.cuda_graph.graph_backend import CudaGraphBackend
from reverse.decoding.backends.cuda_graph.runner import GraphRunner
from reverse.decoding.backends.protocol import OutOfMemory, Prompt
from reverse.models import family_of
from reverse.tokens import TokenIds, find_token_ids
from tests.decoding.hf_driver import FAMILIES, add, backend_of, decode, oracle_of, params, question, world
from tests.decoding.worlds import talkative

ROWS = [0, (1, 0), (2, 2), 1]  # with one picture, none, two, one
SETTINGS = [
    {},
    {"temperature": 0.9, "seed": 3},
    {"temperature": 1.2, "top_k": 5, "seed": 4, "score": "pair"},
    {"temperature": 0.8, "top_p": 0.6, "masks_tags": False, "path": (1, 2)},
    {"merges_closing_tags": True},
    {"temperature": 1.0, "seed": 5, "merges_closing_tags": True, "masks_tags": False},
]


def graph_of(family, max_sequences=16, model=None):
    known, processor = world(family)
    return CudaGraphBackend(
        model or known, max_sequences=max_sequences, tags=find_token_ids(processor.tokenizer)
    )


def asked(family, row):
    return question(family, *(row if isinstance(row, tuple) else (row,)))


@pytest.fixture
def plans(monkeypatch):
    """Every step that is launched."""
    made = []
    launch = GraphRunner.launch

    def counted(self, plan, config):
        made.append(plan)
        return launch(self, plan, config)

    monkeypatch.setattr(GraphRunner, "launch", counted)
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_settings_in_one_step_are_each_ones_own(family):
    """Temperature, top-k, the score or the tag mask of one sequence would act on its neighbours."""
    backend, oracle = graph_of(family), oracle_of(family)
    names = add(backend, family, *ROWS)
    for turn in range(len(SETTINGS)):
        settings = [SETTINGS[(i + turn) % len(SETTINGS)] for i in range(len(ROWS))]
        wanted = {name: params(family, **each) for name, each in zip(names, settings, strict=True)}
        ended = decode(backend, wanted)
        for name, row in zip(names, ROWS, strict=True):
            ids, pictures = asked(family, row)
            oracle.check(ended[name], ids, pictures, wanted[name])
            backend.set_tokens(name, ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_hint_equals_a_prompt_with_that_hint(family):
    """Ids put in or taken out near the end of a prompt would meet stale keys or positions."""
    backend, oracle = graph_of(family), oracle_of(family)
    names = add(backend, family, *ROWS)
    for hint in ([], [31, 32, 33], [31, 32, 44, 45, 46, 47], [50], [51, 52] * 40, []):
        wanted = {}
        for name, row in zip(names, ROWS, strict=True):
            ids, pictures = asked(family, row)
            wanted[name] = [*ids[:-4], *hint, *ids[-4:]], pictures
            backend.set_tokens(name, wanted[name][0])
        ended = decode(backend, {name: params(family, 6) for name in names})
        for name, (text, pictures) in wanted.items():
            oracle.check(ended[name], text, pictures, params(family, 6))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_into_pictures_is_refused_and_changes_nothing(family):
    """Placeholders would be fed as words, and the sequence would see no picture."""
    backend, oracle = graph_of(family), oracle_of(family)
    (name,) = add(backend, family, 0)
    ids, pictures = question(family, 0)
    image = family_of(world(family)[0]).image_token_id(world(family)[0].config)
    end = len(ids) - ids[::-1].index(image)
    for wrong in (ids[: end - 1], ids[:end], [7, *ids], [*ids[: end - 2], 9, *ids[end - 1 :]]):
        with pytest.raises(ValueError, match=f"before the end of its pictures at {end}: release"):
            backend.set_tokens(name, wrong)
    with pytest.raises(ValueError, match="was given no tokens"):
        backend.set_tokens(name, [])
    oracle.check(decode(backend, {name: params(family)})[name], ids, pictures, params(family))


class Walk:
    """Sequences that are started, rewound, extended, split and released at random.

    `texts` holds the tokens that every sequence has where its segment begins, `wanted` how it is decoded.
    """

    def __init__(self, family, backend, seed):
        self.family, self.backend, self.oracle = family, backend, oracle_of(family)
        self.rng = random.Random(seed)
        self.texts, self.wanted, self.fixed, self.last = {}, {}, {}, {}
        self.done = Counter()
        for name, row in zip(add(backend, family, *ROWS), ROWS, strict=True):
            self.texts[name] = asked(family, row)
            self.fixed[name] = len(self.texts[name][0])
            self.start(name)

    def start(self, name, follows=None):
        ids, _ = self.texts[name]
        settings = self.rng.choice(SETTINGS) | {"attempt": self.rng.randrange(3), "position": len(ids)}
        if "temperature" in settings:
            settings["temperature_after_accept"] = self.rng.choice([0.0, settings["temperature"]])
        if follows is not None:
            same_kind = (
                "top_k", "top_p", "score", "masks_tags", "merges_closing_tags", "seed", "path", "attempt",
            )  # fmt: skip
            settings |= {key: getattr(follows, key) for key in same_kind}
            settings["temperature"] = settings["temperature_after_accept"] = follows.temperature_after_accept
        chosen = params(self.family, self.rng.randint(1, 9), **settings)
        self.backend.start(name, chosen)
        self.wanted[name] = chosen
        self.done["start"] += 1

    def take(self, output):
        assert output.error is None
        if output.segment is None:
            return
        chosen, (ids, pictures) = self.wanted[output.sequence], self.texts[output.sequence]
        self.oracle.check(output.segment, ids, pictures, chosen)
        self.texts[output.sequence] = [*ids, *output.segment.ids], pictures
        del self.wanted[output.sequence]
        self.go_on(output.sequence, chosen if output.segment.end == "phrase" else None)

    def go_on(self, name, accepted):
        ids, pictures = self.texts[name]
        kind = self.rng.choice(["on", "on", "back", "insert", "split", "release", "wait"])
        if len(self.texts) < 3:
            kind = "split"
        elif len(self.texts) > 11:
            kind = "release"
        self.done[kind] += 1
        if kind == "release":
            self.backend.release(name)
            del self.texts[name]
            return
        if kind == "split":
            for branch in self.backend.split(name, self.rng.randint(1, 4)):
                self.texts[branch], self.fixed[branch] = self.texts[name], self.fixed[name]
                self.start(branch)
        elif kind == "back":
            ids = ids[: self.rng.randint(self.fixed[name], len(ids))]
        elif kind == "insert":
            at = self.rng.randint(self.fixed[name], len(ids))
            ids = [*ids[:at], *range(40, 40 + self.rng.randint(1, 30)), *ids[at:]]
        if kind == "wait":  # a step passes in which nobody takes it up
            self.waiting = name
            return
        ids = ids[:300]
        self.texts[name] = ids, pictures
        self.backend.set_tokens(name, ids)
        self.start(name, accepted if kind == "on" else None)

    def run(self, steps):
        for _ in range(steps):
            outputs = self.backend.step()
            assert outputs or not self.wanted
            for output in outputs:
                self.take(output)
            for name in [each for each in self.texts if each not in self.wanted]:
                if self.rng.random() < 0.5:
                    self.start(name)
            if self.rng.random() < 0.05 and self.wanted:  # cancel in the middle of a segment
                name = self.rng.choice(sorted(self.wanted))
                self.backend.release(name)
                del self.wanted[name], self.texts[name]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("least", [1, 10_000], ids=["shared", "alone"])
def test_whatever_happens_every_segment_is_what_a_fresh_sequence_says(family, least, monkeypatch, plans):
    """A rewind, a fed text, a branch or a step looked ahead would leave something behind."""
    monkeypatch.setattr(sequences, "_SHARED_AT_LEAST", least)
    walk = Walk(family, graph_of(family, 24), seed=5)
    walk.run(120)
    assert min(walk.done[kind] for kind in ("on", "back", "insert", "split", "release", "wait")) > 2
    assert any(plan.groups for plan in plans) == (least == 1)
    assert any(plan.feeds and plan.plain for plan in plans)


@pytest.mark.parametrize("family", FAMILIES)
def test_branches_of_several_requests_decode_in_one_step(family, monkeypatch, plans):
    """Each parent's branches would take a step of their own, or read another's prefix."""
    monkeypatch.setattr(sequences, "_SHARED_AT_LEAST", 8)
    backend, oracle = graph_of(family, 32), oracle_of(family)
    roots = add(backend, family, *ROWS)
    texts = dict(zip(roots, (asked(family, row) for row in ROWS), strict=True))
    for root, n in zip(roots, (3, 4, 2, 0), strict=True):
        texts |= dict.fromkeys(backend.split(root, n), texts[root])
    wanted = {
        name: params(family, 6, temperature=1.0, path=(i,), eos=frozenset()) for i, name in enumerate(texts)
    }
    ended = decode(backend, wanted)
    for name, (ids, pictures) in texts.items():
        oracle.check(ended[name], ids, pictures, wanted[name])
    sizes = {(len(plan.plain), tuple(map(len, plan.groups))) for plan in plans}
    assert (2, (4, 4, 3)) in sizes  # five of the second: one of them goes alone
    backend.release(roots[0])  # its row is taken by another, which its branches must not notice
    texts.pop(roots[0])
    (other,) = add(backend, family, (0, 0))
    texts[other] = asked(family, (0, 0))
    again = {name: params(family, 6, temperature=1.0, path=(9, i)) for i, name in enumerate(texts)}
    for name, (ids, _) in texts.items():
        backend.set_tokens(name, ids)
    ended = decode(backend, again)
    for name, (ids, pictures) in texts.items():
        oracle.check(ended[name], ids, pictures, again[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_it_says_what_the_backend_on_transformers_says(family):
    """The choice of the backend would change answers."""
    said = []
    for backend in (graph_of(family), backend_of(family)):
        names = add(backend, family, *ROWS)
        names += backend.split(names[0], 3)
        wanted = {name: params(family, 10, **SETTINGS[i % 4], position=i) for i, name in enumerate(names)}
        ended = [decode(backend, wanted)[name] for name in names]
        scores = backend.score(names, "likelihood")
        said.append(([each.ids for each in ended], [each.ps for each in ended], scores))
    assert said[0][0] == said[1][0]
    for ours, theirs in zip(said[0][1], said[1][1], strict=True):
        assert ours == pytest.approx(theirs, abs=2e-6)
    assert said[0][2] == pytest.approx(said[1][2], abs=1e-5)


def test_a_rewind_costs_one_step_of_one_row(plans):
    """The step ahead would be thrown away for accepted phrases too, as when the temperature falls back."""
    family = "llava"
    backend = graph_of(family)
    (name,) = add(backend, family, 0)
    ids, _ = question(family, 0)
    kept, forwards, rejected, phrases = list(ids), 0, 0, 0
    attempt, warm = 0, {}
    for turn in range(30):
        chosen = params(family, 12, position=len(kept) - len(ids), attempt=attempt, eos=frozenset(), **warm)
        backend.start(name, chosen)
        while (segment := backend.step()[0].segment) is None:
            pass
        forwards += segment.forwards
        phrases += segment.end == "phrase"
        if segment.end == "phrase" and turn % 3 == 2:
            rejected, attempt = rejected + 1, attempt + 1
            warm = {"temperature": 1.5}  # only until the phrase is accepted
        else:
            kept += segment.ids
            warm = {} if segment.end == "phrase" else warm
        backend.set_tokens(name, kept)
    assert rejected > 2 and phrases > rejected + 3
    assert backend.steps.discarded <= rejected + 1
    assert len(plans) <= forwards + rejected + 1


@pytest.mark.parametrize("lacking", [63, 64, 65, 66, 128, 129, 130, 193])
def test_a_long_text_is_fed_in_parts(lacking, monkeypatch):
    """A part that leaves one id over would let the row go on from the middle of its text."""
    monkeypatch.setattr(step_queue, "FEED_IDS", 64)
    backend, oracle = graph_of("llava"), oracle_of("llava")
    first, other, third = add(backend, "llava", 0, 1, (2, 0))
    backend.start(other, params("llava", 16, temperature=0.7, seed=1))  # goes on meanwhile
    ids, pictures = question("llava", 0)
    text = [*ids, *(20 + i % 50 for i in range(lacking - 1))]  # the last id of a prompt is always fed again
    backend.set_tokens(first, text)
    backend.set_tokens(third, [*question("llava", 2, 0)[0], *text[-40:]])  # waits for the first
    ended = decode(backend, {name: params("llava", 5) for name in (first, third)})
    oracle.check(ended[first], text, pictures, params("llava", 5))
    oracle.check(ended[third], [*question("llava", 2, 0)[0], *text[-40:]], (), params("llava", 5))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_grows_while_sequences_decode(family, plans):
    """What rows hold, or the steps under way, would be lost when the cache becomes larger."""
    backend, oracle = graph_of(family, 24), oracle_of(family)
    texts = {name: asked(family, row) for name, row in zip(add(backend, family, *ROWS), ROWS, strict=True)}
    wanted = {name: params(family, 14, temperature=0.8, path=(name,), eos=frozenset()) for name in texts}
    for name, each in wanted.items():
        backend.start(name, each)
    outputs = [each for _ in range(3) for each in backend.step()]
    assert backend.runner.rows == 8
    length = backend.runner.length
    late = add(backend, family, *ROWS, *ROWS, max_length=length)
    assert backend.runner.rows == 24 and backend.runner.length > length
    for name, row in zip(late, [*ROWS, *ROWS], strict=True):
        texts[name] = asked(family, row)
        wanted[name] = params(family, 5, path=(name,))
        backend.start(name, wanted[name])
    long = late[0]
    backend.set_tokens(long, [*texts[long][0], *[33, 34] * 150])
    texts[long] = [*texts[long][0], *[33, 34] * 150], texts[long][1]
    backend.start(long, wanted[long])
    while more := backend.step():
        outputs += more
    ended = {each.sequence: each.segment for each in outputs if each.segment}
    for name, (ids, pictures) in texts.items():
        oracle.check(ended[name], ids, pictures, wanted[name])


def test_release_is_possible_at_any_time():
    """A cancelled request would take its neighbours along, or a name mean two sequences."""
    backend, oracle = graph_of("llava"), oracle_of("llava")
    seen = set()
    for when in range(5):
        names = add(backend, "llava", 0, (1, 0), 2)
        assert not seen & set(names)
        seen.update(names)
        wanted = {name: params("llava", 6, eos=frozenset()) for name in names}
        for name in names:
            backend.start(name, wanted[name])
        outputs = [each for _ in range(when) for each in backend.step()]
        backend.release(names[1])
        backend.release(names[1])
        backend.release(10**9)
        while more := backend.step():
            assert names[1] not in {each.sequence for each in more}
            outputs += more
        ended = {each.sequence: each.segment for each in outputs if each.segment}
        for name, row in ((names[0], 0), (names[2], 2)):
            oracle.check(ended[name], *question("llava", row), wanted[name])
            backend.release(name)
    assert backend.step() == []


def test_an_error_of_one_sequence_leaves_the_others_alone():
    """A callback of one caller would end the answers of all."""
    backend, oracle = graph_of("llava"), oracle_of("llava")
    good, bad = add(backend, "llava", (1, 0), (1, 0))
    backend.start(good, params("llava", 8))
    backend.start(bad, params("llava", 8, eos=frozenset(), should_stop=lambda said: 1 // (2 - len(said)) < 0))
    outputs = []
    while more := backend.step():
        outputs += more
    assert [type(each.error) for each in outputs if each.error] in ([ZeroDivisionError], [])
    ended = {each.sequence: each.segment for each in outputs if each.segment}
    oracle.check(ended[good], question("llava", 1, 0)[0], (), params("llava", 8))


@pytest.mark.parametrize("where", [0, 7])
def test_logits_that_are_not_finite_are_an_error_of_that_sequence(where):
    """NaN in one sequence would spoil its neighbours, or the next sequence in its row."""
    model, _ = talkative("llava", seed=6)
    mark, ids = 45, question("llava", 0, 0)[0]
    with torch.no_grad():
        model.get_input_embeddings().weight[mark, where] = torch.nan
    backend = graph_of("llava", 2, model)
    for _ in range(2):
        good, bad = backend.add([Prompt(ids), Prompt(ids)])
        backend.set_tokens(bad, [*ids, mark])
        for name in (good, bad):
            backend.start(name, params("llava", 5, position=2, eos=frozenset()))
        outputs = []
        while more := backend.step():
            outputs += more
        (failed,) = [each for each in outputs if each.error is not None]
        assert failed.sequence == bad and "not finite at answer position 2: check" in str(failed.error)
        (ended,) = [each.segment for each in outputs if each.segment is not None]
        assert all(math.isfinite(p) for p in ended.ps)
        backend.release(bad)
        (third,) = backend.add([Prompt(ids)])  # in the row of the one that failed
        assert decode(backend, {third: params("llava", 5, eos=frozenset())})[third].ids == ended.ids
        backend.release(good)
        backend.release(third)


def test_likelihood_is_that_of_the_decoded_tokens():
    """Samples would be ranked by another number than the model's own, or by tokens that were put in."""
    backend, oracle = graph_of("qwen"), oracle_of("qwen")
    (name,) = add(backend, "qwen", 0)
    assert math.isnan(*backend.score([name], "likelihood"))
    ids, pictures = question("qwen", 0)
    warm, expected = params("qwen", 6, temperature=0.9, eos=frozenset()), []
    for turn in range(3):
        said = decode(backend, {name: warm})[name].ids
        expected += [each[2] for each in oracle.follow(ids, pictures, warm, said)]
        ids = [*ids, *said]
        (branch,) = backend.split(name, 1)
        for each in (name, branch):
            assert backend.score([each], "likelihood") == pytest.approx(
                [sum(expected) / len(expected)], abs=1e-5
            )
        if turn == 1:
            ids, expected = [*ids[:-2], 40, 41, 42], expected[:-2]
            backend.set_tokens(name, ids)
    with pytest.raises(ValueError, match="'likelihood' on this backend, got 'value'"):
        backend.score([name], "value")


def test_what_a_step_cannot_do_is_refused():
    """Other tags or a processor would be ignored in silence, or a row be taken twice."""
    backend = graph_of("llava", 2)
    (name,) = add(backend, "llava", (0, 0))
    with pytest.raises(ValueError, match="1 sequences are held and 2 more were asked for, of at most 2"):
        backend.split(name, 2)
    with pytest.raises(ValueError, match=r"prompt 0 has 49 picture placeholders, .* have 0 features"):
        backend.add([Prompt(question("llava", 0)[0])])
    with pytest.raises(ValueError, match=r"cannot call params\.process: use backend='hf'"):
        backend.start(name, params("llava", process=lambda ids, scores: scores))
    with pytest.raises(ValueError, match="are not those of this backend"):
        backend.start(name, params("llava", tags=TokenIds(7, 8, 9)))
    assert backend.add([]) == []
    backend.reserve(3)
    assert len(backend.split(name, 2)) == 2 and backend.capabilities.max_sequences == 3


# ------------------------------------------------------------------ memory and interrupts
def memory():
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


class FailAt(TorchFunctionMode):
    """Raises an error at the n-th call of torch, counted from 0."""

    def __init__(self, n, error):
        super().__init__()
        self.left, self.error = n, error

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ == "_set_grad_enabled":  # else gradients stay off for all tests that follow
            return func(*args, **(kwargs or {}))
        self.left -= 1
        if self.left < 0:
            raise self.error
        return func(*args, **(kwargs or {}))


def scene(family):
    """A backend in the middle of its work, with steps under way, and a verb for each of its names."""
    backend = graph_of(family, 24)
    names = add(backend, family, (0, 0), (1, 0))
    decode(backend, {name: params(family, 3, eos=frozenset()) for name in names})
    backend.set_tokens(names[0], question(family, 0, 0)[0])
    names += backend.split(names[1], 2)
    for i, name in enumerate(names):
        backend.start(name, params(family, 8, eos=frozenset(), temperature=0.5 * i, seed=i))
    backend.step()
    long = [*question(family, 2, 0)[0], *[30, 31] * 100]
    verbs = {
        "add": lambda: backend.add([Prompt(long), Prompt(long[:90])]),
        "split": lambda: backend.split(names[1], 8),
        "start": lambda: backend.start(names[2], params(family, 300)),
        "step": backend.step,
    }
    return backend, verbs


def finish(backend):
    said = {}
    while outputs := backend.step():
        for output in outputs:
            said.setdefault(output.sequence, []).append((output.token, round(output.p, 9)))
    return said


@pytest.mark.parametrize("verb", ["add", "split", "start"])
def test_a_verb_that_runs_out_of_memory_changes_nothing(verb):
    """Half a sequence would be held, or those that decode go on from a cache that is not theirs."""
    expected, failed = finish(scene("llava")[0]), 0
    for n in [*range(40), *range(40, 4000, 97)]:
        backend, verbs = scene("llava")
        held = dict(backend._rows)
        try:
            with FailAt(n, memory()):
                verbs[verb]()
        except OutOfMemory as error:
            failed += 1
            if error.lost_everything:  # writing a few numbers failed: nothing is promised
                assert not backend._rows
                continue
            assert backend._rows == held
            assert finish(backend) == expected
        else:
            break
    assert failed > 5


@pytest.mark.parametrize("error", [memory, KeyboardInterrupt])
def test_after_a_step_that_failed_reset_makes_everything_new(error):
    """Half a step would stay in the cache for the requests to come."""
    oracle, failed = oracle_of("qwen"), 0
    for n in [0, 1, 2, 5, 10, 20, 40, 80]:
        backend, verbs = scene("qwen")
        seen = set(backend._rows)
        try:
            with FailAt(n, error()):
                verbs["step"]()
                verbs["step"]()
        except OutOfMemory as raised:
            assert raised.lost_everything and error is memory
            failed += 1
        except KeyboardInterrupt:
            failed += 1
        backend.reset()
        assert backend.step() == [] and backend.runner is None
        (name,) = add(backend, "qwen", 2)
        assert name not in seen
        oracle.check(decode(backend, {name: params("qwen")})[name], *question("qwen", 2), params("qwen"))
    assert failed > 5


def test_fewer_sequences_are_allowed_once_memory_ran_out(monkeypatch):
    """The engine would ask for the same again and again."""
    backend, make = graph_of("llava", 16), GraphRunner._new_pool

    def small(self, rows, length):
        if rows > 4:
            raise memory()
        return make(self, rows, length)

    monkeypatch.setattr(GraphRunner, "_new_pool", small)
    with pytest.raises(OutOfMemory):
        add(backend, "llava", *[(i, 0) for i in range(10)])
    assert backend.capabilities.max_sequences == 5
    with pytest.raises(OutOfMemory):
        add(backend, "llava", *[(i, 0) for i in range(5)])
    assert backend.capabilities.max_sequences == 2
    names = add(backend, "llava", (0, 0), (1, 0))  # fewer rows than are usual at first
    assert len(decode(backend, {name: params("llava") for name in names})) == 2
