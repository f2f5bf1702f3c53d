"""How much a model makes up about scenes, with checking off and on, against its plain twin.

    python -m reverse.evaluation.scenes_runner --tagged tiny-llava --twin out/scenes/twin --out out/eval

An object phrase is wrong when its object is not in the picture (the world's own truth). Reported: CHAIRi
(wrong / all object phrases), CHAIRs (captions with any), coverage (true objects named), length, empty and
unresolved answers, tokens generated for each kept, and AUROC of p(`</UN>`) on the answers with checking off.
Every answer is kept, one JSON line a scene; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu

from reverse.api import generate
from reverse.data.scenes import Scene, find_objects, make_questions, make_scene, render_scene
from reverse.decoding.result import Result
from reverse.errors import DataError
from reverse.evaluation.runs.answers_reading import read_settings, rows_of
from reverse.evaluation.runs.environment import environment
from reverse.evaluation.stats.bootstrap import estimate_ratio, estimate_ratio_difference
from reverse.files.atomic_write import write_json
from reverse.files.file_lock import output_lock
from reverse.files.json_values import replace_non_finite
from reverse.models import default_threshold, load
from reverse.models.checkpoints.fingerprint import checkpoint_fingerprint
from reverse.progress import show_progress
from reverse.tokens import remove_tags

__all__ = ["Contender", "answer", "auroc", "measure", "picture", "score", "summarise", "yes_no"]

PROMPT = "Describe this image."


@dataclass(frozen=True)
class Contender:
    """One row of the table."""

    name: str
    model: str  # path or bundled name
    mode: str = "resample"  # of generate(), or what another decoder is called
    threshold: float | None = None
    hints: int = 5
    settings: Mapping[str, Any] = field(default_factory=dict)  # further fields of ResamplingConfig


def score(scene: Scene, result: Result) -> dict[str, Any]:
    """What is counted of one answer; plain values, one JSON line."""
    mentions = [m.name for m in find_objects(result.text)]
    truth = scene.truth
    return {
        "id": scene.id,
        "text": result.text,
        "mentions": len(mentions),
        "wrong": sum(name not in truth for name in mentions),
        "objects": len(truth),
        "named": len(set(mentions) & set(truth)),
        "words": len(result.text.split()),
        "empty": int(not result.text.strip()),
        "unresolved": int(result.resolved is False),
        "resolved": result.resolved,  # None: checking off
        "kept": result.usage.kept,
        "generated": result.usage.kept + result.usage.discarded,
        "attempts": len(result.trace),
        "phrases": [
            [p.text, p.p_un, int(any(m.name not in truth for m in found))]
            for p in result.phrases
            if p.p_un is not None and (found := find_objects(p.text))
        ],
    }


def summarise(rows: Sequence[dict[str, Any]], seed: int = 0) -> dict[str, Any]:
    """Figures of one contender; those with an interval are [value, low, high] (95 %, over scenes)."""

    def column(name: str) -> np.ndarray:
        return np.array([row[name] for row in rows], dtype=float)

    ones = np.ones(len(rows))
    ratios = {
        "chair_i": (column("wrong"), column("mentions")),
        "chair_s": ((column("wrong") > 0).astype(float), ones),
        "coverage": (column("named"), column("objects")),
        "words": (column("words"), ones),
        "empty": (column("empty"), ones),
        "unresolved": (column("unresolved"), ones),
        "tokens_ratio": (column("generated"), column("kept")),
    }
    figures: dict[str, Any] = {name: list(estimate_ratio(*pair, seed=seed)) for name, pair in ratios.items()}
    figures["answers"] = len(rows)
    figures["auroc"] = auroc(rows)
    return figures


def auroc(rows: Iterable[dict[str, Any]]) -> float | None:
    """Probability that a wrong object phrase has a higher p than a right one; None without both kinds."""
    phrases = [(p, wrong) for row in rows for _, p, wrong in row["phrases"]]
    wrong = [p for p, label in phrases if label]
    right = [p for p, label in phrases if not label]
    if not wrong or not right:
        return None
    return float(mannwhitneyu(wrong, right).statistic / (len(wrong) * len(right)))


def answer(
    contender: Contender,
    loaded: tuple[Any, Any],
    scenes: Sequence[Scene],
    prompts: Sequence[str] | None = None,
    *,
    batch_size: int = 16,
    max_new_tokens: int = 128,
    seed: int = 0,
) -> list[Result]:
    """What a contender says to the prompts (by default: describe it) about the scenes, in their order."""
    model, processor = loaded
    return generate(
        model,
        processor,
        images=[picture(scene) for scene in scenes],
        prompt=list(prompts) if prompts is not None else [PROMPT] * len(scenes),
        mode=contender.mode,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        seed=seed,
        threshold=contender.threshold,
        hints=contender.hints,
        **contender.settings,
    )


def yes_no(
    contender: Contender,
    loaded: tuple[Any, Any],
    scenes: Sequence[Scene],
    *,
    batch_size: int = 16,
    seed: int = 0,
) -> list[dict[str, int]]:
    """How many of a scene's two yes/no questions (one true, one false) are answered right, for each scene."""
    asked = [
        (scene, question)
        for scene in scenes
        for question in make_questions(scene)
        if question.kind == "yes_no"
    ]
    results = answer(
        contender,
        loaded,
        [scene for scene, _ in asked],
        [question.question for _, question in asked],
        batch_size=batch_size,
        max_new_tokens=16,
        seed=seed,
    )
    counts: dict[str, dict[str, int]] = {scene.id: {"right": 0, "asked": 0} for scene in scenes}
    for (scene, question), result in zip(asked, results, strict=True):
        said = result.text.strip().lower().rstrip(".")
        counts[scene.id]["asked"] += 1
        counts[scene.id]["right"] += said == remove_tags(question.answer).lower()
    return list(counts.values())


