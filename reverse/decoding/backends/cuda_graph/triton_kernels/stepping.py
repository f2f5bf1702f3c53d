"""The kernels before and after the layers of a step: one reads the state, one writes the next state."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from reverse.decoding.backends.cuda_graph import row_state as fields
from reverse.decoding.backends.cuda_graph.triton_kernels.launching import (
    await_previous,
    launch_options,
    release_next,
)

__all__ = ["advance", "begin"]

TOKEN, SLOT, ROPE, INSIDE = map(tl.constexpr, (fields.TOKEN, fields.SLOT, fields.ROPE, fields.INSIDE))
POSITION, TEMPERATURE = tl.constexpr(fields.POSITION), tl.constexpr(fields.TEMPERATURE)
AFTER_ACCEPT = tl.constexpr(fields.AFTER_ACCEPT)


@triton.jit
def _begin_kernel(  # type: ignore[no-untyped-def]
    rows, state, embedding, frequencies, x, cos, sin, slots, R, last, E, scale,
    D: tl.constexpr, BE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    await_previous(PDL)
    release_next(PDL)
    i = tl.program_id(0)
    row = tl.load(rows + i)
    e = tl.program_id(1) * BE + tl.arange(0, BE)
    token = tl.load(state + TOKEN * R + row)
    vector = tl.load(embedding + token * E + e, mask=e < E, other=0.0)
    tl.store(x + i * E + e, vector, mask=e < E)
    if tl.program_id(1) == 0:
        slot = tl.minimum(tl.load(state + SLOT * R + row), last)
        tl.store(slots + i, tl.where(row == 0, 0, slot))
        half = tl.arange(0, D // 2)
        angle = tl.load(state + ROPE * R + row).to(tl.float32) * tl.load(frequencies + half)
        c = tl.extra.cuda.libdevice.cos(angle) * scale
        s = tl.extra.cuda.libdevice.sin(angle) * scale
        for first in tl.static_range(0, D, D // 2):
            tl.store(cos + i * D + first + half, c.to(cos.dtype.element_ty))
            tl.store(sin + i * D + first + half, s.to(sin.dtype.element_ty))


def begin(rows: Tensor, state: Tensor, last: int, text: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return embeddings (rows, width), cos and sin (rows, d), and slots (rows,) of the ids that `rows` are
    fed.

    Row 0, which fills up a step, always has slot 0; no slot is beyond `last`.
    """
    count, width, d = rows.shape[0], text.embedding.shape[1], text.head_dim
    x = torch.empty(count, width, device=rows.device, dtype=text.embedding.dtype)
    cos, sin = torch.empty(2, count, d, device=rows.device, dtype=x.dtype)
    slots = torch.empty_like(rows)
    _begin_kernel[(count, triton.cdiv(width, 1024))](
        rows, state, text.embedding, text.frequencies, x, cos, sin, slots, state.shape[1], last, width,
        text.rope_scale, D=d, BE=1024, num_warps=4, **launch_options(),
    )  # fmt: skip
    return x, cos, sin, slots


@triton.jit
def _advance_kernel(  # type: ignore[no-untyped-def]
    rows, state, token, p, logsum, logits, out, R, C, V, last, span, cn, un, PDL: tl.constexpr
):
    await_previous(PDL)
    release_next(PDL)
    i = tl.program_id(0)
    row = tl.load(rows + i)
    chosen = tl.load(token + i)
    closed = (chosen == cn) | (chosen == un)
    at = state + row
    opened = tl.where(closed, 0, tl.load(at + INSIDE * R))
    after = tl.load(at + AFTER_ACCEPT * R)
    temperature = tl.where(closed, after, tl.load(at + TEMPERATURE * R))
    slot = tl.load(at + SLOT * R)
    rope = tl.load(at + ROPE * R)
    position = tl.load(at + POSITION * R)
    tl.store(at + TOKEN * R, chosen)
    tl.store(at + SLOT * R, tl.minimum(slot + 1, last))
    tl.store(at + ROPE * R, rope + 1)
    tl.store(at + INSIDE * R, tl.where(chosen == span, 1, opened))
    tl.store(at + POSITION * R, position + 1)
    tl.store(at + TEMPERATURE * R, temperature)
    tl.store(out + i, chosen.to(tl.float64))
    tl.store(out + C + i, tl.load(p + i).to(tl.float64))
    said = tl.load(logits + i.to(tl.int64) * V + chosen) - tl.load(logsum + i)
    tl.store(out + 2 * C + i, said.to(tl.float64))


def advance(
    rows: Tensor,
    state: Tensor,
    token: Tensor,
    p: Tensor,
    logsum: Tensor,
    logits: Tensor,
    out: Tensor,
    last: int,
    tags: Any,
) -> None:
    """Write the next state of `rows` and what they chose; see `ops.advance`."""
    _advance_kernel[(rows.shape[0],)](
        rows, state, token, p, logsum, logits, out, state.shape[1], out.shape[1], logits.shape[1], last,
        tags.span, tags.cn, tags.un, num_warps=1, **launch_options(),
    )  # fmt: skip
