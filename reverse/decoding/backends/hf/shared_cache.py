"""The common KV cache of all sequences. Rows are added, removed, cut and extended independently.

Two lists describe a row: the ids in the cache and the slots they stand in. A cut shortens both; its free
slots are masked, and from time to time the live slots are moved together. Positions and masks follow from the
lists. One forward feeds all pending ids of all rows, aligned right; a row with fewer pending ids leaves
masked slots, so no row needs a forward of its own. New rows are prefilled in a cache of their own; before the
next forward they and copies of rows are moved into the common one.

Masking is exact (rows agree with fresh ones to 1e-7); zeroing keys and values would not be, since a zero key
still takes its share of the softmax.

Running out of memory changes nothing: a forward that fails is cut off in every layer. Tokens are moved layer
by layer, so that at most one layer is in memory twice; if that fails half-way, a row has different places in
different layers (`CachePlace.first_layer`), and the next forward moves it on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch

from reverse.decoding.backends.hf import compat
from reverse.decoding.backends.hf.prefill import prefill
from reverse.decoding.backends.protocol import Prompt
from reverse.models.unwrapping import input_device

__all__ = ["CachePlace", "CacheRow", "SlotCache"]

_WASTE = 0.1  # share of slots no row uses above which the cache is compacted
_WASTE_SLOTS = 16  # and at least so many: a copy of the cache should buy something


@dataclass(slots=True, eq=False)
class CachePlace:
    """The place of a row's ids: a row of a cache, in the layers from `first_layer` on."""

    cache: Any
    at: int  # row of the cache
    slots: list[int]  # one an id
    first_layer: int = 0


@dataclass(slots=True, eq=False)
class CacheRow:
    """The tokens of one sequence: those in the cache, and those after them that are still to be fed."""

    ids: list[int]  # in the cache
    places: list[CachePlace]  # of `ids`; one, unless memory ran out while they were moved
    rope_offset: int = 0  # of rotary positions from text positions, after the pictures
    pending: list[int] = field(default_factory=list)  # to be fed
    logits: torch.Tensor | None = None  # (vocabulary,) after the last id, not used yet

    def copy(self) -> CacheRow:
        """Return a row with the same tokens, which gets slots of its own before the next forward."""
        places = [replace(place, slots=place.slots[:]) for place in self.places]
        return CacheRow(self.ids[:], places, self.rope_offset, self.pending[:], self.logits)

    def place_in(self, layer: int) -> CachePlace:
        return next(place for place in reversed(self.places) if place.first_layer <= layer)


