"""A learning rate that follows steps or the clock, so that a run of 150 seconds ends at zero on any machine.

    schedule = Schedule(steps=5000, seconds=150.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)

The progress of a run is the larger of its share of steps and its share of seconds. The seconds spent are part
of the scheduler's state (`LambdaLR` keeps the attributes of a callable object), so a resumed run continues
the schedule.
"""

from __future__ import annotations

import math
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from transformers import TrainerCallback

from reverse.errors import RequestError
from reverse.progress import ProgressLines

__all__ = ["Clock", "Progress", "Schedule"]

SHAPES = ("cosine", "constant")


class Schedule:
    """Factor of the learning rate after some steps: a linear rise over `warmup`, then half a cosine or 1.

    Args:
        steps: number of steps of the whole run.
        seconds: time limit of the run; None: no limit.
        warmup: share of the run, in [0, 1).
        shape: "cosine", or "constant" after the rise.
    """

    def __init__(self, steps: int, seconds: float | None = None, warmup: float = 0.03, shape: str = "cosine"):
        if shape not in SHAPES:
            raise RequestError(f"schedule must be one of {', '.join(SHAPES)}, got {shape!r:.80}")
        if steps < 1 or not 0 <= warmup < 1 or (seconds is not None and seconds <= 0):
            raise RequestError(
                f"steps must be at least 1, seconds positive and warmup in [0, 1), got {steps}, {seconds} "
                f"and {warmup}"
            )
        self.steps = steps
        self.seconds = seconds
        self.warmup = warmup
        self.shape = shape
        self.spent = 0.0  # seconds, written by Clock

    def done(self, step: int) -> float:
        """Return the share of the run that is done, in [0, 1]."""
        by_time = self.spent / self.seconds if self.seconds is not None else 0.0
        return min(1.0, max(step / self.steps, by_time))

    def __call__(self, step: int) -> float:
        done = self.done(step)
        if done < self.warmup:
            # Never quite zero: the first step would be lost.
            return min(1.0, max(done, 1 / self.steps) / self.warmup)
        if self.shape == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (done - self.warmup) / (1 - self.warmup)))


class Clock(TrainerCallback):
    """Writes the seconds spent into a `Schedule`, and stops the run when they are used up.

    It starts at the first step, so the start of workers is not counted. Wall-clock time, read without
    waiting for the device.
    """

    def __init__(self, schedule: Schedule):
        self.schedule = schedule
        self.began: float | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.began is None:
            self.began = time.monotonic() - self.schedule.spent

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the time before the scheduler's step, so that the step uses it."""
        if self.began is not None:
            self.schedule.spent = time.monotonic() - self.began

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.schedule.seconds is not None and self.schedule.spent >= self.schedule.seconds:
            control.should_training_stop = True


class Progress(TrainerCallback):
    """Shows progress, speed and loss: as a bar on a terminal.

    Elsewhere one line for each log on stdout, and every 30 seconds one on stderr with the time that is left.
    """

    def __init__(self, schedule: Schedule, rows_per_step: int, name: str = "train", quiet: bool = False):
        self.schedule = schedule
        self.rows_per_step = rows_per_step
        self.name = name
        self.quiet = quiet
        self._last = (0, 0.0)
        self._bar: Any = None
        self._lines: ProgressLines | None = None
        self._task: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._last = (state.global_step, self.schedule.spent)
        if self.quiet:
            return
        console = Console(stderr=True)
        if not console.is_terminal:
            steps = self.schedule.steps if self.schedule.seconds is None else None
            self._lines = ProgressLines(f"{self.name}: steps", steps)
            self._lines.update(state.global_step)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Bar(*columns, TextColumn("{task.fields[shown]}"), console=console)
        self._task = self._bar.add_task(
            self.name, total=self.schedule.steps, completed=state.global_step, shown=""
        )
        self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)
        elif self._lines is not None:
            seconds = self.schedule.seconds
            left = None if seconds is None else max(0.0, seconds - self.schedule.spent)
            self._lines.update(state.global_step, note="" if left is None else f"{left:,.0f} s left")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar, also if the run stops before its end."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        step, spent = state.global_step, self.schedule.spent
        steps, seconds = step - self._last[0], spent - self._last[1]
        rate = steps / seconds if seconds > 0 else float("nan")
        self._last = (step, spent)
        loss = float(logs["loss"])
        shown = f"loss {loss:.4f}  lr {float(logs.get('learning_rate', 0.0)):.2e}"
        shown += f"  |g| {float(logs.get('grad_norm', 0.0)):.2f}  {rate * self.rows_per_step:.0f} rows/s"
        if self._bar is not None:
            self._bar.update(self._task, shown=shown)
        elif not self.quiet:
            done = self.schedule.done(step)
            print(f"{self.name}: {done:4.0%}  step {step}  {spent:6.1f} s  {shown}", flush=True)
