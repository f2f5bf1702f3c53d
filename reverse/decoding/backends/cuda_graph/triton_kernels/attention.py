"""Rotary positions, attention over what is filled, and the most probable token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from reverse.decoding.backends.cuda_graph.ops import CachePart
from reverse.decoding.backends.cuda_graph.row_state import INSIDE, MASKED, PAIR
from reverse.decoding.backends.cuda_graph.triton_kernels.launching import (
    await_previous,
    launch_options,
    release_next,
)

__all__ = ["attend", "pick", "rope_store", "splits_for"]


# ------------------------------------------------------------------ rotary positions, and into the cache
@triton.jit
def _rope_store_kernel(  # type: ignore[no-untyped-def]
    qkv, cos, sin, q, keys, values, cache_row, slot, S,
    HQ: tl.constexpr, HK: tl.constexpr, D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    await_previous(PDL)
    release_next(PDL)
    row = tl.program_id(0)
    head = tl.program_id(1)
    half = tl.arange(0, D // 2)
    source = qkv + row * (HQ + 2 * HK) * D + head * D
    a = tl.load(source + half).to(tl.float32)
    b = tl.load(source + D // 2 + half).to(tl.float32)
    if head < HQ + HK:
        c = tl.load(cos + row * D + half).to(tl.float32)
        s = tl.load(sin + row * D + half).to(tl.float32)
        a, b = a * c - b * s, b * c + a * s
    if head < HQ:
        target = q + (row * HQ + head) * D
        tl.store(target + half, a.to(q.dtype.element_ty))
        tl.store(target + D // 2 + half, b.to(q.dtype.element_ty))
    else:
        where = tl.load(cache_row + row).to(tl.int64)
        place = tl.load(slot + row).to(tl.int64)
        if head < HQ + HK:
            cache = keys + ((where * HK + head - HQ) * S + place) * D
        else:
            cache = values + ((where * HK + head - HQ - HK) * S + place) * D
        tl.store(cache + half, a.to(keys.dtype.element_ty))
        tl.store(cache + D // 2 + half, b.to(keys.dtype.element_ty))


def rope_store(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    cache_row: Tensor,
    slot: Tensor,
    heads: int,
) -> Tensor:
    """Rotate queries and keys, put keys and values into the cache at (row, slot); returns the queries.

    `qkv` (rows, (heads + 2 kv heads) * d), cos, sin (rows, d), keys, values (cache rows, kv heads, slots, d).
    """
    kv, slots, d = keys.shape[1:]
    q = torch.empty(qkv.shape[0], heads, d, device=qkv.device, dtype=qkv.dtype)
    _rope_store_kernel[(qkv.shape[0], heads + 2 * kv)](
        qkv, cos, sin, q, keys, values, cache_row, slot, slots, HQ=heads, HK=kv, D=d,
        num_warps=1, **launch_options(),
    )  # fmt: skip
    return q


# ------------------------------------------------------------------ attention over what is filled
@triton.jit(do_not_specialize=["M", "base", "splits", "count"])
def _attend_kernel(  # type: ignore[no-untyped-def]
    q, keys, values, cache_row, start, length, part, peak, total, M, S, scale, base, splits, count,
    HQ: tl.constexpr, HK: tl.constexpr, D: tl.constexpr, G: tl.constexpr, GP: tl.constexpr,
    BQ: tl.constexpr, BN: tl.constexpr, START: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute attention of BQ queries of one cache row and one kv head to one share of the slots after
    `start`.
    """
    await_previous(PDL)
    block = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    R: tl.constexpr = BQ * GP
    r = tl.arange(0, R)
    query = block * BQ + r // GP
    group = r % GP
    live = (group < G) & (query < M)
    where = tl.load(cache_row + block * BQ).to(tl.int64)
    lengths = tl.load(length + query, mask=live, other=0).to(tl.int32)
    longest = tl.max(lengths, 0)
    low = 0
    if START:
        low = tl.load(start + block * BQ).to(tl.int32)
    share = tl.cdiv(tl.cdiv(longest - low, splits), BN) * BN
    begin = low + split * share
    end = tl.minimum(begin + share, longest)
    d = tl.arange(0, D)
    at = query * HQ + head * G + group
    qs = tl.load(q + at[:, None] * D + d[None, :], mask=live[:, None], other=0.0)
    m = tl.full([R], float("-inf"), tl.float32)
    z = tl.zeros([R], tl.float32)
    acc = tl.zeros([R, D], tl.float32)
    rows = (where * HK + head) * S
    for n in range(begin, end, BN):
        slots = n + tl.arange(0, BN)
        filled = slots < end
        k = tl.load(keys + (rows + slots)[:, None] * D + d[None, :], mask=filled[:, None], other=0.0)
        scores = tl.dot(qs, tl.trans(k)) * scale
        scores = tl.where(slots[None, :] < tl.minimum(lengths, end)[:, None], scores, float("-inf"))
        top = tl.maximum(m, tl.max(scores, 1))
        safe = tl.where(top == float("-inf"), 0.0, top)
        weight = tl.exp(scores - safe[:, None])
        shrink = tl.exp(m - safe)
        z = z * shrink + tl.sum(weight, 1)
        v = tl.load(values + (rows + slots)[:, None] * D + d[None, :], mask=filled[:, None], other=0.0)
        acc = acc * shrink[:, None] + tl.dot(weight.to(v.dtype), v)
        m = top
    release_next(PDL)
    to = at * count + base + split
    tl.store(part + to[:, None] * D + d[None, :], acc, mask=live[:, None])
    tl.store(peak + to, m, mask=live)
    tl.store(total + to, z, mask=live)


