"""Sample short answers of a small model to many questions at once: prompts of one length decode in step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from experiments.reasoning.reasoning_rows import RowPool
from experiments.uniform_passes import UniformPass
from reverse.decoding.backends.hf.compat import cache_argument

__all__ = ["compute_features", "sample_answers"]

MOST_TOKENS = 96  # of an answer


@torch.no_grad()
def compute_features(passes: UniformPass, pictures: Tensor, *, batch: int = 1024) -> Tensor:
    """What stands for each picture in a row, (pictures, count, hidden), in bfloat16 on CUDA."""
    device = passes.scale.device
    found = []
    for at in range(0, len(pictures), batch):
        with torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext():
            found.append(passes.see(pictures[at : at + batch].to(device)))
    features = torch.cat(found)
    return features.bfloat16() if device.type == "cuda" else features


@torch.no_grad()
def sample_answers(
    passes: UniformPass,
    features: Tensor,
    prompts: RowPool,
    ends: set[int],
    *,
    samples: int,
    temperature: float = 1.0,
    merged: tuple[int, int] | None = None,
    seed: int = 0,
    batch: int = 4096,
    most_tokens: int = MOST_TOKENS,
    say: Callable[[str], None] = lambda line: None,
) -> list[list[list[int]]]:
    """Ids of `samples` answers to each prompt, without the end of text.

    Args:
        prompts: rows that end where an answer begins; `pictures` are indices of `features`.
        ends: ids that end an answer; one that does not end is cut after `most_tokens`.
        temperature: 0 takes the most probable token.
        merged: ids of `</CN>` and `</UN>`: where either would be chosen, `</CN>` is.
        batch: answers decoded side by side.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for row, length in enumerate(prompts.lengths.tolist()):
        by_length[length].append(row)
    found: list[list[list[int]]] = [[] for _ in range(len(prompts))]
    at_once = max(1, batch // samples)  # prompts
    stop = torch.tensor(sorted(ends), device=passes.scale.device)
    done = 0
    for length, rows in sorted(by_length.items()):
        for at in range(0, len(rows), at_once):
            part = rows[at : at + at_once]
            generator = torch.Generator(passes.scale.device).manual_seed((seed << 32) + (length << 20) + at)
            choose = _TokenSampler(temperature, merged, generator)
            ids = torch.from_numpy(prompts.ids[part, :length].astype(np.int64)).to(passes.scale.device)
            shown = torch.from_numpy(prompts.pictures[part].astype(np.int64)).to(features.device)
            said = _decode(passes, features[shown], ids, samples, stop, choose, most_tokens)
            for place, tokens in enumerate(said):
                found[part[place // samples]].append(tokens)
            done += len(said)
        say(f"{done:,} of {len(prompts) * samples:,} answers")
    return found


@dataclass(frozen=True)
class _TokenSampler:
    """How the next ids are chosen; see `sample_answers`."""

    temperature: float
    merged: tuple[int, int] | None
    generator: torch.Generator

    def __call__(self, logits: Tensor) -> Tensor:
        """Ids of logits, (rows, vocabulary) to (rows,)."""
        if self.merged is not None:
            cn, un = self.merged
            logits[:, cn] = torch.logaddexp(logits[:, cn], logits[:, un])
            logits[:, un] = -torch.inf
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        chances = (logits / self.temperature).softmax(dim=-1)
        return torch.multinomial(chances, 1, generator=self.generator)[:, 0]


def _decode(
    passes: UniformPass,
    features: Tensor,
    ids: Tensor,
    samples: int,
    stop: Tensor,
    choose: _TokenSampler,
    most_tokens: int,
) -> list[list[int]]:
    """`samples` answers to each prompt, the prompts in order. A prompt is read once for all its answers."""
    prompts, length = ids.shape
    device, decoder = ids.device, passes.decoder
    cache = DynamicCache(config=decoder.config)
    kept: dict[str, Any] = {cache_argument(decoder): cache}
    live = torch.arange(prompts * samples, device=device)
    said = stop[0].repeat(len(live), most_tokens)
    hidden = passes.embed(features, ids, torch.arange(prompts, device=device))
    ended = torch.zeros(len(live), dtype=torch.bool, device=device)
    with torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext():
        for step in range(most_tokens):
            begin = 0 if step == 0 else length + step - 1
            positions = passes.position_ids(len(hidden), begin, length + step)
            out = decoder(inputs_embeds=hidden, position_ids=positions, use_cache=True, **kept)
            logits = passes.head(out.last_hidden_state[:, -1]).float()
            if step == 0 and samples > 1:
                cache.batch_repeat_interleave(samples)
                logits = logits.repeat_interleave(samples, dim=0)
            chosen = choose(logits)
            said[live, step] = chosen
            ended |= torch.isin(chosen, stop)
            if step % 8 == 7:
                left = (~ended).nonzero()[:, 0]
                if not len(left):
                    break
                if 2 * len(left) <= len(live):  # answers that have ended are not decoded any further
                    cache.batch_select_indices(left)
                    live, chosen, ended = live[left], chosen[left], ended[left]
            hidden = passes.embeddings(chosen[:, None])
    ends = set(stop.tolist())
    return [_cut(row, ends) for row in said.tolist()]


def _cut(row: list[int], ends: set[int]) -> list[int]:
    end = next((at for at, token in enumerate(row) if token in ends), len(row))
    return row[:end]
