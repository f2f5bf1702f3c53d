"""Callbacks of runs on TRL's trainers: losses are finite, and a resumed run logs what a whole one logs."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback

from reverse.errors import DataError

__all__ = ["FiniteCheck", "LogAtCheckpoints", "TokenCount"]


class FiniteCheck(TrainerCallback):
    """Ends a run whose loss or gradient is not finite, before a checkpoint is written of it."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        for name in ("loss", "grad_norm"):
            value = (logs or {}).get(name)
            if value is not None and not math.isfinite(float(value)):
                raise DataError(
                    f"{name} is {value} at step {state.global_step}: lower optim.lr, or check the rows"
                )


class LogAtCheckpoints(TrainerCallback):
    """Logs at every step that a checkpoint is written of.

    Sums that are not logged yet stand in no checkpoint, so a resumed run would log other means.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_save:
            control.should_log = True


class TokenCount(TrainerCallback):
    """Makes `num_tokens` in the log of DPO the tokens of the whole run; TRL counts from 0 when it resumes."""

    def __init__(self) -> None:
        self.before = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        counts = [entry["num_tokens"] for entry in state.log_history if "num_tokens" in entry]
        self.before = counts[-1] if counts else 0.0

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.log_history and "num_tokens" in state.log_history[-1]:
            state.log_history[-1]["num_tokens"] += self.before
