"""What modes change in captions of scenes: claims from the scored runs of `reverse eval chair`.

    reverse eval chair --model tiny-qwen --data scenes --split shift --out out/captions/qwen-shift \\
        --mode plain --mode resample --mode select --mode auto --n 4 --score
    python -m experiments.caption_modes out/captions/qwen-shift --name qwen --split shift

Differences are paired by picture: of resample to plain, and of select and auto to resample. CHAIRi is the
share of wrong object phrases; recall is the share of the objects in a picture that are named.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.claim_files import add_claims
from reverse.evaluation.runs.environment import describe_environment
from reverse.evaluation.stats.bootstrap import BootstrapSettings
from reverse.evaluation.stats.paired_comparison import compare_runs
from reverse.evaluation.stats.scored_tables import load_scored
from reverse.models.devices import default_device

__all__ = ["compare_modes"]

RESULTS = Path("benchmarks/results/modes.json")
PAIRS = {"resample": "plain", "select": "resample", "auto": "resample"}  # a mode, and the one before
METRICS = {"chair_i": "chair", "recall": "recall"}


def compare_modes(folder: Path, rounds: int = 2000) -> dict[str, Any]:
    """Claims such as `caption_chair_change` (of select) and `caption_auto_recall_change`: (point, low, high).

    `caption_chair` and `caption_auto_recall` are the figures themselves.

    Raises MissingFileError if a mode was not scored.
    """
    claims: dict[str, Any] = {}
    for mode, before in PAIRS.items():
        (new, metrics), (old, _) = (load_scored(folder / f"chair.{name}.json") for name in (mode, before))
        wanted = [metric for metric in metrics if metric.name in METRICS]
        compared = compare_runs(new, old, wanted, BootstrapSettings(rounds=rounds), names=(mode, before))
        middle = "" if mode == "select" else f"{mode}_"
        for metric, found in zip(wanted, compared, strict=True):
            change = found.difference
            name = f"caption_{middle}{METRICS[metric.name]}_change"
            claims[name] = [round(float(each), 5) for each in (change.point, change.low, change.high)]
            claims[name.replace("_change", "")] = round(float(found.first), 5)
    return claims


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `python -m experiments.caption_modes`."""
    parser = argparse.ArgumentParser(prog="python -m experiments.caption_modes")
    parser.add_argument(
        "folder", type=Path, help="--out of reverse eval chair, with plain, resample, select, auto"
    )
    parser.add_argument("--name", required=True, help="of the model's family in the results, such as qwen")
    parser.add_argument("--split", required=True, help="test or shift")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: %(default)s")
    given = parser.parse_args(arguments)
    claims = compare_modes(given.folder)
    part = {"claims": claims, **describe_environment(default_device())}
    add_claims(given.out, (given.name, given.split), claims, {f"captions_{given.name}_{given.split}": part})
    print(f"{given.out}: {given.name}, {given.split}")


if __name__ == "__main__":
    main()
