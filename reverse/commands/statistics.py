"""`reverse compare`, `sweep`, `calibrate`, `report`: what stored answers and scores say.

reverse compare ours.json theirs.json --out out/compare
reverse sweep off.jsonl --out out/sweep
reverse calibrate val.jsonl --test test.jsonl --risk 0.05
reverse report runs/a runs/b --out report
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from reverse.evaluation.naming import heading

TRUTH = "Knows which phrases are wrong: scenes, chair:FOLDER, amber-g:FOLDER, or stored (in the answers)."
ANSWERS = "Answers made with checking off (JSON lines), which hold p(</UN>) of every phrase."


def register(app: typer.Typer) -> None:
    """Put the commands of this module into `app`."""
    app.command()(compare)
    app.command()(sweep)
    app.command()(calibrate)
    app.command()(report)


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
    from reverse.data.files import write_json
    from reverse.evaluation.comparing import compare as pair
    from reverse.evaluation.sweeping import finite
    from reverse.evaluation.tables import load

    (ours, metrics), (theirs, _) = load(first), load(second)
    if ours.benchmark != theirs.benchmark:
        raise ValueError(
            f"{first} is scored as {ours.benchmark!r}, {second} as {theirs.benchmark!r}: compare runs of one"
        )
    known = [m.name for m in metrics]
    unknown = sorted(set(metric or []) - set(known))
    if unknown:
        raise ValueError(f"no metric {', '.join(unknown)} in {first}: it has {', '.join(known)}")
    metrics = [m for m in metrics if not metric or m.name in metric]
    both = [m for m in metrics if _needs(m) <= set(theirs.columns)]
    left_out = [m.title or m.name for m in metrics if m not in both]
    if left_out and (metric or not both):
        raise ValueError(f"{second} does not hold what {', '.join(left_out)} is made of: compare others")
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
    if out is not None:
        from reverse.evaluation.plots import forest

        out.mkdir(parents=True, exist_ok=True)
        forest(found, out / "forest", f"{ours.benchmark}: {' − '.join(_names(first, second))}")
        write_json(out / "compare.json", content)
    if as_json:
        typer.echo(json.dumps(content, indent=1))
        return
    Console().print(_differences(found, *_names(first, second), level, ours.benchmark))
    for line in _remarks(found):
        typer.echo(line)
    if left_out:
        typer.echo(f"only in {first}: {', '.join(left_out)}")
    if out is not None:
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
    device: Annotated[str | None, typer.Option(help="cuda where there is one, else cpu.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
) -> None:
    """Measure p(</UN>) as a detector at every threshold; decode anew at chosen ones."""
    thresholds = _thresholds(decode)
    if answers is None and model is None:
        raise ValueError("name an answers file, or --model to describe scenes with")
    if thresholds and model is None:
        raise ValueError("--decode needs --model: which one is to decode?")
    from reverse.evaluation.sweeping import decode_at
    from reverse.evaluation.sweeping import sweep as measure
    from reverse.evaluation.truth import read_phrases

    points: list[dict[str, Any]] = []
    if model is not None:
        where = _device(device)
        points = decode_at(
            model, thresholds, out, split=split, count=count, batch_size=batch_size, device=where, seed=seed,
            quiet=not Console(stderr=True).is_terminal,
        )  # fmt: skip
    source = answers if answers is not None else out / "decoded" / "off.jsonl"
    detector = read_phrases(source, _truth(truth if answers is not None else "stored", world_seed))
    found = measure(detector, out, bins=bins, rounds=rounds, seed=seed)
    console = Console()
    shown = Table(title=f"{found['phrases']} phrases of {found['images']} pictures, {found['wrong']} wrong")
    for name in ("", "value", "95 % over pictures"):
        shown.add_column(name, justify="left" if not name else "right")
    from reverse.evaluation.detector import metrics

    for each in metrics(bins):
        figure = found["figures"][each.name]
        shown.add_row(each.title, f"{figure['point']:.4f}", _range(figure["low"], figure["high"], 4))
    console.print(shown)
    if points:
        console.print(_decoded(points))
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
    device: Annotated[str | None, typer.Option(help="cuda where there is one, else cpu.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The calibration as JSON.")] = False,
) -> None:
    """Find the largest threshold that keeps false phrases below a promised share."""
    if (write or decode) and model is None:
        raise ValueError("--write and --decode need --model: the folder of the checkpoint")
    from reverse.data.files import write_json
    from reverse.evaluation import calibrating
    from reverse.evaluation.sweeping import finite
    from reverse.evaluation.truth import read_phrases

    world = _truth(truth, world_seed)
    detector = read_phrases(answers, world)
    found = calibrating.calibrate(detector, risk, confidence, rule)  # type: ignore[arg-type]
    content: dict[str, Any] = {
        "answers": str(answers),
        "promise": calibrating.promise(found),
        **found.to_dict(),
    }
    pool = detector
    if test is not None:
        checked = read_phrases(test, world)
        content["test"] = calibrating.check(checked, found)
        pool = calibrating.joined(detector, checked)
    content["resplits"] = calibrating.resplit(
        pool,
        risk,
        confidence,
        rule,  # type: ignore[arg-type]
        times=resplits,
        seed=seed,
    )
    if decode and found.threshold is not None:
        from reverse.evaluation.decoded_risk import calibrate_decoding

        found, content["decoding"] = calibrate_decoding(
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
        )
        content["promised_of_decoding"] = found.to_dict()
    if out is not None:  # before anything can be refused
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "calibration.json", finite(content))
    written = ""
    if write:
        path = calibrating.write_threshold(
            str(model), found, answers=answers.name, promise=calibrating.promise(found)
        )
        written = f"{path}: threshold {found.threshold:.4g}"
    if as_json:
        typer.echo(json.dumps(finite(content), indent=1))
        return
    _say_calibration(Console(), content)
    if "decoding" in content:
        Console().print(_decoded_risk(content["decoding"]))
        said = "cannot be promised of decoding" if found.threshold is None else f"{found.threshold:g}:"
        typer.echo(f"{said} {calibrating.promise(found)}")
    if written:
        typer.echo(written)
        if not found.decoded:
            typer.echo(
                "this promise is of striking out, not of decoding with the threshold: --decode tests that",
                err=True,
            )
    if found.threshold is None:
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
    from reverse.evaluation.reporting import write_report

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


# ---------------------------------------------------------------------- shown
def _differences(found: list[Any], first: str, second: str, level: float, benchmark: str) -> Table:
    shown = Table(
        title=f"{benchmark}: {first} − {second}",
        caption=f"{level:.0%} intervals paired over images, p by swapping images, corrected by Holm",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for i, name in enumerate(("", "first", "second", "difference", "interval", "p", "Holm")):
        shown.add_column(name, justify="right" if i else "left", no_wrap=i > 0)
    colours = {"better": "green", "worse": "red", "": ""}
    for each in found:
        scale, digits = (100, 2) if each.unit == "%" else (1, 3)
        gap = each.difference
        shown.add_row(
            heading(each.title, each.unit, each.better),
            f"{each.first * scale:.{digits}f}",
            f"{each.second * scale:.{digits}f}",
            Text(f"{gap.point * scale:+.{digits}f}", colours[each.verdict]),
            _range(gap.low, gap.high, digits, scale),
            f"{each.p:.4f}" + ("=" if each.exact else ""),
            f"{each.p_holm:.4f}",
        )
    return shown


def _names(first: Path, second: Path) -> tuple[str, str]:
    """What the two are called: the files' names, with their folders' where they share one."""
    if first.stem != second.stem:
        return first.stem, second.stem
    return f"{first.resolve().parent.name}/{first.stem}", f"{second.resolve().parent.name}/{second.stem}"


def _remarks(found: list[Any]) -> list[str]:
    """What stands below the table."""
    lines = ["= exact: every swap of images was tried"] if any(each.exact for each in found) else []
    lines += [
        f"McNemar, answers taken for independent: {each.title} p {each.p_mcnemar:.4f} "
        f"({each.discordant[0]} only in the first, {each.discordant[1]} only in the second)"
        for each in found
        if each.p_mcnemar is not None and sum(each.discordant)
    ]
    return lines + [f"{each.title}: {each.difference.note}" for each in found if each.difference.note]


def _decoded(points: list[dict[str, Any]]) -> Table:
    shown = Table(title="Decoded anew, 95 % over scenes", box=SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(("threshold", "CHAIRi %", "coverage %", "made / kept", "unresolved %")):
        shown.add_column(name, justify="right" if i else "left")
    for point in points:
        cells = []
        for name, scale, digits in (("chair_i", 100, 1), ("coverage", 100, 1), ("tokens_ratio", 1, 2),
                                    ("unresolved", 100, 1)):  # fmt: skip
            value, low, high = point[name]
            cells.append(f"{value * scale:.{digits}f} ({_range(low, high, digits, scale)})")
        shown.add_row("off" if point["threshold"] is None else f"{point['threshold']:g}", *cells)
    return shown


def _say_calibration(console: Console, content: dict[str, Any]) -> None:
    promise = content["promise"]
    if content["threshold"] is None:
        console.print(
            Text(f"no threshold can be promised with {content['images']} pictures: {promise}", "yellow"),
            soft_wrap=True,
        )
    else:
        console.print(f"threshold {content['threshold']:.4g}", highlight=False)
        console.print(promise, highlight=False, soft_wrap=True)
        console.print(
            f"calibration: {content['images']} pictures, mean {content['observed']:.4f}, "
            f"{content['kept']:.1%} of the phrases kept",
            highlight=False,
        )
    if "test" in content:
        each = content["test"]
        console.print(
            f"test: {each['images']} pictures, mean {each['observed']:.4f} "
            f"({_range(each['low'], each['high'], 4)}), {each['kept']:.1%} of the phrases kept",
            highlight=False,
        )
    again = content["resplits"]
    seen = "nothing" if again["observed"] is None else f"{again['observed']:.4f} on average"
    console.print(
        f"{again['times']} divisions into {again['calibration_images']} + {again['test_images']}: promised "
        f"{again['promised']:.3f}, observed {seen}, above it in {again['over']:.1%}, "
        f"no promise in {again['without_promise']:.1%}",
        highlight=False,
        soft_wrap=True,
    )


def _decoded_risk(tried: list[dict[str, Any]]) -> Table:
    shown = Table(
        title="Decoded: mean share of false ones among accepted phrases",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for name in ("threshold", "mean", "95 %", "p", "needs", "CHAIRi %", "unresolved %", "made/kept"):
        shown.add_column(name, justify="right", no_wrap=True)
    for each in tried:
        shown.add_row(
            f"{each['threshold']:g}",
            f"{each['observed']:.4f}",
            _range(each["low"], each["high"], 3),
            f"{each['p']:.4f}",
            f"{each['must_be_below']:.3f}",
            f"{100 * each['chair_i']:.1f}",
            f"{100 * each['unresolved']:.1f}",
            f"{each['tokens_ratio']:.2f}",
        )
    return shown


def _range(low: float | None, high: float | None, digits: int, scale: float = 1) -> str:
    if low is None or high is None or not low < high:  # NaN, or rounds that all agree: no width is known
        return "–"
    between = "–" if low >= 0 else " to "
    return f"{low * scale:.{digits}f}{between}{high * scale:.{digits}f}"


# ---------------------------------------------------------------------- given
def _truth(name: str, world_seed: int) -> Any:
    from reverse.evaluation.truth import BenchmarkTruth, SceneTruth

    if name == "stored":
        return None
    if name == "scenes":
        return SceneTruth(world_seed)
    benchmark, _, folder = name.partition(":")
    if folder and benchmark in BenchmarkTruth.COLUMNS:
        if not Path(folder).exists():
            raise FileNotFoundError(f"no truth at {folder!r}: name the folder of the benchmark's files")
        return BenchmarkTruth(folder, benchmark)
    raise ValueError(f"truth must be scenes, stored, chair:FOLDER or amber-g:FOLDER, got {name!r}")


def _thresholds(given: str) -> list[float]:
    try:
        return [float(each) for each in given.split(",") if each.strip()]
    except ValueError:
        raise ValueError(f"--decode takes numbers with commas between them, 0.3,0.1, got {given!r}") from None


def _device(name: str | None) -> Any:
    from reverse.cli import _hush, _placement

    _hush()
    return _placement(name, None)[0]


def _needs(metric: Any) -> set[str]:
    from reverse.evaluation.tables import columns_of

    return columns_of(metric.form)
