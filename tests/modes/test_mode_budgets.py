"""Every mode, and modes in modes, end and keep their budget, whatever a model says."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from reverse.decoding.asks import Generate, Run
from reverse.modes import Auto, Budget, Plain, Refine, Reflect, Select, SelfCorrect, Tree
from tests.modes.driving import Driver, Say

TURN = "<think>a</think><answer>3</answer><reflection>b</reflection><think>c</think><answer>4</answer>"
MODES = [
    SelfCorrect(rounds=3, stop_when_same=False), SelfCorrect(rounds=2, accept="judge"), Refine(rounds=3,
    stop_when_same=False),
    SelfCorrect(schema="cot4", position="stage", rounds=3), Reflect(gate=1.0, rounds=9), Select(n=20,
    judge="self"),
    Select(n=20, judge="weighted"), Tree(beams=3, branch=3, depth=9), Tree(pick="select"), Auto(n=20),
    Select(n=3, inner=Reflect(gate=0.9)), SelfCorrect(gate=0.7, inner=Select(n=2)),
    Refine(inner=SelfCorrect()),
]  # fmt: skip
TEXTS = st.sampled_from(
    ["", "3", "Answer: 4", "a.", TURN, "<answer>5</answer>", "<SUMMARY>x</SUMMARY>", "\ud83d\ude00"]
)


@settings(max_examples=150, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    said=st.lists(
        st.builds(Say, TEXTS, st.sampled_from([None, 0.0, 0.5, 1.0]), st.sampled_from(["eos", "stop",
        "length"])),
        min_size=1, max_size=12,
    ),
)  # fmt: skip
def test_every_mode_ends_with_one_accepted_draft(mode, said):
    """Odd answers would end in an error, an endless loop, or no answer at all."""
    answers = itertools.cycle(said)
    found = Driver(lambda ask, prompt: next(answers)).run(mode)
    assert sum(draft.accepted for draft in found.result.drafts) >= 1
    assert isinstance(found.result.text, str)


@dataclass
class BudgetDriver(Driver):
    """Notes what was spent whenever the outermost mode asks for more, with a clock that answers turn."""

    depth: int = 0
    spent: list[tuple[int, int, float]] = field(default_factory=list)
    begun: list[Any] = field(default_factory=list)

    def run(self, mode, conversation=None):
        self.depth += 1
        try:
            return super().run(mode, conversation)
        finally:
            self.depth -= 1

    def begin(self, asks):
        self.begun += asks
        if self.depth == 1 and any(isinstance(ask, Generate | Run) for ask in asks):
            self.spent.append((len(self.asked), sum(each.kept for each in self.usages), self.clock()))

    def clock(self):
        return float(len(self.asked))


BUDGETS = st.one_of(
    st.builds(Budget, max_calls=st.integers(1, 12)),
    st.builds(Budget, max_tokens_total=st.integers(1, 200)),
    st.builds(Budget, max_seconds=st.floats(0.5, 20)),
    st.builds(Budget, st.integers(1, 200), st.floats(0.5, 20), st.integers(1, 12)),
)
NESTED = [
    *MODES, Select(n=4, inner=Tree(beams=2, branch=2, depth=3)), Auto(gate=1.0, n=9, inner=Select(n=3)),
    SelfCorrect(rounds=3, stop_when_same=False, inner=Select(n=3, judge="self", inner=Plain())),
    Refine(rounds=3, stop_when_same=False, inner=Auto(gate=1.0, n=3)), Select(n=5, greedy_first=True),
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    mode=st.sampled_from(NESTED),
    budget=BUDGETS,
    said=st.lists(
        st.builds(Say, TEXTS, st.sampled_from([None, 0.0, 0.5, 1.0]), st.sampled_from(["eos", "stop",
        "length"]), st.integers(0, 60)),
        min_size=1, max_size=12,
    ),
)  # fmt: skip
def test_no_mode_asks_on_when_its_budget_is_used_up(mode, budget, said):
    """A mode would cost more than it may by more than what is under way."""
    answers = itertools.cycle(said)
    driver = BudgetDriver(lambda ask, prompt: next(answers))
    with mock.patch("reverse.modes.mode.time", SimpleNamespace(perf_counter=driver.clock)):
        found = driver.run(replace(mode, budget=budget))
    assert sum(draft.accepted for draft in found.result.drafts) >= 1
    for calls, tokens, seconds in driver.spent[1:]:
        assert budget.max_calls is None or calls < budget.max_calls
        assert budget.max_tokens_total is None or tokens < budget.max_tokens_total
        assert budget.max_seconds is None or seconds < budget.max_seconds
    if budget.max_calls is not None and not any(isinstance(ask, Run) for ask in driver.begun):
        assert len(driver.asked) <= budget.max_calls
