"""Open a set of records of any size, record by record as it was published.

    records = open_records("reverse_1.3m")       # an imported folder (`importer.py`) is mapped, nothing is
    loaded len(records), records[7]["conversations"]

A JSON list, JSON lines and a folder of scenes are opened in the same way; a JSON file is read through first.
"""

import bisect
import json
import mmap
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np

from reverse.data.records.record_rules import find_shape_problem
from reverse.errors import DataError, MissingFileError, MissingPackageError
from reverse.files.json_scanning import Broken, JsonItem, scan
from reverse.files.text_reading import read_json

FORMAT = 1  # of an imported folder
KIND = "reverse records"
_MANIFEST_TYPES: dict[str, type] = {"records": int, "left_out": int, "shards": list, "source": dict}

Progress = Callable[[int, int], None]


def arrow() -> Any:
    """Import pyarrow, which comes with `.[train]`. Raises MissingPackageError if it is not installed."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.ipc
    except ImportError as error:
        raise MissingPackageError("pyarrow is not installed: pip install 'reverse-vlm[train]'") from error
    return pyarrow


def id_text(record: Mapping[str, Any]) -> str | None:
    """Return the record's id as text, which matches records of two files: 7 and "7" are the same id."""
    name = record.get("id")
    if name is None:
        return None
    text = name if isinstance(name, str) else json.dumps(name)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # JSON may hold halves of a surrogate


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Read the manifest of an imported set. Raises DataError if it is missing, damaged or another format."""
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        begun = (Path(folder) / "parts").is_dir()
        raise DataError(
            f"{folder} {'was not imported to the end' if begun else 'holds no imported records'}: "
            f"run `reverse data import FILE {folder}`"
        )
    manifest = read_json(path)
    kind, version = (manifest.get(key) if isinstance(manifest, dict) else None for key in ("kind", "format"))
    if kind != KIND or version != FORMAT:
        raise DataError(
            f"{path} is not that of imported records, format {FORMAT}, got {kind!r:.80}, "
            f"format {version!r:.80}: see `reverse data import`"
        )
    for key, expected in _MANIFEST_TYPES.items():
        if not isinstance(manifest.get(key), expected):
            raise DataError(
                f'{path}: "{key}" must be {expected.__name__}, got {manifest.get(key)!r:.80}: import '
                "the set again into an empty folder"
            )
    for k, shard in enumerate(manifest["shards"]):
        given = shard if isinstance(shard, dict) else {}
        name = given.get("file")
        if not isinstance(name, str) or Path(name).name != name or not isinstance(given.get("size"), int):
            raise DataError(
                f'{path}, entry {k} of "shards": a file of this folder and its size are missing, got '
                f"{shard!r:.80}: import the set again into an empty folder"
            )
    return manifest


class ImportedRecords:
    """An imported set, mapped into memory; `records[i]` is the published record.

    Reading a record takes one lookup and one `json.loads`. Open files are not pickled: each worker maps its
    own.
    """

    broken: Mapping[int, str] = MappingProxyType({})  # an import leaves broken records out

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        for shard in self.manifest["shards"]:
            path = self.folder / shard["file"]
            if not path.is_file() or path.stat().st_size != shard["size"]:
                raise DataError(f"{path} is missing or cut off: import the set again into an empty folder")
        self._batches: list[Any] | None = None
        self._starts: list[int] = []

    def __len__(self) -> int:
        return self.manifest["records"]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return json.loads(self.text(index))

    def text(self, index: int) -> str:
        """Return the record as it stands in the source."""
        batch, row = self._locate(index)
        return batch.column(0)[row].as_py()

    def raw(self, index: int) -> bytes:
        return self.text(index).encode("utf-8")

    def where(self, index: int) -> str:
        """Describe where the record stood in the source, for messages."""
        batch, row = self._locate(index)
        return f"{self.folder}, record {index} (byte {batch.column(3)[row].as_py()} of the source)"

    def scan(self, progress: Progress | None = None) -> Iterator[JsonItem]:
        """Yield all records in order; files are read, not mapped, so their pages do not fill the memory."""
        pa = arrow()
        done = 0
        for shard in self.manifest["shards"]:
            with pa.OSFile(str(self.folder / shard["file"])) as file:
                reader = pa.ipc.open_file(file)
                for k in range(reader.num_record_batches):
                    batch = reader.get_batch(k)
                    for text, offset in zip(
                        batch.column(0).to_pylist(), batch.column(3).to_pylist(), strict=True
                    ):
                        yield JsonItem(done, offset, 0, text.encode("utf-8"), json.loads(text))
                        done += 1
                    if progress is not None:
                        progress(done, len(self))

    def find(self, name: str) -> list[int]:
        """List the indices of the records with this id."""
        pc = arrow().compute
        batches, found = self._map(), []
        for start, batch in zip(self._starts, batches, strict=True):
            rows = np.flatnonzero(
                pc.fill_null(pc.equal(batch.column(1), name), False).to_numpy(zero_copy_only=False)
            )
            found += (rows + start).tolist()
        return found

    def _locate(self, index: int) -> tuple[Any, int]:
        """Return the batch of a record and the row in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        batches = self._map()
        k = bisect.bisect_right(self._starts, index) - 1
        return batches[k], index - self._starts[k]

    def _map(self) -> list[Any]:
        """Map the files at the first call; return their batches, and keep where each one starts."""
        if self._batches is not None:
            return self._batches
        pa = arrow()
        batches, starts, rows = [], [], 0
        for shard in self.manifest["shards"]:
            reader = pa.ipc.open_file(pa.memory_map(str(self.folder / shard["file"])))
            for k in range(reader.num_record_batches):
                batches.append(reader.get_batch(k))
                starts.append(rows)
                rows += batches[-1].num_rows
        if rows != len(self):
            raise DataError(
                f"{self.folder} holds {rows} records, its manifest says {len(self)}: import again"
            )
        self._batches, self._starts = batches, starts
        return batches

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_batches": None, "_starts": []}


