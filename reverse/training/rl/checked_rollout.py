"""Completions by this library's decoder in place of TRL's generation, for measuring rewards.

    trainer = GRPOTrainer(..., rollout_func=make_checked_rollout(processor, settings))

A decoder that rejects phrases draws from the model's distribution on the condition that every phrase is
accepted: q(y) = p(y) · [all accepted] / Z, where Z falls to the product of the shares of accepted drafts at
each phrase. A gradient through such completions needs the weight p/q = Z for each of them, and Z depends on
the prompt, on each prefix and on the weights; it is known only by sampling. TRL corrects for none of it
outside of vLLM. So these completions measure what checking is worth under the same rewards; a recipe that
would train on them is refused (`optim.lr` must be 0).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import reverse
from reverse.decoding.backends.auto import release
from reverse.models import family_of
from reverse.models.inputs.prompt_inputs import prepare_inputs
from reverse.models.unwrapping import unwrap_model
from reverse.training.recipes.rl_sections import Rewards

__all__ = ["make_checked_rollout"]


def make_checked_rollout(processor: Any, settings: Rewards) -> Callable[[list[Any], Any], dict[str, Any]]:
    """The `rollout_func` of a run: one completion for each prompt, which TRL has repeated already."""

    def roll(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
        step = int(trainer.state.global_step)
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                results = reverse.generate(
                    model,
                    processor,
                    [None] * len(prompts),
                    prompts,
                    seed=[trainer.args.seed + step * len(prompts) + number for number in range(len(prompts))],
                    batch_size=trainer.args.per_device_train_batch_size,
                    backend="hf",
                    mode="resample",
                    do_sample=True,
                    temperature=settings.temperature,
                    max_new_tokens=settings.max_new_tokens,
                    top_p=settings.top_p,
                    top_k=settings.top_k,
                )
        finally:
            release(model)
            model.train(was_training)
        family = family_of(unwrap_model(model))
        return {
            "prompt_ids": [
                prepare_inputs(processor, None, [prompt], family)["input_ids"][0].tolist()
                for prompt in prompts
            ],
            "completion_ids": [list(result.ids) or [processor.tokenizer.eos_token_id] for result in results],
            "logprobs": None,
        }

    return roll
