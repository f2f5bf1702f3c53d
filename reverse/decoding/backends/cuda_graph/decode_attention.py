"""One kernel for the attention of rows that are fed one id: rotary positions, cache, softmax, sum of shares.

The key and value of the new id go to the cache and, at the same time, straight into the sum; so nothing has
to wait for the cache to be written.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from reverse.decoding.backends.cuda_graph.launching import await_previous, launch_options, release_next

__all__ = ["decode_attention"]


@functools.cache
def _arrival_counters(device) -> torch.Tensor:
    """Counters of programs that share a sum, zero between kernels; steps of a device run one at a time."""
    return torch.zeros(1 << 16, device=device, dtype=torch.int32)


@triton.jit
def _rotated(base, d, c, s, mask, D: tl.constexpr):
    """Vectors at `base` (r, 1) turned by cos `c` and sin `s` (1, D), rounded as the cache holds them."""
    x = tl.load(base + d, mask=mask, other=0.0)
    other = tl.load(base + (d + D // 2) % D, mask=mask, other=0.0).to(tl.float32)
    y = x.to(tl.float32) * c + tl.where(d < D // 2, -other, other) * s
    return y.to(x.dtype)


@triton.jit(do_not_specialize=["splits"])
def _decode_kernel(
    qkv, cos, sin, keys, values, rows, slots, part, peak, total, arrived, out, S, scale, splits,
    HQ: tl.constexpr, HK: tl.constexpr, D: tl.constexpr, G: tl.constexpr, R: tl.constexpr,
    BN: tl.constexpr, SP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One row, one kv head, one share of its slots; the last program of a row and head adds the shares."""
    await_previous(PDL)
    row = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    g = tl.arange(0, R)
    live = (g < G)[:, None]
    d = tl.arange(0, D)[None, :]
    place = tl.load(slots + row).to(tl.int32)
    where = tl.load(rows + row).to(tl.int64)
    c = tl.load(cos + row * D + d).to(tl.float32)
    s = tl.load(sin + row * D + d).to(tl.float32)
    fed = qkv + row * (HQ + 2 * HK) * D
    qs = _rotated(fed + (head * G + g[:, None]) * D, d, c, s, live, D)
    m = tl.full([R], float("-inf"), tl.float32)
    z = tl.zeros([R], tl.float32)
    acc = tl.zeros([R, D], tl.float32)
    cache = (where * HK + head) * S
    if split == 0:
        one = tl.arange(0, 1)[:, None]
        k_new = _rotated(fed + (HQ + head) * D + one, d, c, s, one == 0, D)
        v_new = tl.load(fed + (HQ + HK + head) * D + d)
        tl.store(keys + (cache + place) * D + d, k_new)
        tl.store(values + (cache + place) * D + d, v_new)
        m = tl.sum(qs.to(tl.float32) * k_new.to(tl.float32), 1) * scale
        z = tl.full([R], 1.0, tl.float32)
        acc += v_new.to(tl.float32)
    share = tl.cdiv(tl.cdiv(place, splits), BN) * BN
    begin = split * share
    end = tl.minimum(begin + share, place)
    for n in range(begin, end, BN):
        at = n + tl.arange(0, BN)
        filled = at < end
        k = tl.load(keys + (cache + at)[:, None] * D + d, mask=filled[:, None], other=0.0)
        scores = tl.dot(qs, tl.trans(k)) * scale
        scores = tl.where(filled[None, :], scores, float("-inf"))
        top = tl.maximum(m, tl.max(scores, 1))
        weight = tl.exp(scores - top[:, None])
        shrink = tl.exp(m - top)
        z = z * shrink + tl.sum(weight, 1)
        v = tl.load(values + (cache + at)[:, None] * D + d, mask=filled[:, None], other=0.0)
        acc = acc * shrink[:, None] + tl.dot(weight.to(v.dtype), v)
        m = top
    release_next(PDL)
    query = row * HQ + head * G
    if SP == 1:
        y = acc / z[:, None]
        tl.store(out + (query + g[:, None]) * D + d, y.to(out.dtype.element_ty), mask=live)
    else:
        to = (query + g) * SP + split
        tl.store(part + to[:, None] * D + d, acc, mask=live)
        tl.store(peak + to, m, mask=g < G)
        tl.store(total + to, z, mask=g < G)
        tl.debug_barrier()
        if tl.atomic_add(arrived + row * HK + head, 1, sem="acq_rel") == splits - 1:
            n = tl.arange(0, SP)
            for i in tl.static_range(G):
                shares = (query + i) * SP + n
                there = n < splits
                ms = tl.load(peak + shares, mask=there, other=float("-inf"), cache_modifier=".cg")
                zs = tl.load(total + shares, mask=there, other=0.0, cache_modifier=".cg")
                top_of = tl.max(ms, 0)
                factor = tl.where(ms == float("-inf"), 0.0, tl.exp(ms - top_of))
                each = shares[:, None] * D + d
                xs = tl.load(part + each, mask=there[:, None], other=0.0, cache_modifier=".cg")
                y = tl.sum(xs * factor[:, None], 0) / tl.sum(zs * factor, 0)
                tl.store(out + (query + i) * D + tl.arange(0, D), y.to(out.dtype.element_ty))
            tl.store(arrived + row * HK + head, 0)


def decode_attention(qkv, cos, sin, keys, values, rows, slots, heads, scale, splits, shape=None):
    """Store what is fed at (rows, slots) and attend to it and to all slots before; (queries, heads * d).

    See `ops.decode_attention`; each row's slots are read in `splits` shares.
    """
    count, (kv, size, d) = qkv.shape[0], keys.shape[1:]
    group = heads // kv
    padded = triton.next_power_of_2(splits)
    out = torch.empty(count, heads * d, device=qkv.device, dtype=qkv.dtype)
    shares = count * heads * padded if padded > 1 else 1
    part = torch.empty(shares * d, device=qkv.device, dtype=torch.float32)
    peak, total = torch.empty(2, shares, device=qkv.device, dtype=torch.float32)
    tile, warps, stages = shape or (64, 4, 3)
    _decode_kernel[(count, kv, splits)](
        qkv, cos, sin, keys, values, rows, slots, part, peak, total, _arrival_counters(qkv.device), out,
        size, scale, splits, HQ=heads, HK=kv, D=d, G=group, R=max(16, triton.next_power_of_2(group)),
        BN=tile, SP=padded, num_warps=warps, num_stages=stages, **launch_options(),
    )  # fmt: skip
    return out
