"""`reverse eval`: benchmarks on any checkpoint, resumable, on photographs or on scenes.

reverse eval all --model tiny-llava --data scenes --out out/eval --limit 20
reverse eval --where pope
torchrun --nproc-per-node 4 -m reverse eval chair --model llava-merged --out out/llava
"""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from reverse.commands.option_checks import check_decoding
from reverse.commands.runtime_setup import resolve_placement, silence_libraries
from reverse.errors import RequestError
from reverse.progress import ProgressLines

_DATA = "playground/data/eval"
INTERRUPTED = 130  # exit code of a command stopped by Ctrl-C


def register(app: typer.Typer) -> None:
    """Put `eval` into `app`."""
    app.command("eval")(evaluate)


def evaluate(
    benches: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="BENCH…",
            help="chair, amber-g, amber-d, pope, pope-aokvqa, pope-gqa, mme-hall, mme, mmhal, haloquest; all",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint folder, hub id or bundled name.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of answers; a stopped run goes on.")] = None,
    data: Annotated[str, typer.Option(help="Folder of the published files, or scenes.")] = _DATA,
    where: Annotated[
        bool, typer.Option("--where", help="Say what to put where, and what is missing.")
    ] = False,
    mode: Annotated[str, typer.Option(help="resample checks and corrects; plain does not.")] = "resample",
    threshold: Annotated[
        float | None,
        typer.Option(
            help="p(</UN>) above which a phrase is rejected; else the checkpoint's, 0.5 for yes/no."
        ),
    ] = None,
    max_sequences: Annotated[
        int, typer.Option("--max-sequences", "--batch", min=1, help="Answers decoded side by side.")
    ] = 8,
    window: Annotated[
        int | None, typer.Option(min=1, help="Questions decoded together; the same window, the same bits.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only questions about the first so many pictures.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    decode_seeds: Annotated[int, typer.Option(min=1, help="Runs, each with the next seed.")] = 1,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of an answer; else the benchmark's.")
    ] = None,
    hints: Annotated[int, typer.Option(help="Rejected phrases that the prompt names; 0: none.")] = 5,
    on_exhausted: Annotated[
        str, typer.Option(help="For a phrase that stays suspect: best or drop.")
    ] = "best",
    candidates: Annotated[int, typer.Option(help="Continuations tried side by side.")] = 1,
    do_sample: Annotated[bool, typer.Option("--do-sample", help="Sample from the start.")] = False,
    temperature: Annotated[float | None, typer.Option(help="Of --do-sample; else 1.")] = None,
    scenes: Annotated[int, typer.Option(min=1, help="Of --data scenes: how many.")] = 500,
    split: Annotated[str, typer.Option(help="Of --data scenes: val, test or shift.")] = "test",
    device: Annotated[str | None, typer.Option(help="As torch names it; else cuda or cpu.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; else as saved.")] = None,
    ray: Annotated[int | None, typer.Option(min=1, help="Workers of a Ray cluster (extra: ray).")] = None,
    score: Annotated[
        bool,
        typer.Option("--score", help="Score what was answered; write tables (.json) beside the answers."),
    ] = False,
) -> None:
    """Answer benchmarks with a checkpoint; every answer is kept as it comes."""
    if where:
        _where(benches, data)
        return

    silence_libraries()
    if not benches:
        raise RequestError(
            "name a benchmark, or all: reverse eval chair --model tiny-llava --data scenes --out out"
        )
    for name, value in (("--model", model), ("--out", out)):
        if value is None:
            raise RequestError(
                f"{name} is missing: reverse eval chair --model tiny-llava --data scenes --out out"
            )
    check_decoding(
        mode=mode, max_new_tokens=max_new_tokens, do_sample=do_sample, temperature=temperature,
        threshold=threshold, hints=hints, on_exhausted=on_exhausted, candidates=candidates, seed=seed,
    )  # fmt: skip
    from reverse.evaluation.runs.benchmark_run import Decoding, place
    from reverse.evaluation.runs.evaluation import Plan, evaluate_on_ray
    from reverse.evaluation.runs.evaluation import evaluate as run_all
    from reverse.evaluation.runs.outputs import check_output_folder

    if device is not None or dtype is not None:
        resolve_placement(device, dtype)
    settings = {"hints": hints, "on_exhausted": on_exhausted, "candidates": candidates}
    heat = 1.0 if temperature is None or not do_sample else temperature  # one configuration, said either way
    decoding = Decoding(mode, threshold, max_new_tokens, do_sample, heat, seed, settings)
    plan = Plan(
        str(model), tuple(benches), str(out), data, decoding, decode_seeds, max_sequences, window, limit,
        scenes, split, device, dtype, shlex.join(["reverse", *sys.argv[1:]]),
    )  # fmt: skip
    if score:
        _check_scoring(plan)
    check_output_folder(Path(plan.out))
    at = place()
    try:
        with _bars(at.rank == 0 and ray is None) as watch:
            outcomes = evaluate_on_ray(plan, ray) if ray is not None else run_all(plan, at, watch)
    except KeyboardInterrupt:
        told = f"stopped; what was answered is in {out}, and the same command goes on"
        Console(stderr=True).print(told, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    if at.world == 1 or all(outcome.complete for outcome in outcomes):
        _report(plan, outcomes, score)


def _check_scoring(plan: Any) -> None:
    """Refuse before the model is loaded what could not be scored after hours of answering."""
    from reverse.evaluation.benchmarks import named
    from reverse.evaluation.runs.evaluation import SCENES
    from reverse.evaluation.scoring.readiness import check_scoring

    check_scoring(named(*plan.benches), None if plan.data == SCENES else plan.data)


def _score(path: Path, root: Path, plan: Any) -> str:
    """Score one file as `reverse score` does; what stopped it, or nothing."""
    from reverse.commands.score_command import is_judged, make_judge, score_and_show
    from reverse.evaluation.runs.answers_reading import read_run

    run = read_run(path)
    name = str(run["config"]["benchmark"]) if run else path.stem.partition(".")[0]
    try:
        judge = make_judge(path.with_name(path.name + ".judge.jsonl")) if is_judged(name) else None
        score_and_show(
            path, root, name, judge=judge, partial=plan.limit is not None, save=path.with_suffix(".json")
        )
    except (ValueError, OSError) as error:
        return f"{path}: {error}"
    return ""


def _where(benches: list[str] | None, data: str) -> None:
    from reverse.evaluation.benchmarks import named, where

    root = Path(_DATA if data == "scenes" else data)
    table, ready = where(named(*(benches or ["all", "mme"])), root)
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)
    typer.echo(f"ready to run: {', '.join(ready) or 'none'}")
    typer.echo("without any of these files: reverse eval all --model tiny-llava --data scenes --out out/eval")


