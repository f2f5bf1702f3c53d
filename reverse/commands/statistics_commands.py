"""`reverse compare`, `sweep`, `calibrate`, `report`: statistics of stored answers and scores.

reverse compare ours.json theirs.json --out out/compare
reverse sweep off.jsonl --out out/sweep
reverse calibrate val.jsonl --test test.jsonl --risk 0.05
reverse report runs/a runs/b --out report
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from reverse.commands.option_classes import make_command
from reverse.errors import MissingFileError, RequestError

if TYPE_CHECKING:
    from reverse.evaluation.detector.calibration import Calibration, RiskTarget
    from reverse.evaluation.detector.detection import Detector
    from reverse.evaluation.detector.phrase_truth import Truth
    from reverse.evaluation.stats.scored_tables import Metric, Table

Truths = Annotated[
    str,
    typer.Option(
        help="Truth that says which phrases are wrong: scenes, chair:FOLDER, amber-g:FOLDER, or stored "
        "(the answers say it)."
    ),
]
Method = Annotated[str, typer.Option(help="How intervals are computed: bca or percentile.")]
Rounds = Annotated[int, typer.Option(min=1, help="Number of bootstrap rounds.")]
Seed = Annotated[int, typer.Option(help="Random seed.")]
WorldSeed = Annotated[int, typer.Option(help="Random seed of the scenes that the answers describe.")]
Device = Annotated[
    str | None, typer.Option(help="Device, as torch names it. The default is cuda if there is one, else cpu.")
]
ANSWERS = "Answers made with checking off (JSON lines), which hold p(</UN>) of every phrase."


def register(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    pairs: tuple[tuple[Callable[[Any], None], type], ...] = (
        (compare, CompareOptions),
        (sweep, SweepOptions),
        (calibrate, CalibrateOptions),
        (report, ReportOptions),
    )
    for command, options in pairs:
        app.command(command.__name__)(make_command(_lock_output(command), options))


# ---------------------------------------------------------------------- compare
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
    from reverse.commands import result_tables
    from reverse.evaluation.stats.bootstrap import BootstrapSettings
    from reverse.evaluation.stats.paired_comparison import compare_runs
    from reverse.files.atomic_write import write_json
    from reverse.files.json_values import replace_non_finite

    if options.out is not None:
        _check_plots(options.out)
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
        _check_plots(options.out)
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


# ---------------------------------------------------------------------- sweep
@dataclass(frozen=True)
class SweepOptions:
    """Options of `reverse sweep`."""

    answers: Annotated[
        Path | None, typer.Argument(help=ANSWERS + " If it is left out, --model describes scenes.")
    ] = None
    out: Annotated[Path, typer.Option(help="Folder for figures, CSV and plots.")] = Path("sweep")
    truth: Truths = "scenes"
    world_seed: WorldSeed = 0
    bins: Annotated[
        int, typer.Option(min=1, help="Bins of the reliability plot and of ECE, with equally many phrases.")
    ] = 15
    rounds: Rounds = 1000
    model: Annotated[
        str | None, typer.Option(help="Model that decodes scenes: a folder, a hub id or a bundled name.")
    ] = None
    decode: Annotated[str, typer.Option(help="Thresholds to decode at, such as 0.3,0.1,0.03.")] = ""
    split: Annotated[str, typer.Option(help="Split of the scenes to decode.")] = "test"
    count: Annotated[int, typer.Option(min=1, help="Number of scenes to decode.")] = 200
    batch_size: Annotated[int, typer.Option(min=1, help="Number of answers decoded side by side.")] = 16
    device: Device = None
    seed: Seed = 0


def sweep(options: SweepOptions) -> None:
    """Measure p(</UN>) as a detector at every threshold; decode scenes at chosen ones."""
    thresholds = _parse_thresholds(options.decode)
    if options.answers is None and options.model is None:
        raise RequestError("name an answers file, or --model to describe scenes with")
    if thresholds and options.model is None:
        raise RequestError("--decode needs --model: name the model that is to decode")
    if options.answers is None:  # the scenes that are decoded below
        truth = _make_truth("scenes", options.seed)
    else:
        truth = _make_truth(options.truth, options.world_seed)
    out = options.out
    _check_plots(out)
    from reverse.commands import result_tables
    from reverse.evaluation.detector import scene_decoding
    from reverse.evaluation.detector.phrase_truth import read_phrases
    from reverse.evaluation.detector.sweep import plot_sweep, write_sweep
    from reverse.evaluation.reports.plots import plot_tradeoff
    from reverse.evaluation.stats.bootstrap import BootstrapSettings

    console = Console()
    points: list[dict[str, Any]] = []
    if options.model is not None:
        scenes = scene_decoding.SceneDecoding(
            options.model, options.split, options.count, options.batch_size, _resolve_device(options.device),
            options.seed,
        )  # fmt: skip
        points = scene_decoding.decode_at_thresholds(scenes, thresholds, out)
        console.print(result_tables.make_decoding_table(points))
    source = options.answers if options.answers is not None else out / "decoded" / "off.jsonl"
    detector = read_phrases(source, truth)
    settings = BootstrapSettings(rounds=options.rounds, seed=options.seed)
    found = write_sweep(detector, out, settings, options.bins)
    console.print(result_tables.make_detector_table(found, options.bins))
    plot_sweep(detector, out, options.bins)  # last: the figures are printed and written by now
    if points:
        plot_tradeoff(points, out / "tradeoff")
    typer.echo(f"{out}: detector.json, thresholds.csv, plots" + (", decoded.csv" if points else ""))


# ---------------------------------------------------------------------- calibrate
@dataclass(frozen=True)
class CalibrateOptions:
    """Options of `reverse calibrate`."""

    answers: Annotated[Path, typer.Argument(help=ANSWERS + " The threshold is chosen with these answers.")]
    test: Annotated[
        Path | None, typer.Option(help="Answers about other pictures, to check the threshold with.")
    ] = None
    risk: Annotated[float, typer.Option(help="The mean share of false phrases that a picture may have.")] = (
        0.05
    )
    confidence: Annotated[float, typer.Option(help="Probability with which the risk is guaranteed.")] = 0.95
    rule: Annotated[
        str, typer.Option(help="How the threshold is chosen: betting, hoeffding-bentkus or conformal.")
    ] = "betting"
    truth: Truths = "scenes"
    world_seed: WorldSeed = 0
    resplits: Annotated[
        int, typer.Option(min=1, help="Number of random splits of the pictures that check the guarantee.")
    ] = 200
    model: Annotated[str | None, typer.Option(help="Checkpoint for --write and --decode.")] = None
    write: Annotated[
        bool, typer.Option("--write", help="Make the threshold the default in --model's config.json.")
    ] = False
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode scenes with the threshold and test its guarantee.")
    ] = False
    split: Annotated[
        str, typer.Option(help="Split of the scenes that --decode decodes. ANSWERS must not describe them.")
    ] = "test"
    count: Annotated[int, typer.Option(min=1, help="Number of scenes that --decode decodes.")] = 300
    out: Annotated[Path | None, typer.Option(help="Folder for calibration.json and decoded answers.")] = None
    device: Device = None
    seed: Seed = 0
    as_json: Annotated[bool, typer.Option("--json", help="Print the calibration as JSON.")] = False


def calibrate(options: CalibrateOptions) -> None:
    """Find the largest threshold that keeps the share of false phrases below --risk, with a guarantee."""
    from reverse.commands.result_tables import make_decoded_risk_table, print_calibration
    from reverse.evaluation.detector import calibration
    from reverse.evaluation.detector.phrase_truth import read_phrases
    from reverse.files.atomic_write import write_json
    from reverse.files.json_values import replace_non_finite

    truth, target = _check_calibration(options)
    console = Console()
    detector = pool = read_phrases(options.answers, truth)
    found = calibration.calibrate(detector, target)
    promise = calibration.describe_promise(found)
    content: dict[str, Any] = {"answers": str(options.answers), "promise": promise, **found.to_dict()}
    if options.test is not None:
        checked = read_phrases(options.test, truth)
        content["test"] = calibration.check_on_others(checked, found)
        pool = calibration.join_detectors(detector, checked)
    content["resplits"] = calibration.resplit(pool, target, times=options.resplits, seed=options.seed)
    if not options.as_json:  # before anything else can fail
        print_calibration(console, content)
    try:
        if options.decode and found.threshold is not None:
            found = _test_decoding(options, detector, found, content)
    finally:  # show and write what was measured, also if decoding was stopped
        if options.as_json:
            typer.echo(json.dumps(replace_non_finite(content), indent=1))
        elif content.get("decoding"):
            console.print(make_decoded_risk_table(content["decoding"]))
        if options.out is not None:
            write_json(options.out / "calibration.json", replace_non_finite(content))
    if options.decode and not options.as_json:
        if "decoding" not in content:
            typer.echo("nothing is decoded: there is no threshold to begin with")
        elif found.threshold is None:
            typer.echo(f"cannot be promised of decoding: {calibration.describe_promise(found)}")
        else:
            typer.echo(f"{found.threshold:g}: {calibration.describe_promise(found)}")
    if options.write:
        _write_threshold(options, found)
    if found.threshold is None and not options.as_json:
        raise typer.Exit(1)


def _check_calibration(options: CalibrateOptions) -> tuple[Truth | None, RiskTarget]:
    """Return the truth and the target; refuse impossible combinations of options before any work."""
    from reverse.evaluation.detector.calibration import TESTS, RiskTarget, read_config
    from reverse.evaluation.runs.outputs import check_output_folder

    if (options.write or options.decode) and options.model is None:
        raise RequestError("--write and --decode need --model: the folder of the checkpoint")
    truth = _make_truth(options.truth, options.world_seed)
    target = RiskTarget(options.risk, options.confidence, options.rule)  # type: ignore[arg-type]
    if options.decode and target.rule not in TESTS:
        raise RequestError(f"--decode tests with {' or '.join(TESTS)}, not with --rule {target.rule}")
    if options.write:
        read_config(str(options.model))
    if options.out is not None:
        check_output_folder(options.out)
    return truth, target


def _test_decoding(
    options: CalibrateOptions, detector: Detector, found: Calibration, content: dict[str, Any]
) -> Calibration:
    """Calibrate with decoded scenes; each measurement is added to `content` as soon as it is made."""
    from reverse.evaluation.detector.decoded_risk import calibrate_decoding
    from reverse.evaluation.detector.scene_decoding import SceneDecoding

    assert options.model is not None and found.threshold is not None
    content["decoding"] = []
    scenes = SceneDecoding(
        options.model, options.split, options.count, device=_resolve_device(options.device), seed=options.seed
    )
    # Scenes of another world have the same names but are other pictures.
    is_other_world = options.truth == "scenes" and options.world_seed != options.seed
    found, _ = calibrate_decoding(
        scenes,
        found.threshold,
        (options.out or Path("calibration")) / "decoded",
        found.target,
        given_by=() if is_other_world else detector.images,
        on_tried=content["decoding"].append,
    )
    content["promised_of_decoding"] = found.to_dict()
    return found


def _write_threshold(options: CalibrateOptions, found: Calibration) -> None:
    from reverse.evaluation.detector.calibration import describe_promise, write_threshold

    promise = describe_promise(found)
    path = write_threshold(str(options.model), found, answers=options.answers.name, promise=promise)
    if not options.as_json:
        typer.echo(f"{path}: threshold {found.threshold:.4g}")
        if not found.decoded:
            typer.echo(
                "this promise is of striking out, not of decoding with the threshold: --decode tests that",
                err=True,
            )


# ---------------------------------------------------------------------- report
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


# ---------------------------------------------------------------------- shared by the commands
def _lock_output(command: Callable[[Any], None]) -> Callable[[Any], None]:
    """Wrap a command so that it locks its folder --out, and two runs never mix their files there."""

    @functools.wraps(command)
    def run(options: Any) -> None:
        from reverse.files.file_lock import output_lock

        with nullcontext() if options.out is None else output_lock(options.out):
            command(options)

    return run


def _make_truth(name: str, world_seed: int) -> Truth | None:
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


def _check_plots(out: Path) -> None:
    """Raise an error before the work if the plots could not be written at its end."""
    from reverse.evaluation.reports.plots import check_plots
    from reverse.evaluation.runs.outputs import check_output_folder

    check_plots()
    check_output_folder(out)


def _parse_thresholds(given: str) -> list[float]:
    try:
        return [float(each) for each in given.split(",") if each.strip()]
    except ValueError:
        raise RequestError(
            f"--decode takes numbers with commas between them, such as 0.3,0.1, got {given!r}"
        ) from None


def _resolve_device(name: str | None) -> Any:
    from reverse.commands.runtime_setup import resolve_placement, silence_libraries

    silence_libraries()
    return resolve_placement(name, None)[0]
