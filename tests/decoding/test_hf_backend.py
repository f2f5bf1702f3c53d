"""The transformers backend against forwards without a cache: whatever happened to a sequence before."""

import dataclasses
import math

import pytest
import torch

from reverse.decoding.backends.hf import shared_cache
from reverse.decoding.backends.hf.hf_backend import HfBackend
from reverse.decoding.backends.protocol import Prompt
from reverse.models import family_of
from reverse.tokens import TokenIds
from tests.decoding.hf_driver import (
    FAMILIES,
    add,
    backend_of,
    decode,
    oracle_of,
    params,
    question,
    world,
)
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


def asked(family, row):
    return question(family, *(row if isinstance(row, tuple) else (row,)))


@pytest.mark.parametrize("family", FAMILIES)
def test_added_prompts_equal_forwards_without_a_cache(family):
    """Padding, positions or pictures of a batch would reach the wrong sequence."""
    backend, oracle = backend_of(family), oracle_of(family)
    names = add(backend, family, *ROWS)
    ended = decode(backend, {name: params(family) for name in names})
    for name, row in zip(names, ROWS, strict=True):
        oracle.check(ended[name], *asked(family, row), params(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_decoding_equals_generate(family):
    """Encoding and prefilling on our own would differ from what `model.generate()` does."""
    model, _ = world(family)
    backend = backend_of(family)
    names = add(backend, family, 0, 1, 2)
    plain = params(family, 20, masks_tags=False, tags=TokenIds(-2, -2, -2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "reverse.decoding.backends.hf.token_choice.Verifier.p", lambda self, logits: logits[:, 0] * 0
        )
        ended = decode(backend, dict.fromkeys(names, plain))
    for row, name in enumerate(names):
        ids, (one,) = question(family, row)
        inputs = {"input_ids": torch.tensor([ids]), **one.tensors}
        if family == "qwen":
            image = family_of(model).image_token_id(model.config)
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == image).int()
        theirs = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, len(ids) :].tolist()
        assert list(ended[name].ids) == theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_rewound_equals_never_generated(family):
    """A rewind would leave something of the rejected text behind."""
    backend, oracle = backend_of(family), oracle_of(family)
    names = add(backend, family, *ROWS)
    for attempt, length in enumerate((12, 5, 9)):
        setting = params(family, length, temperature=0.9, attempt=attempt)
        ended = decode(backend, dict.fromkeys(names, setting))
        for name, row in zip(names, ROWS, strict=True):
            ids, pictures = asked(family, row)
            oracle.check(ended[name], ids, pictures, setting)
            backend.set_tokens(name, ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_hint_equals_a_prompt_with_that_hint(family):
    """Ids put in or taken out near the end of a prompt would meet stale keys or positions."""
    backend, oracle = backend_of(family), oracle_of(family)
    names = add(backend, family, *ROWS)
    for hint in ([], [31, 32, 33], [31, 32, 44, 45, 46, 47], [50], []):
        for name, row in zip(names, ROWS, strict=True):
            ids, pictures = asked(family, row)
            text = [*ids[:-4], *hint, *ids[-4:]]
            backend.set_tokens(name, text)
            ended = decode(backend, {name: params(family, 6)})
            oracle.check(ended[name], text, pictures, params(family, 6))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_into_pictures_is_refused_and_changes_nothing(family):
    """Placeholders would be fed as words, and the sequence would see no picture."""
    backend, oracle = backend_of(family), oracle_of(family)
    (name,) = add(backend, family, 0)
    ids, pictures = question(family, 0)
    image = family_of(world(family)[0]).image_token_id(world(family)[0].config)
    end = len(ids) - ids[::-1].index(image)
    for wrong in (ids[: end - 1], ids[:end], [7, *ids], [*ids[: end - 2], 9, *ids[end - 1 :]]):
        with pytest.raises(
            ValueError, match=f"before the end of its pictures at {end}: release the sequence"
        ):
            backend.set_tokens(name, wrong)
    with pytest.raises(ValueError, match="was given no tokens"):
        backend.set_tokens(name, [])
    for text in (ids, ids[: end + 1]):
        backend.set_tokens(name, text)
        oracle.check(decode(backend, {name: params(family)})[name], text, pictures, params(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_branches_equal_fresh_sequences(family):
    """Branches would share slots, positions, noise or logits with what they were split from."""
    backend, oracle = backend_of(family, 32), oracle_of(family)
    roots = add(backend, family, *ROWS)
    tokens = {name: asked(family, row) for name, row in zip(roots, ROWS, strict=True)}

    def split(name, n):
        made = backend.split(name, n)
        tokens.update(dict.fromkeys(made, tokens[name]))
        return made

    def go_on(wanted):
        for name, segment in decode(backend, wanted).items():
            ids, pictures = tokens[name]
            oracle.check(segment, ids, pictures, wanted[name])
            tokens[name] = [*ids, *segment.ids], pictures

    def setting(i, length=5):
        return params(family, length, temperature=0.9, path=(i,), eos=frozenset())

    first = split(roots[0], 2)  # before anything was decoded: the logits of the prompt are kept
    go_on({name: setting(i) for i, name in enumerate([*first, *roots])})
    second = split(first[0], 2) + split(roots[2], 1)
    third = split(second[0], 1)  # of one that was never fed on its own
    backend.release(first[0])  # while its branches have no slots of their own yet
    backend.set_tokens(roots[2], tokens[roots[2]][0][:-2])
    tokens[roots[2]] = tokens[roots[2]][0][:-2], tokens[roots[2]][1]
    live = [*roots, first[1], *second, *third]
    go_on({name: setting(i) for i, name in enumerate(live)})
    backend.start(roots[1], setting(50, 9))
    backend.step()
    (late,) = backend.split(roots[1], 1)  # in the middle of a segment
    for name in live:
        backend.release(name)
    assert set(decode(backend, {late: setting(51)})) == {late}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_turn_equals_a_conversation_prefilled_from_its_start(family):
    """Rotary positions after a picture would forget its size, or the last id of an answer be lost."""
    backend, oracle = backend_of(family), oracle_of(family)
    names = add(backend, family, *ROWS)
    ended = decode(backend, {name: params(family, 8) for name in names})
    turns = {}
    for name, row in zip(names, ROWS, strict=True):
        ids, pictures = asked(family, row)
        turns[name] = [*ids, *ended[name].ids, *range(40, 52)], pictures
        backend.set_tokens(name, turns[name][0])
    again = decode(backend, {name: params(family, 8) for name in names})
    for name, (ids, pictures) in turns.items():
        oracle.check(again[name], ids, pictures, params(family, 8))


@pytest.mark.parametrize("settings", [SETTINGS[:4], SETTINGS[2:]])
@pytest.mark.parametrize("family", FAMILIES)
def test_settings_in_one_batch_are_each_ones_own(family, settings):
    """Temperature, top-k, the score or the tag mask of one sequence would act on its neighbours."""
    backend, oracle = backend_of(family), oracle_of(family)
    names = add(backend, family, *ROWS)
    wanted = {name: params(family, **each) for name, each in zip(names, settings, strict=True)}
    ended = decode(backend, wanted)
    for name, row in zip(names, ROWS, strict=True):
        oracle.check(ended[name], *asked(family, row), wanted[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_is_encoded_once(family):
    """The tower would run for every sequence, or pictures of a batch be mixed up."""
    model, _ = world(family)
    backend, runs = backend_of(family), []
    hook = family_of(model).vision_tower(model).register_forward_hook(lambda *_: runs.append(1))
    try:
        pictures = [each for row in range(4) for each in question(family, row, 1 + row % 2)[1]]
        encoded = backend.encode(pictures)
        assert len(runs) == 1 and backend.encode([]) == []
        for one, together in zip(pictures, encoded, strict=True):
            (alone,) = backend.encode([one])
            assert (
                torch.allclose(alone.features, together.features, atol=1e-12) and alone.grid == together.grid
            )
        runs.clear()
        ids, _ = question(family, 0)
        shared = encoded[:1]
        host = [dataclasses.replace(encoded[0], features=encoded[0].features.cpu())]
        names = backend.add([Prompt(ids, shared), Prompt(ids, host)]) + backend.add([Prompt(ids, shared)])
        ended = decode(backend, {name: params(family) for name in names})
        assert len({segment.ids for segment in ended.values()}) == 1 and not runs
    finally:
        hook.remove()


def test_release_is_possible_at_any_time():
    """A cancelled request would take its neighbours along, or a name mean two sequences."""
    backend, oracle = backend_of("llava"), oracle_of("llava")
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


def test_reset_works_after_an_error_in_the_middle_of_a_forward():
    """An interrupt would leave half a step in the cache for the requests to come."""
    model, _ = talkative("llava")
    backend, oracle = HfBackend(model, max_sequences=8), oracle_of("llava")

    def fail(*_):
        raise KeyboardInterrupt

    names = add(backend, "llava", 0, 1)
    for name in names:
        backend.start(name, params("llava", 6))
    backend.step()
    hook = model.model.language_model.layers[1].register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        backend.step()
    hook.remove()
    backend.reset()
    assert backend.step() == []
    (name,) = add(backend, "llava", 2)
    assert name not in names
    oracle.check(decode(backend, {name: params("llava")})[name], *question("llava", 2), params("llava"))


def test_processors_see_the_segment_and_are_honoured():
    """Options of `model.generate()` that are processors would be dropped, or see another text."""
    backend, shown = backend_of("llava"), []
    ids, _ = question("llava", 0, 0)

    def cycle(said, scores):
        shown.append(list(said))
        masked = torch.full_like(scores, -torch.inf)
        masked[:, 40 + len(said) % 3] = 0.0
        return masked

    one, other = backend.add([Prompt(ids), Prompt(ids)])
    ended = decode(backend, {one: params("llava", 4, process=cycle), other: params("llava", 4)})
    assert ended[one].ids == (40, 41, 42, 40) and shown == [[], [40], [40, 41], [40, 41, 42]]
    oracle_of("llava").check(ended[other], ids, (), params("llava", 4))


def broken(said, scores):
    raise RuntimeError("no such language")


def infinite(said, scores):
    return scores + torch.inf


@pytest.mark.parametrize(
    ("process", "message"), [(broken, "no such language"), (infinite, "processors made scores")]
)
def test_an_error_of_one_sequence_leaves_the_others_alone(process, message):
    """A callback of one caller would end the answers of all."""
    backend, oracle = backend_of("llava"), oracle_of("llava")
    ids, _ = question("llava", 1, 0)
    bad, good, worse = backend.add([Prompt(ids)] * 3)
    stops = params("llava", 8, should_stop=lambda said: 1 // (2 - len(said)) < 0)
    for name, each in (
        (bad, params("llava", 8, process=process)),
        (good, params("llava", 8)),
        (worse, stops),
    ):
        backend.start(name, each)
    outputs = []
    while more := backend.step():
        outputs += more
    errors = {each.sequence: each.error for each in outputs if each.error is not None}
    assert set(errors) <= {bad, worse} and message in str(errors[bad])
    ended = {each.sequence: each.segment for each in outputs if each.segment is not None}
    assert bad not in ended
    oracle.check(ended[good], ids, (), params("llava", 8))
    for name in (bad, worse):
        backend.release(name)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("score", ["softmax", "pair"])
def test_logits_that_are_not_finite_are_an_error_of_that_sequence(value, score):
    """NaN in one sequence would spoil its neighbours, or pass for a sure phrase."""
    model, _ = talkative("llava")
    seen, oracle = [], oracle_of("llava")
    mark = 45
    model.register_forward_pre_hook(lambda m, a, k: seen.append(k["input_ids"]), with_kwargs=True)

    def spoil(module, args, output):
        output.logits[(seen.pop() == mark).any(dim=1), -1, 7] = value

    model.register_forward_hook(spoil)
    backend = HfBackend(model, max_sequences=4)
    ids, _ = question("llava", 0, 0)
    good, bad = backend.add([Prompt(ids), Prompt([*ids, mark])])
    for name in (good, bad):
        backend.start(name, params("llava", 5, score=score, position=2))
    outputs = []
    while more := backend.step():
        outputs += more
    (failed,) = [each for each in outputs if each.error is not None]
    assert failed.sequence == bad and "not finite at answer position 2: check" in str(failed.error)
    (ended,) = [each.segment for each in outputs if each.segment is not None]
    oracle.check(ended, ids, (), params("llava", 5, score=score))


@pytest.mark.parametrize("family", FAMILIES)
def test_likelihood_is_that_of_the_decoded_tokens(family):
    """Samples would be ranked by another number than the model's own, or by tokens that were put in."""
    backend, oracle = backend_of(family), oracle_of(family)
    (name,) = add(backend, family, 0)
    assert math.isnan(*backend.score([name], "likelihood"))
    ids, pictures = question(family, 0)
    warm = params(family, 6, temperature=0.9, eos=frozenset())
    expected = []
    for turn in range(3):
        said = decode(backend, {name: warm})[name].ids
        expected += [x for _, _, x in oracle.follow(ids, pictures, warm, said)]
        ids = [*ids, *said]
        (branch,) = backend.split(name, 1)
        for each in (name, branch):
            assert backend.score([each], "likelihood") == pytest.approx(
                [sum(expected) / len(expected)], abs=1e-5
            )
        if turn == 1:
            ids = [*ids[:-2], 40, 41, 42]
            expected = expected[:-2]
            backend.set_tokens(name, ids)
    with pytest.raises(ValueError, match="needs a value head"):
        backend.score([name], "value")


def test_moving_tokens_changes_nothing(monkeypatch):
    """Moving live slots together would change keys, masks or the order of rows."""
    answers, moves = [], []
    for waste, least in ((10.0, 10_000), (0.0, 0)):  # as seldom as can be, and before every step
        monkeypatch.setattr(shared_cache, "_WASTE", waste)
        monkeypatch.setattr(shared_cache, "_WASTE_SLOTS", least)
        backend = backend_of("qwen")
        names = add(backend, "qwen", *ROWS)
        said = []
        for attempt in range(4):
            setting = params("qwen", 6, temperature=0.9, attempt=attempt)
            for name, segment in decode(backend, dict.fromkeys(names, setting)).items():
                said.append(segment.ids)
                if (name + attempt) % 2:
                    backend.set_tokens(name, asked("qwen", ROWS[names.index(name)])[0])
        answers.append(said)
        moves.append(backend._cache.moves)
    assert answers[0] == answers[1] and moves[1] > moves[0] + 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_other_dtypes_decode(family, dtype):
    """Features, masks or noise would be of a type that the model's layers refuse."""
    model, _ = talkative(family, dtype)
    backend = HfBackend(model, max_sequences=4)
    names = add(backend, family, 0, (1, 0))
    ended = decode(backend, {name: params(family, 5, temperature=0.9) for name in names})
    assert all(math.isfinite(p) for segment in ended.values() for p in segment.ps)


def test_more_sequences_than_there_is_room_for_are_refused():
    """A wrong count would show as memory that runs out much later."""
    backend = backend_of("llava", 2)
    assert backend.capabilities.max_sequences == 2 and backend.capabilities.logits_processors
    (name,) = add(backend, "llava", (0, 0))
    for more in (lambda: backend.split(name, 2), lambda: add(backend, "llava", (0, 0), (1, 0))):
        with pytest.raises(ValueError, match="1 sequences are held and 2 more were asked for, of at most 2"):
            more()
    with pytest.raises(ValueError, match=r"prompt 0 has 49 picture placeholders, .* have 0 features"):
        backend.add([Prompt(question("llava", 0)[0])])
    assert backend.add([]) == []
    backend.reserve(3)
    assert backend.capabilities.max_sequences == 3 and len(backend.split(name, 2)) == 2
    backend.reserve(1)
    assert backend.capabilities.max_sequences == 3
