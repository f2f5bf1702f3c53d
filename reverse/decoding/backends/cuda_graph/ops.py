"""The operations of a decode step in plain torch: for CPUs, other precisions, and as reference of the
kernels.

The signatures are those of `kernels.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from reverse.decoding.backends.cuda_graph.row_state import (
    AFTER_ACCEPT,
    INSIDE,
    MASKED,
    PAIR,
    POSITION,
    ROPE,
    SLOT,
    TEMPERATURE,
    TOKEN,
    WRITTEN_BY_STEPS,
)

__all__ = [
    "CachePart",
    "advance",
    "attend",
    "begin",
    "gated",
    "linear",
    "mask_tags",
    "pick",
    "rms_norm",
    "rope_store",
    "rotary",
]


class CachePart(NamedTuple):
    """The part of the cache that a run of queries sees: in each query's row, the slots from `start` to
    `length`.

    `keys` and `values` have shape (cache rows, kv heads, slots, d), before a layer is chosen (layers, cache
    rows, …). The other tensors have shape (queries,). `block` queries in a run have one row in common; with a
    `start` it is 1.
    """

    keys: torch.Tensor
    values: torch.Tensor
    row: torch.Tensor
    length: torch.Tensor
    block: int = 1
    start: torch.Tensor | None = None  # None: 0


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalise as Llama and Qwen2 of transformers do: in float32, whatever the dtype."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def linear(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor] = (),
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    f32: bool = False,
) -> torch.Tensor:
    """Compute rmsnorm(x) @ cat(weights).T + biases + residual for `x` (rows, k); each weight (n, k)."""
    if norm is not None:
        x = rms_norm(x, norm, eps)
    parts = [F.linear(x, w, biases[i] if biases else None) for i, w in enumerate(weights)]
    y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
    if residual is not None:
        y = y + residual
    return y.float() if f32 and y.dtype != torch.float64 else y


def gated(
    x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, norm: torch.Tensor, eps: float
) -> torch.Tensor:
    """Compute silu(rmsnorm(x) @ gate.T) * (rmsnorm(x) @ up.T)."""
    x = rms_norm(x, norm, eps)
    return F.silu(F.linear(x, gate)) * F.linear(x, up)


def rope_store(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    row: torch.Tensor,
    slot: torch.Tensor,
    heads: int,
) -> torch.Tensor:
    """Rotate queries and keys, put keys and values into the cache at (row, slot); returns the queries.

    `qkv` (rows, (heads + 2 kv heads) * d), cos and sin (rows, d), keys and values (cache rows, kv heads,
    slots, d).
    """
    kv, d = keys.shape[1], keys.shape[3]
    split = qkv.view(qkv.shape[0], heads + 2 * kv, d)
    turned, v = split[:, : heads + kv], split[:, heads + kv :]
    half = torch.cat((-turned[..., d // 2 :], turned[..., : d // 2]), dim=-1)
    turned = turned * cos[:, None].to(qkv.dtype) + half * sin[:, None].to(qkv.dtype)
    keys[row, :, slot] = turned[:, heads:]
    values[row, :, slot] = v
    return turned[:, :heads]


def attend(
    q: torch.Tensor, parts: Sequence[CachePart], scale: float, splits: Sequence[int] = ()
) -> torch.Tensor:
    """Compute attention of `q` (rows, heads, d) to the slots that its rows may see; returns (rows, heads *
    d).

    `parts`: those that together hold a row's text. What is not seen may be NaN: it is never multiplied.
    """
    heads = q.shape[1]
    keys, values, seen = [], [], []
    for part in parts:
        slots = torch.arange(part.keys.shape[2], device=q.device)
        mask = slots < part.length[:, None]
        if part.start is not None:
            mask &= slots >= part.start[:, None]
        seen.append(mask)
        keys.append(part.keys[part.row].masked_fill(~mask[:, None, :, None], 0.0))
        values.append(part.values[part.row].masked_fill(~mask[:, None, :, None], 0.0))
    out = F.scaled_dot_product_attention(
        q[:, :, None],
        torch.cat(keys, dim=2).repeat_interleave(heads // keys[0].shape[1], dim=1),
        torch.cat(values, dim=2).repeat_interleave(heads // keys[0].shape[1], dim=1),
        attn_mask=torch.cat(seen, dim=1)[:, None, None, :],
        scale=scale,
    )
    return out.reshape(q.shape[0], -1)


def rotary(rope: torch.Tensor, text: Any, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and sin (rows, d) of the positions `rope` (rows,)."""
    angle = rope[:, None].float() * text.frequencies
    angle = torch.cat((angle, angle), dim=-1)
    return (angle.cos() * text.rope_scale).to(dtype), (angle.sin() * text.rope_scale).to(dtype)


