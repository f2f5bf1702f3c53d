"""Rows on the captured engine: what the loop asks for, one step ahead of what has been read.

A step is launched before the one before it was read, since most of the time its input is what that one
chose. Where a segment ended and the row goes on from there, the step ahead is its next one; where the row
went back, what the step ahead says about it is thrown away. So a rewind costs one step of one row.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from reverse.decoding import _hf
from reverse.decoding.backend import Draw, OutOfMemory, Prefill, Run
from reverse.decoding.sampling import uniform
from reverse.decoding.static.engine import (
    FEED_IDS,
    FEEDS_AT_ONCE,
    NOISE,
    Engine,
    Feed,
    Reading,
    Style,
    Ticket,
    fed_size,
)
from reverse.tokens.spans import TokenIds

__all__ = ["AT_ONCE", "StaticBackend"]

AT_ONCE = 16  # rows prefilled together: their keys and values are held twice for a moment
_HINTS = 128  # ids that hints may take before lanes must grow


@dataclass(slots=True)
class _Strand:
    """A segment being decoded."""

    number: int  # of the strand in the engine
    row: int
    candidate: int
    draw: Draw
    run: list[int] = field(default_factory=list)
    ps: list[float] = field(default_factory=list)
    forwards: int = 0
    noise_to: int = 0  # positions before this have their number
    ended: bool = False


@dataclass(slots=True)
class _Row:
    lane: int
    ids: list[int]  # the text, as far as it is known
    distance: int  # of rotary positions from text positions
    eos: frozenset[int]
    cached: int  # ids whose keys and values are in the lane
    strand: _Strand | None = None  # the segment that its lane decodes
    ahead: bool = False  # the device goes on from the end of `ids` by itself
    forked: list[_Strand] = field(default_factory=list)
    waiting: list[Draw] = field(default_factory=list)  # of a fork that has no lanes yet
    fed: bool = True  # nothing has to be fed before a fork


_Item = tuple[Ticket, list[_Strand | None]]


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
        self.rows: dict[int, _Row] = {}
        self.discarded_steps = 0  # of one row each: looked ahead in vain
        self._open_engine = open_engine
        self._lanes = list(range(slots))[::-1]
        self._spare: list[int] = []  # strands for candidates
        self._handles = 0
        self._rounds: deque[list[_Item]] = deque()

    @property
    def tags(self) -> TokenIds:
        return self.style.tags

    def free(self) -> int:
        return min(len(self._lanes), AT_ONCE)

    # ------------------------------------------------------------------ rows come and go
    def admit(self, batch: Prefill) -> list[int]:
        try:
            return self._admit(batch)
        except torch.OutOfMemoryError as error:
            raise self._emptied(error) from error

    def _emptied(self, error: BaseException) -> OutOfMemory:
        """Let go of everything; the next engine has half as many lanes."""
        lanes = max(1, self.slots // 2)
        self.rows.clear()
        self._rounds.clear()
        self._spare.clear()
        self.engine, self.slots = None, lanes
        self._lanes = list(range(lanes))[::-1]
        return OutOfMemory(str(error))

    @property
    def device(self) -> Engine:
        assert self.engine is not None, "nothing was admitted"
        return self.engine

    def _admit(self, batch: Prefill) -> list[int]:
        mask = batch.kwargs.get("attention_mask")
        length = batch.input_ids.shape[1]
        slots = _up(batch.config.max_length + _HINTS, 128)
        if self.engine is None:
            self.engine = self._open_engine(self.slots, slots)
            spare = self.engine.scratch + 1
            self._spare = list(range(spare, spare + self.engine.candidates))
        elif slots > self.engine.slots:
            self.engine.make_room(slots)
        _, cache, distance = _hf.prefill(self.model, batch)
        layers = _hf.layers(cache)
        handles = []
        for i, ids in enumerate(batch.input_ids.tolist()):
            first = 0 if mask is None else int((mask[i] == 0).sum())
            lane = self._lanes.pop()
            self.engine.load(lane, layers, i, first)
            # The last id is fed again: the first choice comes from the same step as all others.
            turn = 0 if distance is None else int(distance[i])
            self.rows[self._handles] = _Row(lane, ids[first:], turn, batch.eos, length - first - 1)
            handles.append(self._handles)
            self._handles += 1
        return handles

    def finish(self, row: int) -> None:
        state = self.rows.pop(row, None)
        if state is None:  # memory ran out
            return
        self._drop_fork(state)
        if state.strand is not None:
            state.strand.ended = True
        self._lanes.append(state.lane)

    def close(self) -> None:
        self.rows.clear()
        self._rounds.clear()

    # ------------------------------------------------------------------ verbs
    def rewind(self, row: int, ids: Sequence[int]) -> None:
        state = self.rows[row]
        self._drop_fork(state)
        shared = _shared(state.ids, ids)
        if shared < len(state.ids) or shared < len(ids):
            state.ahead = False
            state.cached = min(state.cached, shared, len(ids) - 1)
            state.ids = list(ids)

    def start(self, row: int, draw: Draw) -> None:
        state = self.rows[row]
        before = state.strand
        strand = _Strand(state.lane, row, 0, draw)
        if state.ahead and before is not None and _same_dice(before.draw, draw):
            strand.noise_to = before.noise_to
            _replace(self._rounds, before, strand)  # the step ahead is this segment's first
            state.strand = strand
            return
        if before is not None:
            before.ended = True
        state.strand = strand
        state.ahead = False
        self._fit(len(state.ids) + draw.room)
        noise = self._noise(strand)
        self.device.set({state.lane: self._reading(state, draw)}, noise)

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
            self.device.make_room(_up(ids + 2, 128))

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

    def _drop_fork(self, state: _Row) -> None:
        for strand in state.forked:
            strand.ended = True
            self._spare.append(strand.number)
        state.forked, state.waiting = [], []

    def extend(self) -> list[tuple[int, int, Run]]:
        try:
            while True:
                if not self._rounds and not self._launch():
                    return []
                self._launch()
                done = self._read(self._rounds.popleft())
                if done:
                    return done
        except torch.OutOfMemoryError as error:
            raise self._emptied(error) from error

    # ------------------------------------------------------------------ launching
    def _launch(self) -> bool:
        """Queue a step for everything that is decoding; False where there is nothing."""
        active: list[_Strand] = []
        feeds: list[tuple[_Strand | None, Feed]] = []
        size = 0
        forks: list[list[_Strand]] = []
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
        items: list[_Item] = []
        if active or feeds:
            for strand in active:
                self._keep_dicing(strand)
            warm = any(s is not None and _warm(s.draw) for s in (*active, *(s for s, _ in feeds)))
            ticket = self.device.step([s.number for s in active], [f for _, f in feeds], self.style, warm)
            items.append((ticket, [*active, *(s for s, _ in feeds)]))
        for strands in forks:
            for strand in strands:
                self._keep_dicing(strand)
            warm = any(_warm(s.draw) for s in strands)
            items.append((self.device.fork([s.number for s in strands], self.style, warm), list(strands)))
        if items:
            self._rounds.append(items)
        return bool(items)

    def _feed(
        self, row: _Row, strand: _Strand | None, feeds: list[tuple[_Strand | None, Feed]], size: int
    ) -> int:
        """Feed what the row's lane lacks, as far as it fits into this step; the rest waits."""
        missing = row.ids[row.cached :]
        fits = FEED_IDS - size
        if len(feeds) == FEEDS_AT_ONCE or (fed_size(len(missing)) > fits and feeds):
            return size
        part = missing[:fits]
        whole = len(part) == len(missing)
        draw = strand.draw if strand is not None else None
        reading = self._reading(row, draw, row.cached + len(part))
        self.device.set({row.lane: reading})
        feeds.append((strand if whole else None, Feed(row.lane, part, row.cached, row.cached + row.distance)))
        row.cached += len(part)
        row.fed = row.cached >= len(row.ids) - 1
        if whole:
            row.cached = len(row.ids)
        return size + fed_size(len(part))

    def _reading(self, row: _Row, draw: Draw | None, length: int | None = None) -> Reading:
        """The lane's strand as it stands when the last of `length` ids is about to be fed."""
        at = (len(row.ids) if length is None else length) - 1
        draw = draw or Draw(0, 0.0, 0, 0, 0)
        heats = draw.temperature, draw.calm
        return Reading(row.ids[at], at, at + row.distance, draw.position, draw.attempt, *heats)

    def _set_out(self, handle: int, row: _Row) -> None:
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
            strand = _Strand(self._spare.pop(), handle, i, draw)
            row.forked.append(strand)
            noise |= self._noise(strand)
            heats = draw.temperature, draw.calm
            readings[strand.number] = Reading(
                row.ids[at], 0, at + row.distance, draw.position, draw.attempt, *heats, at, row.lane
            )
        row.waiting = []
        self.device.set(readings, noise)

    def _make_candidates(self, count: int, room: int) -> None:
        self.device.make_candidates(count, _up(room + 1, 64))
        first = self.device.scratch + 1
        self._spare = list(range(first, first + count))

    def _noise(self, strand: _Strand) -> dict[int, Sequence[float]]:
        """The first numbers of a warm segment."""
        draw = strand.draw
        if not _warm(draw):
            return {}
        numbers = [0.0] * NOISE
        strand.noise_to = draw.position + NOISE
        for position in range(draw.position, strand.noise_to):
            numbers[position % NOISE] = uniform(draw.seed, position, draw.attempt)
        return {strand.number: numbers}

    def _keep_dicing(self, strand: _Strand) -> None:
        """More numbers for a long warm segment, before the ones in store are used up."""
        draw = strand.draw
        if not _warm(draw):
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
    def _read(self, items: list[_Item]) -> list[tuple[int, int, Run]]:
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

    def _miss(self, strand: _Strand) -> None:
        """A step ahead that nobody took up: the row does not go on from it any more."""
        self.discarded_steps += 1
        row = self.rows.get(strand.row)
        if row is not None and row.strand is strand:
            row.ahead = False

    def _take(self, strand: _Strand, token: int, p: float) -> Run | None:
        strand.forwards += 1
        if not math.isfinite(p):
            raise ValueError(
                f"logits of row {strand.row} are not finite at answer position "
                f"{strand.draw.position + len(strand.run)}: check the weights, or load with dtype=float32"
            )
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


def _up(n: int, block: int) -> int:
    return -(-n // block) * block


def _shared(before: Sequence[int], after: Sequence[int]) -> int:
    """How many ids two texts share from their start."""
    if before == after:
        return len(before)
    return next(
        (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b),
        min(len(before), len(after)),
    )


def _warm(draw: Draw) -> bool:
    """Whether this segment, or the step ahead of its end, takes a number."""
    return draw.temperature > 0 or draw.calm > 0


def _same_dice(before: Draw, after: Draw) -> bool:
    """What was chosen after the one, whose phrase had just closed, may be taken for the other."""
    same = (before.calm, before.calm, before.attempt) == (after.temperature, after.calm, after.attempt)
    return same and (after.temperature <= 0 or before.seed == after.seed)


def _replace(rounds: deque[list[_Item]], before: _Strand, after: _Strand) -> None:
    for items in rounds:
        for _, strands in items:
            for i, strand in enumerate(strands):
                if strand is before:
                    strands[i] = after
