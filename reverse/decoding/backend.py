"""What the loop asks of an engine: a few verbs over rows of ids that come and go.

A backend knows nothing of thresholds, hints or attempts. It holds one text a row, makes it what it is
told to be (keeping whatever agrees with what is cached), and decodes until a segment ends. A row is named
by a handle that is never used again. After a rejection a row may be forked: several candidates continue its
text side by side, and one of them is adopted as the row's text.

    (row,) = backend.admit(prefill)                 # the prompt is in the cache
    backend.start(row, Draw(room=64, temperature=0.0, seed=0, position=0, attempt=0))
    ((row, _, run),) = backend.extend()             # up to a closing tag, say
    backend.rewind(row, prompt)
    backend.fork(row, [draw, another])
    backend.extend()
    backend.adopt(row, 1)
    backend.finish(row)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch

__all__ = [
    "Backend",
    "Draw",
    "End",
    "OutOfMemory",
    "Prefill",
    "RowFault",
    "Run",
    "does_not_fit",
    "not_finite",
]

End = Literal["phrase", "eos", "stop", "length"]


class OutOfMemory(RuntimeError):
    """The device is full. Whoever drives the backend finishes its rows and admits fewer of them anew."""


def does_not_fit(message: str) -> OutOfMemory:
    """The error of a row that does not fit although it is alone; `message` is the device's."""
    detail = message.splitlines()[0] if message else "no detail"
    return OutOfMemory(
        f"out of memory with a single row ({detail}): use smaller pictures, fewer candidates, "
        "a smaller max_new_tokens, or load the model in bfloat16"
    )


class RowFault(ValueError):
    """One row cannot go on, and the others can. Whoever drives the backend finishes that row."""

    def __init__(self, row: int, message: str):
        super().__init__(message)
        self.row = row


def not_finite(row: int, position: int) -> RowFault:
    """The fault of a row whose logits are NaN or infinite at a position of its answer."""
    return RowFault(
        row,
        f"logits of row {row} are not finite at answer position {position}: check the weights, or load with "
        "dtype=float32",
    )


@dataclass(slots=True)
class Prefill:
    """Prompts to be admitted together, as `model.generate()` prepares them for a decoding loop."""

    input_ids: torch.Tensor  # (rows, length) int64, left-padded
    config: Any = None  # the GenerationConfig
    kwargs: dict[str, Any] = field(default_factory=dict)  # of the model: masks, positions, encoded pictures
    processors: Sequence[Any] = ()  # the caller's logits processors, one list a row; empty: none
    eos: frozenset[int] = frozenset()
    pad: int = 0


@dataclass(frozen=True, slots=True)
class Draw:
    """How a row's next segment is to be decoded."""

    room: int  # ids it may hold at most
    temperature: float
    seed: int
    position: int  # of its first id in the answer
    attempt: int  # rejections so far: with seed and position the key of the noise
    calm: float = 0.0  # the temperature of the segment after this one, if its phrase is accepted
    stops: Callable[[Sequence[int]], bool] | None = (
        None  # shown the segment so far, says whether it ends here
    )
    watch: Callable[[int, int, float], None] | None = None  # told (candidate, id, p) of every choice


@dataclass(frozen=True, slots=True)
class Run:
    """A decoded segment: `ps[i]` is p(`</UN>`) at the step that chose `ids[i]`."""

    ids: tuple[int, ...]
    ps: tuple[float, ...]
    end: End  # a closing tag, an end-of-text id, `Draw.stops` or `Draw.room`: the first of these that holds
    forwards: int


class Backend(Protocol):
    """Verbs are called by one thread at a time; several backends of one model may take turns.

    Any verb but `finish` and `close` may raise OutOfMemory.
    """

    @property
    def slots(self) -> int:
        """Rows decoded side by side at most, candidates not counted; fewer once memory has run out."""

    def free(self) -> int:
        """How many rows may be admitted now."""

    def admit(self, batch: Prefill) -> list[int]:
        """Take in new rows, at most `free()`; returns their handles."""

    def rewind(self, row: int, ids: Sequence[int]) -> None:
        """Make the row's text `ids`; what agrees with the cache from its start is kept."""

    def start(self, row: int, draw: Draw) -> None:
        """Begin a segment after the row's text."""

    def fork(self, row: int, draws: Sequence[Draw]) -> None:
        """Begin several segments side by side after the row's text: candidates 0, 1, ... in that order."""

    def adopt(self, row: int, candidate: int) -> int:
        """Keep this candidate's text as the row's and drop its sisters, those still running too.

        Returns how many ids those that were still running had generated.
        """

    def extend(self) -> list[tuple[int, int, Run]]:
        """Decode every started segment until at least one ended; returns (row, candidate, run) of those.

        The candidate is 0 without a fork. Empty when nothing is started. Raises RowFault for a row that
        cannot go on; it is to be called again, and then returns what ended of the others.
        """

    def finish(self, row: int) -> None:
        """Let the row go, whatever it was doing: its place is free. Must work after OutOfMemory too."""

    def close(self) -> None:
        """No row will be asked for again: let go of whatever is held. May be called twice."""