def begin(
    rows: torch.Tensor, state: torch.Tensor, last: int, text: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return embeddings (rows, width), cos and sin (rows, d), and slots (rows,) of the ids that `rows` are
    fed.

    Row 0, which fills up a step, always has slot 0; no slot is beyond `last`.
    """
    x = F.embedding(state[TOKEN, rows], text.embedding)
    return x, *rotary(state[ROPE, rows], text, x.dtype), state[SLOT, rows].clamp(max=last) * (rows != 0)


def advance(
    rows: torch.Tensor,
    state: torch.Tensor,
    token: torch.Tensor,
    p: torch.Tensor,
    logsum: torch.Tensor,
    logits: torch.Tensor,
    out: torch.Tensor,
    last: int,
    tags: Any,
) -> None:
    """Write the next state of `rows`, and ids, p and log-probabilities of their choice to `out` (3, columns).

    Should a phrase that closes be rejected, the host sets its row anew.
    """
    before = state[:, rows]
    closed = (token == tags.cn) | (token == tags.un)
    opened = torch.where(closed, 0, before[INSIDE])
    opened = torch.where(token == tags.span, 1, opened)
    temperature = torch.where(closed, before[AFTER_ACCEPT], before[TEMPERATURE])
    slot = (before[SLOT] + 1).clamp(max=last)
    following = (token, slot, before[ROPE] + 1, opened, before[POSITION] + 1, temperature)
    state[:WRITTEN_BY_STEPS].index_copy_(1, rows, torch.stack(following))
    said = logits.gather(1, token[:, None])[:, 0] - logsum
    out[:, : len(token)] = torch.stack((token.double(), p.double(), said.double()))


def pick(
    logits: torch.Tensor, rows: torch.Tensor, state: torch.Tensor, tags: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the most probable ids (rows,) int64, p as `Verifier.p`, and the logarithm of the sum of
    exponentials.

    `logits` (rows, vocabulary) float32; p and the logarithm (rows,) float32. Whether a phrase is open,
    whether the tag mask holds and whether p is of the pair stands in `state`.
    """
    wide = logits.float()
    p = (wide * 0.0).sum(dim=-1)  # zero; NaN where anything is not finite
    total = torch.logsumexp(wide, dim=-1)
    if tags.un >= 0:
        of_pair = torch.sigmoid(wide[:, tags.un] - wide[:, tags.cn])
        of_all = torch.exp(wide[:, tags.un] - total)
        p = p + torch.where(state[PAIR, rows] != 0, of_pair, of_all)
    return mask_tags(logits, state[INSIDE, rows], tags, state[MASKED, rows]).argmax(dim=-1), p, total


def mask_tags(logits: torch.Tensor, inside: torch.Tensor, tags: Any, masked: torch.Tensor) -> torch.Tensor:
    """Return `logits` with -inf for tags that are not allowed, as `sampling.mask_tags` does, without a copy
    to the host.

    `inside` and `masked` (rows,) integers: a phrase is open, the mask holds for the row.
    """
    result = logits.clone()
    if tags.span < 0:  # a model without the tags
        return result
    holds, opened = masked != 0, inside != 0
    for token, is_banned in ((tags.span, opened), (tags.cn, ~opened), (tags.un, ~opened)):
        result[:, token] = torch.where(holds & is_banned, -torch.inf, result[:, token])
    return result
