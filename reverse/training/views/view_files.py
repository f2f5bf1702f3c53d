"""Write a view of a draft file as training records, one JSON line each.

    counts = write_view("drafts.jsonl", "rows.jsonl", "refine", ViewSettings(seed=0))
    counts["rows"], counts["left_out"]

Drafts are read one record at a time. The rows appear when they are complete, with a manifest beside them
(`OUT.manifest.json`): what they were made from, the settings, and what was left out and why. A stopped call
leaves nothing and is run again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reverse.data.drafts.draft_files import read_drafts
from reverse.data.drafts.draft_record import DraftRecord
from reverse.errors import DataError, RequestError
from reverse.files.atomic_write import json_bytes, replace_file, sha256, write_json
from reverse.modes import Refine, Reflect, Select, SelfCorrect
from reverse.training.views.correction_views import view_refine, view_reflect, view_self_correct
from reverse.training.views.rl_views import RL_VIEWS
from reverse.training.views.selection_view import view_select
from reverse.training.views.solving_views import view_cot, view_judge, view_reflect_judge, view_tagged_steps
from reverse.training.views.view_rows import ViewRows, ViewSettings

__all__ = ["VIEWS", "View", "find_view", "make_mode", "write_view"]

View = Callable[[DraftRecord, ViewSettings], ViewRows]
VIEWS: dict[str, View] = {
    "cot": view_cot,
    "tagged_steps": view_tagged_steps,
    "judge": view_judge,
    "reflect_judge": view_reflect_judge,
    "refine": view_refine,
    "self_correct": view_self_correct,
    "reflect": view_reflect,
    "select": view_select,
}


def find_view(name: str) -> View:
    """Return the view of a name. Raises RequestError for an unknown one."""
    known = VIEWS | RL_VIEWS
    if name not in known:
        raise RequestError(f"a view must be one of {', '.join(known)}, got {name!r:.80}")
    return known[name]


def make_mode(name: str, instruction: str | None) -> Any:
    """Make the mode of a view with another instruction; None without one. Raises RequestError."""
    find_view(name)
    if instruction is None:
        return None
    kinds: dict[str, Any] = {
        "refine": Refine,
        "self_correct": SelfCorrect,
        "reflect": Reflect,
        "reflect_judge": Reflect,
        "select": Select,
    }
    if name not in kinds:
        known = ", ".join(kinds)
        raise RequestError(f"the view {name!r} has no instruction, only {known} have one: leave it out")
    return kinds[name](instruction=instruction)


def write_view(
    drafts: str | Path,
    out: str | Path,
    name: str,
    settings: ViewSettings | None = None,
    progress: Callable[[float, float], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write the rows of a view to `out` and return the manifest.

    Args:
        drafts: a draft file.
        name: of the view.
        progress: called with how many records are read, and how many there are.

    Raises:
        RequestError: an unknown view, or `out` is the draft file.
        DataError: a damaged draft file, or no rows came of it.
    """
    view, settings = find_view(name), settings or ViewSettings()
    drafts, out = Path(drafts), Path(out)
    if out.exists() and out.samefile(drafts):
        raise RequestError(f"out is the draft file itself, {out}: name another file")
    left_out: Counter[str] = Counter()
    made: Counter[str] = Counter()
    total = _count_lines(drafts)
    count = 0
    with replace_file(out) as stream:
        for count, record in enumerate(read_drafts(drafts), 1):
            found = view(record, settings)
            left_out += found.left_out
            made += found.made
            for row in found.rows:
                stream.write(json_bytes(row) + b"\n")
            if count % 512 == 0:
                progress(count, total)
        if not made:
            raise DataError(f"{drafts}: no rows for {name!r} came of {count:,} records: {_list(left_out)}")
    given = asdict(settings)
    given["mode"] = None if settings.mode is None else repr(settings.mode)
    manifest = {
        "kind": "reverse view",
        "view": name,
        "drafts": {"path": str(drafts), "sha256": sha256(drafts), "records": count},
        "settings": given,
        "rows": sum(made.values()),
        "made": dict(made.most_common()),
        "left_out": dict(left_out.most_common()),
    }
    write_json(out.with_name(out.name + ".manifest.json"), manifest)
    return manifest


def _list(counts: Counter[str]) -> str:
    return ", ".join(f"{reason} ({count:,})" for reason, count in counts.most_common()) or "it is empty"


def _count_lines(path: Path) -> int:
    with path.open("rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))
