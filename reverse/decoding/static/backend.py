"""Rows on the captured engine: what the loop asks for, one step ahead of what has been read.

A step is launched before the one before it was read, since most of the time its input is what that one
chose. Where a segment ended and the row goes on from there, the step ahead is its next one; where the row
went back, what the step ahead says about it is thrown away. So a rewind costs one step of one row.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch

from reverse.decoding import _hf
from reverse.decoding.backend import Draw, OutOfMemory, Prefill, RowFault, Run, not_finite
from reverse.decoding.sampling import uniform
from reverse.decoding.static.engine import Engine
from reverse.decoding.static.rows import Item, Row, Strand, common, is_warm, replace, same_dice, up
from reverse.decoding.static.state import (
    FEED_IDS,
    FEEDS_AT_ONCE,
    NOISE,
    Feed,
    Reading,
    Style,
    fed_size,
)
from reverse.models import family_of
from reverse.tokens.spans import TokenIds

__all__ = ["AT_ONCE", "DifferentLogits", "StaticBackend"]

AT_ONCE = 16  # rows prefilled together: their keys and values are held twice for a moment
_HINTS = 128  # ids that hints may take before lanes must grow


def _device_side(verb: Callable[..., Any]) -> Callable[..., Any]:
    """For verbs that touch the device: no graph of gradients, and OutOfMemory in place of torch's error."""

    @wraps(verb)
    def run(self: StaticBackend, *args: Any) -> Any:
        try:
            with torch.no_grad():
                return verb(self, *args)
        except torch.OutOfMemoryError as error:
            self.emptied()
            raise OutOfMemory(str(error)) from error

    return run


class DifferentLogits(ValueError):
    """The captured step does not compute what the model computes."""


