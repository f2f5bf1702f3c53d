"""`reverse eval`: benchmarks on any checkpoint, resumable, on photographs or on scenes.

reverse eval all --model tiny-llava --data scenes --out out/eval --limit 20
reverse eval --where pope
torchrun --nproc-per-node 4 -m reverse eval chair --model llava-merged --out out/llava
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from reverse.commands.option_checks import check_decoding, choose_modes
from reverse.commands.option_classes import make_command
from reverse.commands.runtime_setup import resolve_placement, silence_libraries
from reverse.commands.shared_options import (
    Candidates,
    Device,
    Dtype,
    Gate,
    Hints,
    Judge,
    OnExhausted,
    Rounds,
    SampledTemperature,
    Samples,
    Seed,
)
from reverse.decoding.mode_names import MODE_NAMES, list_names
from reverse.errors import RequestError
from reverse.progress import ProgressLines

if TYPE_CHECKING:
    from reverse.evaluation.runs.evaluation import Plan

_DATA = "playground/data/eval"
INTERRUPTED = 130  # exit code of a command stopped by Ctrl-C


def register(app: typer.Typer) -> None:
    """Add `eval` to `app`."""
    app.command("eval")(make_command(evaluate, EvalOptions))


@dataclass(frozen=True)
class EvalOptions:
    """Options of `reverse eval`."""

    benchmarks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="BENCHMARK…",
            help="chair, amber-g, amber-d, pope, pope-aokvqa, pope-gqa, mme-hall, mme, mmhal, haloquest; "
            "all; or a graded benchmark such as chartqa; or graded, for all of these (see --where).",
        ),
    ] = None
    model: Annotated[str | None, typer.Option(help="Checkpoint folder, hub id or bundled name.")] = None
    out: Annotated[
        Path | None, typer.Option(help="Folder of the answers. The same command continues a stopped run.")
    ] = None
    data: Annotated[str, typer.Option(help="Folder of the published files, or `scenes` to make them.")] = (
        _DATA
    )
    where: Annotated[
        bool, typer.Option("--where", help="Print which files belong where, and which are missing.")
    ] = False
    mode: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{list_names(MODE_NAMES)}; by default resample. Repeat the option to compare other modes "
            "with the first one."
        ),
    ] = None
    n: Samples = None
    rounds: Rounds = None
    gate: Gate = None
    judge: Judge = None
    threshold: Annotated[
        float | None,
        typer.Option(
            help="p(</UN>) above which a phrase is rejected; by default the checkpoint's, 0.5 for yes or no."
        ),
    ] = None
    max_sequences: Annotated[
        int, typer.Option("--max-sequences", "--batch", min=1, help="Number of answers decoded side by side.")
    ] = 8
    window: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of questions that are decoded together. The same window gives identical answers.",
        ),
    ] = None
    limit: Annotated[
        int | None, typer.Option(min=1, help="Number of pictures to ask about, from the first. Default: all.")
    ] = None
    seed: Seed = 0
    decode_seeds: Annotated[int, typer.Option(min=1, help="Number of runs, each with the next seed.")] = 1
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Largest number of tokens in an answer. Default: the benchmark's."),
    ] = None
    hints: Hints = 5
    on_exhausted: OnExhausted = "best"
    candidates: Candidates = 1
    do_sample: Annotated[bool, typer.Option("--do-sample", help="Sample from the first token on.")] = False
    temperature: SampledTemperature = None
    scenes: Annotated[int, typer.Option(min=1, help="Number of scenes that --data scenes makes.")] = 500
    split: Annotated[str, typer.Option(help="Split of --data scenes: `val`, `test` or `shift`.")] = "test"
    device: Device = None
    dtype: Dtype = None
    ray: Annotated[
        int | None, typer.Option(min=1, help="Number of workers of a Ray cluster (extra: ray).")
    ] = None
    score: Annotated[
        bool,
        typer.Option("--score", help="Score the answers, and write tables (.json) beside them."),
    ] = False

    @property
    def plan(self) -> Plan:
        """Return the evaluation that the options describe."""
        from reverse.evaluation.runs.benchmark_run import Decoding
        from reverse.evaluation.runs.evaluation import Plan

        settings = {"hints": self.hints, "on_exhausted": self.on_exhausted, "candidates": self.candidates}
        # Greedy decoding is one configuration, whichever temperature is named.
        temperature = self.temperature if self.do_sample and self.temperature is not None else 1.0
        (mode, mode_settings), *more_modes = self.modes
        return Plan(
            str(self.model),
            tuple(self.benchmarks or ()),
            str(self.out),
            self.data,
            Decoding(
                mode,
                self.threshold,
                self.max_new_tokens,
                self.do_sample,
                temperature,
                self.seed,
                settings,
                mode_settings=mode_settings,
            ),
            self.decode_seeds,
            self.max_sequences,
            self.window,
            self.limit,
            self.scenes,
            self.split,
            self.device,
            self.dtype,
            shlex.join(["reverse", *sys.argv[1:]]),
            tuple(more_modes),
        )

    @property
    def modes(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the modes with their settings. Raises RequestError for a setting that none of them has."""
        own = {name: getattr(self, name) for name in ("n", "rounds", "gate", "judge")}
        return choose_modes(self.mode or ["resample"], own)


