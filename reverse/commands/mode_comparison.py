"""How `reverse eval` and `reverse compare` report several modes: tables, a JSON file and a figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from reverse.errors import MissingFileError, RequestError
from reverse.progress import show_progress

if TYPE_CHECKING:
    from reverse.evaluation.stats.bootstrap import BootstrapSettings

__all__ = ["compare_modes"]

WIDTH = 180  # characters of the tables where there is no terminal


def compare_modes(
    paths: Sequence[Path],
    settings: BootstrapSettings,
    files: Path | None = None,
    *,
    title: str = "",
    as_json: bool = False,
) -> None:
    """Print the report of some files of drafts; the first is the mode before.

    Args:
        files: also write `files`.json, and the figure as .png and .svg if matplotlib is installed.
        as_json: print the report as JSON.

    Raises RequestError for a file that holds no drafts by its name; what `read_mode_run` and `make_report`
    raise.
    """
    from reverse.evaluation.modes.mode_report import make_report, read_mode_run
    from reverse.evaluation.modes.mode_tables import make_mode_tables
    from reverse.evaluation.reports.plots import plot_modes
    from reverse.files.atomic_write import write_json
    from reverse.files.json_values import replace_non_finite

    for path in paths:
        if not path.exists():
            raise MissingFileError(
                f"{str(path)!r}: there is no such file; `reverse eval --mode A --mode B` writes drafts"
            )
        if not path.name.endswith(".drafts.jsonl"):
            raise RequestError(
                f"{path} is not a file of drafts by its name, which must end in .drafts.jsonl: rename it if "
                "it is one, or name two scored files (.json)"
            )
    runs = [read_mode_run(path) for path in paths]
    if len({run.name for run in runs}) < len(runs):  # one mode with several settings
        names = [path.name.removesuffix(".drafts.jsonl") for path in paths]
        if len(set(names)) < len(names):
            names = [f"{path.resolve().parent.name}/{name}" for path, name in zip(paths, names, strict=True)]
        runs = [read_mode_run(path, name) for path, name in zip(paths, names, strict=True)]
    with show_progress("modes compared", len(runs)) as progress:
        report = make_report(runs, settings, progress)
    if as_json:
        typer.echo(json.dumps(replace_non_finite(report), indent=1))
    else:
        console = Console()
        if not console.is_terminal:
            console = Console(width=WIDTH)
        for table in make_mode_tables(report, title):
            console.print(table)
    if files is None:
        return
    written = [files.with_name(f"{files.name}.json")]
    write_json(written[0], replace_non_finite(report))
    if find_spec("matplotlib") is not None:
        written += plot_modes(report, files, title)
    if not as_json:
        typer.echo(f"{files.parent}: {', '.join(path.name for path in written)}")