def _compare(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether a step's logits for a prompt could be compared with those of the model's own forward pass.

    Done once for each engine: it tells of whatever `find_modification` does not know. Half precision rounds
    the two differently, by about a hundredth; another computation differs by the size of the logits.
    Raises DifferentLogits where they are not the same.
    """
    most = 0.25 if expected.dtype in (torch.bfloat16, torch.float16) else 1e-3
    found, expected = found.double(), expected.double()
    if not bool(torch.isfinite(expected).all()):  # a fault of the model, which the first step reports
        return False
    difference = float((found - expected).norm() / expected.norm().clamp(min=1e-12))
    if not difference <= most:
        raise DifferentLogits(
            "a step read from the weights gives other logits than the model's forward pass (by "
            f"{difference:.1%} of their size), so something in it was changed"
        )
    return True


class StaticBackend:
    """Rows in the lanes of an `Engine`.

    Args: `open_engine(lanes, slots)` gives an engine of at least that size; `slots` rows at once; `style`
    what steps are captured with; `candidates` the most of one fork.
    """

    def __init__(
        self,
        model: Any,
        open_engine: Callable[[int, int], Engine],
        *,
        style: Style,
        slots: int,
        candidates: int = 1,
    ):
        self.model, self.style = model, style
        self.slots, self.candidates = slots, candidates
        self.engine: Engine | None = None
        self.rows: dict[int, Row] = {}
        self.discarded_steps = 0  # of one row each: looked ahead in vain
        self._context = family_of(model).context_length(model.config)
        self._open_engine = open_engine
        self._lanes = list(range(slots))[::-1]
        self._spare: list[int] = []  # strands for candidates
        self._handles = 0
        self._asked = 0  # rows that are being admitted
        self._rounds: deque[list[Item]] = deque()
        self._faults: list[RowFault] = []  # of the last step read, not raised yet
        self._ended: list[tuple[int, int, Run]] = []  # in a step that had faults, not returned yet
        self._spoilt: set[int] = set()  # rows whose lane holds what is not finite

    @property
    def tags(self) -> TokenIds:
        return self.style.tags

    def free(self) -> int:
        return min(len(self._lanes), AT_ONCE)

    # ------------------------------------------------------------------ rows come and go
    @_device_side
    def admit(self, batch: Prefill) -> list[int]:
        self._asked = batch.input_ids.shape[0]
        rows = self._admit(batch)
        self._asked = 0
        return rows

    def emptied(self) -> None:
        """Let go of everything, where memory ran out; the next engine has lanes for half the rows."""
        lanes = max(1, min(self.slots, len(self.rows) + self._asked) // 2)
        self._asked = 0
        self.rows.clear()
        self._rounds.clear()
        self._spare.clear()
        self._spoilt.clear()
        self.engine, self.slots = None, lanes
        self._lanes = list(range(lanes))[::-1]

    @property
    def device(self) -> Engine:
        assert self.engine is not None, "nothing was admitted"
        return self.engine

    def _admit(self, batch: Prefill) -> list[int]:
        mask = batch.kwargs.get("attention_mask")
        length = batch.input_ids.shape[1]
        # No row outgrows the context, whatever length was asked for.
        slots = up(min(batch.config.max_length + _HINTS, self._context), 128)
        if self.engine is None:
            self.engine = self._open_engine(self.slots, slots)
            spare = self.engine.scratch + 1
            self._spare = list(range(spare, spare + self.engine.candidates))
        elif slots > self.engine.slots:
            self.engine.make_room(slots)
        logits, cache, distance = _hf.prefill(self.model, batch)
        layers = _hf.layers(cache)
        handles = []
        for i, ids in enumerate(batch.input_ids.tolist()):
            first = 0 if mask is None else int((mask[i] == 0).sum())
            lane = self._lanes.pop()
            self.engine.load(lane, layers, i, first)
            # The last id is fed again: the first choice comes from the same step as all others.
            turn = 0 if distance is None else int(distance[i])
            self.rows[self._handles] = Row(lane, ids[first:], turn, batch.eos, length - first - 1)
            if not self.engine.compared:
                found = self.engine.feed_one(lane, ids[-1], length - first - 1, length - first - 1 + turn)
                self.engine.compared = _compare(found, logits[i])
            handles.append(self._handles)
            self._handles += 1
        return handles

    def finish(self, row: int) -> None:
        state = self.rows.pop(row, None)
        if state is None:  # memory ran out
            return
        if row in self._spoilt:  # a masked NaN would still be one in the next row's sums
            self._spoilt.discard(row)
            self.device.clear(state.lane, [s.number - self.device.scratch - 1 for s in state.forked])
        self._drop_fork(state)
        if state.strand is not None:
            state.strand.ended = True
        self._lanes.append(state.lane)

    def close(self) -> None:
        self.rows.clear()
        self._rounds.clear()

    # ------------------------------------------------------------------ verbs
    @_device_side
    def rewind(self, row: int, ids: Sequence[int]) -> None:
        state = self.rows[row]
        self._drop_fork(state)
        shared = common(state.ids, ids)
        if shared < len(state.ids) or shared < len(ids):
            state.ahead = False
            state.cached = min(state.cached, shared, len(ids) - 1)
            state.ids = list(ids)

    @_device_side
    def start(self, row: int, draw: Draw) -> None:
        state = self.rows[row]
        before = state.strand
        strand = Strand(state.lane, row, 0, draw)
        if state.ahead and before is not None and same_dice(before.draw, draw):
            strand.noise_to = before.noise_to
            replace(self._rounds, before, strand)  # the step ahead is this segment's first
            state.strand = strand
            return
        if before is not None:
            before.ended = True
        state.strand = strand
        state.ahead = False
        self._fit(len(state.ids) + draw.room)
        noise = self._noise(strand)
        self.device.set({state.lane: self._reading(state, draw)}, noise)

    @_device_side
    def fork(self, row: int, draws: Sequence[Draw]) -> None:
        state = self.rows[row]
        self._drop_fork(state)
        if state.strand is not None:
            state.strand.ended = True
            state.strand = None
        state.ahead = False
        state.fed = state.cached >= len(state.ids) - 1
        state.waiting = list(draws)
        self._fit(len(state.ids) + max(draw.room for draw in draws))

    def _fit(self, ids: int) -> None:
        """Longer lanes, where hints grew beyond what was expected."""
        if ids + 2 > self.device.slots:
            self.device.make_room(up(ids + 2, 128))

    @_device_side
    def adopt(self, row: int, candidate: int) -> int:
        state = self.rows[row]
        chosen = state.forked[candidate]
        prefix = len(state.ids) - 1
        self.device.adopt(state.lane, prefix, chosen.number - self.device.scratch - 1, len(chosen.run))
        running = sum(len(s.run) for s in state.forked if not s.ended)
        state.ids = state.ids + chosen.run
        state.cached = len(state.ids) - 1
        self._drop_fork(state)
        return running

    def _drop_fork(self, state: Row) -> None:
        for strand in state.forked:
            strand.ended = True
            self._spare.append(strand.number)
        state.forked, state.waiting = [], []

    @_device_side
    def extend(self) -> list[tuple[int, int, Run]]:
        while True:
            while self._faults:
                fault = self._faults.pop(0)
                if fault.row in self.rows:
                    raise fault
            ended, self._ended = [each for each in self._ended if each[0] in self.rows], []
            if ended:
                return ended
            if not self._rounds and not self._launch():
                return []
            self._launch()
            self._ended = self._read(self._rounds.popleft())

    # ------------------------------------------------------------------ launching
    def _launch(self) -> bool:
        """Queue a step for everything that is decoding; False where there is nothing."""
        active: list[Strand] = []
        feeds: list[tuple[Strand | None, Feed]] = []
        size = 0
        forks: list[list[Strand]] = []
        for handle, row in self.rows.items():
            if row.waiting or row.forked:
                if not row.fed:
                    size = self._feed(row, None, feeds, size)
                elif row.waiting:
                    self._set_out(handle, row)
                if running := [s for s in row.forked if not s.ended]:
                    forks.append(running)
            elif row.strand is not None and not row.strand.ended:
                if row.cached < len(row.ids) - 1:
                    size = self._feed(row, row.strand, feeds, size)
                else:
                    active.append(row.strand)
        items: list[Item] = []
        if active or feeds:
            for strand in active:
                self._keep_dicing(strand)
            warm = any(s is not None and is_warm(s.draw) for s in (*active, *(s for s, _ in feeds)))
            ticket = self.device.step([s.number for s in active], [f for _, f in feeds], self.style, warm)
            items.append((ticket, [*active, *(s for s, _ in feeds)]))
        for strands in forks:
            for strand in strands:
                self._keep_dicing(strand)
            warm = any(is_warm(s.draw) for s in strands)
            items.append((self.device.fork([s.number for s in strands], self.style, warm), list(strands)))
        if items:
            self._rounds.append(items)
        return bool(items)

    def _feed(
        self, row: Row, strand: Strand | None, feeds: list[tuple[Strand | None, Feed]], size: int
    ) -> int:
        """Feed what the row's lane lacks, as far as it fits into this step; the rest waits."""
        missing = row.ids[row.cached :]
        fits = FEED_IDS - size
        if len(feeds) == FEEDS_AT_ONCE or (fed_size(len(missing)) > fits and feeds):
            return size
        whole = len(missing) <= fits
        # At least two stay behind: a row that lacks only its last id counts as one whose state is set.
        part = missing if whole else missing[: min(fits, len(missing) - 2)]
        draw = strand.draw if strand is not None else None
        reading = self._reading(row, draw, row.cached + len(part))
        self.device.set({row.lane: reading})
        feeds.append((strand if whole else None, Feed(row.lane, part, row.cached, row.cached + row.distance)))
        row.cached += len(part)
        row.fed = row.cached >= len(row.ids) - 1
        if whole:
            row.cached = len(row.ids)
        return size + fed_size(len(part))

    def _reading(self, row: Row, draw: Draw | None, length: int | None = None) -> Reading:
        """The lane's strand as it stands when the last of `length` ids is about to be fed."""
        at = (len(row.ids) if length is None else length) - 1
        draw = draw or Draw(0, 0.0, 0, 0, 0)
        heats = draw.temperature, draw.calm
        return Reading(row.ids[at], at, at + row.distance, draw.position, draw.attempt, *heats)

    def _set_out(self, handle: int, row: Row) -> None:
        """Give the candidates of a fork their strands, once there are enough."""
        if len(self._spare) < len(row.waiting):
            if any(other.forked for other in self.rows.values()):
                return
            self._make_candidates(max(len(row.waiting), self.candidates), max(d.room for d in row.waiting))
        need = max(d.room for d in row.waiting) + 1
        if need > self.device.candidate_slots:
            if any(other.forked for other in self.rows.values()):
                return
            self._make_candidates(self.device.candidates, need)
        at = len(row.ids) - 1
        readings: dict[int, Reading] = {}
        noise: dict[int, Sequence[float]] = {}
        for i, draw in enumerate(row.waiting):
            strand = Strand(self._spare.pop(), handle, i, draw)
            row.forked.append(strand)
            noise |= self._noise(strand)
            heats = draw.temperature, draw.calm
            readings[strand.number] = Reading(
                row.ids[at], 0, at + row.distance, draw.position, draw.attempt, *heats, at, row.lane
            )
        row.waiting = []
        self.device.set(readings, noise)

    def _make_candidates(self, count: int, room: int) -> None:
        self.device.make_candidates(count, up(room + 1, 64))
        first = self.device.scratch + 1
        self._spare = list(range(first, first + count))

    def _noise(self, strand: Strand) -> dict[int, Sequence[float]]:
        """The first numbers of a warm segment."""
        draw = strand.draw
        if not is_warm(draw):
            return {}
        numbers = [0.0] * NOISE
        strand.noise_to = draw.position + NOISE
        for position in range(draw.position, strand.noise_to):
            numbers[position % NOISE] = uniform(draw.seed, position, draw.attempt)
        return {strand.number: numbers}

    def _keep_dicing(self, strand: Strand) -> None:
        """More numbers for a long warm segment, before the ones in store are used up."""
        draw = strand.draw
        if not is_warm(draw):
            return
        ahead = draw.position + len(strand.run) + 3  # what two steps under way may use
        if ahead < strand.noise_to:
            return
        begin = draw.position + max(0, len(strand.run) - 1)
        numbers = [0.0] * NOISE
        for position in range(begin, begin + NOISE):
            numbers[position % NOISE] = uniform(draw.seed, position, draw.attempt)
        strand.noise_to = begin + NOISE
        self.device.set({}, {strand.number: numbers})

    # ------------------------------------------------------------------ reading
    def _read(self, items: list[Item]) -> list[tuple[int, int, Run]]:
        done = []
        for ticket, strands in items:
            tokens, ps = ticket.read()
            for strand, token, p in zip(strands, tokens, ps, strict=True):
                if strand is None:
                    continue
                if strand.ended:
                    self._miss(strand)
                    continue
                run = self._take(strand, token, p)
                if run is not None:
                    done.append((strand.row, strand.candidate, run))
        return done

    def _miss(self, strand: Strand) -> None:
        """A step ahead that nobody took up: the row does not go on from it any more."""
        self.discarded_steps += 1
        row = self.rows.get(strand.row)
        if row is not None and row.strand is strand:
            row.ahead = False

    def _take(self, strand: Strand, token: int, p: float) -> Run | None:
        strand.forwards += 1
        if not math.isfinite(p):
            strand.ended = True
            self._spoilt.add(strand.row)
            self._faults.append(not_finite(strand.row, strand.draw.position + len(strand.run)))
            return None
        row, draw = self.rows[strand.row], strand.draw
        strand.run.append(token)
        strand.ps.append(p)
        if draw.watch is not None:
            draw.watch(strand.candidate, token, p)
        main = row.strand is strand
        if main:
            row.cached = len(row.ids)
            row.ids.append(token)
        end: Any = None
        if token in self.tags.closing:
            end = "phrase"
        elif token in row.eos:
            end = "eos"
        elif draw.stops is not None and draw.stops(strand.run):
            end = "stop"
        elif len(strand.run) >= draw.room:
            end = "length"
        if end is None:
            return None
        strand.ended = True
        row.ahead = main and end == "phrase"  # elsewhere the step ahead may think that a phrase is open
        return Run(tuple(strand.run), tuple(strand.ps), end, strand.forwards)
