"""Group relative policy optimisation of a recipe (`kind: grpo`) by TRL's GRPOTrainer.

Rows are those of `reverse data view --as grpo`. Completions are drawn by TRL's own generation, at
`grpo.temperature`. Each reward of a preset is a function of its own, so that TRL logs its mean and deviation
(`rewards/format/mean`); what became of the first answers is logged as `outcome/right_to_wrong` and so on, and
the share of completions with a phrase closed by `</UN>` as `phrases/un_share`.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import Sampler

from reverse.compatibility import IncompatibleLibraryError
from reverse.grading import AnswerKey
from reverse.tokens import SPAN, UN
from reverse.training.recipes.recipe import Recipe
from reverse.training.rl.attempt_text import read_attempt
from reverse.training.rl.rewards import REWARDS, RewardPreset, find_outcome, find_preset
from reverse.training.rl.trl_setup import find_trainer, make_trl_arguments
from reverse.training.views.grpo_views import read_gold

__all__ = ["OUTCOMES", "EpochSampler", "make_grpo_trainer", "make_reward_functions"]

OUTCOMES = ("right", "wrong", "right_to_right", "wrong_to_right", "wrong_to_wrong", "right_to_wrong")
_REJECTED = re.compile(f"{SPAN}.*?{UN}", re.DOTALL)
_SAYS_UN = (
    "the model closes phrases with </UN>, so it was trained with the three tokens: GRPO would teach it to "
    "say </UN> no more, whether a phrase is right or not; set grpo.rollout=keep_phrases"
)
_COLUMNS = ("answers", "kind", "choices", "tolerance", "unit")


def make_grpo_trainer(
    recipe: Recipe,
    given: dict[str, Any],
    checkpoints: Path,
    steps: int,
    accumulate: int,
    parallel: dict[str, Any],
) -> Any:
    """Make the trainer of a recipe; the arguments are those of `make_dpo_trainer`."""
    settings = recipe.grpo
    arguments = make_trl_arguments(
        "grpo", recipe, checkpoints, steps, accumulate, parallel,
        {
            "num_generations": settings.generations,
            "max_completion_length": settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
            "beta": settings.beta,
            "epsilon": settings.clip_low,
            "epsilon_high": settings.clip_high,
            "num_iterations": settings.iterations,
            "loss_type": settings.loss,
            "scale_rewards": settings.scale,
            "mask_truncated_completions": settings.mask_truncated,
            # Completions that are used for several steps stand in no checkpoint.
            "save_steps": -(-(recipe.log.save_steps or 500) // settings.iterations) * settings.iterations,
        },
    )  # fmt: skip
    rewards = make_reward_functions(find_preset(settings.rewards))
    if settings.rollout != "plain":
        from reverse.training.rl.decoder_rollout import make_decoder_rollout

        given = {**given, "rollout_func": make_decoder_rollout(given["processing_class"], settings)}
    trainer = _order_by_epoch(find_trainer("grpo"))
    return trainer(args=arguments, reward_funcs=rewards, **given)


class EpochSampler(Sampler[int]):
    """TRL's order of questions, drawn for each epoch from the seed and the number of the epoch.

    TRL draws all epochs from one generator that no checkpoint holds: a run that is resumed in a later epoch
    would see the questions in the order of the first one.

    Args:
        sampler: TRL's, with a `generator`.
        trainer: whose `state.epoch` is the place in the run.
    """

    def __init__(self, sampler: Any, trainer: Any):
        self.sampler, self.trainer = sampler, trainer

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator.manual_seed(self.sampler.seed + int(self.trainer.state.epoch or 0))
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


def _order_by_epoch(base: Any) -> Any:
    """Derive from TRL's trainer one whose order of questions is an `EpochSampler`."""
    if not hasattr(base, "_get_train_sampler"):
        raise IncompatibleLibraryError("trl", f"{base.__name__} has no _get_train_sampler")

    class OrderedTrainer(base):
        def _get_train_sampler(self, dataset: Any = None) -> EpochSampler:
            sampler = super()._get_train_sampler(dataset)
            if not hasattr(sampler, "generator") or getattr(sampler, "seed", None) is None:
                raise IncompatibleLibraryError("trl", f"{type(sampler).__name__} has no generator or seed")
            return EpochSampler(sampler, self)

    OrderedTrainer.__name__ = base.__name__
    return OrderedTrainer


def make_reward_functions(preset: RewardPreset) -> list[Callable[..., list[float | None]]]:
    """Return the rewards of a preset as named functions for TRL, which logs all of them."""
    return [_make_function(name, preset) for name in REWARDS]


def _make_function(name: str, preset: RewardPreset) -> Callable[..., list[float | None]]:
    reward = REWARDS[name]

    def call(completions: list[Any], **columns: Any) -> list[float | None]:
        texts, keys = [_read_text(each) for each in completions], _read_keys(columns)
        log_metric = columns.get("log_metric")
        if name == "final_answer" and log_metric is not None:
            counts = Counter(find_outcome(text, key) for text, key in zip(texts, keys, strict=True))
            for outcome in OUTCOMES:
                log_metric(f"outcome/{outcome}", counts[outcome] / max(1, len(texts)))
            share = sum(_REJECTED.search(text) is not None for text in texts) / max(1, len(texts))
            log_metric("phrases/un_share", share)
            if share >= 0.1:  # any model draws a </UN> by chance now and then
                warnings.warn(_SAYS_UN, stacklevel=2)
        return [reward(read_attempt(text), key, preset) for text, key in zip(texts, keys, strict=True)]

    call.__name__ = name
    return call


def _read_text(completion: Any) -> str:
    """Return the text of a completion, which is a text or a list of turns."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _read_keys(columns: dict[str, Any]) -> list[AnswerKey]:
    rows = zip(*(columns[name] for name in _COLUMNS), strict=True)
    return [read_gold(dict(zip(_COLUMNS, row, strict=True))).key() for row in rows]
