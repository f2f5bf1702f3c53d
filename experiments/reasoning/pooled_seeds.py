"""Claims over several training seeds: `benchmarks/results/modes.json` from the folders of their runs.

    python -m experiments.reasoning.pooled_seeds out/reasoning/qwen-0 out/reasoning/qwen-1 …

The drafts of all seeds of a family are one set of records; intervals are over pictures, with what all seeds
said about a picture together. Beside them stand the points of each seed.
"""

from __future__ import annotations

import argparse
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.reasoning.reasoning_claims import compute_claims, describe_runs, read_baselines, read_runs
from reverse.data.drafts.draft_record import DraftRecord
from reverse.files.atomic_write import write_json
from reverse.files.json_values import replace_non_finite
from reverse.files.text_reading import read_json

__all__ = ["pool_runs"]

KEPT = ("device", "reverse", "torch", "transformers", "python", "date")  # of a report's environment


def pool_runs(runs: Iterable[dict[str, list[DraftRecord]]]) -> dict[str, list[DraftRecord]]:
    """The records of several seeds by mode, with the number of the seed before their ids."""
    pooled: dict[str, list[DraftRecord]] = defaultdict(list)
    for number, run in enumerate(runs):
        for name, records in run.items():
            pooled[name] += [each.model_copy(update={"id": f"{number}/{each.id}"}) for each in records]
    return dict(pooled)


def describe_family(folders: Sequence[Path], stage: str, split: str) -> dict[str, Any]:
    """Claims, modes and curves of one family over its seeds, and the claims of each seed."""
    runs = [read_runs(folder, stage, split) for folder in folders]
    baselines: dict[str, list[DraftRecord]] = {}
    trained = [read_baselines(folder, split) for folder in folders]
    for name in set.intersection(*map(set, trained)):
        baselines[name] = pool_runs({"plain": each[name]} for each in trained)["plain"]
    everywhere = set.intersection(*map(set, runs))
    shared = [{name: run[name] for name in run if name in everywhere} for run in runs]
    described = describe_runs(pool_runs(shared), baselines)
    described["seeds"] = [compute_claims(run, own) for run, own in zip(runs, trained, strict=True)]
    return described


def keep_others(results: Mapping[str, Any], family: str, split: str) -> dict[str, Any]:
    """The claims about captions that a file of results holds; other programs make them."""
    claims = results.get("claims", {}).get(family, {}).get(split, {})
    return {name: value for name, value in claims.items() if name.startswith("caption_")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `python -m experiments.reasoning.pooled_seeds`."""
    parser = argparse.ArgumentParser(prog="python -m experiments.reasoning.pooled_seeds")
    parser.add_argument("folders", nargs="+", type=Path, help="folders that runs wrote to")
    parser.add_argument("--stage", default="one", help="whose model was measured; default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/modes.json"))
    given = parser.parse_args(arguments)
    reports = {folder: read_json(folder / f"report-{given.stage}.json") for folder in given.folders}
    families: dict[str, list[Path]] = defaultdict(list)
    for folder, report in reports.items():
        families[report["recipe"]["family"]].append(folder)
    first = next(iter(reports.values()))
    content: dict[str, Any] = {name: first[name] for name in KEPT if name in first}
    content["command"] = shlex.join(
        ["python", "-m", "experiments.reasoning.pooled_seeds", *map(str, given.folders)]
    )
    before = read_json(given.out) if given.out.is_file() else {}
    # Families that these runs are not of keep what they have.
    content["claims"] = before.get("claims", {}) | {"setup": first["setup"]}
    content["details"] = before.get("details", {})
    content["parts"] = before.get("parts", {})
    for family, folders in families.items():
        splits = reports[folders[0]]["recipe"]["splits"].split(",")
        found = {split: describe_family(folders, given.stage, split) for split in splits}
        content["claims"][family] = {
            split: each.pop("claims") | keep_others(before, family, split) for split, each in found.items()
        }
        chosen = [
            {name: reports[each][name] for name in ("gates", "threshold", "trained", "recipe")}
            for each in folders
        ]
        content["details"][family] = {"runs": chosen, **found}
    write_json(given.out, replace_non_finite(content))
    print(f"{given.out}: {', '.join(f'{name} ({len(each)} seeds)' for name, each in families.items())}")


if __name__ == "__main__":
    main()
