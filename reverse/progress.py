"""Progress of long commands on stderr: a bar on a terminal, otherwise a line every 30 seconds.

    with show_progress("records", total=500) as progress:
        progress(17)                  # done
        progress(18, 600, "0.2 EUR")  # done, total, note

A line shows the count, the total, the rate and the remaining time. Work of an earlier run does not count for
the rate. A command that takes less than 30 seconds writes no line.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from reverse.background_threads import BackgroundThread

__all__ = ["EVERY", "ProgressCallback", "ProgressLines", "show_phases", "show_progress"]

EVERY = 30.0  # seconds between two lines


class ProgressCallback(Protocol):
    """Receives the progress of the work."""

    def __call__(self, done: float, total: float | None = None, note: str = "") -> None: ...


class ProgressLines:
    """Writes lines of progress to a log file.

    Args:
        label: what is counted.
        total: the total count, if it is known.
        stream: receives the lines; None: stderr.
        clock: returns seconds.
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
        self._first: float | None = None  # count of the first report

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        """Note the progress, and write a line if one is due."""
        self.done, self.total, self.note = done, self.total if total is None else total, note
        if self._first is None:
            self._first, self._began = done, self.clock()
        self.tick()

    def tick(self) -> None:
        """Write a line if one is due."""
        now = self.clock()
        if now - self._last >= self.every:
            self._last = now
            self.lines += 1
            print(self.line(now), file=self.stream or sys.stderr, flush=True)

    def line(self, now: float) -> str:
        """Return the line at the time `now`."""
        parts = [f"{self.label}: {self.done:,.0f}"]
        if self.total:
            parts[0] += f" of {self.total:,.0f} ({self.done / self.total:.0%})"
        spent = now - self._began
        made = self.done - (self._first or 0.0)
        if made > 0 and spent > 0:
            rate = made / spent
            parts.append(f"{rate:,.1f} a second" if rate >= 1 else f"{60 * rate:,.1f} a minute")
            if self.total:
                parts.append(f"{_format_duration(max(0.0, self.total - self.done) / rate)} left")
        return ", ".join([*parts, *filter(None, [self.note])])


@contextmanager
def show_progress(
    label: str,
    total: float | None = None,
    *,
    shown: bool = True,
    transient: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[ProgressCallback]:
    """Yield a function that takes the count, the total (if known) and a note.

    Args:
        label: what is counted.
        total: the total count; None: unknown.
        shown: False writes nothing, for all but one of several processes.
        transient: remove the bar at the end.
        clock: returns seconds.
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
    """Yield a function that takes the current phase: a spinner, or a line every 30 seconds.

    A thread writes the lines, because one phase may take minutes (reading a checkpoint).
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
            print(f"{phase[0]}, for {_format_duration(clock() - began)}", file=sys.stderr, flush=True)

    def update(text: str) -> None:
        phase[0] = str(text)

    thread = BackgroundThread(write, "reverse-phases", stop=ended.set, patience=1.0)
    thread.start()
    try:
        yield update
    finally:
        ended.set()
        thread.join()


def _bar(console: Any, transient: bool) -> Any:
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=20),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[note]}"),
        console=console,
        transient=transient,
    )


def _format_duration(seconds: float) -> str:
    """Return a duration as 1:05, or 2:03:04 with hours."""
    minutes, rest = divmod(round(min(seconds, 1e9)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
