"""The transformers engine: rows that come and go, and go back each on its own.

Truth about a row is two lists: the ids in the cache and the slots they stand in. Going back cuts both;
the slots left behind are masked, and every so often the live ones are moved together (compaction).
Positions and masks follow from the lists. Rows are fed as many ids as they are behind in one forward,
aligned right; a row that has less to catch up leaves dead slots, so no forward serves one row alone.

A row has one lane of the cache, or one a candidate while it is forked. New rows are prefilled in a cache of
their own; before the next forward they and the copies for candidates are moved into the common one.

Masking is exact (rows agree with fresh runs to 1e-7); zeroing keys and values would not be, since a zero
key still takes its share of the softmax.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch

from reverse.decoding import _hf
from reverse.decoding.backend import Draw, End, Prefill, RowFault, Run, not_finite
from reverse.decoding.sampling import choose, mask_tags, uniform
from reverse.decoding.verifier import Verifier
from reverse.models.unwrapping import input_device
from reverse.tokens.spans import TokenIds

__all__ = ["TransformersBackend"]

_WASTE = 0.1  # share of slots no row uses above which the cache is compacted
_WASTE_SLOTS = 16  # and at least so many: a copy of the cache should buy something


@dataclass(slots=True, eq=False)
class _Lane:
    row: int
    candidate: int
    prompt: list[int]  # with padding and without hints: what processors are shown
    processors: Any  # the caller's for this row, or None
    eos: frozenset[int]
    distance: int  # of rotary positions from text positions
    cache: Any  # where its slots are
    at: int  # its row there
    ids: list[int]  # fed, in slot order
    slots: list[int]  # where they stand
    pending: list[int] = field(default_factory=list)  # to be fed
    ready: torch.Tensor | None = (
        None  # logits (vocabulary,) of the prompt's last id: no need to feed it again
    )
    run: list[int] = field(default_factory=list)  # the segment so far
    ps: list[float] = field(default_factory=list)
    draw: Draw | None = None  # None: nothing to decode at the moment
    inside: bool = False  # a phrase is open
    forwards: int = 0

    def begin(self, draw: Draw) -> None:
        self.draw, self.run, self.ps, self.inside, self.forwards = draw, [], [], False, 0

    def sister(self, candidate: int) -> _Lane:
        """Another lane with the same text, to be copied before the next forward."""
        return _Lane(
            self.row, candidate, self.prompt, self.processors, self.eos, self.distance, self.cache, self.at,
            self.ids[:], self.slots[:], self.pending[:], self.ready,
        )  # fmt: skip


class TransformersBackend:
    """Rows on a LLaVA or Qwen2.5-VL model with a dynamic cache.

    Args: `slots` rows side by side at most; `tags` and the `verifier`; `well_formed=False` leaves tags
    unmasked.
    """

    def __init__(
        self,
        model: Any,
        *,
        slots: int,
        tags: TokenIds,
        verifier: Verifier,
        top_k: int = 0,
        top_p: float = 1.0,
        well_formed: bool = True,
    ):
        self.model, self.slots, self.tags, self.verifier = model, slots, tags, verifier
        self.top_k, self.top_p, self.well_formed = top_k, top_p, well_formed
        self.device = input_device(model)
        self.rows: dict[int, list[_Lane]] = {}
        self.compactions = 0
        self._handles = count()
        self._pad = 0
        self._clear()

    def _clear(self) -> None:
        self.cache: Any = None
        self.mask = torch.zeros((0, 0), dtype=torch.int64)  # (lanes, slots), 0: padding or taken back
        self.distance: torch.Tensor | None = None  # (lanes, 1), for multimodal rotary positions
        self._lanes: list[_Lane] = []  # of the cache, in its order, those let go included
        self._faults: list[RowFault] = []  # of the last step, not raised yet
        self._ended: list[tuple[int, int, Run]] = []  # in a step that had faults, not returned yet
        self._dead: list[tuple[int, int]] = []  # (lane, slot) to be masked before the next forward

    # ------------------------------------------------------------------ verbs
    def free(self) -> int:
        return self.slots - len(self.rows)

    @torch.no_grad()
    def admit(self, batch: Prefill) -> list[int]:
        with _hf.memory_errors():
            logits, cache, distance = _hf.prefill(self.model, batch)
        mask = batch.kwargs.get("attention_mask")
        mask = torch.ones_like(batch.input_ids) if mask is None else mask
        handles, lanes = [], []
        for at, (ids, alive) in enumerate(zip(batch.input_ids.tolist(), mask.tolist(), strict=True)):
            handle, first = next(self._handles), alive.index(1)
            far = 0 if distance is None else int(distance[at])
            processors = batch.processors[at] if batch.processors else None
            lane = _Lane(handle, 0, ids, processors, batch.eos, far, cache, at, ids[first:], [])
            lane.slots, lane.ready = list(range(first, len(ids))), logits[at]
            self.rows[handle] = [lane]
            handles.append(handle)
            lanes.append(lane)
        self._pad = batch.pad
        self._multimodal = distance is not None
        if not self._lanes:  # nothing to merge with
            self._take_over(cache, lanes, mask.to(self.device, torch.int64))
        return handles

    def rewind(self, row: int, ids: Sequence[int]) -> None:
        (lane,) = self.rows[row]
        shared = 0
        for ours, theirs in zip(lane.ids, ids, strict=False):
            if ours != theirs:
                break
            shared += 1
        shared = min(shared, len(ids) - 1)  # the last id is fed again: its logits choose the next one
        if lane.cache is self.cache:
            self._dead.extend((lane.at, slot) for slot in lane.slots[shared:])
        del lane.ids[shared:], lane.slots[shared:]
        lane.pending, lane.ready = list(ids[shared:]), None

    def start(self, row: int, draw: Draw) -> None:
        (lane,) = self.rows[row]
        lane.begin(draw)

    def fork(self, row: int, draws: Sequence[Draw]) -> None:
        (lane,) = self.rows[row]
        self.rows[row] = lanes = [lane, *(lane.sister(i) for i in range(1, len(draws)))]
        for each, draw in zip(lanes, draws, strict=True):
            each.begin(draw)

    def adopt(self, row: int, candidate: int) -> int:
        lanes = self.rows[row]
        kept = lanes[candidate]
        running = sum(len(lane.run) for lane in lanes if lane is not kept and lane.draw is not None)
        kept.draw, kept.candidate = None, 0
        self.rows[row] = [kept]
        return running

    def finish(self, row: int) -> None:
        self.rows.pop(row, None)
        if not self.rows:
            self._clear()

    def close(self) -> None:
        self.rows.clear()
        self._clear()

    @torch.no_grad()
    def extend(self) -> list[tuple[int, int, Run]]:
        with _hf.memory_errors():
            while True:
                while self._faults:
                    fault = self._faults.pop(0)
                    if fault.row in self.rows:
                        raise fault
                ended, self._ended = [each for each in self._ended if each[0] in self.rows], []
                if ended:
                    return ended
                if all(lane.draw is None for lanes in self.rows.values() for lane in lanes):
                    return []
                self._ended = self._step()

    # ------------------------------------------------------------------ one forward, one id a lane
    def _step(self) -> list[tuple[int, int, Run]]:
        started = [lane for lanes in self.rows.values() for lane in lanes if lane.draw is not None]
        active = [lane for lane in started if lane.ready is not None]
        if active:  # new rows choose their first id and then keep step with the others
            logits = torch.stack([lane.ready for lane in active if lane.ready is not None])
            for lane in active:
                lane.ready = None
        else:
            active = started
            logits = self._forward()[[lane.at for lane in active]]
        ps = self.verifier.p(logits).tolist()
        done = []
        for lane, token, p in zip(active, self._pick(logits, active), ps, strict=True):
            assert lane.draw is not None
            lane.forwards += 1
            if not math.isfinite(p):
                self._faults.append(not_finite(lane.row, lane.draw.position + len(lane.run)))
            if any(fault.row == lane.row for fault in self._faults):
                continue
            lane.run.append(token)
            lane.ps.append(p)
            lane.pending = [token]
            if lane.draw.watch is not None:
                lane.draw.watch(lane.candidate, token, p)
            end = self._end(lane, lane.draw, token)
            if end is not None:
                run = Run(tuple(lane.run), tuple(lane.ps), end, lane.forwards)
                done.append((lane.row, lane.candidate, run))
                lane.draw = None
        return done

    def _end(self, lane: _Lane, draw: Draw, token: int) -> End | None:
        if token == self.tags.span:
            lane.inside = True
        if token in self.tags.closing:
            return "phrase"
        if token in lane.eos:
            return "eos"
        if draw.stops is not None and draw.stops(lane.run):
            return "stop"
        return "length" if len(lane.run) >= draw.room else None

    def _pick(self, logits: torch.Tensor, active: list[_Lane]) -> list[int]:
        draws = [lane.draw for lane in active if lane.draw is not None]
        scores = logits.float()
        if self.well_formed:
            scores = mask_tags(scores, [lane.inside for lane in active], self.tags)
        if any(lane.processors for lane in active):  # rows have different lengths, so each is shown alone
            rows = scores.split(1)
            scores = torch.cat(
                [
                    self._process(lane, row) if lane.processors else row
                    for lane, row in zip(active, rows, strict=True)
                ]
            )
        noise = [
            uniform(d.seed, d.position + len(lane.run), d.attempt) if d.temperature > 0 else 0.0
            for lane, d in zip(active, draws, strict=True)
        ]
        return choose(scores, [d.temperature for d in draws], noise, self.top_k, self.top_p).tolist()

    def _process(self, lane: _Lane, scores: torch.Tensor) -> torch.Tensor:
        """What the caller's processors make of a row, which has a fault where that cannot be chosen from."""
        try:
            processed = lane.processors(self._history(lane), scores)
        except ValueError as error:
            self._faults.append(RowFault(lane.row, str(error)))
            return scores
        if bool((torch.isnan(processed) | torch.isposinf(processed)).any()):
            names = ", ".join(type(processor).__name__ for processor in lane.processors)
            self._faults.append(
                RowFault(
                    lane.row, f"{names} made scores that are NaN or inf: give finite ones, or -inf to ban"
                )
            )
            return scores
        return processed

    def _history(self, lane: _Lane) -> torch.Tensor:
        """The row as `generate()` would show it to a processor: its padded prompt and the answer so far."""
        assert lane.draw is not None
        said = lane.draw.position + len(lane.run)
        answer = (lane.ids + lane.pending)[-said:] if said else []
        return torch.tensor([lane.prompt + answer], device=self.device)

    def _forward(self) -> torch.Tensor:
        """Feed what is pending; returns logits after every lane's text, shape (lanes, vocabulary)."""
        self._tidy()
        fed = [lane for lane in self._lanes if lane.draw is not None]
        width = max(len(lane.pending) for lane in fed)
        end = self.mask.shape[1] + width
        ids = torch.full((len(self._lanes), width), self._pad)
        positions = torch.zeros_like(ids)
        fresh = torch.zeros_like(ids)
        for lane in fed:
            n, at = len(lane.pending), len(lane.ids)
            ids[lane.at, width - n :] = torch.tensor(lane.pending)
            positions[lane.at, width - n :] = torch.arange(at, at + n)
            fresh[lane.at, width - n :] = 1
            lane.slots.extend(range(end - n, end))
            lane.ids.extend(lane.pending)
            lane.pending = []
        self.mask = torch.cat((self.mask, fresh.to(self.device)), dim=1)
        mask = None if bool(self.mask.all()) else self.mask
        return _hf.forward(
            self.model, self.cache, ids.to(self.device), mask, positions.to(self.device), self.distance
        )

    # ------------------------------------------------------------------ slots
    def _tidy(self) -> None:
        """Mask what was taken back; move live lanes and slots together where that is due."""
        if self._dead:
            where = torch.tensor(self._dead, device=self.device)
            self.mask[where[:, 0], where[:, 1]] = 0
            self._dead = []
        kept = [lane for lanes in self.rows.values() for lane in lanes]
        longest = max(len(lane.slots) for lane in kept)
        waste = self.mask.shape[1] - longest
        if set(kept) == set(self._lanes) and waste <= max(_WASTE_SLOTS, _WASTE * self.mask.shape[1]):
            return
        self.compactions += 1
        by_cache: dict[int, list[_Lane]] = {id(self.cache): []}
        for lane in kept:
            by_cache.setdefault(id(lane.cache), []).append(lane)
        groups = [lanes for lanes in by_cache.values() if lanes]
        sources, ordered = [], [lane for lanes in groups for lane in lanes]
        mask = torch.zeros((len(kept), longest), dtype=torch.int64)
        for lanes in groups:
            slots = torch.zeros((len(lanes), longest), dtype=torch.int64)
            for i, lane in enumerate(lanes):
                slots[i, longest - len(lane.slots) :] = torch.tensor(lane.slots, dtype=torch.int64)
            sources.append((lanes[0].cache, [lane.at for lane in lanes], slots.to(self.device)))
        for i, lane in enumerate(ordered):
            n = len(lane.slots)
            mask[i, longest - n :] = 1
            lane.slots = list(range(longest - n, longest))
        self._take_over(_hf.gather_slots(sources), ordered, mask.to(self.device))

    def _take_over(self, cache: Any, lanes: list[_Lane], mask: torch.Tensor) -> None:
        """Make `cache` the common one; its rows are `lanes`, of whose slots `mask` tells the live ones."""
        self.cache, self._lanes, self.mask, self._dead = cache, lanes, mask, []
        for at, lane in enumerate(lanes):
            lane.cache, lane.at = cache, at
        if self._multimodal:
            far = [[lane.distance] for lane in lanes]
            self.distance = torch.tensor(far, dtype=torch.int64, device=self.device)