def measure(
    contender: Contender,
    loaded: tuple[Any, Any],
    out: Path,
    *,
    split: str = "test",
    count: int = 500,
    seed: int = 0,
    batch_size: int = 16,
    max_new_tokens: int = 128,
    quiet: bool = False,
    by: Callable[[Sequence[Scene]], Sequence[Result]] | None = None,
) -> list[dict[str, Any]]:
    """Answers of one contender about `count` scenes, in `out/<name>.jsonl`; finished lines are not repeated.

    Each batch is appended and synced before the next begins; a torn one is decoded again. `by` answers in the
    place of `answer()`, for what no setting of `generate()` is; `contender` then names and describes it.
    Raises ValueError where the file was made otherwise: settings, or what the checkpoint holds.
    """
    path = out / f"{contender.name}.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    with output_lock(path):
        made_with = {name: value for name, value in asdict(contender).items() if value != {}}
        if contender.threshold is None and contender.mode != "plain":
            made_with["threshold"] = default_threshold(loaded[0])
        made_with |= {"checkpoint": checkpoint_fingerprint(contender.model)}
        _same_settings(path, made_with | {"split": split, "seed": seed, "max_new_tokens": max_new_tokens})
        rows = _read_whole_batches(path, batch_size, count)
        with (
            show_progress(contender.name, count, shown=not quiet) as progress,
            path.open("a", encoding="utf-8") as file,
        ):
            progress(len(rows))
            while len(rows) < count:
                scenes = [
                    make_scene(split, i, seed) for i in range(len(rows), min(count, len(rows) + batch_size))
                ]
                results = (
                    by(scenes)
                    if by is not None
                    else answer(
                        contender,
                        loaded,
                        scenes,
                        batch_size=batch_size,
                        max_new_tokens=max_new_tokens,
                        seed=seed,
                    )
                )
                fresh = [score(scene, result) for scene, result in zip(scenes, results, strict=True)]
                file.writelines(json.dumps(row) + "\n" for row in fresh)
                file.flush()
                os.fsync(file.fileno())
                rows.extend(fresh)
                progress(len(rows))
        return rows[:count]


def picture(scene: Scene) -> Any:
    """A scene as a PIL image."""
    from PIL import Image

    return Image.fromarray(render_scene(scene))


def _same_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write down what a file of answers was made with, or refuse to go on with another file's."""
    settings = json.loads(json.dumps(settings))  # as it is read again: a tuple is a list there
    before = read_settings(path)
    if before is None:
        write_json(path.with_suffix(".settings.json"), settings)
    elif before != settings:
        names = [k for k in {**before, **settings} if before.get(k) != settings.get(k)]
        changed = ", ".join(f"{k}={before.get(k)!r}, now {settings.get(k)!r}" for k in names)
        raise DataError(f"{path.parent} holds answers made with {changed}: give another folder with --out")