def evaluate(options: EvalOptions) -> None:
    """Answer benchmarks with a checkpoint; every answer is kept as it comes."""
    if options.where:
        _print_files(options.benchmarks, options.data)
        return
    silence_libraries()
    example = "reverse eval chair --model tiny-llava --data scenes --out out"
    if not options.benchmarks:
        raise RequestError(f"name a benchmark, or all: {example}")
    for name, value in (("--model", options.model), ("--out", options.out)):
        if value is None:
            raise RequestError(f"{name} is missing: {example}")
    check_decoding(
        mode=options.modes[0][0], max_new_tokens=options.max_new_tokens, do_sample=options.do_sample,
        temperature=options.temperature, threshold=options.threshold, hints=options.hints,
        on_exhausted=options.on_exhausted, candidates=options.candidates, seed=options.seed,
    )  # fmt: skip
    if options.device is not None or options.dtype is not None:
        resolve_placement(options.device, options.dtype)
    _run(options.plan, options.ray, options.score)


def _run(plan: Plan, ray: int | None, score: bool) -> None:
    """Answer the benchmarks of a plan, then report or score them."""
    from reverse.evaluation.runs.benchmark_run import find_place
    from reverse.evaluation.runs.evaluation import evaluate as run_all
    from reverse.evaluation.runs.evaluation import evaluate_on_ray
    from reverse.evaluation.runs.outputs import check_output_folder

    if score:
        _check_scoring(plan)
    check_output_folder(Path(plan.out))
    at = find_place()
    try:
        with _show_bars(at.rank == 0 and ray is None) as watch:
            outcomes = evaluate_on_ray(plan, ray) if ray is not None else run_all(plan, at, watch)
    except KeyboardInterrupt:
        told = f"stopped; what was answered is in {plan.out}, and the same command goes on"
        Console(stderr=True).print(told, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    if at.world == 1 or all(outcome.complete for outcome in outcomes):
        _report(plan, outcomes, score)


def _check_scoring(plan: Plan) -> None:
    """Refuse before the model is loaded what could not be scored after hours of answering."""
    from reverse.evaluation.benchmarks import named
    from reverse.evaluation.runs.evaluation import SCENES
    from reverse.evaluation.runs.scoring import check_scoring

    check_scoring(named(*plan.benchmarks), None if plan.data == SCENES else plan.data)


def _score(path: Path, root: Path, plan: Plan) -> str:
    """Score one file as `reverse score` does; return the error that stopped it, or ""."""
    from reverse.commands.score_command import ScoreOptions, score_and_show
    from reverse.evaluation.reading.answers import read_run

    run = read_run(path)
    name = str(run["config"]["benchmark"]) if run else path.stem.partition(".")[0]
    try:
        score_and_show(
            ScoreOptions(path, root, partial=plan.limit is not None, save=path.with_suffix(".json")), name
        )
    except (ValueError, OSError) as error:
        return f"{path}: {error}"
    return ""


def _print_files(benchmarks: list[str] | None, data: str) -> None:
    from reverse.evaluation.benchmarks import named
    from reverse.evaluation.benchmarks.file_table import tabulate_files

    root = Path(_DATA if data == "scenes" else data)
    table, ready = tabulate_files(named(*(benchmarks or ["all", "mme", "graded"])), root)
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)
    typer.echo(f"ready to run: {', '.join(ready) or 'none'}")
    typer.echo("without any of these files: reverse eval all --model tiny-llava --data scenes --out out/eval")


