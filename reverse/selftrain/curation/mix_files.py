"""The files of `reverse curate select-mix`: ratings are read, and the chosen records written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from reverse.data.drafts.draft_files import draft_line, read_drafts
from reverse.errors import DataError, RequestError
from reverse.files.atomic_write import atomic_write, sha256, write_json
from reverse.files.text_reading import read_json, read_json_lines
from reverse.selftrain.curation.tasks.rating_task import BEST, MixPlan, choose_mix
from reverse.selftrain.curation.tasks.task_parts import find_newest_answer

__all__ = ["read_ratings", "read_verdicts", "write_mix"]


def read_ratings(path: Path) -> list[Mapping[str, Any]]:
    """Read the ratings that a pass of `RatingTask` wrote."""
    return [value for _, value in read_json_lines(path)]


def read_verdicts(source: Path, limit: int | None = None) -> Iterator[Mapping[str, Any]]:
    """Read verdicts in place of ratings: every answer with a verdict counts as equally good."""
    for record in islice(read_drafts(source), limit):
        at = find_newest_answer(record, judged=True)
        if at is not None:
            yield {"id": record.id, "verdict": record.drafts[at].verdict, "quality": BEST}


def write_mix(source: Path, out: Path, rated: Iterable[Mapping[str, Any]], plan: MixPlan) -> dict[str, int]:
    """Write the chosen records in their order, then a manifest; return how many there are of each kind.

    The same choice is written again as often as it is asked for; it depends on nothing but the ratings and
    the plan. Raises DataError if the file is there and is another one.
    """
    if source.resolve() == out.resolve():
        raise RequestError(f"{out} is the input: name another file to write")
    made = {"command": "curate select-mix", "mix": asdict(plan), "input_sha256": sha256(source)}
    manifest = out.with_name(out.name + ".manifest.json")
    if out.exists():
        before = read_json(manifest) if manifest.exists() else None
        if not isinstance(before, dict) or any(before.get(key) != value for key, value in made.items()):
            raise DataError(f"{out} is there already, of another choice: name another file, or remove it")
    found = list(rated)
    kinds = {each["id"]: each["verdict"] for each in found}
    chosen = choose_mix(found, plan)
    counts: Counter[str] = Counter(kinds[name] for name in chosen)
    there = Counter(each["verdict"] for each in found if each["quality"] >= plan.least_quality)
    result = {kind: counts[kind] for kind in ("right", "wrong")}
    result |= {f"{kind}_there": there[kind] for kind in ("right", "wrong")}
    if not out.exists():  # the plan first, so that a killed run may go on
        write_json(manifest, made)
    with atomic_write(out) as stream:
        for record in read_drafts(source):
            if record.id in chosen:
                stream.write(draft_line(record).encode("utf-8", "backslashreplace"))
    write_json(manifest, made | {"counts": json.loads(json.dumps(result))})
    return result
