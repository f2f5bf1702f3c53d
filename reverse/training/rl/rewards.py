"""Rewards for completions that answer, reflect and answer again, each a function of its own.

    rewards = compute_rewards(text, AnswerKey("number", ("3",)), PRESETS["default"])
    rewards["final_answer"], sum_rewards(rewards)

Without the length term (at most 0.1) the presets pay, for a completion that follows the grammar:

    | first → final   | paper | upstream | default |
    |-----------------|-------|----------|---------|
    | right → right   | 1.50  | 1.25     | 1.50    |
    | wrong → right   | 1.25  | 1.50     | 1.35    |
    | wrong → wrong   | 0.75  | 0.50     | 0.25    |
    | right → wrong   | 1.00  | 0.75     | 0.00    |
    | one right answer| 1.00  | 0        | 1.25    |

"paper" is what SRPO states (arXiv 2506.01713, §3.2) and "upstream" what its released OpenRLHF code pays: more
for an error that is mended than for no error, and nothing for any other format. "default" pays least for
breaking a right answer, and never more for an error that is mended: its bonus is 0.10, so that the length
term cannot turn the order round. "plain" pays for a right final answer alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from reverse.errors import RequestError
from reverse.grading import AnswerKey
from reverse.training.rl.attempt_text import (
    AttemptText,
    Schema,
    find_verdicts,
    is_readable,
    read_attempt,
)

__all__ = [
    "PRESETS",
    "REWARDS",
    "RewardPreset",
    "compute_rewards",
    "find_outcome",
    "find_preset",
    "reward_final_answer",
    "reward_first_answer",
    "reward_format",
    "reward_length",
    "reward_reflection",
    "sum_rewards",
]


@dataclass(frozen=True)
class RewardPreset:
    """The reward of each part of a completion."""

    format: float = 0.0  # follows one of `schemas`
    schemas: tuple[Schema, ...] = ("tarta",)
    first: float = 0.0  # the first answer is right
    final: float = 0.0  # the final answer is right
    either: float = 0.0  # the first or the final answer is right
    # With a second answer, by what became of the first one.
    kept: float = 0.0  # right → right
    fixed: float = 0.0  # wrong → right
    stayed: float = 0.0  # wrong → wrong
    broke: float = 0.0  # right → wrong
    reflection: float = 0.0  # a reflection stands there, and is not the first thinking once more
    length: float = 0.0  # most of the length term
    least_length: int = 1  # pieces of the first half, below which there is no length term
    length_needs_right: bool = False  # the length term is for right final answers only
    needs_two_halves: bool = False  # without two thinks and two answers there is no reward at all


PRESETS: dict[str, RewardPreset] = {
    "paper": RewardPreset(
        format=0.5, schemas=("tarta", "single"), first=0.5, kept=0.25, fixed=0.5, broke=-0.25,
        reflection=0.25, length=0.1,
    ),
    "upstream": RewardPreset(
        format=0.5, either=0.5, kept=0.25, fixed=0.5, broke=-0.25, length=0.1, needs_two_halves=True,
    ),
    "default": RewardPreset(
        format=0.25, first=0.25, final=1.0, fixed=0.1, broke=-0.5,
        length=0.1, least_length=32, length_needs_right=True,
    ),
    "plain": RewardPreset(final=1.0),
}  # fmt: skip


def find_preset(name: str) -> RewardPreset:
    """Return the preset of a name. Raises RequestError for an unknown one."""
    if name not in PRESETS:
        raise RequestError(f"a reward preset must be one of {', '.join(PRESETS)}, got {name!r:.80}")
    return PRESETS[name]


def reward_format(attempt: AttemptText, key: AnswerKey, preset: RewardPreset) -> float | None:
    """Pay for the grammar; needs no right answer."""
    if preset.needs_two_halves and not _has_two_halves(attempt):
        return 0.0
    return preset.format if attempt.schema in preset.schemas else 0.0


def reward_first_answer(attempt: AttemptText, key: AnswerKey, preset: RewardPreset) -> float | None:
    """Pay for a right first answer; None if the right answer cannot be read, as in all functions below."""
    if not is_readable(key):
        return None
    if preset.needs_two_halves and not _has_two_halves(attempt):
        return 0.0
    first, final = find_verdicts(attempt, key)
    return preset.first * first + preset.either * (first or final)


def reward_final_answer(attempt: AttemptText, key: AnswerKey, preset: RewardPreset) -> float | None:
    """Pay for a right final answer."""
    if not is_readable(key):
        return None
    if preset.needs_two_halves and not _has_two_halves(attempt):
        return 0.0
    return preset.final * find_verdicts(attempt, key)[1]


def reward_reflection(attempt: AttemptText, key: AnswerKey, preset: RewardPreset) -> float | None:
    """Pay for the outcome of the reflection on the first answer, and for a reflection that is not empty."""
    if not is_readable(key):
        return None
    if len(attempt.answers) < 2 or (preset.needs_two_halves and not _has_two_halves(attempt)):
        return 0.0
    effect = {
        (True, True): preset.kept,
        (False, True): preset.fixed,
        (False, False): preset.stayed,
        (True, False): preset.broke,
    }[find_verdicts(attempt, key)]
    said = any(each and each not in attempt.thinks for each in attempt.reflections)
    return effect + preset.reflection * said


def reward_length(attempt: AttemptText, key: AnswerKey, preset: RewardPreset) -> float | None:
    """Pay for a whole of about twice the first half: exp(−(|L − 2 L₁| / (L₁ / 2))²), times `length`.

    L and L₁ are counted in words and marks. There is none without a second answer.
    """
    if preset.length_needs_right and not is_readable(key):
        return None
    first, whole = attempt.first_length, attempt.length
    if len(attempt.answers) < 2 or first < max(1, preset.least_length):
        return 0.0
    if preset.needs_two_halves and not _has_two_halves(attempt):
        return 0.0
    if preset.length_needs_right and not find_verdicts(attempt, key)[1]:
        return 0.0
    return preset.length * math.exp(-((abs(whole - 2 * first) / (first / 2)) ** 2))


RewardFunction = Callable[[AttemptText, AnswerKey, RewardPreset], float | None]
REWARDS: dict[str, RewardFunction] = {
    "format": reward_format,
    "first_answer": reward_first_answer,
    "final_answer": reward_final_answer,
    "reflection": reward_reflection,
    "length": reward_length,
}


def compute_rewards(text: str, key: AnswerKey, preset: RewardPreset) -> dict[str, float | None]:
    """Compute all rewards of a completion by name; None where the right answer cannot be read."""
    attempt = read_attempt(text)
    return {name: reward(attempt, key, preset) for name, reward in REWARDS.items()}


def sum_rewards(rewards: Mapping[str, float | None]) -> float:
    """Return the reward of a completion: the sum of its rewards that are not None."""
    return sum(value for value in rewards.values() if value is not None)


def find_outcome(text: str, key: AnswerKey) -> str:
    """Return the outcome for the first answer, such as "wrong_to_right"; "right" or "wrong" for a single
    answer.
    """
    attempt = read_attempt(text)
    first, final = ("right" if each else "wrong" for each in find_verdicts(attempt, key))
    return final if len(attempt.answers) < 2 else f"{first}_to_{final}"


def _has_two_halves(attempt: AttemptText) -> bool:
    return len(attempt.answers) == 2 and len(attempt.thinks) == 2