def _report(plan: Any, outcomes: list[Any], score: bool = False) -> None:
    from reverse.evaluation.runs.evaluation import SCENES, summary

    for row in summary(outcomes):
        notes = [f"{row['done']} of {row['total']} answers", f"{row['ratio']:.2f} tokens made for each kept"]
        notes += [f"{row[name]} {name}" for name in ("unresolved", "empty") if row[name]]
        notes.append(row["published"])
        typer.echo(f"{row['path']}: {', '.join(notes)}")
    root = Path(plan.out) / "data" if plan.data == SCENES else Path(plan.data)
    complete = [Path(outcome.path) for outcome in outcomes if outcome.complete]
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


@contextmanager
def _bars(shown: bool) -> Iterator[Any]:
    """A bar a benchmark and seed on a terminal; elsewhere a line every 30 seconds."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bar:
        tasks: dict[tuple[str, int], Any] = {}
        lines: dict[tuple[str, int], ProgressLines] = {}

        def watch(bench: Any, seed: int, done: int, total: int) -> None:
            key = (bench.name, seed)
            if key not in tasks:
                name = bench.title if not seed else f"{bench.title}, seed {seed}"
                tasks[key] = bar.add_task(name, total=total, completed=done)
                lines[key] = ProgressLines(name, total)
            bar.update(tasks[key], completed=done)
            if shown and not console.is_terminal:
                lines[key].update(done)

        yield watch
