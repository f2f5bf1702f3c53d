"""Sample short answers of a small model to many questions at once: prompts of one length decode in step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from experiments.reasoning.reasoning_rows import RowPool
from experiments.uniform_passes import UniformPass

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
    say: Callable[[str], None] = lambda line: None,
) -> list[list[list[int]]]:
    """Ids of `samples` answers to each prompt, without the end of text.

    Args:
        prompts: rows that end where an answer begins; `pictures` are indices of `features`.
        ends: ids that end an answer; one that does not end is cut after `MOST_TOKENS`.
        temperature: 0 takes the most probable token.
        merged: ids of `</CN>` and `</UN>`: where either would be chosen, `</CN>` is.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for row, length in enumerate(prompts.lengths.tolist()):
        by_length[length] += [row] * samples
    found: list[list[list[int]]] = [[] for _ in range(len(prompts))]
    done = 0
    for length, rows in sorted(by_length.items()):
        for at in range(0, len(rows), batch):
            part = rows[at : at + batch]
            generator = torch.Generator(passes.scale.device).manual_seed((seed << 32) + (length << 20) + at)
            ids = torch.from_numpy(prompts.ids[part, :length].astype(np.int64)).to(passes.scale.device)
            shown = torch.from_numpy(prompts.pictures[part].astype(np.int64)).to(features.device)
            said = _decode(passes, features[shown], ids, ends, temperature, merged, generator)
            for row, tokens in zip(part, said, strict=True):
                found[row].append(tokens)
            done += len(part)
        say(f"{done:,} of {len(prompts) * samples:,} answers")
    return found


def _decode(
    passes: UniformPass,
    features: Tensor,
    ids: Tensor,
    ends: set[int],
    temperature: float,
    merged: tuple[int, int] | None,
    generator: torch.Generator,
) -> list[list[int]]:
    rows, length = ids.shape
    device = ids.device
    decoder: Any = passes.decoder
    cache = DynamicCache(config=decoder.config)
    stop = torch.tensor(sorted(ends), device=device)
    hidden = passes.embed(features, ids, torch.arange(rows, device=device))
    said, ended = [], torch.zeros(rows, dtype=torch.bool, device=device)
    with torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext():
        for step in range(MOST_TOKENS):
            begin = 0 if step == 0 else length + step - 1
            positions = passes.position_ids(rows, begin, length + step)
            out = decoder(inputs_embeds=hidden, position_ids=positions, past_key_values=cache, use_cache=True)
            logits = passes.head(out.last_hidden_state[:, -1]).float()
            if merged is not None:
                cn, un = merged
                logits[:, cn] = torch.logaddexp(logits[:, cn], logits[:, un])
                logits[:, un] = -torch.inf
            if temperature == 0:
                chosen = logits.argmax(dim=-1)
            else:
                chances = (logits / temperature).softmax(dim=-1)
                chosen = torch.multinomial(chances, 1, generator=generator)[:, 0]
            said.append(chosen)
            ended |= torch.isin(chosen, stop)
            if step % 8 == 7 and bool(ended.all()):
                break
            hidden = passes.embeddings(chosen[:, None])
    answers = []
    for row in torch.stack(said, dim=1).tolist():
        end = next((at for at, token in enumerate(row) if token in ends), len(row))
        answers.append(row[:end])
    return answers
