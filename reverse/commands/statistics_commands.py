"""`reverse compare`, `sweep`, `calibrate`, `report`: what stored answers and scores say.

reverse compare ours.json theirs.json --out out/compare
reverse sweep off.jsonl --out out/sweep
reverse calibrate val.jsonl --test test.jsonl --risk 0.05
reverse report runs/a runs/b --out report
"""

import functools
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from reverse.commands import result_tables
from reverse.errors import MissingFileError, RequestError

TRUTH = "Knows which phrases are wrong: scenes, chair:FOLDER, amber-g:FOLDER, or stored (in the answers)."
ANSWERS = "Answers made with checking off (JSON lines), which hold p(</UN>) of every phrase."


def register(app: typer.Typer) -> None:
    """Put the commands of this module into `app`."""
    for command in (compare, sweep, calibrate, report):
        app.command()(_hold_out(command))


def compare(
    first: Annotated[Path, typer.Argument(help="Scored file of a run (`reverse score … --save`).")],
    second: Annotated[Path, typer.Argument(help="Scored file of another run over the same questions.")],
    metric: Annotated[list[str] | None, typer.Option(help="Only this one; repeat it for several.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for compare.json and the forest plot.")] = None,
    method: Annotated[str, typer.Option(help="bca or percentile.")] = "bca",
    rounds: Annotated[int, typer.Option(help="Of the bootstrap.")] = 2000,
    permutations: Annotated[
        int, typer.Option(min=1, help="Of the test; fewer images are tried exactly.")
    ] = 9999,
    level: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The comparison as JSON.")] = False,
) -> None:
    """Compare two runs image by image: differences, paired intervals, corrected p."""
    from reverse.evaluation.detector.sweep import finite
    from reverse.evaluation.stats.comparing import compare as pair
    from reverse.evaluation.stats.scored_tables import load
    from reverse.files.atomic_write import write_json

    if out is not None:
        _check_plots(out)
    (ours, metrics), (theirs, _) = load(first), load(second)
    for path, table in ((first, ours), (second, theirs)):
        _refuse_failed_judge(path, table)
    if ours.benchmark != theirs.benchmark:
        raise RequestError(
            f"{first} is scored as {ours.benchmark!r}, {second} as {theirs.benchmark!r}: compare runs of one"
        )
    known = [m.name for m in metrics]
    unknown = sorted(set(metric or []) - set(known))
    if unknown:
        raise RequestError(f"no metric {', '.join(unknown)} in {first}: it has {', '.join(known)}")
    metrics = [m for m in metrics if not metric or m.name in metric]
    both = [m for m in metrics if _needs(m) <= set(theirs.columns)]
    left_out = [m.title or m.name for m in metrics if m not in both]
    if left_out and (metric or not both):
        raise RequestError(f"{second} does not hold what {', '.join(left_out)} is made of: compare others")
    metrics = both
    found = pair(
        ours,
        theirs,
        metrics,
        names=(str(first), str(second)),
        method=method,  # type: ignore[arg-type]
        rounds=rounds,
        permutations=permutations,
        level=level,
        seed=seed,
    )
    content: dict[str, Any] = finite(
        {
            "first": str(first),
            "second": str(second),
            "benchmark": ours.benchmark,
            "seed": seed,
            "metrics": [each.to_dict() for each in found],
        }
    )
    if as_json:
        typer.echo(json.dumps(content, indent=1))
    else:
        Console().print(
            result_tables.differences(found, *result_tables.names(first, second), level, ours.benchmark)
        )
        for line in result_tables.remarks(found):
            typer.echo(line)
        if left_out:
            typer.echo(f"only in {first}: {', '.join(left_out)}")
    if out is not None:
        from reverse.evaluation.reports.plots import forest

        write_json(out / "compare.json", content)
        forest(found, out / "forest", f"{ours.benchmark}: {' − '.join(result_tables.names(first, second))}")
        if not as_json:
            typer.echo(f"{out}: compare.json, forest.png, forest.svg")


