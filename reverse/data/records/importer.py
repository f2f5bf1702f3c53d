"""Read a JSON file of records, of any size, once into Arrow files that `published.open_records` maps.

    import_records("reverse_ft.json", "reverse_1.3m")      # 2.1 GB of JSON, 1.3 million records

    out/data-00000.arrow …     Arrow IPC files of 64 MB; columns record, id, number, offset
    out/manifest.json          source, counts, what was left out, versions; written last
    out/parts/                 while an import runs: plan.json, and 00000.json … which vouch for the shards

A row is the record's own text (`record`), with its `id` as text, its `number` in the source and its `offset`
there in bytes: what was written comes back unchanged, whatever keys, numbers or escapes are in it.

Crash safety: a shard is written under a temporary name, synced, renamed; then its part, in the same way,
says where in the source the next shard begins. A restart goes on behind the last part; what lies before is
read once more for the source's hash, and not taken apart. A folder without manifest.json is not read.
"""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from reverse.data.records.published_set import (
    FORMAT,
    KIND,
    Progress,
    arrow,
    id_text,
    problem_of,
    read_manifest,
    records_path,
)
from reverse.data.records.schema import picture_of
from reverse.errors import DataError, MissingFileError
from reverse.files.atomic_write import atomic_write, sha256, write_json
from reverse.files.file_lock import output_lock
from reverse.files.json_scanning import Broken, Item, Place, place_after, scan
from reverse.files.text_reading import read_json

SHARD_BYTES = 64 << 20
BATCH = 1024  # records of one Arrow batch
_LEFT_BY_A_KILL = ("plan.json.tmp", ".plan.json.lock", ".lock")  # at the start; none holds a record
_MEND = "mend the file, or leave such records out with --skip-corrupt"


