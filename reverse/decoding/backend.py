"""What the loop asks of an engine: a few verbs over rows of ids.

A backend knows nothing of thresholds, hints or attempts. It holds one text a row, makes it what it is
told to be (keeping whatever agrees with what is cached), and decodes until a row's segment ends. Forking
a row into several candidates is the one verb still to come; a row's number is its handle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = ["Backend", "Draw", "Run"]


@dataclass(frozen=True, slots=True)
class Draw:
    """How a row's next segment is to be decoded."""

    room: int  # ids it may hold at most
    temperature: float
    seed: int
    position: int  # of its first id in the answer
    attempt: int  # rejections so far: with seed and position the key of the noise


@dataclass(frozen=True, slots=True)
class Run:
    """A decoded segment: `ps[i]` is p(`</UN>`) at the step that chose `ids[i]`."""

    ids: tuple[int, ...]
    ps: tuple[float, ...]
    end: Literal["phrase", "eos", "length"]
    forwards: int


class Backend(Protocol):
    """Rows are numbered from 0 in the order of the prompts that were prefilled."""

    def rewind(self, row: int, ids: Sequence[int]) -> None:
        """Make the row's text `ids`; what agrees with the cache from its start is kept."""

    def start(self, row: int, draw: Draw) -> None:
        """Begin a segment after the row's text."""

    def extend(self) -> list[tuple[int, Run]]:
        """Decode every started row until at least one segment ended; return those that did."""

    def finish(self, row: int) -> None:
        """The row will not be asked for again."""
