"""The computation of a captured step: feed one id per row, read p, choose the next id, write the state back.

It is a fixed sequence of operations on fixed tensors and never waits for the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from reverse.decoding.backends.cuda_graph import ops as torch_ops
from reverse.decoding.backends.cuda_graph.ops import CachePart
from reverse.decoding.backends.cuda_graph.row_state import (
    ATTEMPT,
    BLOCK,
    FEED_IDS,
    FEEDS_AT_ONCE,
    GREEDY,
    INSIDE,
    MASKED,
    MERGED,
    NOISE,
    POSITION,
    SAMPLED,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    CaptureConfig,
)
from reverse.decoding.backends.cuda_graph.weights import TextModel
from reverse.decoding.sampling import invert

__all__ = ["StepShape", "run_layers", "run_step"]


@dataclass(frozen=True, slots=True)
class StepShape:
    """The sizes of a step, padding included, and what it is captured with: the key of its graph."""

    plain: int
    groups: int
    group_size: int
    fed_ids: int  # 0: none
    fed_rows: int
    sampling: int
    merges: bool
    config: CaptureConfig

    @property
    def decoded(self) -> int:
        """Number of rows that are fed one id."""
        return self.plain + self.groups * self.group_size


def run_step(runner: Any, shape: StepShape) -> None:
    """Run one step of a `GraphRunner`: read its inputs and state, write state, cache and `out`."""
    count, ops, text = shape.decoded, runner.ops, runner.text
    rows, source, prefix = runner.inputs[:, :count]
    x, cos, sin, slots = ops.begin(rows, runner.state, runner.length - 1, text)
    parts = []
    if shape.plain:
        plain = slice(0, shape.plain)
        parts.append((shape.plain, [_part(runner, rows[plain], slots[plain] + 1)]))
    if shape.groups:
        grouped = slice(shape.plain, count)
        shared = _part(runner, source[grouped], prefix[grouped], block=shape.group_size)
        own = _part(runner, rows[grouped], slots[grouped] + 1, start=prefix[grouped])
        parts.append((count - shape.plain, [shared, own]))
    if not shape.fed_ids:
        x = run_layers(runner, x, cos, sin, rows, slots, parts)
        _choose(runner, x, rows, shape)
        return
    ids, fed_rows, fed_slots, ropes = runner.feeds[: 4 * FEED_IDS].view(4, FEED_IDS)[:, : shape.fed_ids]
    last, ends = runner.feeds[4 * FEED_IDS :].view(2, FEEDS_AT_ONCE)[:, : shape.fed_rows]
    parts.append((shape.fed_ids, [_part(runner, fed_rows, fed_slots + 1, block=BLOCK)]))
    fed_cos, fed_sin = ops.rotary(ropes, text, x.dtype)
    x = run_layers(
        runner,
        torch.cat((x, F.embedding(ids, text.embedding))),
        torch.cat((cos, fed_cos)),
        torch.cat((sin, fed_sin)),
        torch.cat((rows, fed_rows)),
        torch.cat((slots, fed_slots)),
        parts,
    )
    _choose(runner, torch.cat((x[:count], x[count + last])), torch.cat((rows, ends)), shape)


def _part(
    runner: Any, row: torch.Tensor, length: torch.Tensor, block: int = 1, start: torch.Tensor | None = None
) -> CachePart:
    return CachePart(runner.keys, runner.values, row, length, block, start)


def run_layers(
    runner: Any,
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    rows: torch.Tensor,
    slots: torch.Tensor,
    parts: Sequence[tuple[int, list[CachePart]]],
) -> torch.Tensor:
    """Run all layers on embeddings `x` rotated by `cos` and `sin`; return hidden states (queries, width)
    before the last norm.

    Keys and values go to (rows, slots). `parts`: how many queries attend to which parts of the cache.
    """
    text: TextModel = runner.text
    ops, scale = runner.ops, text.head_dim**-0.5
    splits = [[_splits(runner, count, part) for part in held] for count, held in parts]
    for i, layer in enumerate(text.layers):
        keys, values = runner.keys[i], runner.values[i]
        qkv = ops.linear(x, layer.qkv, layer.qkv_bias, layer.norm_in, text.eps)
        q = ops.rope_store(qkv, cos, sin, keys, values, rows, slots, text.heads)
        seen, at = [], 0
        for (count, held), shares in zip(parts, splits, strict=True):
            here = [part._replace(keys=keys, values=values) for part in held]
            seen.append(ops.attend(q[at : at + count], here, scale, shares))
            at += count
        attended = seen[0] if len(seen) == 1 else torch.cat(seen)
        x = ops.linear(attended, (layer.out,), residual=x)
        h = ops.gated(x, layer.gate, layer.up, layer.norm_mlp, text.eps)
        x = ops.linear(h, (layer.down,), residual=x)
    return x


def _splits(runner: Any, queries: int, part: CachePart) -> int:
    if runner.ops is torch_ops:
        return 1
    slots = 256 if part.start is not None else runner.length  # a branch's own ids are few
    return int(runner.ops.splits_for(-(-queries // part.block), runner.text.kv_heads, slots, part.block))


def _choose(runner: Any, x: torch.Tensor, rows: torch.Tensor, shape: StepShape) -> None:
    """Read p, choose the next ids, and write the next state of the rows."""
    text, tags, hook, state = runner.text, shape.config.tags, shape.config.hook, runner.state
    logits = runner.ops.linear(x, (text.head,), norm=text.norm, eps=text.eps, f32=True)
    if hook is not None:
        hook(logits, state[POSITION, rows], state[ATTEMPT, rows])
    token, p, logsum = runner.ops.pick(logits, rows, state, tags)
    if shape.merges and tags.un >= 0:
        token = _merge_closing_tags(logits, token, state[:, rows], tags)
    if shape.sampling != GREEDY:
        token = _sample(logits, token, state[:, rows], runner.noise[rows], shape)
    runner.ops.advance(rows, state, token, p, logsum, logits, runner.out, runner.length - 1, tags)


def _merge_closing_tags(
    logits: torch.Tensor, token: torch.Tensor, state: torch.Tensor, tags: Any
) -> torch.Tensor:
    """Merge closing tags as `sampling.merge_closing_tags` does, in place, for rows that ask for it; return
    their greedy ids.
    """
    merges, closes = state[MERGED] != 0, (state[INSIDE] != 0) | (state[MASKED] == 0)
    cn, un = logits[:, tags.cn].clone(), logits[:, tags.un].clone()
    logits[:, tags.cn] = torch.where(merges, torch.logaddexp(cn, un), cn)
    logits[:, tags.un] = torch.where(merges, -torch.inf, un)
    best = logits.gather(1, token[:, None])[:, 0]  # -inf if `</UN>` was the most probable
    return torch.where(merges & closes & (logits[:, tags.cn] > best), tags.cn, token)


def _sample(
    logits: torch.Tensor, token: torch.Tensor, state: torch.Tensor, noise: torch.Tensor, shape: StepShape
) -> torch.Tensor:
    """Choose as `sampling.choose` does, without waiting for the host to say which rows have a temperature."""
    temperature = state[TEMPERATURE].view(torch.float64)
    scores = torch_ops.mask_tags(logits, state[INSIDE], shape.config.tags, state[MASKED]).double()
    scores /= torch.where(temperature > 0, temperature, 1.0)[:, None]
    if shape.sampling != SAMPLED:
        scores = _truncate(scores, state[TOP_K], state[TOP_P].view(torch.float64))
    noise = noise.gather(1, (state[POSITION] % NOISE)[:, None])
    return torch.where(temperature > 0, invert(scores, noise), token)


def _truncate(scores: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Set scores (rows, vocabulary) beyond each row's `top_k` (0: all) and `top_p` (1: all) to -inf."""
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    size = scores.shape[1]
    last = torch.where((top_k > 0) & (top_k < size), top_k, size) - 1
    least = ordered.gather(1, last[:, None])
    ordered = ordered.masked_fill(ordered < least, -torch.inf)
    weight = ordered.softmax(dim=-1)
    outside = (weight.cumsum(dim=-1) - weight >= top_p[:, None]) & (top_p < 1.0)[:, None]
    return scores.masked_fill((scores < least) | outside.gather(1, order.argsort(dim=-1)), -torch.inf)
