"""Triton kernels of the captured decode step: weights and cache are read once, nothing is copied.

Every kernel adds in an order that depends on shapes and lengths alone, never on what else is running, so the
same step on the same cache gives the same bits. `ops.py` holds the same functions in plain torch.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from reverse.decoding.backends.cuda_graph.ops import rotary
from reverse.decoding.backends.cuda_graph.triton_kernels.attention import attend, pick, rope_store, splits_for
from reverse.decoding.backends.cuda_graph.triton_kernels.launching import (
    await_previous,
    launch_options,
    release_next,
)
from reverse.decoding.backends.cuda_graph.triton_kernels.stepping import advance, begin
from reverse.errors import RequestError

MAX_ROWS = 64  # rows that these kernels take
__all__ = [
    "advance", "attend", "begin", "gated", "linear", "pick", "rope_store", "rotary",
    "splits_for",
]  # fmt: skip


# ------------------------------------------------------------------ linear layers of few rows
@functools.cache
def _arrival_counters(device: torch.device) -> torch.Tensor:
    """Return counters of programs that share a sum.

    They are zero between kernels; steps of a device run one at a time.
    """
    return torch.zeros(4096, device=device, dtype=torch.int32)


@triton.jit
def _norm_kernel(x, norm, out, K, eps, BK: tl.constexpr, PDL: tl.constexpr):  # type: ignore[no-untyped-def]
    columns = tl.arange(0, BK)
    inside = columns < K
    g = tl.load(norm + columns, mask=inside, other=0.0).to(tl.float32)
    await_previous(PDL)
    release_next(PDL)
    at = tl.program_id(0) * K + columns
    y = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    y = y * tl.rsqrt(tl.sum(y * y, 0) / K + eps) * g
    tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _part(first, w0, w1, w2, b0, b1, b2, n0, n1, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the matrix that holds output `first`, its bias, and its row within the matrix."""
    w = w0
    b = b0
    at = first
    if PARTS > 1:
        if first >= n0:
            w = w1
            b = b1
            at = first - n0
        if PARTS > 2:  # noqa: SIM102 (known when compiling, unlike `first`)
            if first >= n0 + n1:
                w = w2
                b = b2
                at = first - n0 - n1
    return w, b, at


