"""Draw accuracy against tokens of all measured modes, from the results of `pooled_seeds`.

    python -m experiments.reasoning.modes_figure benchmarks/results/modes.json docs/img/modes

A figure for each family: a point for each mode, and lines for votes and the best of N samples, at N times the
tokens of a plain answer.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reverse.evaluation.reports.plots import plot_modes
from reverse.files.text_reading import read_json

__all__ = ["make_report"]

RULES = ("oracle", "vote", "weighted", "best")
FAMILIES = {"qwen": "Qwen2.5-VL", "llava": "LLaVA"}


def make_report(found: Mapping[str, Any]) -> dict[str, Any]:
    """What `plot_modes` draws, from the modes and curves of one family and split."""
    rows: dict[str, Any] = dict(found["modes"])
    tokens = rows["plain"]["tokens"][0]
    modes = [
        {
            "name": f"{name}, always" if f"{name}_gated" in rows else name.removesuffix("_gated"),
            "accuracy": row["accuracy"],
            "cost": {"tokens": row["tokens"]},
            "curves": _make_curves(found["curves"], tokens) if name == "plain" else None,
        }
        for name, row in rows.items()
    ]
    return {"modes": modes}


def _make_curves(curves: Mapping[str, Mapping[str, Sequence[float]]], tokens: float) -> dict[str, Any] | None:
    if not curves:
        return None
    sizes = sorted(map(int, curves["vote"]))
    lines = {rule: [curves[rule][str(n)] for n in sizes] for rule in RULES}
    return {"sizes": sizes, "tokens": [tokens * n for n in sizes], **lines}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `python -m experiments.reasoning.modes_figure`."""
    parser = argparse.ArgumentParser(prog="python -m experiments.reasoning.modes_figure")
    parser.add_argument("results", type=Path, help="modes.json of pooled_seeds")
    parser.add_argument("out", type=Path, help="the figures are OUT-FAMILY.png")
    parser.add_argument("--split", default="test", help="default: %(default)s")
    given = parser.parse_args(arguments)
    for family, splits in read_json(given.results)["details"].items():
        found = splits[given.split]
        seeds = f"{len(found['seeds'])} seed{'s' if len(found['seeds']) > 1 else ''}"
        title = f"A small {FAMILIES[family]}, {given.split}, {seeds}, 95 % intervals"
        for path in plot_modes(make_report(found), given.out.with_name(f"{given.out.name}-{family}"), title):
            print(path)


if __name__ == "__main__":
    main()
