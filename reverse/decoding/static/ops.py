"""What a decode step computes, in plain torch: for CPUs, for other precisions, and as the kernels' oracle.

The signatures are those of `kernels.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

__all__ = ["attend", "gated", "linear", "pick", "rms_norm", "rope_store"]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As Llama and Qwen2 of transformers: in float32, whatever the dtype."""
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
    """rmsnorm(x) @ cat(weights).T + biases + residual for `x` (rows, k); each weight (n, k)."""
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
    """silu(rmsnorm(x) @ gate.T) * (rmsnorm(x) @ up.T)."""
    x = rms_norm(x, norm, eps)
    return F.silu(F.linear(x, gate)) * F.linear(x, up)


def rope_store(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    lane: torch.Tensor,
    slot: torch.Tensor,
    heads: int,
) -> torch.Tensor:
    """Rotate queries and keys, put keys and values into the cache at (lane, slot); returns the queries.

    `qkv` (rows, (heads + 2 kv heads) * d), cos and sin (rows, d), keys and values (lanes, kv heads, slots,
    d).
    """
    kv, d = keys.shape[1], keys.shape[3]
    split = qkv.view(qkv.shape[0], heads + 2 * kv, d)
    turned, v = split[:, : heads + kv], split[:, heads + kv :]
    half = torch.cat((-turned[..., d // 2 :], turned[..., : d // 2]), dim=-1)
    turned = turned * cos[:, None].to(qkv.dtype) + half * sin[:, None].to(qkv.dtype)
    keys[lane, :, slot] = turned[:, heads:]
    values[lane, :, slot] = v
    return turned[:, :heads]


def attend(q: torch.Tensor, pools: Sequence[tuple[Any, ...]], scale: float, splits: int = 1) -> torch.Tensor:
    """Attention of `q` (rows, heads, d) to what its rows may see; returns (rows, heads * d).

    `pools`: for each part of a row's text (keys, values, lane, length, block): (lanes, kv heads, slots, d)
    twice, the lane of each row and how many of its slots the row sees; `block` rows in a run share a lane.
    """
    heads = q.shape[1]
    keys, values, seen = [], [], []
    for k, v, lane, length, _ in pools:
        keys.append(k[lane])
        values.append(v[lane])
        seen.append(torch.arange(k.shape[2], device=q.device) < length[:, None])
    mask = torch.cat(seen, dim=1)[:, None, None, :]
    out = F.scaled_dot_product_attention(
        q[:, :, None],
        torch.cat(keys, dim=2).repeat_interleave(heads // keys[0].shape[1], dim=1),
        torch.cat(values, dim=2).repeat_interleave(heads // keys[0].shape[1], dim=1),
        attn_mask=mask,
        scale=scale,
    )
    return out.reshape(q.shape[0], -1)


def pick(
    logits: torch.Tensor, inside: torch.Tensor, tags: Any, mask: bool, pair: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows,) int64 most probable ids under the tag mask, and (rows,) float32 p, as `Verifier.p`."""
    wide = logits.float()
    p = (wide * 0.0).sum(dim=-1)  # zero; NaN where anything is not finite
    if tags.un >= 0 and pair:
        p = p + torch.sigmoid(wide[:, tags.un] - wide[:, tags.cn])
    elif tags.un >= 0:
        p = p + torch.exp(wide[:, tags.un] - torch.logsumexp(wide, dim=-1))
    return (banned(logits, inside, tags) if mask else logits).argmax(dim=-1), p


def banned(logits: torch.Tensor, inside: torch.Tensor, tags: Any) -> torch.Tensor:
    """`logits` with -inf for tags that may not stand: see `sampling.mask_tags`; no copy to the host."""
    opened = inside != 0
    masked = logits.clone()
    masked[:, tags.span] = torch.where(opened, -torch.inf, masked[:, tags.span])
    masked[:, tags.cn] = torch.where(opened, masked[:, tags.cn], -torch.inf)
    masked[:, tags.un] = torch.where(opened, masked[:, tags.un], -torch.inf)
    return masked