@triton.jit
def _row_kernel(  # type: ignore[no-untyped-def]
    x, norm, w0, w1, w2, b0, b1, b2, res, out, n0, n1, K, eps,
    NORM: tl.constexpr, BIAS: tl.constexpr, RES: tl.constexpr, GATED: tl.constexpr, PARTS: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute one row: out = rmsnorm(x) @ cat(w0, w1, w2).T + bias + res, or silu(x @ w0.T) * (x @ w1.T).

    The next round's weights are asked for before this one's are used, the first even before `x` is known.
    """
    release_next(PDL)
    first = tl.program_id(0) * BN
    w, b, at = _part(first, w0, w1, w2, b0, b1, b2, n0, n1, PARTS)
    rows = at + tl.arange(0, BN)
    columns = tl.arange(0, BK)
    acc = tl.zeros([BN, BK], tl.float32)
    up = tl.zeros([BN, BK], tl.float32)
    squares = tl.zeros([BK], tl.float32)
    offsets = rows[:, None].to(tl.int64) * K + columns[None, :]
    inside = columns < K
    wk = tl.load(w + offsets, mask=inside[None, :], other=0.0, eviction_policy="evict_first")
    if GATED:
        uk = tl.load(w1 + offsets, mask=inside[None, :], other=0.0, eviction_policy="evict_first")
    if NORM:
        gk = tl.load(norm + columns, mask=inside, other=0.0)
    await_previous(PDL)
    for k in range(0, K, BK):
        xk = tl.load(x + k + columns, mask=columns + k < K, other=0.0).to(tl.float32)
        inside = columns + k + BK < K
        next_w = tl.load(w + offsets + k + BK, mask=inside[None, :], other=0.0, eviction_policy="evict_first")
        if GATED:
            ahead = w1 + offsets + k + BK
            next_u = tl.load(ahead, mask=inside[None, :], other=0.0, eviction_policy="evict_first")
        if NORM:
            next_g = tl.load(norm + columns + k + BK, mask=inside, other=0.0)
            squares += xk * xk
            xk *= gk.to(tl.float32)
            gk = next_g
        acc += wk.to(tl.float32) * xk[None, :]
        wk = next_w
        if GATED:
            up += uk.to(tl.float32) * xk[None, :]
            uk = next_u
    scale = 1.0
    if NORM:
        scale = tl.rsqrt(tl.sum(squares, 0) / K + eps)
    y = tl.sum(acc, 1) * scale
    if GATED:
        y = y * tl.sigmoid(y) * (tl.sum(up, 1) * scale)
    if BIAS:
        y += tl.load(b + rows).to(tl.float32)
    at_out = first + tl.arange(0, BN)
    if RES:
        y += tl.load(res + at_out).to(tl.float32)
    tl.store(out + at_out, y.to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["M", "splits"])
def _rows_kernel(  # type: ignore[no-untyped-def]
    x, w0, w1, w2, b0, b1, b2, res, out, sums, arrived, n0, n1, M, N, K, span, splits,
    BIAS: tl.constexpr, RES: tl.constexpr, GATED: tl.constexpr, PARTS: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr, SHARED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Compute up to BM rows on the matrix units, without the norm; `splits` programs share a sum."""
    tile = tl.program_id(0)
    split = tl.program_id(1)
    first = tile * BN
    w, b, at = _part(first, w0, w1, w2, b0, b1, b2, n0, n1, PARTS)
    lines = tl.arange(0, BM)
    rows = at + tl.arange(0, BN)
    columns = tl.arange(0, BK)
    y = tl.zeros([BN, BM], tl.float32)
    up = tl.zeros([BN, BM], tl.float32)
    live = lines < M
    offsets = rows[:, None].to(tl.int64) * K + columns[None, :]
    x_offsets = lines[:, None] * K + columns[None, :]
    await_previous(PDL)
    for k in range(split * span, tl.minimum(split * span + span, K), BK):
        inside = (columns + k < K) | EVEN
        xt = tl.trans(tl.load(x + x_offsets + k, mask=live[:, None] & inside[None, :], other=0.0))
        wk = tl.load(w + offsets + k, mask=inside[None, :], other=0.0, eviction_policy="evict_first")
        y = tl.dot(wk, xt, y)
        if GATED:
            uk = tl.load(w1 + offsets + k, mask=inside[None, :], other=0.0, eviction_policy="evict_first")
            up = tl.dot(uk, xt, up)
    release_next(PDL)
    last = True
    if SHARED:  # the last program to arrive adds all shares, always in the same order
        spot = tl.arange(0, BN)[:, None] * BM + lines[None, :]
        mine = sums + tile * splits * ((2 if GATED else 1) * BN * BM)
        tl.store(mine + split * (BN * BM) + spot, y)
        if GATED:
            tl.store(mine + (splits + split) * (BN * BM) + spot, up)
        tl.debug_barrier()
        last = tl.atomic_add(arrived + tile, 1, sem="acq_rel") == splits - 1
        if last:
            y = tl.zeros([BN, BM], tl.float32)
            up = tl.zeros([BN, BM], tl.float32)
            for i in range(splits):
                y += tl.load(mine + i * (BN * BM) + spot, cache_modifier=".cg")
                if GATED:
                    up += tl.load(mine + (splits + i) * (BN * BM) + spot, cache_modifier=".cg")
            tl.store(arrived + tile, 0)
    if last:
        if GATED:
            y = y * tl.sigmoid(y) * up
        if BIAS:
            y += tl.load(b + rows).to(tl.float32)[:, None]
        at_out = lines[None, :] * N + first + tl.arange(0, BN)[:, None]
        if RES:
            y += tl.load(res + at_out, mask=live[None, :], other=0.0).to(tl.float32)
        tl.store(out + at_out, y.to(out.dtype.element_ty), mask=live[None, :])


@functools.cache
def measured_shapes(device: int) -> dict[str, list[int]]:
    """Return the measured best shapes on this GPU by matrix size; see `benchmarks/tune_rows.py`."""
    known = json.loads(Path(__file__).with_name("row_shapes.json").read_text("utf-8"))
    return known.get(torch.cuda.get_device_name(device), {})


def _row_shape(n: int, k: int, gated: bool) -> tuple[int, int, int]:
    """Return (BN, BK, warps) for one row: 16 to 32 weights per thread at a time, as measured on an H100."""
    measured = measured_shapes(torch.cuda.current_device()).get(f"{n}x{k}{' gated' if gated else ''}")
    if measured is not None:
        return measured[0], measured[1], measured[2]
    if gated:
        return (1, 1024, 2) if k <= 2048 else (1, 2048, 4)
    if k <= 2048:
        return (4, 1024, 2) if n > 2048 else (2, 1024, 4)
    if k <= 4096:
        return (2, 2048, 4) if n > 4096 else (4, 1024, 2)
    return (1, 4096, 8) if k < 16384 else (4, 1024, 4)


def _rows_shape(rows: int, n: int, k: int) -> tuple[int, int, int, int, int]:
    """Return (BN, BK, warps, stages, splits) for several rows: about 128 programs share long sums of few
    outputs.
    """
    tiles = triton.cdiv(n, 64)
    stages = 3 if rows > 32 else 4 if tiles >= 128 else 5
    return 64, 128, 4, stages, triton.cdiv(128, tiles) if k >= 8192 else 1


def _launch(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    norm: Tensor | None,
    eps: float,
    residual: Tensor | None,
    gated: bool,
    f32: bool,
    shape: Sequence[int] | None,
) -> Tensor:
    rows, k = x.shape
    sizes = [w.shape[0] for w in weights]
    n = sizes[0] if gated else sum(sizes)
    bn, bk, warps, *rest = shape or (_row_shape(n, k, gated) if rows == 1 else _rows_shape(rows, n, k))
    while any(size % bn for size in sizes):
        bn //= 2
    if rows > 1 and bn < 16:
        raise RequestError(f"several rows need outputs in multiples of 16, not {sizes}")
    w = [weights[min(i, len(weights) - 1)] for i in range(3)]
    b = [biases[min(i, len(biases) - 1)] if biases else w[0] for i in range(3)]
    out = torch.empty(rows, n, device=x.device, dtype=torch.float32 if f32 else x.dtype)
    ends = x if residual is None else residual, out
    parts = sizes[0], sizes[1] if len(sizes) > 1 else 0
    flags = {
        "BIAS": bool(biases), "RES": residual is not None, "GATED": gated,
        "PARTS": 1 if gated else len(weights), "BN": bn, "BK": bk, "num_warps": warps, **launch_options(),
    }  # fmt: skip
    if rows == 1:
        g = x if norm is None else norm
        _row_kernel[(n // bn,)](x, g, *w, *b, *ends, *parts, k, eps, NORM=norm is not None, **flags)
        return out
    if norm is not None:
        plain, x = x, torch.empty_like(x)
        wide = triton.next_power_of_2(k)
        _norm_kernel[(rows,)](plain, norm, x, k, eps, BK=wide, num_warps=8, **launch_options())
    bm = max(16, triton.next_power_of_2(rows))
    span = triton.cdiv(triton.cdiv(k, bk), rest[1]) * bk
    splits = triton.cdiv(k, span)
    shared = out, out
    if splits > 1:
        sums = torch.empty(splits, 2 if gated else 1, n, bm, device=x.device, dtype=torch.float32)
        shared = sums, _arrival_counters(x.device)
    _rows_kernel[(n // bn, splits)](
        x, *w, *b, *ends, *shared, *parts, rows, n, k, span, splits,
        BM=bm, EVEN=k % bk == 0, SHARED=splits > 1, num_stages=rest[0], **flags,
    )  # fmt: skip
    return out


def linear(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor] = (),
    norm: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
    f32: bool = False,
    shape: Sequence[int] | None = None,
) -> Tensor:
    """rmsnorm(x) @ cat(weights).T + biases + residual for `x` (rows, k); each weight (n, k)."""
    if not _is_small(x, weights):
        return _vendor_linear(x, weights, biases, norm, eps, residual, f32)
    return _launch(x, weights, biases, norm, eps, residual, False, f32, shape)


def gated(
    x: Tensor, gate: Tensor, up: Tensor, norm: Tensor, eps: float, shape: Sequence[int] | None = None
) -> Tensor:
    """silu(rmsnorm(x) @ gate.T) * (rmsnorm(x) @ up.T)."""
    if not _is_small(x, (gate, up)):
        x = F.rms_norm(x, norm.shape, norm, eps)
        return F.silu(F.linear(x, gate), inplace=True).mul_(F.linear(x, up))
    return _launch(x, (gate, up), (), norm, eps, None, True, False, shape)


def _is_small(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether these kernels handle this number of rows and these sizes of outputs."""
    return x.shape[0] == 1 or (x.shape[0] <= MAX_ROWS and not any(w.shape[0] % 16 for w in weights))


def _vendor_linear(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    norm: Tensor | None,
    eps: float,
    residual: Tensor | None,
    f32: bool,
) -> Tensor:
    """Use the vendor's matrix product: for many rows, where arithmetic is the limit, and odd output sizes."""
    if norm is not None:
        x = F.rms_norm(x, norm.shape, norm, eps)
    parts = [F.linear(x, w, biases[i] if biases else None) for i, w in enumerate(weights)]
    y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
    if residual is not None:
        y = y.add_(residual)
    return y.float() if f32 else y
