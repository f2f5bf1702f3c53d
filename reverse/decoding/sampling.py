"""Choosing the next token of each row: tag mask, processors, temperature, top-k, top-p, keyed noise.

The noise of a choice is one number made from (the request's seed, position, attempt). A row's place in
the batch and what its neighbours do cannot change it, so a batch says what its rows would say alone.

    uniform(seed=0, position=3, attempt=1)     # the same number on every machine
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import torch

from reverse.tokens.spans import TokenIds

__all__ = ["choose", "mask_tags", "uniform"]


def uniform(seed: int, position: int, attempt: int) -> float:
    """A number in [0, 1), uniform and independent between different arguments."""
    packed = struct.pack("<qqq", seed, position, attempt)
    return (int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 11) * 2.0**-53


def mask_tags(logits: torch.Tensor, inside: Sequence[bool], tags: TokenIds) -> torch.Tensor:
    """Keep tags well-formed: no `<SPAN>` inside a phrase, no closing tag outside one.

    Args: `logits` of shape (rows, vocabulary); `inside` says of each row whether a phrase is open.
    Returns a copy with -inf where a tag may not stand.
    """
    state = torch.tensor(inside, device=logits.device)
    masked = logits.clone()
    masked[:, tags.span].masked_fill_(state, -torch.inf)
    masked[:, tags.cn].masked_fill_(~state, -torch.inf)
    masked[:, tags.un].masked_fill_(~state, -torch.inf)
    return masked


def choose(
    logits: torch.Tensor,
    temperatures: Sequence[float],
    noise: Sequence[float],
    top_k: int = 0,
    top_p: float = 1.0,
) -> torch.Tensor:
    """Ids of shape (rows,) int64 from `logits` of shape (rows, vocabulary) float32.

    A row with temperature 0 takes the most probable token. Another inverts its cumulative distribution at
    the row's `noise` in [0, 1), so that equal noise means an equal choice on every device.
    """
    chosen = logits.argmax(dim=-1)
    warm = [i for i, t in enumerate(temperatures) if t > 0]
    if not warm:
        return chosen
    rows = torch.tensor(warm, device=logits.device)
    scale = torch.tensor([temperatures[i] for i in warm], device=logits.device).unsqueeze(1)
    scores = logits[rows].double() / scale
    if 0 < top_k < scores.shape[1]:
        scores[scores < scores.topk(top_k, dim=-1).values[:, -1:]] = -torch.inf
    if top_p < 1.0:
        ordered, order = scores.sort(dim=-1, descending=True, stable=True)
        weight = ordered.softmax(dim=-1)
        outside = weight.cumsum(dim=-1) - weight >= top_p  # the first token always stays
        scores[outside.gather(1, order.argsort(dim=-1))] = -torch.inf
    cumulative = scores.softmax(dim=-1).cumsum(dim=-1)
    draw = torch.tensor([noise[i] for i in warm], device=logits.device, dtype=torch.float64).unsqueeze(1)
    index = torch.searchsorted(cumulative, draw * cumulative[:, -1:], right=True).squeeze(1)
    chosen[rows] = index.clamp(max=logits.shape[1] - 1)
    return chosen
