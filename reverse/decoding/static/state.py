"""What host and device tell each other about a step: the state of a strand, what is fed, what came out."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from reverse.tokens.spans import TokenIds

__all__ = [
    "BLOCK",
    "FEEDS_AT_ONCE",
    "FEED_IDS",
    "NOISE",
    "Feed",
    "Reading",
    "Style",
    "Ticket",
    "ceiling",
    "fed_size",
]

# Rows of `state`.
TOKEN, SLOT, PREFIX, PARENT, ROPE, INSIDE, POSITION, ATTEMPT, HEAT, CALM = range(10)
NOISE = 64  # numbers a strand has in store, by position modulo this
FEED_IDS, FEEDS_AT_ONCE = 512, 4  # fed in one step at most
BLOCK = 16  # queries of one row that attend together

Hook = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class Style:
    """What is fixed when a step is captured."""

    tags: TokenIds
    well_formed: bool = True
    pair: bool = False
    top_k: int = 0
    top_p: float = 1.0
    hook: Hook | None = None  # shown (logits, answer positions, attempts) before anything is chosen


@dataclass(frozen=True, slots=True)
class Ticket:
    """A step under way: `read()` waits for it."""

    chosen: torch.Tensor  # (2, columns) float64 on the host: ids, p
    picked: list[int]  # the columns of the strands asked for
    done: Any  # CUDA event, or None

    def read(self) -> tuple[list[int], list[float]]:
        if self.done is not None:
            self.done.synchronize()
        ids, ps = self.chosen.tolist()
        return [int(ids[i]) for i in self.picked], [ps[i] for i in self.picked]


@dataclass(frozen=True, slots=True)
class Feed:
    """Ids that a row's lane lacks: they go to `slot` and the places after it."""

    strand: int
    ids: Sequence[int]
    slot: int
    rope: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What a strand is set to: all that the next step needs to know."""

    token: int
    slot: int
    rope: int
    position: int
    attempt: int
    heat: float
    calm: float = 0.0  # what the heat becomes where a phrase closes
    prefix: int = 0
    parent: int = 0

    def column(self) -> tuple[int, ...]:
        heat, calm = struct.unpack("<qq", struct.pack("<dd", self.heat, self.calm))
        place = self.token, self.slot, self.prefix, self.parent, self.rope
        return (*place, 0, self.position, self.attempt, heat, calm)


def ceiling(n: int, block: int = 0) -> int:
    """The next power of two, or the next multiple of `block`."""
    return -(-n // block) * block if block else 1 << (n - 1).bit_length()


def fed_size(ids: int) -> int:
    """How much of `FEED_IDS` so many ids of one row take."""
    return ceiling(ids, BLOCK)
