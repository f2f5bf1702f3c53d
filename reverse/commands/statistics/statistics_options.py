"""Options and checks that the commands of statistics share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reverse.errors import MissingFileError, RequestError

if TYPE_CHECKING:
    from reverse.evaluation.detector.phrase_truth import Truth

Truths = Annotated[
    str,
    typer.Option(
        help="Truth that says which phrases are wrong: scenes, chair:FOLDER, amber-g:FOLDER, or stored "
        "(the answers say it)."
    ),
]
Method = Annotated[str, typer.Option(help="How intervals are computed: bca or percentile.")]
Rounds = Annotated[int, typer.Option(min=1, help="Number of bootstrap rounds.")]
WorldSeed = Annotated[int, typer.Option(help="Random seed of the scenes that the answers describe.")]
ANSWERS = "Answers made with checking off (JSON lines), which hold p(</UN>) of every phrase."


def lock_output(command: Callable[[Any], None]) -> Callable[[Any], None]:
    """Wrap a command so that it locks its folder --out, and two runs never mix their files there."""

    @functools.wraps(command)
    def run(options: Any) -> None:
        from reverse.files.file_lock import output_lock

        with nullcontext() if options.out is None else output_lock(options.out):
            command(options)

    return run


def make_truth(name: str, world_seed: int) -> Truth | None:
    """Return the truth that --truth names; None for the verdicts in the answers file."""
    from reverse.evaluation.detector.phrase_truth import BenchmarkTruth, SceneTruth

    if name == "stored":
        return None
    if name == "scenes":
        return SceneTruth(world_seed)
    benchmark, _, folder = name.partition(":")
    if folder and benchmark in BenchmarkTruth.COLUMNS:
        if not Path(folder).exists():
            raise MissingFileError(f"no truth at {folder!r}: name the folder of the benchmark's files")
        return BenchmarkTruth(folder, benchmark)
    raise RequestError(f"truth must be scenes, stored, chair:FOLDER or amber-g:FOLDER, got {name!r}")


def check_plots_before(out: Path) -> None:
    """Raise an error before the work if the plots could not be written at its end."""
    from reverse.evaluation.reports.plots import check_plots
    from reverse.evaluation.runs.outputs import check_output_folder

    check_plots()
    check_output_folder(out)


def find_device(name: str | None) -> Any:
    from reverse.commands.runtime_setup import resolve_placement, silence_libraries

    silence_libraries()
    return resolve_placement(name, None)[0]