def import_records(
    path: str | Path,
    out: str | Path,
    *,
    skip_corrupt: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Read a JSON list or JSON lines of records into the Arrow folder `out`; returns its manifest.

    Memory is bounded by a shard's batch and the longest record, not by the file. Killed at any moment and
    called again, it goes on behind the last whole shard; a finished folder of the same source is left as it
    is. `progress(done, total)` counts bytes of the source.

    Args:
        skip_corrupt: leave out what is broken or no record, and list it in `manifest["corrupt"]`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a broken record (its number and byte; not with `skip_corrupt`), no record at all, a
            source that changes while it is read, or an `out` that holds anything else.
    """
    path, out = records_path(path), Path(out)
    if not path.is_file():
        raise MissingFileError(f"no such file: {path}: give a JSON list or JSONL of instruct records")
    with output_lock(out, reentrant=False):
        return _import(path, out, skip_corrupt, progress)


def _import(path: Path, out: Path, skip_corrupt: bool, progress: Any) -> dict[str, Any]:
    source = _source(path)
    finished = _finished(path, out, source)
    if finished is not None:
        return finished
    parts = _begun(out, source)
    known = [broken for part in parts for broken in part["corrupt"]]
    if known and not skip_corrupt:
        raise DataError(f"{path}, {known[0]['where']}: {known[0]['reason']}: {_MEND}")
    with path.open("rb") as stream:
        hashed = _Hashed(stream, source["size"], progress)
        _import_rest(path, out, hashed, parts, skip_corrupt)
        hashed.drain()
    if _source(path) != source:
        raise DataError(f"{path} changed while it was read: import it again, into an empty folder")
    manifest = _manifest(source | {"sha256": hashed.digest.hexdigest()}, parts)
    if manifest["records"] == 0:
        raise DataError(f"{path} holds no records: give a JSON list or JSONL of instruct records")
    write_json(out / "manifest.json", manifest)
    shutil.rmtree(out / "parts")
    return manifest


def _import_rest(
    path: Path, out: Path, source: "_Hashed", parts: list[dict[str, Any]], skip_corrupt: bool
) -> None:
    """Add to `parts`, and to `out`, what the source holds behind the last of them."""
    place = Place(**parts[-1]["next"]) if parts else None
    if place is not None:
        source.pass_over(place.offset)
    corrupt: list[dict[str, Any]] = []
    items = _good(path, scan(source, place), corrupt, skip_corrupt)
    while (first := next(items, None)) is not None:
        name = f"data-{len(parts):05d}.arrow"
        part = {"file": name} | _write_shard(out / name, chain([first], items))
        parts.append(part | {"corrupt": list(corrupt)})
        write_json(out / "parts" / f"{len(parts) - 1:05d}.json", parts[-1])
        corrupt.clear()
    if corrupt:
        if not parts:
            raise DataError(f"{path} holds no records; {corrupt[0]['where']}: {corrupt[0]['reason']}")
        parts[-1]["corrupt"] += corrupt


def _good(
    path: Path, items: Iterator[Item | Broken], corrupt: list[dict[str, Any]], skip: bool
) -> Iterator[Item]:
    """The records; what is none joins `corrupt`, or is an error."""
    for item in items:
        problem = problem_of(item)
        if problem is None:
            assert isinstance(item, Item)
            yield item
        elif skip:
            size = item.size if isinstance(item, Broken) else len(item.raw)
            place = {"number": item.number, "offset": item.offset, "size": size, "where": item.where}
            corrupt.append(place | {"reason": problem})
        else:
            raise DataError(f"{path}, {item.where}: {problem}: {_MEND}")


def _write_shard(shard: Path, items: Iterator[Item]) -> dict[str, Any]:
    """One shard of the records that come next; what its part says of it."""
    pa = arrow()

    size = rows = answers = pictures = 0
    batch: list[Item] = []
    with atomic_write(shard) as stream, pa.ipc.new_file(stream, _schema()) as writer:
        for item in items:
            batch.append(item)
            size, rows = size + len(item.raw), rows + 1
            answers += len(item.value["conversations"]) // 2
            pictures += picture_of(item.value) is not None
            if len(batch) == BATCH or size >= SHARD_BYTES:
                writer.write_batch(_batch(batch))
                if size >= SHARD_BYTES:
                    break
                batch = []
        else:
            if batch:
                writer.write_batch(_batch(batch))
    return {
        "rows": rows, "size": shard.stat().st_size, "answers": answers, "pictures": pictures,
        "next": asdict(place_after(item)),
    }  # fmt: skip


def _schema() -> Any:
    pa = arrow()

    return pa.schema(
        [("record", pa.string()), ("id", pa.string()), ("number", pa.int64()), ("offset", pa.int64())],
        metadata={"kind": KIND, "format": str(FORMAT)},
    )


def _batch(items: list[Item]) -> Any:
    pa = arrow()

    columns = [
        pa.array([item.raw for item in items], pa.string()),
        pa.array([id_text(item.value) for item in items], pa.string()),
        pa.array([item.number for item in items], pa.int64()),
        pa.array([item.offset for item in items], pa.int64()),
    ]
    return pa.record_batch(columns, schema=_schema())


def _source(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"name": path.name, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _finished(path: Path, out: Path, source: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a finished import of the same source."""
    if not (out / "manifest.json").is_file():
        return None
    try:
        manifest = read_manifest(out)
    except ValueError as error:
        raise DataError(f"{out} holds something else ({error}): name a new folder") from error
    known = manifest["source"]
    if known["size"] == source["size"]:
        if known["mtime_ns"] == source["mtime_ns"]:
            return manifest
        if sha256(path) == known["sha256"]:
            return manifest
    raise DataError(f"{out} holds the records of another {known['name']}: name another folder")


def _begun(out: Path, source: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of an import of this source that was stopped; a new folder has none."""
    plan = {"format": FORMAT, "source": source}
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file: name a folder to write, which need not exist")
    known = out / "parts" / "plan.json"
    if known.is_file():
        parts = _parts(out)
        if read_json(known) == plan:
            return parts
        if parts:
            raise DataError(f"{out} holds part of an import of another file: remove it, or name another")
        write_json(known, plan)
        return []
    if out.is_dir():
        for other in out.rglob("*"):
            if other.name not in _LEFT_BY_A_KILL and not other.is_dir():
                raise DataError(f"{out} holds {other.relative_to(out)}: name a new or an empty folder")
    (out / "parts").mkdir(parents=True, exist_ok=True)
    write_json(out / "parts" / "plan.json", plan)
    return []


def _parts(out: Path) -> list[dict[str, Any]]:
    """The shards that are whole, from the first to the one before the first that is not."""
    parts: list[dict[str, Any]] = []
    while (path := out / "parts" / f"{len(parts):05d}.json").is_file():
        part = read_json(path)
        shard = out / part["file"]
        if not shard.is_file() or shard.stat().st_size != part["size"]:
            break
        parts.append(part)
    return parts


def _manifest(source: dict[str, Any], parts: list[dict[str, Any]]) -> dict[str, Any]:
    from reverse import __version__

    corrupt = [broken for part in parts for broken in part["corrupt"]]
    return {
        "kind": KIND, "format": FORMAT, "source": source,
        "records": sum(part["rows"] for part in parts),
        "answers": sum(part["answers"] for part in parts),
        "with_picture": sum(part["pictures"] for part in parts),
        "left_out": len(corrupt), "corrupt": corrupt,
        "shards": [{key: part[key] for key in ("file", "rows", "size")} for part in parts],
        "versions": {"reverse": __version__, "pyarrow": arrow().__version__},
    }  # fmt: skip


class _Hashed:
    """What is scanned, with its bytes hashed and counted on the way."""

    def __init__(self, stream: BinaryIO, size: int, progress: Progress | None):
        self.stream, self.size, self.progress = stream, size, progress
        self.digest = hashlib.sha256()
        self.done = 0

    def read(self, size: int, /) -> bytes:
        data = self.stream.read(size)
        self.digest.update(data)
        self.done += len(data)
        if self.progress is not None:
            self.progress(self.done, self.size)
        return data

    def pass_over(self, to: int) -> None:
        while self.done < to and self.read(min(1 << 20, to - self.done)):
            pass

    def drain(self) -> None:
        while self.read(1 << 20):
            pass
