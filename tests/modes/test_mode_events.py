"""What modes report on a scripted model: their events, and what they cost."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

import reverse
from reverse.decoding.events import Append, BeginDraft, Commit, Complete, EndDraft, Event, Retract
from reverse.modes import Auto, Plain, Refine, Reflect, Resample, Select, SelfCorrect, Tree
from tests.decoding import mock
from tests.decoding.oracle import NaiveBackend
from tests.decoding.scripted import Scripted
from tests.decoding.worlds import talkative

world = functools.cache(talkative)
CONFIG = reverse.ResamplingConfig(threshold=0.3, hints=0, local_attempts=2, max_attempts=4)
ALWAYS = {"stop_when_same": False}
MODES: list[Any] = [
    Resample(), Plain(), SelfCorrect(rounds=2, **ALWAYS), SelfCorrect(accept="judge", **ALWAYS),
    SelfCorrect(schema="cot4", position="stage"), Refine(rounds=2, **ALWAYS), Reflect(), Reflect(gate=1.0),
    Select(n=3), Select(n=4, judge="self"), Tree(beams=2, branch=2, depth=3, step_tokens=5),
    Tree(pick="select", beams=2, branch=2, depth=2, step_tokens=5), Auto(gate=1.0, n=4),
    Select(n=2, inner=SelfCorrect(**ALWAYS)), Refine(inner=Select(n=2), **ALWAYS),
    SelfCorrect(gate=1.0, inner=Reflect(), **ALWAYS), Auto(gate=1.0, n=3, inner=Refine(**ALWAYS)),
]  # fmt: skip


def ids_of(modes: list[Any]) -> list[str]:
    return [f"{i}-{mode.name}" for i, mode in enumerate(modes)]


@pytest.fixture(params=range(3))
def scripted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Scripted:
    return Scripted(monkeypatch, mock.hashed(request.param))


def submit(mode: Any, **options: Any) -> tuple[list[Event], reverse.Result]:
    engine = reverse.Engine(*world("llava", torch.float64), max_sequences=16)
    handle = engine.submit(reverse.Request(prompt="?", config=CONFIG, mode=mode, seed=1), events=True)
    return list(handle), handle.result()


@pytest.mark.parametrize("mode", MODES, ids=ids_of(MODES))
def test_events_show_the_result_and_name_their_draft(scripted: Scripted, mode: Any) -> None:
    """A user interface would show a draft as the answer, or not know which round it is in."""
    events, result = submit(mode)
    text, ids, ended = "", (), {}
    begun: dict[tuple[int, ...], BeginDraft] = {}
    for event in events:
        if isinstance(event, Append):
            text, ids = text + event.text, ids + event.ids
        elif isinstance(event, Retract):
            text, ids = text[: event.keep], ids[: event.to]
        elif isinstance(event, BeginDraft):
            assert event.role and event.branch not in begun
            begun[event.branch] = event
        elif isinstance(event, EndDraft):
            before = begun[event.branch]
            assert (before.role, before.round) == (event.role, event.round) and event.branch not in ended
            ended[event.branch] = event
    assert (text, ids) == (result.text, result.ids)
    assert isinstance(events[-1], Complete) and begun.keys() == ended.keys()
    assert {draft.role for draft in result.drafts} <= {event.role for event in begun.values()} | {"first"}
    shown = [event for event in events if isinstance(event, Commit)]  # a blank round is taken back
    assert len({(event.round, event.branch) for event in shown}) == 1
    if result.drafts:
        assert begun and shown[0].branch in begun
        assert begun[shown[0].branch].round == shown[0].round
    else:
        assert not begun and shown[0].branch == (0, 0)


def test_rounds_and_attempts_are_numbered(scripted: Scripted) -> None:
    """The third round would pass for the second, or a rejection for another one."""
    events, result = submit(SelfCorrect(rounds=3, **ALWAYS))
    begun = [(e.role, e.round, e.branch) for e in events if isinstance(e, BeginDraft)]
    corrections = [("correction", number) for number in (1, 2, 3)]
    assert [each[:2] for each in begun] == [("first", 0), *corrections]
    assert begun[0][2] == (0, 0) and len({branch for _, _, branch in begun}) == 4
    tokens = [e.tokens for e in events if isinstance(e, EndDraft)]
    assert tokens == [draft.tokens for draft in result.drafts]
    events, result = submit(Resample())
    rejected = [event for event in events if isinstance(event, Retract) and event.kind != "cut"]
    assert [event.attempt for event in rejected] == list(range(len(result.trace)))
    attempt = 0
    for event in events:
        if isinstance(event, Append):
            assert event.attempt == attempt
        elif isinstance(event, Retract) and event.kind != "cut":
            attempt = event.attempt + 1


def test_inner_drafts_stand_inside_the_branch_of_the_outer_one(scripted: Scripted) -> None:
    """Drafts of samples that correct themselves could not be told apart."""
    events, _ = submit(Select(n=2, inner=SelfCorrect(**ALWAYS)))
    begun = [(e.role, e.round, e.branch) for e in events if isinstance(e, BeginDraft)]
    for number in (0, 1):
        place = (number, 0)
        assert ("sample", 0, place) in begun and ("first", 0, (*place, 0, 0)) in begun
        inner = [(role, round) for role, round, branch in begun if branch[:2] == place and branch != place]
        assert inner == [("first", 0), ("correction", 1)]
    assert len(begun) == 6


@pytest.mark.parametrize("mode", MODES, ids=ids_of(MODES))
def test_usage_counts_every_token_that_the_model_chose(
    scripted: Scripted, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mode would look cheaper than it is: drafts of inner modes, judges or dropped branches left out."""
    chosen: list[int] = []
    step = NaiveBackend.step

    def counted(backend: NaiveBackend) -> Any:
        outputs = step(backend)
        chosen.extend(output.token for output in outputs)
        return outputs

    monkeypatch.setattr(NaiveBackend, "step", counted)
    _, result = submit(mode)
    assert result.usage.kept + result.usage.discarded == len(chosen)
    assert result.usage.forwards >= max((draft.tokens for draft in result.drafts), default=0)
    assert result.usage.seconds > 0
