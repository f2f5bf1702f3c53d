"""The data that host and device exchange about a step: the state of a row, ids to feed, and results."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from reverse.decoding.backends.protocol import SegmentParams
from reverse.tokens.spans import TokenIds

__all__ = [
    "BLOCK",
    "FEEDS_AT_ONCE",
    "FEED_IDS",
    "NOISE",
    "CaptureConfig",
    "Feed",
    "PendingStep",
    "RowState",
    "StepPlan",
    "padded",
    "round_up",
]

# Rows of the state tensor, one column for each row of the cache. Steps write the first; only the host writes
# those from ATTEMPT on. Temperatures and TOP_P are the bits of a float64.
TOKEN, SLOT, ROPE, INSIDE, POSITION, TEMPERATURE = range(6)
ATTEMPT, AFTER_ACCEPT, TOP_K, TOP_P, PAIR, MASKED, MERGED = range(6, 13)
FIELDS, WRITTEN_BY_STEPS = 13, 6
NOISE = 64  # random numbers that a row has in store, by position modulo this
FEED_IDS, FEEDS_AT_ONCE = 512, 16  # fed in one step at most
BLOCK = 16  # queries of one row that attend together
GREEDY, SAMPLED, TRUNCATED = range(
    3
)  # what a step is captured with: TRUNCATED also sorts for top-k and top-p

LogitsHook = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class CaptureConfig:
    """The settings that are fixed when a step is captured; all others may differ between rows."""

    tags: TokenIds
    hook: LogitsHook | None = None  # shown (logits, answer positions, attempts) before anything is chosen


@dataclass(frozen=True, slots=True)
class Feed:
    """Ids that a row of the cache lacks: they go to `slot` and the places after it."""

    row: int
    ids: Sequence[int]
    slot: int
    rope: int


@dataclass(slots=True)
class StepPlan:
    """The rows of one step, in the order in which its results come back.

    The rows of a group hold the same ids up to `prefixes[i]`: their attention reads these once for all.
    """

    plain: list[int] = field(default_factory=list)
    groups: list[list[int]] = field(default_factory=list)  # each of at most `group_size` rows
    prefixes: list[int] = field(default_factory=list)  # of each group
    group_size: int = 4
    feeds: list[Feed] = field(default_factory=list)
    sampling: int = GREEDY
    merges: bool = False  # some of the rows merge the closing tags

    def __bool__(self) -> bool:
        return bool(self.plain or self.groups or self.feeds)


@dataclass(frozen=True, slots=True)
class PendingStep:
    """A step that was launched; `read()` waits for its results."""

    chosen: torch.Tensor  # (3, columns) float64 on the host: ids, p, log-probabilities of the ids
    columns: list[int]  # of the rows asked for
    done: Any  # CUDA event, or None

    def read(self) -> tuple[list[int], list[float], list[float]]:
        """Ids, p and log-probabilities of the plan's rows, in its order."""
        if self.done is not None:
            self.done.synchronize()
        ids, ps, logs = self.chosen.tolist()
        return (
            [int(ids[i]) for i in self.columns],
            [ps[i] for i in self.columns],
            [logs[i] for i in self.columns],
        )


@dataclass(frozen=True, slots=True)
class RowState:
    """The state that a row is set to: its last id, its place, and how the ids after it are chosen."""

    token: int
    slot: int
    rope: int
    params: SegmentParams

    def column(self) -> tuple[int, ...]:
        """The row's column of the state tensor."""
        params = self.params
        temperature, after, top_p = struct.unpack(
            "<qqq", struct.pack("<ddd", params.temperature, params.temperature_after_accept, params.top_p)
        )
        flags = int(params.score == "pair"), int(params.masks_tags), int(params.merges_closing_tags)
        place = self.token, self.slot, self.rope, 0, params.position, temperature
        return (*place, params.attempt, after, params.top_k, top_p, *flags)


def padded(n: int) -> int:
    """Return how many rows are computed for `n`: the next power of two, so that few steps are captured."""
    return 1 << (n - 1).bit_length() if n else 0


def round_up(n: int, block: int) -> int:
    """Return the next multiple of `block`."""
    return -(-n // block) * block
