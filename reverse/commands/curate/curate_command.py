"""`reverse curate`: teachers and judges answer, reflect on, correct, rate and explain questions.

    reverse curate answer-eval questions.jsonl answers.jsonl --model tiny-llava --images pictures
    reverse curate select-mix answers.jsonl mix.jsonl --count 10000
    reverse curate reflection-eval mix.jsonl reflections.jsonl --images pictures

All of them may be stopped at any moment and started again (`reverse.selftrain.curation.curation_pass`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from reverse.commands.curate.curate_options import (
    AnswerEvalOptions,
    CurateOptions,
    RationaleOptions,
    ReflectionOptions,
    SelectMixOptions,
    SelfCorrectionOptions,
)
from reverse.commands.option_classes import make_command
from reverse.commands.runtime_setup import resolve_placement, silence_libraries
from reverse.commands.shared_options import Limit
from reverse.errors import RequestError
from reverse.progress import show_progress

if TYPE_CHECKING:
    from reverse.selftrain.curation.curation_pass import CurationTask

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the group `reverse curate`."""
    group = typer.Typer(no_args_is_help=True, help="Make training data with teachers and judges.")
    app.add_typer(group, name="curate")
    group.command("answer-eval")(make_command(answer_eval, AnswerEvalOptions))
    group.command("select-mix")(make_command(select_mix, SelectMixOptions))
    group.command("reflection-eval")(make_command(reflection_eval, ReflectionOptions))
    group.command("self-correction")(make_command(self_correction, SelfCorrectionOptions))
    group.command("rationale")(make_command(rationale, RationaleOptions))
    group.command("image-description")(image_description)


def answer_eval(options: AnswerEvalOptions) -> None:
    """Let a model answer the questions, and grade its answers."""
    from reverse.selftrain.curation.tasks.answer_task import AnswerTask

    if options.samples > 1 and options.temperature == 0:
        raise RequestError("--samples above 1 are all the same at temperature 0: try --temperature 0.9")
    counts = _run(AnswerTask(samples=options.samples), options, options.out, judge=options.judge)
    right, wrong, unknown = (counts.get(f"answers.{each}", 0) for each in ("right", "wrong", "unknown"))
    typer.echo(f"{options.out}: {right:,} answers right, {wrong:,} wrong, {unknown:,} unknown")
    _report(counts, options, options.out)


def reflection_eval(options: ReflectionOptions) -> None:
    """Let a teacher write reflections on a model's answers that lead to the right answers."""
    from reverse.selftrain.curation.tasks.reflection_task import ReflectionTask

    counts = _run(ReflectionTask(options.second_thinking), options, options.out)
    made = {each: counts.get(f"reflections.{each}", 0) for each in ("right", "wrong", "unknown")}
    typer.echo(
        f"{options.out}: {sum(made.values()):,} reflections, on {made['right']:,} right answers and "
        f"{made['wrong']:,} wrong ones"
    )
    _report(counts, options, options.out)


def self_correction(options: SelfCorrectionOptions) -> None:
    """Let a teacher correct a model's answers, and keep the corrections that are right."""
    from reverse.selftrain.curation.tasks.correction_task import CorrectionTask

    schema: Any = None if options.schema == "plain" else options.schema
    first: Any = options.first
    counts = _run(CorrectionTask(schema, first), options, options.out)
    pairs = {each: counts.get(f"pairs.{each}_right", 0) for each in ("right", "wrong", "unknown")}
    typer.echo(
        f"{options.out}: {sum(pairs.values()):,} verified pairs, {pairs['right']:,} right to right, "
        f"{pairs['wrong']:,} wrong to right"
    )
    _report(counts, options, options.out)


def rationale(options: RationaleOptions) -> None:
    """Let a teacher explain the right answers, and keep rationales that end with them."""
    from reverse.selftrain.curation.tasks.rationale_task import RationaleTask

    style: Any = options.style
    counts = _run(RationaleTask(style, options.show_answer), options, options.out)
    made, steps = counts.get("rationales", 0), counts.get("steps", 0)
    typer.echo(f"{options.out}: {made:,} verified rationales of {steps:,} steps")
    _report(counts, options, options.out)


def select_mix(options: SelectMixOptions) -> None:
    """Choose records with right and with wrong answers, the best reasoned ones first."""
    from reverse.selftrain.curation.mix_files import read_ratings, read_verdicts, write_mix
    from reverse.selftrain.curation.tasks.rating_task import MixPlan, RatingTask

    plan = MixPlan(options.count, options.share_right, options.least_quality, options.seed)
    if options.out.suffix != ".jsonl":
        raise RequestError(f"{options.out} must end in .jsonl (one record per line)")
    counts: Mapping[str, Any] = {}
    if options.judge:
        ratings = options.out.with_name(options.out.name + ".ratings.jsonl")
        counts = _run(RatingTask(), options, ratings)
        chosen = write_mix(options.source, options.out, read_ratings(ratings), plan)
    else:
        chosen = write_mix(options.source, options.out, read_verdicts(options.source, options.limit), plan)
    total = chosen["right"] + chosen["wrong"]
    typer.echo(
        f"{options.out}: {total:,} records, {chosen['right']:,} with a right "
        f"answer, "
        f"{chosen['wrong']:,} with a wrong one"
    )
    if total < plan.count:
        typer.echo(
            f"--count {plan.count:,} needs more: {chosen['right_there']:,} right answers and "
            f"{chosen['wrong_there']:,} wrong ones can be chosen from",
            err=True,
        )
    if options.judge:
        _report(counts, options, ratings)
    if not total:
        raise typer.Exit(1)


