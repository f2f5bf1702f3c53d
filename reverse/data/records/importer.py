"""Import a JSON file of records, of any size, into Arrow files that `published_set.open_records` maps.

    import_records("reverse_ft.json", "reverse_1.3m")      # 2.1 GB of JSON, 1.3 million records

    out/data-00000.arrow …     Arrow IPC files of 64 MB; columns record, id, number, offset
    out/manifest.json          source, counts, what was left out, versions; written last
    out/parts/                 while an import runs: plan.json, and one 00000.json … for each finished shard

A row is the record's own text (`record`), with its `id` as text, its `number` in the source and its `offset`
there in bytes, so a record comes back unchanged, whatever keys, numbers or escapes it holds.

Crash safety: a shard is written atomically; then its part, written atomically too, says where in the source
the next shard begins. A restart continues after the last part; the bytes before it are read again for the
source's hash, but not decoded. A folder without manifest.json is not read.
"""

import hashlib
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from reverse.data.records.published_set import (
    FORMAT,
    KIND,
    Progress,
    ProgressSource,
    arrow,
    check_items,
    id_text,
    read_manifest,
    records_path,
)
from reverse.data.records.schema import picture_of
from reverse.errors import DataError, MissingFileError
from reverse.files.atomic_write import atomic_write, sha256, write_json
from reverse.files.file_lock import output_lock
from reverse.files.json_scanning import Broken, JsonItem, JsonPlace, place_after, scan
from reverse.files.text_reading import read_json

SHARD_BYTES = 64 << 20
BATCH = 1024  # records of one Arrow batch
# Files that a kill at the start leaves behind; none holds a record.
_LEFTOVERS = ("plan.json.tmp", ".plan.json.lock", ".lock")
_REMEDY = "mend the file, or leave such records out with --skip-corrupt"


