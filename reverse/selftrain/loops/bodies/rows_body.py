"""Stage "rows": training rows of several views, one file for each.

    OUT/NAME.jsonl      training records
    OUT/rows.json       of each view how many rows it has, of which kinds, and what was left out

A view without rows has an empty file, because no answer may be right in the first iterations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reverse.data.drafts.draft_files import read_drafts
from reverse.data.drafts.draft_record import DraftRecord
from reverse.errors import DataError
from reverse.files.atomic_write import json_bytes, replace_file, write_json
from reverse.modes import Reflect
from reverse.selftrain.loops.bodies.draft_selection import SELECTIONS
from reverse.selftrain.loops.stage import StageBody, StageContext
from reverse.training.views.view_files import find_view, make_mode
from reverse.training.views.view_rows import ViewSettings

__all__ = ["ROWS"]


def write_rows(context: StageContext) -> dict[str, Any]:
    """Write the rows of all views; return counts of each."""
    found = {part["name"]: _write_part(context, part) for part in context.settings["parts"]}
    write_json(context.out / "rows.json", found)
    if not any(part["rows"] for part in found.values()):
        told = "; ".join(f"{name}: {_list(part['left_out'])}" for name, part in found.items())
        raise DataError(
            f"stage {context.name}: there is nothing to train on ({told}): begin with a warm-up "
            "(questions.warmup), a better base, or more samples"
        )
    return {"rows": found}


def _write_part(context: StageContext, part: Mapping[str, Any]) -> dict[str, Any]:
    """Write the rows of one view."""
    view, select = find_view(part["view"]), SELECTIONS[part.get("selection", "all")]
    settings = ViewSettings(seed=context.seed, mode=_make_mode(part), **part.get("settings", {}))
    made: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    with replace_file(context.out / f"{part['name']}.jsonl") as stream:
        for record in _read(context.inputs[part["input"]] / part["file"], part.get("instruction", "")):
            chosen = select(record)
            if chosen is None:
                left_out["no draft for it"] += 1
                continue
            rows = view(chosen, settings)
            made += rows.made
            left_out += rows.left_out
            for row in rows.rows:
                stream.write(json_bytes(row) + b"\n")
    return {
        "rows": sum(made.values()),
        "made": dict(made.most_common()),
        "left_out": dict(left_out.most_common()),
    }


def _make_mode(part: Mapping[str, Any]) -> Any:
    if part["view"] == "reflect":
        return Reflect(**part.get("mode", {}))
    return make_mode(part["view"], None)


def _read(path: Path, instruction: str) -> Iterator[DraftRecord]:
    """Read records; an instruction, if there is one, is added to their questions."""
    for record in read_drafts(path):
        yield record.model_copy(update={"question": record.question + instruction}) if instruction else record


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} ({count:,})" for reason, count in counts.items()) or "it is empty"


ROWS = StageBody(write_rows)
