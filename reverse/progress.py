"""How far a long command is: a bar on a terminal, elsewhere a line every 30 seconds, on stderr.

    with show_progress("records", total=500) as progress:
        progress(17)                  # done
        progress(18, 600, "0.2 EUR")  # done, total, what else is worth saying

A line holds what is done, of how much, how many a second and the time that is left; what an earlier run had
done already does not count for the rate. Nothing is written for a command that ends before.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

__all__ = ["EVERY", "ProgressLines", "Report", "show_phases", "show_progress"]

EVERY = 30.0  # seconds between two lines


class Report(Protocol):
    """Told how far the work is."""

    def __call__(self, done: float, total: float | None = None, note: str = "") -> None: ...


class ProgressLines:
    """Lines for where no bar can be drawn: a log file, a batch job.

    Args:
        label: what is counted.
        total: of how many, where that is known at the start.
        stream: where lines go; None: stderr, as it is when the line is written.
        clock: seconds; another one for tests.
        every: seconds between two lines; None: `EVERY`.
    """

    def __init__(
        self,
        label: str,
        total: float | None = None,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        every: float | None = None,
    ):
        self.label, self.total, self.stream, self.clock = label, total, stream, clock
        self.every = EVERY if every is None else every
        self.done, self.note, self.lines = 0.0, "", 0
        self._began = self._last = clock()
        self._first: float | None = None  # done at the first report: by an earlier run, or the first piece

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        """Keep how far the work is, and write a line where one is due."""
        self.done, self.total, self.note = done, self.total if total is None else total, note
        if self._first is None:
            self._first, self._began = done, self.clock()
        self.tick()

    def tick(self) -> None:
        """Write a line where one is due."""
        now = self.clock()
        if now - self._last >= self.every:
            self._last = now
            self.lines += 1
            print(self.line(now), file=self.stream or sys.stderr, flush=True)

    def line(self, now: float) -> str:
        """What there is to say at the time `now`."""
        parts = [f"{self.label}: {self.done:,.0f}"]
        if self.total:
            parts[0] += f" of {self.total:,.0f} ({self.done / self.total:.0%})"
        spent = now - self._began
        made = self.done - (self._first or 0.0)
        if made > 0 and spent > 0:
            rate = made / spent
            parts.append(f"{rate:,.1f} a second" if rate >= 1 else f"{60 * rate:,.1f} a minute")
            if self.total:
                parts.append(f"{_duration(max(0.0, self.total - self.done) / rate)} left")
        return ", ".join([*parts, *filter(None, [self.note])])


@contextmanager
def show_progress(
    label: str,
    total: float | None = None,
    *,
    shown: bool = True,
    transient: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Report]:
    """A function to call with done, total (where it is known by then) and a note.

    Args:
        label: what is counted.
        total: of how many; None: not known yet, or never.
        shown: False: nothing is written at all (of several processes only one writes).
        transient: take the bar off the terminal at the end.
        clock: seconds; another one for tests.
    """
    if not shown:
        yield lambda done, total=None, note="": None
        return
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield ProgressLines(label, total, clock=clock).update
        return
    with _bar(console, transient) as bar:
        task = bar.add_task(label, total=total, note="", visible=total is not None)

        def update(done: float, total: float | None = None, note: str = "") -> None:
            known = {} if total is None else {"total": total}
            bar.update(task, completed=done, visible=True, note=note[-40:], **known)

        yield update


@contextmanager
def show_phases(
    label: str, *, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[str], None]]:
    """For work that tells its phase and no count: a spinner, or every 30 seconds a line with the phase.

    A thread writes the lines, for one phase may take minutes (reading a checkpoint).
    """
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(label) as status:
            yield status.update
        return
    phase, began, ended = [label], clock(), threading.Event()

    def write() -> None:
        while not ended.wait(EVERY):
            print(f"{phase[0]}, for {_duration(clock() - began)}", file=sys.stderr, flush=True)

    def update(text: str) -> None:
        phase[0] = str(text)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield update
    finally:
        ended.set()
        thread.join()


def _bar(console: Any, transient: bool) -> Any:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=transient,
    )


def _duration(seconds: float) -> str:
    """1:05, or 2:03:04 with hours."""
    minutes, rest = divmod(round(min(seconds, 1e9)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