def sweep(
    answers: Annotated[
        Path | None, typer.Argument(help=ANSWERS + " Left out: --model describes scenes.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for figures, CSV and plots.")] = Path("sweep"),
    truth: Annotated[str, typer.Option(help=TRUTH)] = "scenes",
    world_seed: Annotated[int, typer.Option(help="Of the scenes.")] = 0,
    bins: Annotated[int, typer.Option(min=1, help="Of reliability and ECE, each with as many phrases.")] = 15,
    rounds: Annotated[int, typer.Option(min=1, help="Of the bootstrap over images.")] = 1000,
    model: Annotated[str | None, typer.Option(help="Decodes anew: folder, hub id, bundled name.")] = None,
    decode: Annotated[str, typer.Option(help="Thresholds to decode at, such as 0.3,0.1,0.03.")] = "",
    split: Annotated[str, typer.Option(help="Of the scenes to decode.")] = "test",
    count: Annotated[int, typer.Option(min=1, help="How many scenes to decode.")] = 200,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers side by side.")] = 16,
    device: Annotated[str | None, typer.Option(help="As torch names it; else cuda or cpu.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
) -> None:
    """Measure p(</UN>) as a detector at every threshold; decode anew at chosen ones."""
    thresholds = _thresholds(decode)
    if answers is None and model is None:
        raise RequestError("name an answers file, or --model to describe scenes with")
    if thresholds and model is None:
        raise RequestError("--decode needs --model: which one is to decode?")
    known = _truth(truth if answers is not None else "stored", world_seed)
    _check_plots(out)
    from reverse.evaluation.detector.phrase_truth import read_phrases
    from reverse.evaluation.detector.sweep import decode_at, draw
    from reverse.evaluation.detector.sweep import sweep as measure

    console = Console()
    points: list[dict[str, Any]] = []
    if model is not None:
        where = _device(device)
        points = decode_at(
            model, thresholds, out, split=split, count=count, batch_size=batch_size, device=where, seed=seed,
            quiet=False, plots=False,
        )  # fmt: skip
        console.print(result_tables.decoded(points))
    source = answers if answers is not None else out / "decoded" / "off.jsonl"
    detector = read_phrases(source, known)
    found = measure(detector, out, bins=bins, rounds=rounds, seed=seed, plots=False)
    console.print(result_tables.detector(found, bins))
    draw(detector, out, bins)  # what they show is printed and written by now
    if points:
        from reverse.evaluation.reports.plots import tradeoff

        tradeoff(points, out / "tradeoff")
    typer.echo(f"{out}: detector.json, thresholds.csv, plots" + (", decoded.csv" if points else ""))


def calibrate(
    answers: Annotated[Path, typer.Argument(help=ANSWERS + " These calibrate.")],
    test: Annotated[Path | None, typer.Option(help="Answers about other pictures, to check on.")] = None,
    risk: Annotated[float, typer.Option(help="Share of false phrases a picture may have on average.")] = 0.05,
    confidence: Annotated[float, typer.Option(help="With which that is promised.")] = 0.95,
    rule: Annotated[str, typer.Option(help="betting, hoeffding-bentkus or conformal.")] = "betting",
    truth: Annotated[str, typer.Option(help=TRUTH)] = "scenes",
    world_seed: Annotated[int, typer.Option(help="Of the scenes.")] = 0,
    resplits: Annotated[int, typer.Option(min=1, help="Times to divide the pictures anew and look.")] = 200,
    model: Annotated[str | None, typer.Option(help="Checkpoint for --write and --decode.")] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Make it the default of --model's config.json.")
    ] = False,
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode scenes at the threshold, and look.")
    ] = False,
    split: Annotated[str, typer.Option(help="Of the scenes of --decode: not those of ANSWERS.")] = "test",
    count: Annotated[int, typer.Option(min=1, help="Scenes of --decode.")] = 300,
    out: Annotated[Path | None, typer.Option(help="Folder for calibration.json and decoded answers.")] = None,
    device: Annotated[str | None, typer.Option(help="As torch names it; else cuda or cpu.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The calibration as JSON.")] = False,
) -> None:
    """Find the largest threshold that keeps false phrases below a promised share."""
    if (write or decode) and model is None:
        raise RequestError("--write and --decode need --model: the folder of the checkpoint")
    from reverse.evaluation.detector import calibration
    from reverse.evaluation.detector.phrase_truth import read_phrases
    from reverse.evaluation.detector.sweep import finite
    from reverse.evaluation.runs.outputs import check_output_folder
    from reverse.files.atomic_write import write_json

    world = _truth(truth, world_seed)
    if decode and rule not in calibration.TESTS:
        raise RequestError(f"--decode tests with {' or '.join(calibration.TESTS)}, not with --rule {rule}")
    if write:
        calibration.read_config(str(model))
    if out is not None:
        check_output_folder(out)
    console = Console()
    detector = read_phrases(answers, world)
    found = calibration.calibrate(detector, risk, confidence, rule)  # type: ignore[arg-type]
    content: dict[str, Any] = {
        "answers": str(answers),
        "promise": calibration.promise(found),
        **found.to_dict(),
    }
    pool = detector
    if test is not None:
        checked = read_phrases(test, world)
        content["test"] = calibration.check(checked, found)
        pool = calibration.joined(detector, checked)
    content["resplits"] = calibration.resplit(
        pool,
        risk,
        confidence,
        rule,  # type: ignore[arg-type]
        times=resplits,
        seed=seed,
    )
    if not as_json:  # before anything else can fail
        result_tables.say_calibration(console, content)
    try:
        if decode and found.threshold is not None:
            from reverse.evaluation.detector.decoded_risk import calibrate_decoding

            content["decoding"] = []
            found, _ = calibrate_decoding(
                str(model),
                found.threshold,
                (out or Path("calibration")) / "decoded",
                risk=risk,
                confidence=confidence,
                rule=rule,
                split=split,
                count=count,
                device=_device(device),
                seed=seed,
                # known scenes of another world have the names of these, and are others
                given_by=() if truth == "scenes" and world_seed != seed else detector.images,
                on_tried=content["decoding"].append,
            )
            content["promised_of_decoding"] = found.to_dict()
    finally:  # what was measured is shown and written, also of a decoding that was stopped
        if as_json:
            typer.echo(json.dumps(finite(content), indent=1))
        elif content.get("decoding"):
            console.print(result_tables.decoded_risk(content["decoding"]))
        if out is not None:
            write_json(out / "calibration.json", finite(content))
    if not as_json and decode:
        if "decoding" in content:
            said = "cannot be promised of decoding" if found.threshold is None else f"{found.threshold:g}:"
            typer.echo(f"{said} {calibration.promise(found)}")
        else:
            typer.echo("nothing is decoded: there is no threshold to begin with")
    if write:
        path = calibration.write_threshold(
            str(model), found, answers=answers.name, promise=calibration.promise(found)
        )
        if not as_json:
            typer.echo(f"{path}: threshold {found.threshold:.4g}")
            if not found.decoded:
                typer.echo(
                    "this promise is of striking out, not of decoding with the threshold: "
                    "--decode tests that",
                    err=True,
                )
    if found.threshold is None and not as_json:
        raise typer.Exit(1)


