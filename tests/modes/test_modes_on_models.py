"""Modes on the bundled models: alone, beside other modes, streamed, and with caches that are dropped."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

import reverse
from experiments.tiny_models import build_tiny_llava, build_tiny_qwen
from reverse.data.scenes import make_scene, render_scene
from reverse.decoding.scheduling.scheduler import Scheduler
from reverse.grading import AnswerFormat
from reverse.modes import Auto, Plain, Refine, Reflect, Select, SelfCorrect, Tree

FAMILIES = ("tiny-llava", "tiny-qwen")
FORM = AnswerFormat("text")
BUILDERS = {"llava": build_tiny_llava, "qwen": build_tiny_qwen}
MODES = [
    Plain(),
    SelfCorrect(rounds=2, stop_when_same=False),
    SelfCorrect(accept="judge", stop_when_same=False),
    Refine(stop_when_same=False),
    Reflect(),
    Reflect(gate=1.0),
    Select(n=3, judge="vote"),
    Select(n=3, judge="self", temperature=1.5),
    Tree(beams=2, branch=2, depth=2, step_tokens=8),
    Auto(gate=1.0, n=3),
    Select(n=2, inner=SelfCorrect(stop_when_same=False)),
    Plain(keep_phrases=True),
    SelfCorrect(schema="cot4", position="stage"),
    SelfCorrect(gate=1.0, inner=Reflect(gate=1.0, rounds=2), stop_when_same=False),
    Refine(accept="judge", inner=Select(n=2), stop_when_same=False),
    Reflect(schema="taranswer", instruction="Think first."),
    Select(n=2, inner="resample"),
    Tree(pick="select", beams=2, branch=2, depth=2, step_tokens=4, tau=0.5),
]
load = functools.cache(functools.partial(reverse.load, dtype=torch.float64))
picture = functools.cache(lambda i: Image.fromarray(render_scene(make_scene("test", i))))


def request(i: int) -> reverse.Request:
    """The i-th mode on a picture, with a seed of its own."""
    return reverse.Request(picture(i % 3), mode=MODES[i], max_new_tokens=8, seed=i)


def signature(result: reverse.Result) -> tuple[Any, ...]:
    drafts = [(draft.role, draft.text, draft.accepted, round(draft.confidence, 6)) for draft in result.drafts]
    return result.ids, result.text, result.answer, drafts, result.usage.kept, result.usage.discarded


@functools.cache
def alone(name: str) -> list[tuple[Any, ...]]:
    engine = reverse.Engine(*load(name), max_sequences=8)
    return [signature(engine.submit(request(i)).result()) for i in range(len(MODES))]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_mode_in_a_batch_with_other_modes(name: str) -> None:
    """An answer would depend on what is decoded beside it, or on a cache that was dropped and recomputed."""
    for most in (8, 2):  # with two sequences, caches that wait are dropped and recomputed
        engine = reverse.Engine(*load(name), max_sequences=most)
        handles = [engine.submit(request(i)) for i in range(len(MODES))]
        assert [signature(handle.result()) for handle in handles] == alone(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_mode_streamed(name: str) -> None:
    """A stream would show another text than the answer, or a draft."""
    for i, (_, text, *_) in enumerate(alone(name)):
        one = request(i)
        config = reverse.ResamplingConfig(seed=i)
        pieces = reverse.stream(
            *load(name), one.images, one.prompt, mode=one.mode, max_new_tokens=8, config=config
        )
        assert "".join(pieces) == text


@pytest.mark.parametrize("name", FAMILIES)
def test_the_tower_runs_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every turn and branch would encode the picture again."""
    from reverse.models import family_of

    model, processor = load(name)
    calls: list[int] = []
    hook = family_of(model).vision_tower(model).register_forward_hook(lambda *_: calls.append(1))
    try:
        for i, mode in enumerate(MODES):
            calls.clear()
            own = Image.fromarray(render_scene(make_scene("test", 50 + i)))  # not in the cache of pictures
            reverse.generate(model, processor, own, mode=mode, max_new_tokens=4)
            assert calls == [1], mode
    finally:
        hook.remove()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_mode_whose_caches_are_always_dropped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn on a recomputed cache would differ from one on the cache that was kept."""
    follow, dropped = Scheduler._follow, []

    def follow_and_drop(scheduler: Scheduler, *args: Any) -> None:
        follow(scheduler, *args)
        dropped.extend(scheduler._idle)
        scheduler._drop_idle(len(scheduler._idle))

    monkeypatch.setattr(Scheduler, "_follow", follow_and_drop)
    engine = reverse.Engine(*load(name), max_sequences=8)
    assert [signature(engine.submit(request(i)).result()) for i in range(len(MODES))] == alone(name)
    assert len(dropped) > len(MODES)


@pytest.mark.parametrize("name", FAMILIES)
def test_captured_steps_give_the_same_modes(name: str) -> None:
    """A mode's result would depend on the backend."""
    engine = reverse.Engine(*load(name), max_sequences=8, backend="cuda_graph")
    handles = [engine.submit(request(i)) for i in range(len(MODES))]
    for handle, expected in zip(handles, alone(name), strict=True):
        found = signature(handle.result())
        assert (*found[:3], *found[4:]) == (*expected[:3], *expected[4:])
        for (*draft, confidence), (*other, likely) in zip(found[3], expected[3], strict=True):
            assert draft == other and confidence == pytest.approx(likely, abs=1e-5)


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_checkpoints_without_the_tokens(family: str) -> None:
    """Without tags there are no phrases: every confidence would be 0, and every choice the first."""
    model, processor = BUILDERS[family](seed=1)
    engine = reverse.Engine(model.double(), processor, max_sequences=8)
    for mode in MODES[1:]:
        mode = without_checking(mode)
        asked = reverse.Request(picture(0), mode=mode, max_new_tokens=8, seed=3)
        result = engine.submit(asked).result()
        assert result.phrases == () and result.ids
        assert isinstance(mode, Plain) or any(draft.accepted for draft in result.drafts)
        scored = [draft for draft in result.drafts if draft.role != "judge"]
        assert all(0 < draft.confidence <= 1 for draft in scored if draft.tokens), mode


def without_checking(mode: Any) -> Any:
    """The mode with `plain` as its innermost mode."""
    if isinstance(mode, Plain):
        return mode
    inner = mode.inner
    return replace(
        mode, inner=Plain() if inner is None or isinstance(inner, str) else without_checking(inner)
    )


def test_usage_counts_every_draft() -> None:
    """A mode would look cheaper than it is."""
    model, processor = load("tiny-llava")
    for mode in MODES[1:]:
        if isinstance(mode, Plain):
            continue
        result = reverse.generate(model, processor, picture(0), mode=mode, max_new_tokens=8)
        assert result.drafts and result.usage.kept + result.usage.discarded >= max(
            d.tokens for d in result.drafts
        )
        assert sum(draft.accepted for draft in result.drafts) >= 1
        assert result.to_dict()["drafts"][0]["role"]
