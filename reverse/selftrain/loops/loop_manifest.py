"""Make, read and describe the manifest of a loop, `loop.json`.

manifest = read_manifest("out/r3v")
for line in describe_manifest(manifest): print(line)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reverse.errors import DataError, MissingFileError
from reverse.files.text_reading import read_json
from reverse.selftrain.loops.stage import FORMAT, LoopPlan
from reverse.selftrain.loops.stage_folders import read_record, work_folder

__all__ = ["MANIFEST", "make_manifest", "read_manifest"]

MANIFEST = "loop.json"
KIND = "reverse selftrain"


def make_manifest(
    plan: LoopPlan,
    root: Path,
    keys: Mapping[str, str],
    *,
    running: str | None = None,
    failed: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """Make the manifest from the folders of all stages.

    Args:
        keys: of the stages.
        running: the stage that is being made.
        failed: a stage, and the error that ended it.
    """
    stages = []
    for stage in plan.stages:
        record = read_record(root, stage.name)
        entry: dict[str, Any] = {
            "name": stage.name,
            "body": stage.body,
            "key": keys[stage.name],
            "seed": stage.seed,
            "inputs": dict(stage.inputs),
            "keep": "result" if stage.name in plan.results else stage.keep,
        }
        if record is not None:
            content = record.content
            entry |= {"status": record.state, "seconds": content["seconds"], "begun": content["begun"]}
            entry |= {"tokens": content["figures"].get("tokens"), "outputs": content["outputs"]}
        elif failed is not None and failed[0] == stage.name:
            entry |= {"status": "failed", "error": failed[1]}
        elif stage.name == running:
            entry["status"] = "running"
        else:
            entry["status"] = "stopped" if work_folder(root, stage.name).exists() else "pending"
        stages.append(entry)
    return {"kind": KIND, "format": FORMAT, "system": plan.system, "stages": stages}


def read_manifest(root: str | Path) -> dict[str, Any]:
    """Read the manifest of a loop's folder; a stage whose folder was removed is pending.

    Raises MissingFileError and DataError for a folder that is not of a loop.
    """
    path = Path(root) / MANIFEST
    if not path.is_file():
        raise MissingFileError(f"{root} has no {MANIFEST}: name the output folder of `reverse selftrain`")
    content = read_json(path)
    if not isinstance(content, dict) or content.get("kind") != KIND or content.get("format") != FORMAT:
        raise DataError(f"{path} is not that of a loop, format {FORMAT}: this folder needs another release")
    for stage in content["stages"]:
        if stage["status"] in ("done", "removed") and read_record(Path(root), stage["name"]) is None:
            stage["status"] = "pending"
    return content
