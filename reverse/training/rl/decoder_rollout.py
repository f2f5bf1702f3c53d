"""Completions by this library's decoder in place of TRL's generation (`grpo.rollout`).

    trainer = GRPOTrainer(..., rollout_func=make_decoder_rollout(processor, settings))

"keep_phrases" is for models that were trained with the three tokens. Such a model tends to end its answer
after `</UN>`, so GRPO on plain completions would teach it to say `</UN>` no more, whether a phrase is right
or not. Here `</CN>` is written where the model would write `</UN>`, with the probability of both, and the
answer goes on. (To suppress `</UN>` alone would not do: its probability would go to words that do not belong
there.) Closing tags count as the environment's: `env_mask` leaves them out of the loss, so that rewards do
not train the verdicts. All other tokens are drawn from the model's own distribution (exactly at temperature
1, as with TRL's generation), and their gradient needs no correction.

"checked" rejects phrases. It draws from the model's distribution on the condition that every phrase is
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
from reverse.modes import Plain
from reverse.tokens import find_token_ids
from reverse.training.recipes.rl_sections import Rewards

__all__ = ["make_decoder_rollout"]


def make_decoder_rollout(processor: Any, settings: Rewards) -> Callable[[list[Any], Any], dict[str, Any]]:
    """The `rollout_func` of a run: one completion for each prompt, which TRL has repeated already."""
    mode = Plain(keep_phrases=True) if settings.rollout == "keep_phrases" else "resample"
    tags = find_token_ids(processor)

    def roll(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                results = reverse.generate(
                    model,
                    processor,
                    [None] * len(prompts),
                    prompts,
                    seed=_draw_seeds(trainer, len(prompts)),
                    batch_size=trainer.args.per_device_train_batch_size,
                    backend="hf",
                    mode=mode,
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
        completions = [list(result.ids) or [processor.tokenizer.eos_token_id] for result in results]
        given = {
            "prompt_ids": [
                prepare_inputs(processor, None, [prompt], family)["input_ids"][0].tolist()
                for prompt in prompts
            ],
            "completion_ids": completions,
            "logprobs": None,
        }
        if settings.rollout == "keep_phrases":
            given["env_mask"] = [[int(each not in (tags.cn, tags.un)) for each in ids] for ids in completions]
        return given

    return roll


def _draw_seeds(trainer: Any, count: int) -> list[int]:
    """Return a seed for each completion of this process; no two of a run are the same."""
    place = int(trainer.state.global_step) * trainer.accelerator.num_processes
    first = trainer.args.seed + (place + trainer.accelerator.process_index) * count
    return list(range(first, first + count))
