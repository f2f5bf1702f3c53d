"""The choice of the next token of each row: tag mask, temperature, top-k, top-p and keyed noise.

The noise of a choice is one number computed from (seed, path, position, attempt). It does not depend on the
place in the batch, so rows of a batch get the tokens that they would get alone.

    uniform(seed=0, position=3, attempt=1)     # the same number on every machine
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from reverse.tokens.spans import TokenIds

__all__ = ["choose", "invert", "mask_tags", "merge_closing_tags", "uniform"]

_BLOCK = 512  # ids whose weights are summed together


def uniform(seed: int, position: int, attempt: int, path: tuple[int, ...] = ()) -> float:
    """Return a number in [0, 1), uniform and independent for different arguments.

    `path` names the ask and the branch within a request. The path of a single answer is empty.
    """
    packed = struct.pack(f"<{3 + len(path)}q", seed, position, attempt, *path)
    return (int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 11) * 2.0**-53


def mask_tags(logits: torch.Tensor, inside: Sequence[bool], tags: TokenIds) -> torch.Tensor:
    """Keep tags well-formed: no `<SPAN>` inside a phrase, no closing tag outside one.

    Args: `logits` of shape (rows, vocabulary); `inside[row]` says whether a phrase is open.
    Returns a copy with -inf for tags that are not allowed.
    """
    state = torch.tensor(inside, device=logits.device)
    masked = logits.clone()
    masked[:, tags.span].masked_fill_(state, -torch.inf)
    masked[:, tags.cn].masked_fill_(~state, -torch.inf)
    masked[:, tags.un].masked_fill_(~state, -torch.inf)
    return masked


def merge_closing_tags(logits: torch.Tensor, tags: TokenIds) -> torch.Tensor:
    """Give `</CN>` the probability of both closing tags, and `</UN>` none.

    Args: `logits` of shape (rows, vocabulary). Returns a copy with the same sum of exponentials, so that a
    phrase is closed as often as before.
    """
    merged = logits.clone()
    merged[:, tags.cn] = torch.logaddexp(logits[:, tags.cn], logits[:, tags.un])
    merged[:, tags.un] = -torch.inf
    return merged


def choose(
    logits: torch.Tensor,
    temperatures: Sequence[float],
    noise: Sequence[float],
    top_k: int = 0,
    top_p: float = 1.0,
) -> torch.Tensor:
    """Return ids of shape (rows,) int64 from `logits` of shape (rows, vocabulary) float32.

    Rows with temperature 0 get the most probable token. For other rows the cumulative distribution is
    inverted at the row's `noise` in [0, 1), so that equal noise gives an equal choice on every device.
    """
    if logits.device.type == "mps" and any(t > 0 for t in temperatures):  # it has no float64
        return choose(logits.cpu(), temperatures, noise, top_k, top_p).to(logits.device)
    chosen = logits.argmax(dim=-1)
    sampled = [i for i, t in enumerate(temperatures) if t > 0]
    if not sampled:
        return chosen
    rows = torch.tensor(sampled, device=logits.device)
    temperature, chance = (
        torch.tensor([values[i] for i in sampled], device=logits.device, dtype=torch.float64).unsqueeze(1)
        for values in (temperatures, noise)
    )
    scores = logits[rows].double() / temperature
    if 0 < top_k < scores.shape[1]:
        scores[scores < scores.topk(top_k, dim=-1).values[:, -1:]] = -torch.inf
    if top_p < 1.0:
        ordered, order = scores.sort(dim=-1, descending=True, stable=True)
        weight = ordered.softmax(dim=-1)
        outside = weight.cumsum(dim=-1) - weight >= top_p  # the first token always stays
        scores[outside.gather(1, order.argsort(dim=-1))] = -torch.inf
    chosen[rows] = invert(scores, chance)
    return chosen


def invert(scores: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the ids at which the cumulative sum of softmax(scores) passes `noise`, without a host sync.

    Args: `scores` (rows, vocabulary) float64, `noise` (rows, 1) float64 in [0, 1). Returns (rows,) int64,
    never an id with a score of -inf. Sums are taken in blocks: one scan of a vocabulary is slow on a GPU.
    """
    weight = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    blocks = F.pad(weight, (0, -weight.shape[1] % _BLOCK)).view(len(weight), -1, _BLOCK)
    sums = blocks.sum(dim=-1)
    ends = sums.cumsum(dim=-1)
    target = noise * ends[:, -1:]
    block = _find_passing(ends, target)
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, _BLOCK)).squeeze(1).cumsum(dim=-1)
    begin = ends.gather(1, block) - sums.gather(1, block)
    return (block * _BLOCK + _find_passing(inside, (target - begin).clamp(min=0.0))).squeeze(1)


def _find_passing(ends: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return for each row the first index whose cumulative weight exceeds the target, else the last with
    weight above 0.
    """
    last = (ends < ends[:, -1:]).sum(dim=-1, keepdim=True)
    return torch.minimum(torch.searchsorted(ends, target, right=True), last)