class SlotCache:
    """A cache of (rows, slots) of which each row uses slots of its own, and the forwards that feed it."""

    def __init__(self, model: Any):
        self.model, self.device, self.pad = model, input_device(model), compat.pad_id(model)
        self.has_rope_offsets = compat.has_multimodal_rope(model)
        self.moves = 0  # how often tokens were moved together
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._cache: Any = None
        self._rows: list[CacheRow] = []  # of the cache, in its order; some may be gone since
        self._mask = torch.zeros((0, 0), dtype=torch.int64)  # (rows, slots), 0: padding or taken back
        self._offsets = torch.zeros((0, 1), dtype=torch.int64)  # of rotary positions, (rows, 1)
        self._dead: list[tuple[int, int]] = []  # (row, slot) to be masked before the next forward

    def prefill(self, prompts: Sequence[Prompt], image_token: int) -> list[CacheRow]:
        """Make new rows by one forward pass with a cache of their own."""
        prefilled = prefill(self.model, prompts, image_token)
        cache, length = prefilled.cache, prefilled.mask.shape[1]
        rows = []
        for i, (prompt, first) in enumerate(zip(prompts, prefilled.padding, strict=True)):
            place = CachePlace(cache, i, list(range(first, length)))
            offset, logits = prefilled.rope_offsets[i], prefilled.logits[i]
            rows.append(CacheRow(list(prompt.ids), [place], offset, [], logits))
        if not self._rows:  # nothing to merge with
            self._take_over(cache, rows, prefilled.mask)
        return rows

    def cut(self, row: CacheRow, length: int) -> None:
        """Cut a row to its first `length` ids in the cache; pending ids are dropped."""
        if row in self._rows:
            self._dead.extend((row.places[0].at, slot) for slot in row.places[0].slots[length:])
        for place in row.places:
            del place.slots[length:]
        del row.ids[length:]
        row.pending, row.logits = [], None

    def feed(self, fed: Sequence[CacheRow], kept: Sequence[CacheRow]) -> None:
        """Feed the pending ids of some rows, which then have logits; rows that are not among `kept` are
        dropped.

        Raises torch.OutOfMemoryError, and then every row has the tokens that it had.
        """
        self._tidy(kept)
        before = self._mask.shape[1]
        width = max(len(row.pending) for row in fed)
        end = before + width
        ids = torch.full((len(self._rows), width), self.pad)
        positions, fresh = torch.zeros_like(ids), torch.zeros_like(ids)
        for row in fed:
            n, at, cached = len(row.pending), row.places[0].at, len(row.ids)
            ids[at, width - n :] = torch.tensor(row.pending)
            positions[at, width - n :] = torch.arange(cached, cached + n)
            fresh[at, width - n :] = 1
        positions = positions.to(self.device)
        if self.has_rope_offsets:
            rotary = positions + self._offsets
            positions = torch.stack((positions, rotary, rotary, rotary))
        mask = torch.cat((self._mask, fresh.to(self.device)), dim=1)
        gapless = len(fed) == len(self._rows) and all(len(row.ids) + len(row.pending) == end for row in fed)
        try:
            logits = compat.forward(
                self.model, self._cache, ids.to(self.device), None if gapless else mask, positions
            )
        except torch.OutOfMemoryError:
            compat.cut_cache(self._cache, before)
            raise
        compat.check_cache(self._cache, len(self._rows), end, every_layer=False)
        self._mask = mask
        for row in fed:
            row.places[0].slots.extend(range(end - len(row.pending), end))
            row.ids.extend(row.pending)
            row.pending, row.logits = [], logits[row.places[0].at]

    # ------------------------------------------------------------------ moving tokens
    def _tidy(self, kept: Sequence[CacheRow]) -> None:
        """Mask slots that were cut off; compact rows and slots if it is due."""
        if self._dead:
            where = torch.tensor(self._dead, device=self.device)
            self._mask[where[:, 0], where[:, 1]] = 0
            self._dead = []
        longest = max(len(row.ids) for row in kept)
        waste = self._mask.shape[1] - longest
        if set(kept) == set(self._rows) and waste <= max(_WASTE_SLOTS, _WASTE * self._mask.shape[1]):
            return
        self.moves += 1
        caches = {id(row.places[0].cache): i for i, row in enumerate(kept)}
        caches[id(self._cache)] = -1  # its rows come first
        rows = sorted(kept, key=lambda row: caches[id(row.places[0].cache)])
        mask = torch.zeros((len(rows), longest), dtype=torch.int64)
        for i, row in enumerate(rows):
            mask[i, longest - len(row.ids) :] = 1
        self._rows, self._cache = [], None  # if no row stands in it any more, its memory may go now
        self._take_over(self._move(rows, longest), rows, mask)

    def _take_over(self, cache: Any, rows: list[CacheRow], mask: torch.Tensor) -> None:
        """Make `cache` the common cache with the rows `rows`; `mask` says which slots are live."""
        offsets = torch.tensor([[row.rope_offset] for row in rows], device=self.device)
        self._mask, self._offsets = mask.to(self.device), offsets
        self._cache, self._rows, self._dead = cache, list(rows), []

    def _move(self, rows: list[CacheRow], longest: int) -> Any:
        """Move rows to the last slots of a new cache of `longest` slots, layer by layer; return the cache."""
        target = rows[0].places[0].cache
        moved = [
            CachePlace(target, i, list(range(longest - len(row.ids), longest))) for i, row in enumerate(rows)
        ]
        layers, done = compat.layer_count(target), 0
        starts = {place.first_layer for row in rows for place in row.places}
        try:
            for layer in range(layers):
                if layer in starts:
                    sources = self._sources([row.place_in(layer) for row in rows], longest)
                compat.move_layer(layer, sources, target)
                done = layer + 1
        finally:  # the layers that were not moved stay where they were
            for row, place in zip(rows, moved, strict=True):
                rest = [
                    replace(row.place_in(i), first_layer=i) for i in {done, *starts} if done <= i < layers
                ]
                if done:
                    row.places = [place, *sorted(rest, key=lambda each: each.first_layer)]
        return target

    def _sources(self, places: list[CachePlace], longest: int) -> list[tuple[Any, list[int], torch.Tensor]]:
        """Return groups of neighbouring rows in the same cache, with their slots of shape (rows, longest)."""
        sources = []
        for _, group in groupby(places, key=lambda place: id(place.cache)):
            together = list(group)
            slots = torch.zeros((len(together), longest), dtype=torch.int64)
            for i, place in enumerate(together):
                slots[i, longest - len(place.slots) :] = torch.tensor(place.slots, dtype=torch.int64)
            sources.append((together[0].cache, [place.at for place in together], slots.to(self.device)))
        return sources
