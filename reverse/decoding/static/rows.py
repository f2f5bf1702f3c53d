"""What the host knows of a row and of the segments it decodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from reverse.decoding.backend import Draw
from reverse.decoding.static.state import Ticket

__all__ = ["Item", "Row", "Strand", "common", "is_warm", "replace", "same_dice", "up"]


@dataclass(slots=True)
class Strand:
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
class Row:
    lane: int
    ids: list[int]  # the text, as far as it is known
    distance: int  # of rotary positions from text positions
    eos: frozenset[int]
    cached: int  # ids whose keys and values are in the lane
    strand: Strand | None = None  # the segment that its lane decodes
    ahead: bool = False  # the device goes on from the end of `ids` by itself
    forked: list[Strand] = field(default_factory=list)
    waiting: list[Draw] = field(default_factory=list)  # of a fork that has no lanes yet
    fed: bool = True  # nothing has to be fed before a fork


Item = tuple[Ticket, list[Strand | None]]  # a step under way, and whose columns are read


def up(n: int, block: int) -> int:
    return -(-n // block) * block


def common(before: Sequence[int], after: Sequence[int]) -> int:
    """How many ids two texts share from their start."""
    if before == after:
        return len(before)
    return next(
        (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b),
        min(len(before), len(after)),
    )


def is_warm(draw: Draw) -> bool:
    """Whether this segment, or the step ahead of its end, takes a number."""
    return draw.temperature > 0 or draw.calm > 0


def same_dice(before: Draw, after: Draw) -> bool:
    """What was chosen after the one, whose phrase had just closed, may be taken for the other."""
    same = (before.calm, before.calm, before.attempt) == (after.temperature, after.calm, after.attempt)
    return same and (after.temperature <= 0 or before.seed == after.seed)


def replace(rounds: deque[list[Item]], before: Strand, after: Strand) -> None:
    """Let the steps under way be those of another segment."""
    for items in rounds:
        for _, strands in items:
            for i, strand in enumerate(strands):
                if strand is before:
                    strands[i] = after
