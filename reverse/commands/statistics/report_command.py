"""`reverse report`: put the results of several runs on one page.

reverse report runs/a runs/b --out report
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from reverse.commands.shared_options import Seed
from reverse.commands.statistics.statistics_options import Method, Rounds


@dataclass(frozen=True)
class ReportOptions:
    """Options of `reverse report`."""

    folders: Annotated[list[Path], typer.Argument(help="Folders with answers, scored files or plots.")]
    out: Annotated[Path, typer.Option(help="Folder for report.html and report.md.")] = Path("report")
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Evaluation"
    examples: Annotated[
        int, typer.Option(min=0, help="Number of answers shown of each file, corrected ones first.")
    ] = 6
    images: Annotated[Path | None, typer.Option(help="Folder of the examples' pictures.")] = None
    method: Method = "bca"
    rounds: Rounds = 2000
    seed: Seed = 0
    lmms_eval: Annotated[
        bool, typer.Option("--lmms-eval", help="Also write per-sample rows in the shape of lmms-eval.")
    ] = False


def report(options: ReportOptions) -> None:
    """Put scores, costs, plots and examples of several runs on one page and in one table."""
    from reverse.evaluation.reports.reporting import ReportSettings, write_report
    from reverse.evaluation.runs.outputs import check_output_folder
    from reverse.evaluation.stats.bootstrap import BootstrapSettings

    check_output_folder(options.out)
    bootstrap = BootstrapSettings(options.method, options.rounds, seed=options.seed)  # type: ignore[arg-type]
    settings = ReportSettings(options.title, options.examples, options.images, bootstrap, options.lmms_eval)
    for path in write_report(options.folders, options.out, settings):
        typer.echo(str(path))