def import_records(
    path: str | Path,
    out: str | Path,
    *,
    skip_corrupt: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Import a JSON list or JSON lines of records into the Arrow folder `out`; return its manifest.

    Memory is bounded by a batch and the longest record, not by the file. Killed at any moment and called
    again, it continues behind the last finished shard; a finished folder of the same source stays as it is.

    Args:
        skip_corrupt: leave out broken records and values that are not records, and list them in
        `manifest["corrupt"]`. progress: is called with the bytes of the source that were read, and their
        total.

    Raises:
        MissingFileError: no such file.
        DataError: a broken record (its number and byte; not with `skip_corrupt`), no record at all, a source
            that changes while it is read, or an `out` that holds anything else.
    """
    path, out = records_path(path), Path(out)
    if not path.is_file():
        raise MissingFileError(f"no such file: {path}: give a JSON list or JSONL of instruct records")
    with output_lock(out, reentrant=False):
        return _import(path, out, skip_corrupt, progress)


def _import(path: Path, out: Path, skip_corrupt: bool, progress: Progress | None) -> dict[str, Any]:
    source = _identify(path)
    finished = _find_finished(path, out, source)
    if finished is not None:
        return finished
    parts = _start_or_resume(out, source)
    known = [broken for part in parts for broken in part["corrupt"]]
    if known and not skip_corrupt:
        raise DataError(f"{path}, {known[0]['where']}: {known[0]['reason']}: {_REMEDY}")
    with path.open("rb") as stream:
        hashed = _HashingSource(ProgressSource(stream, source["size"], progress))
        _import_rest(path, out, hashed, parts, skip_corrupt)
        hashed.drain()
    if _identify(path) != source:
        raise DataError(f"{path} changed while it was read: import it again, into an empty folder")
    manifest = _make_manifest(source | {"sha256": hashed.digest.hexdigest()}, parts)
    if manifest["records"] == 0:
        raise DataError(f"{path} holds no records: give a JSON list or JSONL of instruct records")
    write_json(out / "manifest.json", manifest)
    shutil.rmtree(out / "parts")
    return manifest


def _import_rest(
    path: Path, out: Path, source: "_HashingSource", parts: list[dict[str, Any]], skip_corrupt: bool
) -> None:
    """Write the rest of the source, after the last part, as shards of `out`, and add their parts."""
    place = JsonPlace(**parts[-1]["next"]) if parts else None
    if place is not None:
        source.pass_over(place.offset)
    corrupt: list[dict[str, Any]] = []
    items = _take_records(path, scan(source, place), corrupt, skip_corrupt)
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


def _take_records(
    path: Path, items: Iterator[JsonItem | Broken], corrupt: list[dict[str, Any]], skip: bool
) -> Iterator[JsonItem]:
    """Yield the records; add values that are not records to `corrupt`, or raise an error."""
    for item in check_items(items):
        if isinstance(item, JsonItem):
            yield item
        elif skip:
            place = {"number": item.number, "offset": item.offset, "size": item.size, "where": item.where}
            corrupt.append(place | {"reason": item.reason})
        else:
            raise DataError(f"{path}, {item.where}: {item.reason}: {_REMEDY}")


def _write_shard(shard: Path, items: Iterator[JsonItem]) -> dict[str, Any]:
    """Write one shard of the records that come next; return its part."""
    pa = arrow()
    size = rows = answers = pictures = 0
    batch: list[JsonItem] = []
    fields = [("record", pa.string()), ("id", pa.string()), ("number", pa.int64()), ("offset", pa.int64())]
    schema = pa.schema(fields, metadata={"kind": KIND, "format": str(FORMAT)})
    with atomic_write(shard) as stream, pa.ipc.new_file(stream, schema) as writer:
        for item in items:
            batch.append(item)
            size, rows = size + len(item.raw), rows + 1
            answers += len(item.value["conversations"]) // 2
            pictures += picture_of(item.value) is not None
            if len(batch) == BATCH or size >= SHARD_BYTES:
                writer.write_batch(_make_batch(batch, schema))
                if size >= SHARD_BYTES:
                    break
                batch = []
        else:
            if batch:
                writer.write_batch(_make_batch(batch, schema))
    return {
        "rows": rows, "size": shard.stat().st_size, "answers": answers, "pictures": pictures,
        "next": place_after(item)._asdict(),
    }  # fmt: skip


def _make_batch(items: list[JsonItem], schema: Any) -> Any:
    columns = (
        [item.raw for item in items],
        [id_text(item.value) for item in items],
        [item.number for item in items],
        [item.offset for item in items],
    )
    pa = arrow()
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.record_batch(arrays, schema=schema)


def _identify(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"name": path.name, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _find_finished(path: Path, out: Path, source: dict[str, Any]) -> dict[str, Any] | None:
    """Return the manifest of a finished import of the same source, or None if there is no manifest."""
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


def _start_or_resume(out: Path, source: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of a stopped import of this source; prepare a new folder, which has none."""
    plan = {"format": FORMAT, "source": source}
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file: name a folder to write, which need not exist")
    known = out / "parts" / "plan.json"
    if known.is_file():
        parts = _read_parts(out)
        if read_json(known) == plan:
            return parts
        if parts:
            raise DataError(f"{out} holds part of an import of another file: remove it, or name another")
        write_json(known, plan)
        return []
    if out.is_dir():
        for other in out.rglob("*"):
            if other.name not in _LEFTOVERS and not other.is_dir():
                raise DataError(f"{out} holds {other.relative_to(out)}: name a new or an empty folder")
    (out / "parts").mkdir(parents=True, exist_ok=True)
    write_json(out / "parts" / "plan.json", plan)
    return []


def _read_parts(out: Path) -> list[dict[str, Any]]:
    """Read the parts of the finished shards, up to the first shard that is missing or cut off."""
    parts: list[dict[str, Any]] = []
    while (path := out / "parts" / f"{len(parts):05d}.json").is_file():
        part = read_json(path)
        shard = out / part["file"]
        if not shard.is_file() or shard.stat().st_size != part["size"]:
            break
        parts.append(part)
    return parts


def _make_manifest(source: dict[str, Any], parts: list[dict[str, Any]]) -> dict[str, Any]:
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


class _HashingSource:
    """A source for `scan` that hashes its bytes."""

    def __init__(self, source: ProgressSource):
        self.source = source
        self.digest = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        data = self.source.read(size)
        self.digest.update(data)
        return data

    def pass_over(self, to: int) -> None:
        while self.source.done < to and self.read(min(1 << 20, to - self.source.done)):
            pass

    def drain(self) -> None:
        while self.read(1 << 20):
            pass
