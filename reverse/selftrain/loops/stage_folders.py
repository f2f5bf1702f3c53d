"""The folder of a stage: how it is worked on, finished, emptied and read.

    DIR/.NAME.work/        while the stage runs; a killed stage resumes from these files
    DIR/.NAME.work/work.json   its key, the folder it was begun in, and how often it was begun
    DIR/.NAME.work/stage.json  written last: its key, settings, inputs, outputs (SHA-256), figures, seconds
    DIR/NAME/              when it is done; renamed from the above, so it is whole or not there

A stage that is emptied keeps JSON files at its top. `stage.json` is replaced first and says so; a kill in
between leaves files that the next run deletes. A folder that is thrown away is renamed to `.NAME.old` first.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reverse.errors import DataError
from reverse.files.atomic_write import json_bytes, replace_file, sha256, sync_files, sync_folder
from reverse.files.text_reading import read_json
from reverse.selftrain.loops.stage import FORMAT, Stage

__all__ = [
    "StageRecord",
    "begin_work",
    "discard_stage",
    "empty_stage",
    "finish_work",
    "load_figures",
    "read_record",
    "recover_work",
    "remove_discarded",
    "work_folder",
]

RECORD, WORK = "stage.json", "work.json"
State = Literal["done", "removed"]


@dataclass(frozen=True)
class StageRecord:
    """The content of `stage.json`."""

    key: str
    state: State
    content: Mapping[str, Any]


def work_folder(root: Path, name: str) -> Path:
    """Return the folder in which a stage is made."""
    return root / f".{name}.work"


def read_record(root: Path, name: str) -> StageRecord | None:
    """Read the record of a finished stage, or None. Raises DataError for a folder that is not a stage."""
    folder = root / name
    if not folder.exists():
        return None
    path = folder / RECORD
    content = read_json(path) if path.is_file() else None
    if (
        not isinstance(content, dict)
        or (content.get("format"), content.get("name")) != (FORMAT, name)
        or content.get("state") not in ("done", "removed")
        or not isinstance(content.get("key"), str)
    ):
        raise DataError(
            f"{folder} is no stage of a loop, format {FORMAT}: it has no {RECORD} of one; move it away"
        )
    return StageRecord(content["key"], content["state"], content)


def begin_work(root: Path, stage: Stage, key: str, *, is_movable: bool) -> Path:
    """Prepare the folder to work in; files of an earlier run of the same stage are kept."""
    folder = work_folder(root, stage.name)
    told = folder / WORK
    before: dict[str, Any] = {}
    if told.is_file():
        before = read_json(told)
    place = str(root.resolve())
    is_same = before.get("key") == key and (is_movable or before.get("root") == place)
    if not is_same:
        shutil.rmtree(folder, ignore_errors=True)
        before = {}
    folder.mkdir(parents=True, exist_ok=True)
    _write(told, {"key": key, "root": place, "begun": before.get("begun", 0) + 1})
    return folder


def finish_work(
    root: Path, stage: Stage, key: str, input_keys: Mapping[str, str], figures: Mapping[str, Any],
    seconds: float,
) -> None:  # fmt: skip
    """Turn the work folder of a stage into its final folder."""
    folder = work_folder(root, stage.name)
    _remove_leftovers(folder)
    sync_files(folder)
    _write(
        folder / RECORD,
        {
            "format": FORMAT,
            "name": stage.name,
            "state": "done",
            "body": stage.body,
            "key": key,
            "inputs": dict(input_keys),
            "settings": dict(stage.settings),
            "seed": stage.seed,
            "figures": dict(figures),
            "seconds": round(seconds, 3),
            "begun": read_json(folder / WORK)["begun"],
            "outputs": _list_outputs(folder),
        },
    )
    _publish(root, stage.name)


def recover_work(root: Path, stage: Stage, key: str) -> bool:
    """Finish a stage that was killed after its last write; return whether there was one."""
    record = work_folder(root, stage.name) / RECORD
    if not record.is_file() or read_json(record).get("key") != key:
        return False
    _publish(root, stage.name)
    return True


def _publish(root: Path, name: str) -> None:
    folder = work_folder(root, name)
    (folder / WORK).unlink(missing_ok=True)
    folder.replace(root / name)
    sync_folder(root)


def _remove_leftovers(folder: Path) -> None:
    """Delete leftovers of killed writers: hidden names, and names that end in .tmp."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.name.startswith(".") or path.name.endswith(".tmp"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _list_outputs(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (RECORD, WORK))
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in files
    }


def empty_stage(root: Path, name: str) -> int:
    """Delete the files of a stage except JSON at its top level; return the number of freed bytes."""
    folder = root / name
    content = read_json(folder / RECORD)
    if content["state"] != "removed":
        _write(folder / RECORD, {**content, "state": "removed"})
    freed = 0
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json" and path.is_file():
            continue
        freed += _measure(path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return freed


def discard_stage(root: Path, name: str) -> None:
    """Discard the results of a stage, finished and unfinished."""
    shutil.rmtree(work_folder(root, name), ignore_errors=True)
    remove_discarded(root, name)
    if (root / name).exists():
        (root / name).replace(_old(root, name))
        remove_discarded(root, name)


def remove_discarded(root: Path, name: str) -> None:
    """Delete the files that `discard_stage` has put aside."""
    if _old(root, name).exists():
        shutil.rmtree(_old(root, name))


def _old(root: Path, name: str) -> Path:
    return root / f".{name}.old"


def _measure(path: Path) -> int:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(each.stat().st_size for each in files)


def _write(path: Path, content: Any) -> None:
    with replace_file(path) as stream:
        stream.write(json_bytes(content, indent=1) + b"\n")


def load_figures(folder: Path) -> dict[str, Any]:
    """Load the figures of a finished stage from its folder."""
    figures = read_json(folder / RECORD)["figures"]
    assert isinstance(figures, dict)
    return figures
