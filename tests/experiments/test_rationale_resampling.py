"""What resampling costs on simulated rationales: the figures of docs/modes.md."""

from __future__ import annotations

from random import Random

from experiments.rationale_resampling import (
    SETTINGS,
    VALUES,
    Rationale,
    RationaleWorld,
    simulate,
    simulate_step_by_step,
)
from reverse.decoding.config import ResamplingConfig


def test_the_settings_for_rationales_cost_less_and_gain_more() -> None:
    """Resampling of rationales would cost 2.5 times the tokens again, or mend less than it did."""
    world = RationaleWorld()
    defaults, own = (simulate(SETTINGS[name], world, 1500) for name in ("defaults", "for_rationales()"))
    steps = simulate_step_by_step(8, world, 1500)
    assert own.before == defaults.before == steps.before
    assert defaults.tokens_ratio > 2.2 and own.tokens_ratio < 1.7 and own.wrong_ratio < 2.6
    assert own.after > defaults.after + 0.03 and own.after > steps.after - 0.02
    assert own.tokens_ratio < steps.tokens_ratio + 0.2


def test_they_hold_in_other_worlds() -> None:
    """The settings would fit one simulated world only."""
    for changes in ({"steps": 5, "hard": 0.08}, {"alarms": 0.05}, {"right_if_hard": (0.02, 0.2)}):
        world = RationaleWorld(**changes)
        own = simulate(ResamplingConfig.for_rationales(), world, 600)
        defaults = simulate(ResamplingConfig(hints=0), world, 600)
        assert own.tokens_ratio < 2 < defaults.tokens_ratio and own.after > defaults.after > own.before


def test_a_simulated_rationale_is_one() -> None:
    """The figures would be of texts that no model writes."""
    world = RationaleWorld(steps=2, words=1)
    rationale = Rationale(world, Random(0))
    first = rationale.decode([], 0.0)
    assert first.end == "phrase" and len(first.ids) == 4 and first.ids[2] >= VALUES
    second = rationale.decode(list(first.ids), 0.0)
    assert second.sentence_ends == (1,) and second.end == "phrase"
    last = rationale.decode([*first.ids, *second.ids], 0.0)
    assert last.end == "eos" and len(first.ids + second.ids + last.ids) == rationale.length
