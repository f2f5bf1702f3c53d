"""How far a long command is, where no bar can be drawn: a line every 30 seconds on stderr."""

import io
import sys
import threading
from types import SimpleNamespace

import pytest

from reverse import progress as module
from reverse.progress import EVERY, ProgressLines, show_phases, show_progress


class Clock:
    """Shows a time that is set by hand."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def lines_of(stream):
    return stream.getvalue().splitlines()


def test_a_line_every_30_seconds(clock):
    """A batch job's log would be empty for hours, or a line a record."""
    out = io.StringIO()
    lines = ProgressLines("answers", 1000, stream=out, clock=clock)
    for second in range(121):
        clock.now = float(second)
        lines.update(2 * second)
    assert lines_of(out) == [
        "answers: 60 of 1,000 (6%), 2.0 a second, 7:50 left",
        "answers: 120 of 1,000 (12%), 2.0 a second, 7:20 left",
        "answers: 180 of 1,000 (18%), 2.0 a second, 6:50 left",
        "answers: 240 of 1,000 (24%), 2.0 a second, 6:20 left",
    ]
    assert EVERY == 30


def test_what_was_done_before_does_not_count_for_the_rate(clock):
    """A run that goes on would promise its end in a minute."""
    out = io.StringIO()
    lines = ProgressLines("records", stream=out, clock=clock)
    lines.update(9000, 10_000)
    clock.now = 100.0
    lines.update(9010, 10_000, "3 money")
    assert lines_of(out) == ["records: 9,010 of 10,000 (90%), 6.0 a minute, 2:45:00 left, 3 money"]


@pytest.mark.parametrize(("done", "total"), [(0, 0), (0, None), (5, None), (7, 5), (0, 10)])
def test_odd_counts(clock, done, total):
    """A total of none, or one that was too low, would be a division by zero or a negative time."""
    out = io.StringIO()
    lines = ProgressLines("x", total, stream=out, clock=clock)
    lines.update(0)
    clock.now = 31.0
    lines.update(done, total)
    (line,) = lines_of(out)
    assert line.startswith(f"x: {done}") and "-" not in line


def test_short_commands_say_nothing(clock, capsys):
    """Scripts would find lines in stderr that nobody needs."""
    with show_progress("records", 3, clock=clock) as progress:
        for done in range(4):
            progress(done)
    assert capsys.readouterr() == ("", "")


def test_lines_go_to_stderr(clock, capsys):
    """They would stand among the figures that a script reads."""
    with show_progress("records", 3, clock=clock) as progress:
        progress(0)
        clock.now = 30.0
        progress(1)
    said = capsys.readouterr()
    assert said.out == "" and said.err == "records: 1 of 3 (33%), 2.0 a minute, 1:00 left\n"


def test_one_of_several_processes_shows(clock, capsys):
    """Eight GPUs would write eight lines."""
    with show_progress("records", 3, shown=False, clock=clock) as progress:
        clock.now = 300.0
        progress(1, 3, "note")
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch, clock):
    """A terminal would get lines, or the bar of a command that does not know its total fail."""
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    with show_progress("records") as progress:
        progress(1)
        progress(2, 10, "x" * 500)
    assert "records" in screen.getvalue() and "2/10" in screen.getvalue()
    with show_phases("reading") as say:
        say("writing")


def test_phases_are_told_while_one_lasts(monkeypatch, capsys):
    """Merging reads for minutes without a count: nobody would know that it lives."""
    ticks = iter([False, False, True])
    told, changed = [], threading.Event()

    class Event:
        def wait(self, seconds):
            assert seconds == EVERY and changed.wait(60)
            told.append(seconds)
            return next(ticks)

        def set(self):
            while len(told) < 3:
                pass

    threads = SimpleNamespace(Thread=threading.Thread, Event=Event)
    monkeypatch.setattr(module, "threading", threads)
    with show_phases("reading the base") as say:
        say("writing")
        changed.set()
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 2 and err[-1].startswith("writing, for 0:0")


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00"), (65, "1:05"), (7384, "2:03:04"), (1e30, "277777:46:40")]
)
def test_durations(seconds, shown):
    """An hour would be 60:00 of a unit that nobody names."""
    assert module._format_duration(seconds) == shown