def _report(plan: Plan, outcomes: list[Any], score: bool = False) -> None:
    from reverse.evaluation.runs.evaluation import SCENES, summarise

    for row in summarise(outcomes):
        notes = [f"{row['done']} of {row['total']} answers", f"{row['ratio']:.2f} tokens made for each kept"]
        notes += [f"{row[name]} {name}" for name in ("unresolved", "empty") if row[name]]
        notes.append(row["published"])
        typer.echo(f"{row['path']}: {', '.join(notes)}")
    root = Path(plan.out) / "data" if plan.data == SCENES else Path(plan.data)
    complete = [Path(outcome.path) for outcome in outcomes if outcome.complete]
    if plan.more_modes:
        _compare_modes(plan, complete)
    if score:
        failed = [said for path in complete if (said := _score(path, root, plan))]
        if failed:  # the others are scored
            told = "\n  ".join(failed)
            raise RequestError(f"{len(failed)} of {len(complete)} files of answers have no score:\n  {told}")
        return
    part = " --partial" if plan.limit is not None else ""
    typer.echo("next:")
    for path in complete:
        names = shlex.join([str(path), "--truth", str(root), "--save", str(path.with_suffix(".json"))])
        typer.echo(f"  reverse score {names}{part}")


def _compare_modes(plan: Plan, complete: list[Path]) -> None:
    """Report the modes of each graded benchmark that all of them have answered."""
    from reverse.commands.mode_comparison import compare_modes
    from reverse.evaluation.runs.mode_drafts import drafts_path
    from reverse.evaluation.stats.bootstrap import BootstrapSettings

    modes = [decoding.mode for decoding in plan.decodings]
    groups: dict[tuple[str, str], dict[str, Path]] = {}
    for path in complete:
        benchmark, mode, *rest = path.stem.split(".")  # the rest is the seed, if it is not the first
        groups.setdefault((benchmark, ".".join(rest)), {})[mode] = drafts_path(path)
    for (benchmark, seed), drafts in groups.items():
        if list(drafts) == modes and all(path.exists() for path in drafts.values()):
            name = ".".join(filter(None, (benchmark, "modes", seed)))
            compare_modes(
                list(drafts.values()), BootstrapSettings(seed=0), Path(plan.out) / name, title=benchmark
            )


@contextmanager
def _show_bars(shown: bool) -> Iterator[Any]:
    """Show a bar for each benchmark and seed on a terminal, elsewhere a line every 30 seconds."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bar:
        tasks: dict[tuple[str, int], Any] = {}
        lines: dict[tuple[str, int], ProgressLines] = {}

        def watch(benchmark: Any, seed: int, done: int, total: int) -> None:
            key = (benchmark.title, seed)
            if key not in tasks:
                name = benchmark.title if not seed else f"{benchmark.title}, seed {seed}"
                tasks[key] = bar.add_task(name, total=total, completed=done)
                lines[key] = ProgressLines(name, total)
            bar.update(tasks[key], completed=done)
            if shown and not console.is_terminal:
                lines[key].update(done)

        yield watch
