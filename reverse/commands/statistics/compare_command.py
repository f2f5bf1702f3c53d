"""`reverse compare`: compare scored runs image by image, or modes question by question.

reverse compare ours.json theirs.json --out out/compare
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from reverse.commands.shared_options import Seed
from reverse.commands.statistics.statistics_options import Method, Rounds, check_plots_before
from reverse.errors import RequestError

if TYPE_CHECKING:
    from reverse.evaluation.stats.scored_tables import Metric, Table


@dataclass(frozen=True)
class CompareOptions:
    """Options of `reverse compare`."""

    first: Annotated[Path, typer.Argument(help="Scored file of a run (`reverse score … --save`).")]
    second: Annotated[Path, typer.Argument(help="Scored file of another run over the same questions.")]
    more: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Files of drafts (NAME.drafts.jsonl) of further modes. With files of drafts the first is "
            "the mode before, and the report has changes, costs and curves."
        ),
    ] = None
    metric: Annotated[
        list[str] | None, typer.Option(help="Compare only this metric. Repeat the option for several.")
    ] = None
    out: Annotated[Path | None, typer.Option(help="Folder for compare.json and the forest plot.")] = None
    method: Method = "bca"
    rounds: Rounds = 2000
    permutations: Annotated[
        int,
        typer.Option(
            min=1, help="Number of rounds of the permutation test. All swaps are tried if there are fewer."
        ),
    ] = 9999
    level: Annotated[float, typer.Option(help="Confidence level of the intervals.")] = 0.95
    seed: Seed = 0
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False


def compare(options: CompareOptions) -> None:
    """Compare two runs image by image, or modes question by question: differences and paired intervals."""
    if options.more or options.first.suffix == ".jsonl":
        _compare_modes(options)
        return
    from reverse.commands.statistics import result_tables
    from reverse.evaluation.stats.bootstrap import BootstrapSettings
    from reverse.evaluation.stats.paired_comparison import compare_runs
    from reverse.files.atomic_write import write_json
    from reverse.files.json_values import replace_non_finite

    if options.out is not None:
        check_plots_before(options.out)
    paths = options.first, options.second
    tables, metrics, left_out = _read_pair(options)
    settings = BootstrapSettings(options.method, options.rounds, options.level, options.seed)  # type: ignore[arg-type]
    found = compare_runs(
        *tables, metrics, settings, names=(str(paths[0]), str(paths[1])), permutations=options.permutations
    )
    content = replace_non_finite(
        {
            "first": str(paths[0]),
            "second": str(paths[1]),
            "benchmark": tables[0].benchmark,
            "seed": options.seed,
            "metrics": [each.to_dict() for each in found],
        }
    )
    title = f"{tables[0].benchmark}: {' − '.join(result_tables.name_runs(*paths))}"
    if options.as_json:
        typer.echo(json.dumps(content, indent=1))
    else:
        Console().print(result_tables.make_difference_table(found, title, options.level))
        for line in result_tables.list_remarks(found):
            typer.echo(line)
        if left_out:
            typer.echo(f"only in {paths[0]}: {', '.join(left_out)}")
    if options.out is not None:
        from reverse.evaluation.reports.plots import plot_forest

        write_json(options.out / "compare.json", content)
        plot_forest(found, options.out / "forest", title)
        if not options.as_json:
            typer.echo(f"{options.out}: compare.json, forest.png, forest.svg")


def _compare_modes(options: CompareOptions) -> None:
    """Report modes from their files of drafts."""
    from reverse.commands.mode_comparison import compare_modes
    from reverse.evaluation.stats.bootstrap import BootstrapSettings

    paths = [options.first, options.second, *(options.more or [])]
    settings = BootstrapSettings(options.method, options.rounds, options.level, options.seed)  # type: ignore[arg-type]
    if options.metric:
        raise RequestError("--metric works with scored files only: leave it out to compare modes")
    if options.out is not None:
        check_plots_before(options.out)
    files = None if options.out is None else options.out / "modes"
    compare_modes(paths, settings, files, as_json=options.as_json)


def _read_pair(options: CompareOptions) -> tuple[tuple[Table, Table], list[Metric], list[str]]:
    """Return both tables, the metrics to compare, and the titles of metrics that the second table lacks."""
    from reverse.evaluation.scoring.judge import refuse_without_verdicts
    from reverse.evaluation.stats.scored_tables import find_columns, load_scored

    first, second, wanted = options.first, options.second, options.metric
    (ours, metrics), (theirs, _) = load_scored(first), load_scored(second)
    for path, table in ((first, ours), (second, theirs)):
        try:
            refuse_without_verdicts(table)
        except ValueError as error:
            raise RequestError(f"{path}: {error}") from error
    if ours.benchmark != theirs.benchmark:
        raise RequestError(
            f"{first} is scored as {ours.benchmark!r}, {second} as {theirs.benchmark!r}: compare runs of one"
        )
    known = [m.name for m in metrics]
    if unknown := sorted(set(wanted or []) - set(known)):
        raise RequestError(f"no metric {', '.join(unknown)} in {first}: it has {', '.join(known)}")
    metrics = [m for m in metrics if not wanted or m.name in wanted]
    both = [m for m in metrics if find_columns(m.form) <= set(theirs.columns)]
    left_out = [m.title or m.name for m in metrics if m not in both]
    if left_out and (wanted or not both):
        raise RequestError(
            f"{second} does not hold the columns of {', '.join(left_out)}: compare other metrics"
        )
    return (ours, theirs), both, left_out
