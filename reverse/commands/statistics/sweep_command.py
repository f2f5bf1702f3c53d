"""`reverse sweep`: measure p(`</UN>`) as a detector, and decode scenes at chosen thresholds.

reverse sweep off.jsonl --out out/sweep
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from reverse.commands.shared_options import Device, Seed
from reverse.commands.statistics.statistics_options import (
    ANSWERS,
    Rounds,
    Truths,
    WorldSeed,
    check_plots_before,
    find_device,
    make_truth,
)
from reverse.errors import RequestError


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
        truth = make_truth("scenes", options.seed)
    else:
        truth = make_truth(options.truth, options.world_seed)
    out = options.out
    check_plots_before(out)
    from reverse.commands.statistics import result_tables
    from reverse.evaluation.detector import scene_decoding
    from reverse.evaluation.detector.phrase_truth import read_phrases
    from reverse.evaluation.detector.sweep import plot_sweep, write_sweep
    from reverse.evaluation.reports.plots import plot_tradeoff
    from reverse.evaluation.stats.bootstrap import BootstrapSettings

    console = Console()
    points: list[dict[str, Any]] = []
    if options.model is not None:
        scenes = scene_decoding.SceneDecoding(
            options.model, options.split, options.count, options.batch_size, find_device(options.device),
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


def _parse_thresholds(given: str) -> list[float]:
    try:
        return [float(each) for each in given.split(",") if each.strip()]
    except ValueError:
        raise RequestError(
            f"--decode takes numbers with commas between them, such as 0.3,0.1, got {given!r}"
        ) from None
