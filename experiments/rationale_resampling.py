"""What resampling costs on step-wise rationales: the real policy on a simulated model, no weights.

    python -m experiments.rationale_resampling          # a table of settings

A rationale is `Step 1: there are<SPAN> 4 cows</CN>. Step 2: ... Answer: 1`. Each step has one phrase. In a
hard step the model prefers a wrong phrase; a share of its probability is left for the right one. The judge
reads p(`</UN>`) of each phrase with few errors, always the same one for the same phrase.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from reverse.decoding.config import ResamplingConfig
from reverse.decoding.policies.policy import Finish, Rewind, Segment
from reverse.decoding.policies.resample_policy import ResamplePolicy
from reverse.tokens.spans import TokenIds

__all__ = ["SETTINGS", "Rationale", "RationaleWorld", "SimulatedCost", "simulate", "simulate_step_by_step"]

SPAN, CN, UN, EOS, DOT = range(5)
TAGS = TokenIds(SPAN, CN, UN)
WORD, VALUES = 10, 100  # ids of ordinary words, and of the values of phrases
THRESHOLD = 0.5


@dataclass(frozen=True)
class RationaleWorld:
    """How often a simulated model errs, and how much of it the judge sees."""

    steps: int = 3
    words: int = 5  # of a step before its phrase
    values: int = 4  # that a phrase may take; 0 is right
    hard: float = 0.13  # share of steps in which the model prefers a wrong value
    right_if_hard: tuple[float, float] = (0.1, 0.4)  # probability of the right value there, at temperature 1
    right_if_easy: tuple[float, float] = (0.75, 0.99)
    missed: float = 0.03  # share of wrong values that the judge accepts
    alarms: float = 0.015  # share of right values that it rejects


@dataclass(frozen=True)
class SimulatedCost:
    """Means over rationales."""

    before: float  # share of rationales without an error, greedy
    after: float
    tokens_ratio: float  # generated, divided by the length of the rationale
    wrong_ratio: float  # the same over rationales that were wrong before


class Rationale:
    """One question: the probabilities of each step's values, and the judge's p of each value."""

    def __init__(self, world: RationaleWorld, random: Random):
        self.world, self.random = world, random
        self.chances: list[list[float]] = []
        self.ps: list[list[float]] = []
        for _ in range(world.steps):
            is_hard = random.random() < world.hard
            right = random.uniform(*(world.right_if_hard if is_hard else world.right_if_easy))
            rest = (1 - right) / (world.values - 1)
            wrong = [rest] * (world.values - 1)
            if is_hard:
                wrong = [(1 - right) * 0.9, *[(1 - right) * 0.1 / (world.values - 2)] * (world.values - 2)]
            self.chances.append([right, *wrong])
            self.ps.append(
                [
                    0.9 if random.random() < (world.alarms if value == 0 else 1 - world.missed) else 0.1
                    for value in range(world.values)
                ]
            )

    @property
    def length(self) -> int:
        """Tokens of the whole rationale."""
        return self.world.steps * self.step_length + 3

    @property
    def step_length(self) -> int:
        """Tokens of one step, its full stop included."""
        return self.world.words + 4

    def draw(self, step: int, temperature: float) -> int:
        """A value of a step's phrase."""
        chances = self.chances[step]
        if temperature <= 0:
            return max(range(len(chances)), key=lambda value: chances[value])
        weights = [math.exp(math.log(chance) / temperature) for chance in chances]
        return self.random.choices(range(len(chances)), weights)[0]

    def decode(self, ids: list[int], temperature: float) -> Segment:
        """The next segment after `ids`: to the next closing tag, or to the end."""
        said: list[int] = []
        ends: list[int] = []
        while True:
            step, at = divmod(len(ids) + len(said), self.step_length)
            if step == self.world.steps:
                left = [WORD, WORD, EOS][at:]
                return Segment((*said, *left), "eos", None, tuple(ends))
            if at < self.world.words:
                said.append(WORD)
            elif at == self.world.words:
                said.append(SPAN)
            elif at == self.world.words + 1:
                said.append(VALUES + self.draw(step, temperature))
            elif at == self.world.words + 2:
                value = said[-1] - VALUES
                p = self.ps[step][value]
                return Segment((*said, UN if p > THRESHOLD else CN), "phrase", p, tuple(ends))
            else:
                said.append(DOT)
                ends.append(len(said))


def simulate(
    config: ResamplingConfig, world: RationaleWorld, rationales: int, seed: int = 0
) -> SimulatedCost:
    """Decode rationales with the library's policy."""

    def decode(rationale: Rationale) -> tuple[bool, int]:
        policy = ResamplePolicy(config.with_changes({"threshold": THRESHOLD}), TAGS, 10 * rationale.length)
        temperature, tokens = policy.begin().temperature, 0
        while True:
            segment = rationale.decode(policy.answer.ids, temperature)
            tokens += len(segment.ids)
            action = policy.next(segment)
            if isinstance(action, Finish):
                break
            temperature = action.temperatures[0] if isinstance(action, Rewind) else action.temperature
        return all(token in (VALUES, *range(VALUES)) for token in policy.answer.ids), tokens

    return _measure(decode, world, rationales, seed)


def simulate_step_by_step(
    attempts: int, world: RationaleWorld, rationales: int, seed: int = 0
) -> SimulatedCost:
    """Draw a rejected step again at temperature 1, up to `attempts` times."""

    def decode(rationale: Rationale) -> tuple[bool, int]:
        is_right, tokens = True, rationale.length
        for step in range(world.steps):
            value = rationale.draw(step, 0.0)
            for _ in range(attempts):
                if rationale.ps[step][value] <= THRESHOLD:
                    break
                value = rationale.draw(step, 1.0)
                tokens += rationale.step_length - 1
            is_right &= value == 0
        return is_right, tokens

    return _measure(decode, world, rationales, seed)


def _measure(
    decode: Callable[[Rationale], tuple[bool, int]], world: RationaleWorld, rationales: int, seed: int
) -> SimulatedCost:
    """Decode rationales. `decode` returns whether all values are right, and the number of tokens."""
    before = after = 0
    ratios: list[float] = []
    wrong: list[float] = []
    for number in range(rationales):
        rationale = Rationale(world, Random(f"{seed} {number}"))
        was_right = all(rationale.draw(step, 0.0) == 0 for step in range(world.steps))
        is_right, tokens = decode(rationale)
        before, after = before + was_right, after + is_right
        ratios.append(tokens / rationale.length)
        wrong += [] if was_right else [ratios[-1]]
    return SimulatedCost(
        before / rationales, after / rationales, sum(ratios) / rationales, sum(wrong) / max(1, len(wrong))
    )


SETTINGS = {
    "defaults": ResamplingConfig(hints=0),
    "defaults, temperature 1 at once": ResamplingConfig(hints=0, temperature_step=1.0, temperature_rise=1.0),
    "defaults, commit='phrase'": ResamplingConfig(hints=0, commit="phrase"),
    "for_rationales()": ResamplingConfig.for_rationales(),
}


def main() -> None:
    """Print the table."""
    world, count = RationaleWorld(), 4000
    rows = {name: simulate(config, world, count) for name, config in SETTINGS.items()}
    rows["step by step"] = simulate_step_by_step(8, world, count)
    for name, cost in rows.items():
        print(
            f"{name:32} {cost.before:6.1%} -> {cost.after:6.1%}  tokens x{cost.tokens_ratio:.2f}"
            f"  (wrong before: x{cost.wrong_ratio:.2f})"
        )


if __name__ == "__main__":
    main()
