"""Memory runs out at every operation of a verb of the transformers backend: the verb has changed nothing."""

import itertools
import random

import pytest
import torch
from transformers import DynamicCache

from reverse.decoding.backends.hf import shared_cache
from reverse.decoding.backends.protocol import OutOfMemory, Prompt
from tests.decoding.hf_driver import (
    FAMILIES,
    FailAt,
    add,
    backend_of,
    decode,
    oracle_of,
    params,
    question,
    world,
)


def scene(family):
    """A backend in the middle of its work: the next step moves tokens, feeds some and chooses."""
    backend = backend_of(family)
    names = add(backend, family, (0, 0), (1, 0))
    decode(backend, {name: params(family, 3, eos=frozenset()) for name in names})
    backend.set_tokens(names[0], question(family, 0, 0)[0])
    (branch,) = backend.split(names[1], 1)
    (new,) = add(backend, family, (2, 0))
    decode(backend, {new: params(family, 1)})
    for i, name in enumerate([*names, branch, new]):
        backend.start(name, params(family, 4, eos=frozenset(), temperature=0.5 * i, seed=i))
    return backend


def finish(backend):
    said = {}
    while outputs := backend.step():
        for output in outputs:
            said.setdefault(output.sequence, []).append((output.token, round(output.p, 9)))
    return said


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_that_runs_out_of_memory_changes_nothing(family):
    """Half a step would stay in some layers, and the sequences go on from keys that are not theirs."""
    expected, failed = finish(scene(family)), 0
    lasting = scene(family)
    for n in range(0, 10_000, 1 if family == "llava" else 5):
        for backend in (scene(family), lasting):
            held = {name: each.tokens for name, each in backend._sequences.items()}
            try:
                with FailAt(n):
                    backend.step()
            except OutOfMemory as error:
                assert "Tried to allocate" in str(error)
                failed += 1
                assert {name: each.tokens for name, each in backend._sequences.items()} == held
                if backend is not lasting:
                    assert finish(backend) == expected
            else:
                break
        else:
            continue
        break
    assert failed > 60


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_or_a_picture_that_does_not_fit_leaves_nothing_behind(family):
    """A sequence that nobody knows of would stay in every forward, or its neighbours lose their place."""
    backend, oracle = backend_of(family), oracle_of(family)
    (first,) = add(backend, family, (0, 0))
    ids, pictures = question(family, 1)
    for n in range(0, 10_000, 7):
        try:
            with FailAt(n):
                encoded = backend.encode(pictures)
        except OutOfMemory:
            continue
        break
    for n in range(0, 10_000, 3):
        try:
            with FailAt(n):
                (second,) = backend.add([Prompt(ids, encoded)])
        except OutOfMemory:
            assert list(backend._sequences) == [first]
            continue
        break
    assert n > 100
    ended = decode(backend, {first: params(family), second: params(family)})
    oracle.check(ended[first], *question(family, 0, 0), params(family))
    oracle.check(ended[second], ids, pictures, params(family))


def test_tokens_that_were_moved_in_some_layers_only_are_found_again():
    """Layers that ran out of memory at different times would give a sequence the keys of another."""
    cache = shared_cache.SlotCache(world("llava")[0])
    dice = random.Random(0)
    for _ in range(60):
        caches, rows = [], []
        for _ in range(dice.randint(1, 3)):
            caches.append(DynamicCache())
            width = dice.randint(1, 6)
            for layer in range(6):
                caches[-1].update(*torch.randn(2, 3, 2, width, 4), layer)
            for at in dice.choices(range(3), k=dice.randint(1, 3)):
                places = sorted(dice.sample(range(width), dice.randint(1, width)))
                rows.append(
                    shared_cache.CacheRow(places[:], [shared_cache.CachePlace(caches[-1], at, places)])
                )
        held = {row: [held_by(row, layer) for layer in range(6)] for row in rows}
        for tries in itertools.count(1):
            longest = max(len(row.ids) for row in rows)
            try:
                with FailAt(dice.randint(0, 30 * tries)):
                    target = cache._move(rows, longest)
                break
            except torch.OutOfMemoryError:
                for row in rows:
                    assert all(map(torch.equal, held[row], (held_by(row, layer) for layer in range(6))))
                row = dice.choice(rows)
                rows.append(row.copy())
                held[rows[-1]] = held[row]
                rows.remove(dice.choice(rows))
                dice.shuffle(rows)
        for at, row in enumerate(rows):
            assert [(p.cache, p.at, p.first_layer) for p in row.places] == [(target, at, 0)]
            assert all(map(torch.equal, held[row], (held_by(row, layer) for layer in range(6))))


def held_by(row, layer):
    """The keys that a row has in a layer, (heads, tokens, width)."""
    place = row.place_in(layer)
    return place.cache.layers[layer].keys[place.at][:, place.slots]