def image_description(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Draft file.")],
    out: Annotated[Path, typer.Argument(help="File of descriptions to write, .jsonl.")],
    pattern: Annotated[
        str,
        typer.Option(help="cot100k, mulberry, or a regular expression whose first group is the description."),
    ] = "cot100k",
    limit: Limit = None,
) -> None:
    """Find descriptions of pictures in the drafts, for teachers that cannot see pictures."""
    from reverse.selftrain.curation.description_files import write_descriptions

    with show_progress("records") as progress:
        counts = write_descriptions(source, out, pattern, limit, progress)
    typer.echo(
        f"{out}: {counts.get('descriptions', 0):,} descriptions of {counts.get('records', 0):,} records"
    )
    if missing := sum(count for key, count in counts.items() if key.startswith("failed.")):
        typer.echo(
            f"{missing:,} records give none: {out}.failures.jsonl lists them with the reason", err=True
        )
    if not counts.get("descriptions"):
        raise typer.Exit(1)


def _run(
    task: CurationTask, options: CurateOptions, out: Path, judge: str | None = None
) -> Mapping[str, Any]:
    """Run a task and return its counts."""
    silence_libraries()
    from reverse.selftrain.curation.curation_pass import describe_cost, run_pass
    from reverse.selftrain.curation.sent_pictures import SentPictures, read_descriptions
    from reverse.selftrain.curation.teacher import TeacherSampling
    from reverse.selftrain.curation.teacher_opening import ENDPOINT, TeacherSource, open_teacher

    if options.upload_image:
        raise RequestError(
            "--upload-image is not supported: pictures are sent as data URLs, or name the address that "
            "serves "
            "them with --image-url"
        )
    described = None if options.image_descriptions is None else read_descriptions(options.image_descriptions)
    pictures = SentPictures(options.images, options.image_url, described)
    sampling = TeacherSampling(options.temperature, options.top_p, options.max_tokens, options.seed)
    load: dict[str, Any] = {}
    if options.model != ENDPOINT or judge not in (None, ENDPOINT):
        load["device"], load["dtype"] = resolve_placement(options.device, options.dtype)
    place = TeacherSource(
        options.cache or options.out.with_name(options.out.name + ".replies.jsonl"),
        options.model,
        judge,
        options.concurrency,
        options.timeout,
        _read_extra(options.extra),
        options.mode,
        load,
    )

    async def run() -> Mapping[str, Any]:
        async with open_teacher(place, pictures, sampling) as teacher:
            with show_progress("records") as progress:
                manifest = await run_pass(
                    task,
                    options.source,
                    out,
                    teacher,
                    window=4 * options.concurrency,
                    limit=options.limit,
                    progress=lambda done, total=None, note="": progress(done, total, note),
                    describe=lambda counts: describe_cost(counts, options.price_in, options.price_out),
                )
        counts: Mapping[str, Any] = manifest["counts"]
        return counts

    try:
        return asyncio.run(run())
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; the same command continues from there")
        raise


def _read_extra(text: str | None) -> Mapping[str, Any]:
    from reverse.files.text_reading import parse_json

    value = {} if text is None else parse_json(text, "--extra")
    if not isinstance(value, dict):
        raise RequestError(f"--extra must be a JSON object, got {text!r:.80}")
    if taken := {"model", "messages"} & set(value):
        raise RequestError(f"--extra holds {', '.join(sorted(taken))}, which the command sets: leave it out")
    return value


def _report(counts: Mapping[str, Any], options: CurateOptions, out: Path) -> None:
    from reverse.selftrain.curation.curation_pass import describe_cost

    typer.echo(describe_cost(counts, options.price_in, options.price_out))
    _report_failures(counts, out)


def _report_failures(counts: Mapping[str, Any], out: Path) -> None:
    """Print what failed and where it is listed; exit with code 1 if nothing was made."""
    failed = {key.partition(".")[2]: count for key, count in counts.items() if key.startswith("failed.")}
    if not failed:
        return
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(failed.items()))
    typer.echo(
        f"{sum(failed.values()):,} records failed ({reasons}), listed in {out}.failures.jsonl: the same "
        f"command "
        "tries them again",
        err=True,
    )
    if not counts.get("records_out"):
        raise typer.Exit(1)