class FileRecords:
    """The records of a JSON list or of JSON lines; the file is mapped, two offsets of each record are kept.

    Opening reads the file through once, to find and check the records: 2 GB take half a minute. Any other
    value is an error; with `keep_broken` it keeps its number, `broken` maps the number to the reason, and
    only reading it is an error.
    """

    def __init__(self, path: str | Path, progress: Progress | None = None, *, keep_broken: bool = False):
        self.path = Path(path)
        self.broken: dict[int, str] = {}
        spans = array("q")
        for item in scan_records(self.path, progress):
            size = item.size if isinstance(item, Broken) else len(item.raw)
            if isinstance(item, Broken):
                if not keep_broken:
                    raise DataError(f"{self.path}, {item.where}: {item.reason}")
                self.broken[len(spans) // 2] = item.reason
            spans.extend((item.offset, item.offset + size))
        if not spans:
            raise DataError(f"{self.path} holds no records: give a JSON list or JSONL of instruct records")
        self.spans = np.array(spans, dtype=np.int64).reshape(-1, 2)  # (records, 2), bytes
        self._file: mmap.mmap | None = None

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return json.loads(self.text(index))

    def text(self, index: int) -> str:
        """Return the record as it stands in the file."""
        if index in self.broken:
            raise DataError(f"{self.where(index)}: {self.broken[index]}")
        return self.raw(index).decode("utf-8")

    def raw(self, index: int) -> bytes:
        """Return the bytes of a record, which may be broken."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        if self._file is None:
            with self.path.open("rb") as file:
                self._file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start, end = self.spans[index]
        return self._file[start:end]

    def where(self, index: int) -> str:
        return f"{self.path}, record {index} (byte {self.spans[index, 0]})"

    def scan(self, progress: Progress | None = None) -> Iterator[JsonItem]:
        yield from _refuse_broken(self.path, progress)

    def find(self, name: str) -> list[int]:
        return [item.number for item in _refuse_broken(self.path) if id_text(item.value) == name]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}


Records = ImportedRecords | FileRecords


def open_records(path: str | Path, progress: Progress | None = None, *, keep_broken: bool = False) -> Records:
    """Open the records of an imported folder, of a folder of scenes, or of a JSON file.

    Raises MissingFileError if nothing is there, DataError if it holds no records, or a broken one (of a JSON
    file, unless `keep_broken` is set; an import leaves broken records out, or stops).
    """
    path = records_path(path)
    return ImportedRecords(path) if path.is_dir() else FileRecords(path, progress, keep_broken=keep_broken)


def records_path(path: str | Path) -> Path:
    """Return where the records stand: the file in a folder of scenes, else `path` itself."""
    path = Path(path)
    if (path / "instruct.json").is_file():
        return path / "instruct.json"
    if not path.exists():
        raise MissingFileError(
            f"no such file: {path}: give a JSON file of records, an imported set or a folder of scenes"
        )
    return path


def scan_records(path: str | Path, progress: Progress | None = None) -> Iterator[JsonItem | Broken]:
    """Yield all records in order, with `Broken` for a broken record or another value; memory is bounded."""
    path = records_path(path)
    if path.is_dir():
        yield from ImportedRecords(path).scan(progress)
        return
    with path.open("rb") as stream:
        yield from check_items(scan(ProgressSource(stream, path.stat().st_size, progress)))


def check_items(items: Iterable[JsonItem | Broken]) -> Iterator[JsonItem | Broken]:
    """Yield scanned items, with `Broken` for those that are not records."""
    for item in items:
        problem = None if isinstance(item, Broken) else find_shape_problem(item.value)
        if problem is None or isinstance(item, Broken):
            yield item
        else:
            yield Broken(item.number, item.offset, item.line, len(item.raw), problem)


def read_records(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a set in order; memory holds one at a time.

    Raises MissingFileError, and DataError naming a line or item that is broken or not a record.
    """
    for item in _refuse_broken(path):
        yield item.value


def _refuse_broken(path: str | Path, progress: Progress | None = None) -> Iterator[JsonItem]:
    for item in scan_records(path, progress):
        if isinstance(item, Broken):
            raise DataError(f"{path}, {item.where}: {item.reason}")
        yield item


class ProgressSource:
    """A source for `scan` that reports how many bytes were read, of how many."""

    def __init__(self, stream: BinaryIO, size: int, progress: Progress | None):
        self.stream, self.size, self.progress, self.done = stream, size, progress, 0

    def read(self, size: int, /) -> bytes:
        data = self.stream.read(size)
        self.done += len(data)
        if self.progress is not None:
            self.progress(self.done, self.size)
        return data
