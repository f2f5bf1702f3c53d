"""How much a model makes up about scenes, with checking off and on, against its plain twin.

    python -m experiments.scenes_comparison --tagged tiny-llava --twin out/scenes/twin --out out/eval

An object phrase is wrong if its object is not in the picture (the world's own truth). Reported are CHAIRi
(wrong / all object phrases), CHAIRs (captions with any), coverage (true objects named), length, empty and
unresolved answers, tokens generated for each kept, and AUROC of p(`</UN>`) on the answers with checking off.
Every answer is kept, and a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reverse.evaluation.runs.benchmark_run import Decoding
from reverse.evaluation.runs.environment import describe_environment
from reverse.evaluation.runs.scene_captions import SceneSet, describe_scenes, summarise_captions
from reverse.evaluation.stats.bootstrap import estimate_ratio_difference
from reverse.files.atomic_write import write_json
from reverse.files.json_values import replace_non_finite
from reverse.models import default_threshold, load

__all__ = ["claims", "compare", "main", "table"]


def compare(
    tagged: str,
    twin: str,
    out: Path,
    thresholds: Sequence[float] = (),
    *,
    scenes: SceneSet,
    threshold: float | None = None,
    device: str | None = None,
    batch_size: int = 16,
) -> dict[str, Any]:
    """The whole table: twin, checking off, checking on at each threshold, and without hints."""
    models = {
        tagged: load(tagged, device=device),
        twin: load(twin, device=device, require_tokens=False),
    }
    default = default_threshold(models[tagged][0]) if threshold is None else threshold
    rows_of = {
        "twin": (twin, Decoding("plain")),
        "off": (tagged, Decoding("plain")),
        "on": (tagged, Decoding(threshold=default)),
        **{f"on_{t:g}": (tagged, Decoding(threshold=t)) for t in thresholds if t != default},
        "on_no_hints": (tagged, Decoding(threshold=default, settings={"hints": 0})),
    }
    report: dict[str, Any] = {"threshold": default, "table": {}, "against": {}}
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, (model, decoding) in rows_of.items():
        began = time.perf_counter()
        rows[name] = describe_scenes(
            model, models[model], out, name, decoding, scenes, batch_size=batch_size, quiet=False
        )
        figures = summarise_captions(rows[name], scenes.seed)
        figures |= {"threshold": decoding.threshold, "hints": decoding.settings.get("hints", 5)}
        report["table"][name] = figures | {"seconds": round(time.perf_counter() - began, 1)}
    for name in rows:
        if not name.startswith("on"):
            continue
        report["against"][name] = {
            f"{figure}_{other}": _compare_rows(rows[name], rows[other], part, whole, relative, scenes.seed)
            for other in ("twin", "off")
            for figure, part, whole, relative in (
                ("chair_i_change", "wrong", "mentions", True),
                ("coverage_change", "named", "objects", False),
            )
        }
    return report


def _compare_rows(
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
    """Entry point of `python -m experiments.scenes_comparison`."""
    from rich.console import Console

    parser = argparse.ArgumentParser(
        prog="python -m experiments.scenes_comparison", description=(__doc__ or "").split("\n")[0]
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
        scenes=SceneSet(given.split, given.count, given.seed),
        batch_size=given.batch_size,
    )
    line = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "experiments.scenes_comparison", *map(str, line)])
    report |= describe_environment(device) | {"command": command, "claims": claims(report)}
    write_json(given.out / "report.json", replace_non_finite(report))
    Console(width=150).print(table(report))
    print(json.dumps(replace_non_finite(report["claims"])))


if __name__ == "__main__":
    main()