def _read_whole_batches(path: Path, batch_size: int, count: int) -> list[dict[str, Any]]:
    """What was finished. A torn line is cut off the file and, where more is to be done, a torn batch: so the
    rest falls into the same batches."""
    if not path.exists():
        return []
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    if len(lines) < count:
        lines = lines[: len(lines) // batch_size * batch_size]
    with path.open("r+b") as file:
        file.truncate(sum(map(len, lines)))
    return [row for _, row in rows_of(path)]


def compare(
    tagged: str,
    twin: str,
    out: Path,
    thresholds: Sequence[float] = (),
    *,
    threshold: float | None = None,
    device: str | None = None,
    without_hints: bool = True,
    seed: int = 0,
    **settings: Any,
) -> dict[str, Any]:
    """The whole table: twin, checking off, checking on at each threshold, and without hints."""
    models = {
        tagged: load(tagged, device=device),
        twin: load(twin, device=device, require_tokens=False),
    }
    default = default_threshold(models[tagged][0]) if threshold is None else threshold
    contenders = [
        Contender("twin", twin, "plain"),
        Contender("off", tagged, "plain"),
        Contender("on", tagged, threshold=default),
        *(Contender(f"on_{t:g}", tagged, threshold=t) for t in thresholds if t != default),
    ]
    if without_hints:
        contenders.append(Contender("on_no_hints", tagged, threshold=default, hints=0))
    report: dict[str, Any] = {"threshold": default, "table": {}, "against": {}}
    rows: dict[str, list[dict[str, Any]]] = {}
    for contender in contenders:
        began = time.perf_counter()
        rows[contender.name] = measure(contender, models[contender.model], out, seed=seed, **settings)
        figures = summarise(rows[contender.name], seed)
        figures |= {"threshold": contender.threshold, "hints": contender.hints}
        report["table"][contender.name] = figures | {"seconds": round(time.perf_counter() - began, 1)}
    for name in rows:
        if not name.startswith("on"):
            continue
        report["against"][name] = {
            f"{figure}_{other}": _against(rows[name], rows[other], part, whole, relative, seed)
            for other in ("twin", "off")
            for figure, part, whole, relative in (
                ("chair_i_change", "wrong", "mentions", True),
                ("coverage_change", "named", "objects", False),
            )
        }
    return report


def _against(
    ours: list[dict[str, Any]], theirs: list[dict[str, Any]], part: str, whole: str, relative: bool, seed: int
) -> list[float]:
    pairs = [([r[part] for r in rows], [r[whole] for r in rows]) for rows in (ours, theirs)]
    return list(estimate_ratio_difference(pairs[0], pairs[1], relative=relative, seed=seed))


def table(report: dict[str, Any]) -> Any:
    """The report as a Rich table."""
    from rich.table import Table

    shown = Table(title=f"Scenes, 95 % intervals over scenes (default threshold {report['threshold']:g})")
    columns = ("CHAIRi %", "CHAIRs %", "coverage %", "words", "empty %", "unresolved %", "made / kept")
    shown.add_column("", no_wrap=True)
    for column in columns:
        shown.add_column(column, justify="right")
    names = ("chair_i", "chair_s", "coverage", "words", "empty", "unresolved", "tokens_ratio")
    for row, figures in report["table"].items():
        cells = []
        for name in names:
            value, low, high = figures[name]
            scale = 1 if name in ("words", "tokens_ratio") else 100
            digits = 2 if name == "tokens_ratio" else 1
            cells.append(f"{value * scale:.{digits}f} ({low * scale:.{digits}f}-{high * scale:.{digits}f})")
        shown.add_row(row, *cells)
    return shown


def claims(report: dict[str, Any]) -> dict[str, Any]:
    """The figures that later work is held against."""
    from reverse.data.scenes.__main__ import measure_throughput

    rows = report["table"]
    return {
        "twin_chair_i": rows["twin"]["chair_i"][0],
        "twin_coverage": rows["twin"]["coverage"][0],
        "chair_i": rows["on"]["chair_i"][0],
        "coverage": rows["on"]["coverage"][0],
        "chair_i_drop": -report["against"]["on"]["chair_i_change_twin"][0],
        "auroc": rows["off"]["auroc"],
        "tokens_ratio": rows["on"]["tokens_ratio"][0],
        "scenes_per_second": measure_throughput()["scenes_per_second"],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `python -m reverse.evaluation.scenes_runner`."""
    from rich.console import Console

    parser = argparse.ArgumentParser(
        prog="python -m reverse.evaluation.scenes_runner", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--tagged", default="tiny-llava", help="model with the tokens (default: %(default)s)")
    parser.add_argument("--twin", required=True, help="its plain twin")
    parser.add_argument("--out", type=Path, required=True, help="folder for answers and report.json")
    parser.add_argument("--threshold", type=float, help="the default one; else the checkpoint's own")
    parser.add_argument("--thresholds", type=float, nargs="*", default=[], help="besides the default one")
    parser.add_argument("--split", default="test")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default=None, help="as torch names it; else cuda or cpu")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    from reverse.models.devices import check_device, default_device

    device = str(check_device(given.device or default_device()))
    report = compare(
        given.tagged,
        given.twin,
        given.out,
        given.thresholds,
        threshold=given.threshold,
        device=device,
        split=given.split,
        count=given.count,
        batch_size=given.batch_size,
        seed=given.seed,
    )
    line = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "reverse.evaluation.scenes_runner", *map(str, line)])
    report |= environment(device) | {"command": command, "claims": claims(report)}
    write_json(given.out / "report.json", replace_non_finite(report))
    Console(width=150).print(table(report))
    print(json.dumps(replace_non_finite(report["claims"])))


if __name__ == "__main__":
    main()
