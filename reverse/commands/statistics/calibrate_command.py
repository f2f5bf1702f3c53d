"""`reverse calibrate`: find a threshold that guarantees a share of false phrases.

reverse calibrate val.jsonl --test test.jsonl --risk 0.05
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from reverse.commands.shared_options import Device, Seed
from reverse.commands.statistics.statistics_options import ANSWERS, Truths, WorldSeed, find_device, make_truth
from reverse.errors import RequestError

if TYPE_CHECKING:
    from reverse.evaluation.detector.calibration import Calibration, RiskTarget
    from reverse.evaluation.detector.detection import Detector
    from reverse.evaluation.detector.phrase_truth import Truth


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
    from reverse.commands.statistics.result_tables import make_decoded_risk_table, print_calibration
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
    truth = make_truth(options.truth, options.world_seed)
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
        options.model, options.split, options.count, device=find_device(options.device), seed=options.seed
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
