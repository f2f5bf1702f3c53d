"""The device side: keys and values in fixed places, the state of every strand, one graph for each step.

A strand is something that decodes: a row in a lane of the main pool, or a candidate in a lane of the small
pool, which sees its parent's lane up to a fixed length and then its own. What a strand is doing stands in
one column of `state`; a step reads it, feeds one token, chooses the next and writes the column back, so
steps can be queued one behind the other without asking the host. Rewinding is writing a smaller number.

On CUDA a step is captured once for each number of strands and replayed; elsewhere it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from reverse.decoding.sampling import invert
from reverse.decoding.static import ops as torch_ops
from reverse.decoding.static.state import (
    ATTEMPT,
    BLOCK,
    CALM,
    FEED_IDS,
    FEEDS_AT_ONCE,
    HEAT,
    INSIDE,
    NOISE,
    PARENT,
    POSITION,
    PREFIX,
    ROPE,
    SLOT,
    TOKEN,
    Feed,
    Reading,
    Style,
    Ticket,
    ceiling,
)
from reverse.decoding.static.weights import TextModel

__all__ = ["Engine"]

_SIZES = (16, 32, 64, 128, 256, FEED_IDS)  # in which steps with feeds are captured


class Engine:
    """Pools, state and captured steps of one model.

    Args: `text` its weights; `lanes` rows side by side; `slots` ids a row may hold, prompt included.
    """

    def __init__(self, text: TextModel, lanes: int, slots: int):
        self.text, self.lanes, self.slots = text, lanes, slots
        self.device, self.dtype = text.head.device, text.head.dtype
        self.graphed = self.device.type == "cuda"
        self.ops: Any = torch_ops
        fits = text.head_dim in (16, 32, 64, 128, 256)
        if self.graphed and fits and self.dtype in (torch.bfloat16, torch.float16):
            from reverse.decoding.static import kernels

            self.ops = kernels
        self.candidates = self.candidate_slots = 0
        self.scratch = lanes  # the strand and lane that fill up a step
        self.keys, self.values = self._pool(lanes + 1, slots)
        self.side_keys, self.side_values = self._pool(1, 1)
        self.compared = False  # with what the model itself says; see `StaticBackend`
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._memory: Any = None
        self._set_strands()

    def _pool(self, lanes: int, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (len(self.text.layers), lanes, self.text.kv_heads, slots, self.text.head_dim)
        return tuple(torch.zeros(shape, device=self.device, dtype=self.dtype) for _ in range(2))  # type: ignore[return-value]

    def _set_strands(self, old: int = 0) -> None:
        """Fresh state for every strand; the first `old` keep theirs."""
        count = self.lanes + 1 + self.candidates
        state = torch.zeros(CALM + 1, count, device=self.device, dtype=torch.int64)
        noise = torch.zeros(count, NOISE, device=self.device, dtype=torch.float64)
        if old:
            state[:, :old], noise[:old] = self.state[:, :old], self.noise[:old]
        self.state: torch.Tensor = state
        self.noise: torch.Tensor = noise
        columns = 2 * ceiling(count) + FEEDS_AT_ONCE
        self._strands = torch.full((columns,), self.scratch, device=self.device, dtype=torch.int64)
        self._out = torch.zeros(2, columns, device=self.device, dtype=torch.float64)
        self._feeds = torch.zeros(4 * FEED_IDS + 2 * FEEDS_AT_ONCE, device=self.device, dtype=torch.int64)
        # Two rounds are under way at most, each of one step for all rows and one for each fork.
        self._ring = [
            torch.zeros(2, columns, dtype=torch.float64, pin_memory=self.graphed)
            for _ in range(4 * (count + 2) if self.graphed else 0)
        ]
        self._turn = 0
        self._shown: tuple[int, ...] = ()
        self._forget()

    def _forget(self) -> None:
        """Drop captured steps: the tensors that they read and write are others now."""
        if self._graphs:
            torch.cuda.synchronize(self.device)
        self._graphs.clear()
        self._memory = None  # goes with the last graph

    def make_room(self, slots: int) -> None:
        """Lanes of more slots; what they hold is kept. Steps are captured anew."""
        keys, values, old = self.keys, self.values, self.slots
        self.slots = slots
        self.keys, self.values = self._pool(self.lanes + 1, slots)
        self.keys[..., :old, :], self.values[..., :old, :] = keys, values
        self._forget()

    def make_candidates(self, count: int, slots: int) -> None:
        """Lanes for candidates, none of which may be in use."""
        self.candidates, self.candidate_slots = count, slots
        self.side_keys, self.side_values = self._pool(count + 1, slots)
        self._set_strands(self.lanes)

    @property
    def bytes(self) -> int:
        """Memory held beside the model: pools and state."""
        held = (self.keys, self.values, self.side_keys, self.side_values, self.state, self.noise, self._out)
        return sum(t.numel() * t.element_size() for t in held)

    # ------------------------------------------------------------------ what the host writes
    def load(
        self, lane: int, layers: Sequence[tuple[torch.Tensor, torch.Tensor]], row: int, first: int
    ) -> None:
        """Take row `row` of a prefilled cache, from slot `first` on, into `lane`.

        `layers`: keys and values of each layer, (rows, kv heads, length, head_dim).
        """
        for i, (keys, values) in enumerate(layers):
            count = keys.shape[2] - first
            self.keys[i, lane, :, :count] = keys[row, :, first:]
            self.values[i, lane, :, :count] = values[row, :, first:]

    def set(self, readings: dict[int, Reading], noise: dict[int, Sequence[float]] | None = None) -> None:
        """Set strands; `noise[strand]` replaces all its numbers."""
        if readings:
            self.state.index_copy_(
                1,
                self._send(list(readings)),
                self._send(list(zip(*(r.column() for r in readings.values()), strict=True))),
            )
        for strand, numbers in (noise or {}).items():
            self.noise[strand].copy_(self._send(list(numbers), torch.float64))

    def _send(self, values: Any, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        host = torch.tensor(values, dtype=dtype)
        return host.pin_memory().to(self.device, non_blocking=True) if self.graphed else host

    def adopt(self, lane: int, prefix: int, candidate: int, count: int) -> None:
        """Copy the first `count` slots of a candidate behind `prefix` slots of a lane."""
        self.keys[:, lane, :, prefix : prefix + count] = self.side_keys[:, candidate, :, :count]
        self.values[:, lane, :, prefix : prefix + count] = self.side_values[:, candidate, :, :count]

    def clear(self, lane: int, candidates: Sequence[int]) -> None:
        """Zero a lane, and lanes of candidates, after NaN has been in them."""
        self.keys[:, lane], self.values[:, lane] = 0, 0
        for candidate in candidates:
            self.side_keys[:, candidate], self.side_values[:, candidate] = 0, 0

    def feed_one(self, lane: int, token: int, slot: int, rope: int) -> torch.Tensor:
        """Feed one id at `slot` of a lane, called and not captured; returns float logits (vocabulary,)."""
        tokens, lanes, slots, ropes = (self._send([n]) for n in (token, lane, slot, rope))
        parts = [(1, [(self.keys, self.values, lanes, (slots + 1).int(), 1)])]
        x = self._layers(tokens, ropes, parts, lanes, slots)
        return self.ops.linear(x, (self.text.head,), norm=self.text.norm, eps=self.text.eps, f32=True)[0]

    # ------------------------------------------------------------------ steps
    def step(self, strands: Sequence[int], feeds: Sequence[Feed], style: Style, warm: bool) -> Ticket:
        """One token for rows of the main pool; rows that are fed first stand after the others.

        At most `FEEDS_AT_ONCE` rows and `FEED_IDS` ids are fed in one step; their SLOT and ROPE are set to
        those of the last id.
        """
        width = ceiling(len(strands)) if strands else 0
        self._show(strands, width)
        size = rows = 0
        if feeds:
            total = sum(ceiling(len(f.ids), BLOCK) for f in feeds)
            size, rows = next(s for s in _SIZES if s >= total), 1 if len(feeds) == 1 else FEEDS_AT_ONCE
            self._write_feeds(feeds)
        picked = [*range(len(strands)), *range(width, width + len(feeds))]
        call = partial(self._step, width, size, rows, style, warm)
        return self._go(("step", width, size, rows, warm, style), call, picked)

    def fork(self, strands: Sequence[int], style: Style, warm: bool) -> Ticket:
        """One token for candidates of one parent."""
        width = ceiling(len(strands))
        self._show(strands, width)
        call = partial(self._step, width, 0, 0, style, warm, True)
        return self._go(("fork", width, warm, style), call, list(range(len(strands))))

    def _show(self, strands: Sequence[int], width: int) -> None:
        shown = (*strands, *[self.scratch] * (width - len(strands)))
        if shown != self._shown:
            self._strands[:width].copy_(self._send(list(shown)))
            self._shown = shown

    def _write_feeds(self, feeds: Sequence[Feed]) -> None:
        """Every row begins a new block of queries, since a block reads one lane."""
        ids, lanes, slots, ropes = ([0] * FEED_IDS for _ in range(4))
        lanes = [self.scratch] * FEED_IDS
        last, strands = [0] * FEEDS_AT_ONCE, [self.scratch] * FEEDS_AT_ONCE
        at = 0
        for i, feed in enumerate(feeds):
            n = len(feed.ids)
            ids[at : at + n] = feed.ids
            lanes[at : at + n] = [feed.strand] * n
            slots[at : at + n] = range(feed.slot, feed.slot + n)
            ropes[at : at + n] = range(feed.rope, feed.rope + n)
            last[i], strands[i] = at + n - 1, feed.strand
            at += ceiling(n, BLOCK)
        self._feeds.copy_(self._send(ids + lanes + slots + ropes + last + strands))

    def _go(self, key: Hashable, call: Callable[[], None], picked: list[int]) -> Ticket:
        if not self.graphed:
            call()
            return Ticket(self._out.clone(), picked, None)
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = self._capture(call)
        graph.replay()
        self._turn = (self._turn + 1) % len(self._ring)
        host = self._ring[self._turn]
        host.copy_(self._out, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        return Ticket(host, picked, done)

    def _capture(self, call: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Run a step once, which compiles its kernels, put the state back, and capture it."""
        state = self.state.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                call()
                self.state.copy_(state)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        if self._memory is None:
            self._memory = torch.cuda.graph_pool_handle()
        # Its own default stream belongs to whichever GPU was captured on first in this process.
        with torch.cuda.graph(graph, pool=self._memory, stream=side):
            call()
        return graph

    # ------------------------------------------------------------------ what is captured
    def _step(self, width: int, size: int, rows: int, style: Style, warm: bool, forked: bool = False) -> None:
        strands = self._strands[:width]
        st = self.state[:, strands]
        limit = (self.candidate_slots if forked else self.slots) - 1
        slot = st[SLOT].clamp(max=limit)  # of the scratch strand, which was elsewhere before
        length = (slot + 1).int()
        if forked:
            lane = (strands - self.scratch - 1) % (self.candidates + 1)
            parts = [
                (
                    width,
                    [
                        (self.keys, self.values, st[PARENT], st[PREFIX].int(), width),
                        (self.side_keys, self.side_values, lane, length, 1),
                    ],
                )
            ]
        else:
            lane = strands
            parts = [(width, [(self.keys, self.values, lane, length, 1)])] if width else []
        tokens, rope = st[TOKEN], st[ROPE]
        if size:
            ids, lanes, slots, ropes = self._feeds[: 4 * FEED_IDS].view(4, FEED_IDS)[:, :size]
            last, fed = self._feeds[4 * FEED_IDS :].view(2, FEEDS_AT_ONCE)[:, :rows]
            parts.append((size, [(self.keys, self.values, lanes, (slots + 1).int(), BLOCK)]))
            tokens, rope = torch.cat((tokens, ids)), torch.cat((rope, ropes))
            lane, slot = torch.cat((lane, lanes)), torch.cat((slot, slots))
            x = self._layers(tokens, rope, parts, lane, slot)
            x = torch.cat((x[:width], x[width + last]))
            strands = torch.cat((strands, fed))
            st = self.state[:, strands]
        else:
            x = self._layers(tokens, rope, parts, lane, slot)
        self._choose(x, strands, st, style, warm, limit)

    def _layers(
        self,
        tokens: torch.Tensor,
        rope: torch.Tensor,
        parts: Sequence[tuple[int, Any]],
        lane: torch.Tensor,
        slot: torch.Tensor,
    ) -> torch.Tensor:
        """Hidden states (rows, width) before the last norm.

        `parts`: how many rows attend to which pools; keys and values go to (lane, slot) of the last pool.
        """
        text, ops = self.text, self.ops
        x = F.embedding(tokens, text.embedding)
        angle = rope[:, None].float() * text.frequencies
        angle = torch.cat((angle, angle), dim=-1)
        cos, sin = ((f * text.rope_scale).to(self.dtype) for f in (angle.cos(), angle.sin()))
        keys, values = parts[0][1][-1][:2]
        scale = text.head_dim**-0.5
        for i, layer in enumerate(text.layers):
            qkv = ops.linear(x, layer.qkv, layer.qkv_bias, layer.norm_in, text.eps)
            q = ops.rope_store(qkv, cos, sin, keys[i], values[i], lane, slot, text.heads)
            seen, at = [], 0
            for rows, pools in parts:
                here = [(k[i], v[i], *rest) for k, v, *rest in pools]
                seen.append(ops.attend(q[at : at + rows], here, scale, self._splits(rows, pools[0][4])))
                at += rows
            a = seen[0] if len(seen) == 1 else torch.cat(seen)
            x = ops.linear(a, (layer.out,), residual=x)
            h = ops.gated(x, layer.gate, layer.up, layer.norm_mlp, text.eps)
            x = ops.linear(h, (layer.down,), residual=x)
        return x

    def _splits(self, rows: int, block: int) -> int:
        if self.ops is torch_ops:
            return 1
        return int(self.ops.splits_for(-(-rows // block), self.text.kv_heads, self.slots, block))

    def _choose(
        self, x: torch.Tensor, strands: torch.Tensor, st: torch.Tensor, style: Style, warm: bool, limit: int
    ) -> None:
        """Read p, choose, and write the strands' next state."""
        text, tags = self.text, style.tags
        logits = self.ops.linear(x, (text.head,), norm=text.norm, eps=text.eps, f32=True)
        if style.hook is not None:
            style.hook(logits, st[POSITION], st[ATTEMPT])
        inside = st[INSIDE]
        token, p = self.ops.pick(logits, inside.int(), tags, style.well_formed, style.pair)
        if warm:
            token = self._draw(logits, token, strands, st, style)
        closed = (token == tags.cn) | (token == tags.un)
        opened = torch.where(closed, 0, inside)
        opened = torch.where(token == tags.span, 1, opened)
        following = torch.stack(
            (
                token,
                (st[SLOT] + 1).clamp(max=limit),
                st[PREFIX],
                st[PARENT],
                st[ROPE] + 1,
                opened,
                st[POSITION] + 1,
                st[ATTEMPT],
                torch.where(closed, st[CALM], st[HEAT]),  # should it be rejected, the host sets it anew
                st[CALM],
            )
        )
        self.state.index_copy_(1, strands, following)
        self._out[0, : token.shape[0]] = token.double()
        self._out[1, : token.shape[0]] = p.double()

    def _draw(
        self, logits: torch.Tensor, token: torch.Tensor, strands: torch.Tensor, st: torch.Tensor, style: Style
    ) -> torch.Tensor:
        """As `sampling.choose`, without asking the host which rows are warm."""
        heat = st[HEAT].view(torch.float64)
        scores = torch_ops.banned(logits, st[INSIDE], style.tags) if style.well_formed else logits
        scores = scores.double() / torch.where(heat > 0, heat, 1.0)[:, None]
        if 0 < style.top_k < scores.shape[1]:
            least = scores.topk(style.top_k, dim=-1).values[:, -1:]
            scores = scores.masked_fill(scores < least, -torch.inf)
        if style.top_p < 1.0:
            ordered, order = scores.sort(dim=-1, descending=True, stable=True)
            weight = ordered.softmax(dim=-1)
            outside = weight.cumsum(dim=-1) - weight >= style.top_p
            scores = scores.masked_fill(outside.gather(1, order.argsort(dim=-1)), -torch.inf)
        noise = self.noise[strands].gather(1, (st[POSITION] % NOISE)[:, None])
        return torch.where(heat > 0, invert(scores, noise), token)
