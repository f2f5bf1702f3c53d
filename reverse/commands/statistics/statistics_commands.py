"""Register `reverse compare`, `sweep`, `calibrate` and `report`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from reverse.commands.option_classes import make_command
from reverse.commands.statistics.calibrate_command import CalibrateOptions, calibrate
from reverse.commands.statistics.compare_command import CompareOptions, compare
from reverse.commands.statistics.report_command import ReportOptions, report
from reverse.commands.statistics.statistics_options import lock_output
from reverse.commands.statistics.sweep_command import SweepOptions, sweep


def register(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    pairs: tuple[tuple[Callable[[Any], None], type], ...] = (
        (compare, CompareOptions),
        (sweep, SweepOptions),
        (calibrate, CalibrateOptions),
        (report, ReportOptions),
    )
    for command, options in pairs:
        app.command(command.__name__)(make_command(lock_output(command), options))