@triton.jit
def _combine_kernel(  # type: ignore[no-untyped-def]
    part, peak, total, out, SPLITS: tl.constexpr, SP: tl.constexpr, D: tl.constexpr, PDL: tl.constexpr
):
    await_previous(PDL)
    release_next(PDL)
    at = tl.program_id(0)
    s = tl.arange(0, SP)
    d = tl.arange(0, D)
    m = tl.load(peak + at * SPLITS + s, mask=s < SPLITS, other=float("-inf"))
    z = tl.load(total + at * SPLITS + s, mask=s < SPLITS, other=0.0)
    top = tl.max(m, 0)
    weight = tl.where(m == float("-inf"), 0.0, tl.exp(m - top))
    parts = tl.load(part + (at * SPLITS + s)[:, None] * D + d[None, :], mask=(s < SPLITS)[:, None], other=0.0)
    y = tl.sum(parts * weight[:, None], 0) / tl.sum(z * weight, 0)
    tl.store(out + at * D + d, y.to(out.dtype.element_ty))


_PROGRAMS = 128  # that read the cache at once


def splits_for(blocks: int, kv_heads: int, slots: int, block: int = 1) -> int:
    """Return how many shares each cache row is read in, so that enough programs run; fewer if each writes
    `block` rows.
    """
    wanted = min(16, (_PROGRAMS if block == 1 else 64) // (blocks * kv_heads), slots // 64)
    return 1 << max(0, wanted.bit_length() - 1)


def attend(
    q: Tensor,
    parts: Sequence[CachePart],
    scale: float,
    splits: Sequence[int],
    shape: tuple[int, int, int] | None = None,
) -> Tensor:
    """Compute attention of `q` (rows, heads, d) to the slots that its rows may see; returns (rows, heads *
    d).

    `parts`: the `CachePart`s that together hold a row's text, `splits` in how many shares each is read.
    """
    rows, heads, d = q.shape
    count = sum(splits)
    part = torch.empty(rows, heads, count, d, device=q.device, dtype=torch.float32)
    peak = torch.empty(2, rows, heads, count, device=q.device, dtype=torch.float32)
    base = 0
    for (keys, values, row, length, block, start), shares in zip(parts, splits, strict=True):
        kv, slots = keys.shape[1:3]
        group = heads // kv
        padded = triton.next_power_of_2(max(group, 16 // block if block < 16 else 1))
        few, wide = (64, 4, 3) if block == 1 else (128, 4, 3), (64, 8, 3)
        tile, warps, stages = shape or (few if block * padded <= 32 else wide)
        _attend_kernel[(triton.cdiv(rows, block), kv, shares)](
            q, keys, values, row, length if start is None else start, length, part, *peak, rows, slots,
            scale, base, shares, count, HQ=heads, HK=kv, D=d, G=group, GP=padded, BQ=block, BN=tile,
            START=start is not None, num_warps=warps, num_stages=stages, **launch_options(),
        )  # fmt: skip
        base += shares
    out = torch.empty(rows, heads * d, device=q.device, dtype=q.dtype)
    _combine_kernel[(rows * heads,)](
        part, *peak, out, SPLITS=count, SP=triton.next_power_of_2(count), D=d, num_warps=4, **launch_options()
    )
    return out


# ------------------------------------------------------------------ the most probable token, and p
@triton.jit
def _pick_blocks(  # type: ignore[no-untyped-def]
    logits, rows, inside, masked, best, where, peak, total, V, blocks, span, cn, un,
    BV: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    await_previous(PDL)
    release_next(PDL)
    row = tl.program_id(0)
    block = tl.program_id(1)
    ids = block * BV + tl.arange(0, BV)
    x = tl.load(logits + row.to(tl.int64) * V + ids, mask=ids < V, other=float("-inf"))
    top = tl.max(x, 0)
    at = row * blocks + block
    tl.store(peak + at, top)
    sound = tl.where(ids < V, x - x, 0.0)  # zero, or NaN where a logit is not finite, of either sign
    tl.store(total + at, tl.sum(tl.where(x == float("-inf"), 0.0, tl.exp(x - top)) + sound, 0))
    held = tl.load(rows + row)
    opened = tl.load(inside + held) != 0
    closing = (ids == cn) | (ids == un)
    banned = ((ids == span) & opened) | (closing & (opened == 0))
    x = tl.where(banned & (tl.load(masked + held) != 0), float("-inf"), x)
    value, index = tl.max(x, 0, return_indices=True)
    tl.store(best + at, value)
    tl.store(where + at, block * BV + index)


@triton.jit
def _pick_join(  # type: ignore[no-untyped-def]
    logits, rows, pair, best, where, peak, total, token, p, logsum, V, blocks, cn, un,
    BB: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    await_previous(PDL)
    release_next(PDL)
    row = tl.program_id(0)
    b = tl.arange(0, BB)
    live = b < blocks
    at = row * blocks + b
    _, index = tl.max(tl.load(best + at, mask=live, other=float("-inf")), 0, return_indices=True)
    tl.store(token + row, tl.load(where + row * blocks + index).to(tl.int64))
    m = tl.load(peak + at, mask=live, other=float("-inf"))
    top = tl.max(m, 0)
    parts = tl.load(total + at, mask=live, other=0.0)
    z = tl.sum(tl.where(live, parts * tl.exp(m - top) + (parts - parts), 0.0), 0)
    sound = z - z + top - top  # NaN where anything was not finite
    tl.store(logsum + row, top + tl.log(z))
    if un < 0:
        tl.store(p + row, sound)
    else:
        a = tl.load(logits + row.to(tl.int64) * V + un)
        if tl.load(pair + tl.load(rows + row)) != 0:
            c = tl.load(logits + row.to(tl.int64) * V + cn)
            tl.store(p + row, tl.sigmoid(a - c) + sound)
        else:
            tl.store(p + row, tl.exp(a - top) / z + sound)


def pick(logits: Tensor, held: Tensor, state: Tensor, tags: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the most probable ids (rows,) int64, p and the logarithm of the sum of exponentials; see
    `ops.pick`.
    """
    rows, vocabulary = logits.shape
    size = 2048
    blocks = triton.cdiv(vocabulary, size)
    best, peak, total = torch.empty(3, rows, blocks, device=logits.device, dtype=torch.float32)
    where = torch.empty(rows, blocks, device=logits.device, dtype=torch.int32)
    token = torch.empty(rows, device=logits.device, dtype=torch.int64)
    p, logsum = torch.empty(2, rows, device=logits.device, dtype=torch.float32)
    _pick_blocks[(rows, blocks)](
        logits, held, state[INSIDE], state[MASKED], best, where, peak, total, vocabulary, blocks,
        tags.span, tags.cn, tags.un, BV=size, num_warps=4, **launch_options(),
    )  # fmt: skip
    _pick_join[(rows,)](
        logits, held, state[PAIR], best, where, peak, total, token, p, logsum, vocabulary, blocks,
        tags.cn, tags.un, BB=triton.next_power_of_2(blocks), num_warps=1, **launch_options(),
    )  # fmt: skip
    return token, p, logsum