def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders with answers, scored files, plots.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html and report.md.")] = Path("report"),
    title: Annotated[str, typer.Option(help="Of the page.")] = "Evaluation",
    examples: Annotated[
        int, typer.Option(min=0, help="Answers shown of each file, corrected ones first.")
    ] = 6,
    images: Annotated[Path | None, typer.Option(help="Folder of the examples' pictures.")] = None,
    method: Annotated[str, typer.Option(help="bca or percentile.")] = "bca",
    rounds: Annotated[int, typer.Option(help="Of the bootstrap.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    lmms_eval: Annotated[
        bool, typer.Option("--lmms-eval", help="Also write per-sample rows in the shape of lmms-eval.")
    ] = False,
) -> None:
    """Put scores, costs, plots and examples of several runs on one page and in one table."""
    from reverse.evaluation.reports.reporting import write_report
    from reverse.evaluation.runs.outputs import check_output_folder

    check_output_folder(out)
    written = write_report(
        folders,
        out,
        title=title,
        examples=examples,
        images=images,
        method=method,
        rounds=rounds,
        seed=seed,
        lmms_eval=lmms_eval,
    )
    for path in written:
        typer.echo(str(path))


# ---------------------------------------------------------------------- given
def _hold_out(command: Callable[..., None]) -> Callable[..., None]:
    """The command with its folder --out locked: the files of two runs would stand there side by side."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        from reverse.files.file_lock import output_lock

        with nullcontext() if given["out"] is None else output_lock(given["out"]):
            command(**given)

    return run


def _truth(name: str, world_seed: int) -> Any:
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


def _refuse_failed_judge(path: Path, table: Any) -> None:
    """Refuse a scored file whose judge gave too few verdicts: its figures say little of the model."""
    from reverse.evaluation.scoring.judge import refuse_without_verdicts

    try:
        refuse_without_verdicts(table)
    except ValueError as error:
        raise RequestError(f"{path}: {error}") from error


def _check_plots(out: Path) -> None:
    """Refuse before the work what would stop it at its end."""
    from reverse.evaluation.reports.plots import check_plots
    from reverse.evaluation.runs.outputs import check_output_folder

    check_plots()
    check_output_folder(out)


def _thresholds(given: str) -> list[float]:
    try:
        return [float(each) for each in given.split(",") if each.strip()]
    except ValueError:
        raise RequestError(
            f"--decode takes numbers with commas between them, 0.3,0.1, got {given!r}"
        ) from None


def _device(name: str | None) -> Any:
    from reverse.cli import _hush, _placement

    _hush()
    return _placement(name, None)[0]


def _needs(metric: Any) -> set[str]:
    from reverse.evaluation.stats.scored_tables import columns_of

    return columns_of(metric.form)
