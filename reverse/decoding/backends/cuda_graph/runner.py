"""The device side: keys and values in fixed places, the state of every row, one graph for each kind of step.

A row of the cache holds one sequence. The state of a row is one column of `state`; a step reads it,
feeds one id, chooses the next and writes the column back, so steps can be queued one behind the other without
asking the host. Rewinding is writing a smaller number.

On CUDA a step is captured once for each `StepShape` and replayed; elsewhere it is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from reverse.decoding.backends.cuda_graph import ops as torch_ops
from reverse.decoding.backends.cuda_graph.captured_step import StepShape, run_layers, run_step
from reverse.decoding.backends.cuda_graph.ops import CachePart
from reverse.decoding.backends.cuda_graph.row_state import (
    BLOCK,
    FEED_IDS,
    FEEDS_AT_ONCE,
    FIELDS,
    NOISE,
    CaptureConfig,
    Feed,
    PendingStep,
    RowState,
    StepPlan,
    padded,
    round_up,
)
from reverse.decoding.backends.cuda_graph.weights import TextModel

__all__ = ["GraphRunner"]

_FEED_SIZES = (16, 32, 64, 128, 256, FEED_IDS)  # in which steps with feeds are captured
_FEED_ROWS = (1, 4, FEEDS_AT_ONCE)
_BUFFERS = 4  # on the host: two steps are under way at most


class GraphRunner:
    """Cache, state and captured steps of one model.

    Args: `text` its weights; `rows` sequences side by side, numbered from 1, since row 0 fills up a step;
    `length` ids that a row may hold, prompt included.
    """

    def __init__(self, text: TextModel, rows: int, length: int):
        self.text, self.rows, self.length = text, rows, length
        self.device, self.dtype = text.head.device, text.head.dtype
        self.is_captured = self.device.type == "cuda"
        self.ops: Any = torch_ops
        fits = text.head_dim in (16, 32, 64, 128, 256)
        if self.is_captured and fits and self.dtype in (torch.bfloat16, torch.float16):
            from reverse.decoding.backends.cuda_graph.triton_kernels import kernels

            self.ops = kernels
        self.is_compared = False  # with what the model itself says; see `CudaGraphBackend.add`
        self._graphs: dict[StepShape, torch.cuda.CUDAGraph] = {}
        self._memory: Any = None
        self.keys, self.values = self._new_pool(rows, length)
        self._set_state(*self._new_state(rows))

    # ------------------------------------------------------------------ size
    def _new_pool(self, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (len(self.text.layers), rows + 1, self.text.kv_heads, length, self.text.head_dim)
        return tuple(torch.zeros(shape, device=self.device, dtype=self.dtype) for _ in range(2))  # type: ignore[return-value]

    def _new_state(self, rows: int) -> tuple[torch.Tensor, ...]:
        """Allocate state, noise, inputs, outputs and feeds for a number of rows."""
        columns = 5 * (rows + 1) + 16 + FEEDS_AT_ONCE  # widths are padded, and so are groups
        ids = partial(torch.zeros, device=self.device, dtype=torch.int64)
        numbers = partial(torch.zeros, device=self.device, dtype=torch.float64)
        return (
            ids(FIELDS, rows + 1),
            numbers(rows + 1, NOISE),
            ids(3, columns),
            numbers(3, columns),
            ids(4 * FEED_IDS + 2 * FEEDS_AT_ONCE),
        )

    def _set_state(self, *tensors: torch.Tensor) -> None:
        self.state, self.noise, self.inputs, self.out, self.feeds = tensors
        self._ring = [
            torch.zeros(self.out.shape, dtype=torch.float64, pin_memory=True)
            for _ in range(_BUFFERS if self.is_captured else 0)
        ]
        self._turn = 0
        self._shown: tuple[Any, ...] = ()
        self.forget_graphs()

    def forget_graphs(self) -> None:
        """Drop the captured steps, because the tensors that they read and write have been replaced."""
        if self._graphs:
            torch.cuda.synchronize(self.device)
        self._graphs.clear()
        self._memory = None  # goes with the last graph

    def resize(self, rows: int, length: int) -> None:
        """Grow to at least `rows` rows of at least `length` ids; the rows keep their content, and steps are
        captured anew.

        Everything is allocated before anything changes, so an error of memory changes nothing.
        """
        rows, length = max(rows, self.rows), max(length, self.length)
        if (rows, length) == (self.rows, self.length):
            return
        pool, state = self._new_pool(rows, length), self._new_state(rows)
        held = self.rows + 1
        for new, old in zip(pool, (self.keys, self.values), strict=True):
            new[:, :held, :, : self.length] = old
        state[0][:, :held], state[1][:held] = self.state, self.noise
        self.rows, self.length = rows, length
        self.keys, self.values = pool
        self._set_state(*state)

    @property
    def bytes(self) -> int:
        """Bytes of memory held besides the model: the cache and the state of its rows."""
        held = (self.keys, self.values, self.state, self.noise, self.out)
        return sum(t.numel() * t.element_size() for t in held)

    # ------------------------------------------------------------------ what the host writes
    def load(
        self, row: int, layers: Sequence[tuple[torch.Tensor, torch.Tensor]], source: int, first: int
    ) -> None:
        """Copy row `source` of a prefilled cache, from its slot `first` on, into `row`.

        `layers`: keys and values of each layer, (rows, kv heads, length, head_dim).
        """
        for i, (keys, values) in enumerate(layers):
            count = keys.shape[2] - first
            self.keys[i, row, :, :count] = keys[source, :, first:]
            self.values[i, row, :, :count] = values[source, :, first:]

    def copy_row(self, source: int, targets: Sequence[int], count: int) -> None:
        """Copy the first `count` slots of a row to other rows."""
        for pool in (self.keys, self.values):
            for target in targets:
                pool[:, target, :, :count] = pool[:, source, :, :count]

    def write(self, states: Mapping[int, RowState], noise: Mapping[int, Sequence[float]]) -> None:
        """Set rows; `noise[row]` replaces all its numbers. In order with the steps that are queued."""
        if states:
            columns = list(zip(*(state.column() for state in states.values()), strict=True))
            self.state.index_copy_(1, self._send(list(states)), self._send(columns))
        if noise:
            numbers = self._send(list(noise.values()), torch.float64)
            self.noise.index_copy_(0, self._send(list(noise)), numbers)

    def _send(self, values: Any, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        host = torch.tensor(values, dtype=dtype)
        return host.pin_memory().to(self.device, non_blocking=True) if self.is_captured else host

    def feed_one(self, row: int, token: int, slot: int, rope: int) -> torch.Tensor:
        """Feed one id at `slot` of a row without a captured step; returns float logits (vocabulary,)."""
        tokens, rows, slots, ropes = (self._send([n]) for n in (token, row, slot, rope))
        x = F.embedding(tokens, self.text.embedding)
        cos, sin = self.ops.rotary(ropes, self.text, x.dtype)
        parts = [(1, [CachePart(self.keys, self.values, rows, slots + 1)])]
        x = run_layers(self, x, cos, sin, rows, slots, parts)
        return self.ops.linear(x, (self.text.head,), norm=self.text.norm, eps=self.text.eps, f32=True)[0]

    # ------------------------------------------------------------------ steps
    def launch(self, plan: StepPlan, config: CaptureConfig) -> PendingStep:
        """Queue a step: one id for every row of `plan`, whose states and feeds are set before.

        At most `FEEDS_AT_ONCE` rows and `FEED_IDS` ids are fed; the SLOT and ROPE of a row that is fed are
        those of its last id.
        """
        plain, groups = padded(len(plan.plain)), padded(len(plan.groups))
        size = plan.group_size
        self._show(plan, plain, groups)
        fed_ids = fed_rows = 0
        if plan.feeds:
            total = sum(round_up(len(feed.ids), BLOCK) for feed in plan.feeds)
            fed_ids = next(s for s in _FEED_SIZES if s >= total)
            fed_rows = next(s for s in _FEED_ROWS if s >= len(plan.feeds))
            self._write_feeds(plan.feeds)
        shape = StepShape(
            plain, groups, size if groups else 0, fed_ids, fed_rows, plan.sampling, plan.merges, config
        )
        columns = list(range(len(plan.plain)))
        for i, group in enumerate(plan.groups):
            columns += range(plain + i * size, plain + i * size + len(group))
        columns += range(shape.decoded, shape.decoded + len(plan.feeds))
        return self._run(shape, columns)

    def _show(self, plan: StepPlan, plain: int, groups: int) -> None:
        """Tell the device which rows take part, and where the shared prefix of each stands."""
        size = plan.group_size
        fill = [0] * (plain - len(plan.plain))
        rows, source, prefix = [*plan.plain, *fill], [0] * plain, [0] * plain
        for group, length in zip(plan.groups, plan.prefixes, strict=True):
            rest = [0] * (size - len(group))
            rows += [*group, *rest]
            source += [group[0]] * size
            prefix += [*[length] * len(group), *rest]
        fill = [0] * (size * (groups - len(plan.groups)))
        shown = (*rows, *fill), (*source, *fill), (*prefix, *fill)
        if shown != self._shown and rows:
            self.inputs[:, : len(shown[0])].copy_(self._send(shown))
            self._shown = shown

    def _write_feeds(self, feeds: Sequence[Feed]) -> None:
        """Every row begins a new block of queries, since a block reads one row of the cache."""
        ids, rows, slots, ropes = ([0] * FEED_IDS for _ in range(4))
        last, ends = [0] * FEEDS_AT_ONCE, [0] * FEEDS_AT_ONCE
        at = 0
        for i, feed in enumerate(feeds):
            n = len(feed.ids)
            ids[at : at + n] = feed.ids
            rows[at : at + n] = [feed.row] * n
            slots[at : at + n] = range(feed.slot, feed.slot + n)
            ropes[at : at + n] = range(feed.rope, feed.rope + n)
            last[i], ends[i] = at + n - 1, feed.row
            at += round_up(n, BLOCK)
        self.feeds.copy_(self._send(ids + rows + slots + ropes + last + ends))

    def _run(self, shape: StepShape, columns: list[int]) -> PendingStep:
        if not self.is_captured:
            run_step(self, shape)
            return PendingStep(self.out.clone(), columns, None)
        graph = self._graphs.get(shape)
        if graph is None:
            graph = self._graphs[shape] = self._capture(shape)
        graph.replay()
        self._turn = (self._turn + 1) % len(self._ring)
        host = self._ring[self._turn]
        host.copy_(self.out, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        return PendingStep(host, columns, done)

    def _capture(self, shape: StepShape) -> torch.cuda.CUDAGraph:
        """Run a step twice, which compiles its kernels, put the state back, and capture it."""
        state = self.state.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                run_step(self, shape)
                self.state.copy_(state)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        if self._memory is None:
            self._memory = torch.cuda.graph_pool_handle()
        # Its own default stream belongs to whichever GPU was captured on first in this process.
        with torch.cuda.graph(graph, pool=self._memory, stream=side):
            run_step(self, shape)
        return graph
