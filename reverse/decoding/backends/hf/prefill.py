"""Prefill prompts with pictures by the model's own forward pass, for both backends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from reverse.decoding.backends.hf import compat
from reverse.decoding.backends.protocol import Prompt
from reverse.models.unwrapping import input_device

__all__ = ["Prefilled", "prefill"]


@dataclass(frozen=True, slots=True)
class Prefilled:
    """Prompts after one forward pass, padded on the left."""

    logits: torch.Tensor  # of the last position, (rows, vocabulary)
    cache: DynamicCache  # of keys and values (rows, kv heads, length, head_dim)
    mask: torch.Tensor  # (rows, length) on the CPU, 0: padding
    padding: list[int]  # slots on the left of each row that hold nothing
    rope_offsets: list[int]  # of rotary positions from text positions, after the pictures


def prefill(model: Any, prompts: Sequence[Prompt], image_token: int) -> Prefilled:
    """Run prompts in one batch, with a cache of their own."""
    device = input_device(model)
    longest = max(len(prompt.ids) for prompt in prompts)
    padding = [longest - len(prompt.ids) for prompt in prompts]
    ids = torch.full((len(prompts), longest), compat.pad_id(model))
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, padding[i] :] = torch.tensor(prompt.ids)
        mask[i, padding[i] :] = 1
    pictures = [picture for prompt in prompts for picture in prompt.pictures]
    grids = [picture.grid for picture in pictures if picture.grid is not None]
    positions, offsets = compat.build_positions(model, ids, mask, image_token, grids)
    cache = compat.new_cache(model)
    logits = compat.forward(
        model,
        cache,
        ids.to(device),
        mask.to(device) if any(padding) else None,
        positions.to(device),
        [picture.features.to(device) for picture in pictures],
    )
    compat.check_cache(cache, len(prompts), longest, every_layer=True)
    return Prefilled(logits, cache, mask, padding, offsets)
