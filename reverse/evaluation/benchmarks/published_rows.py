"""Rows of published question files, whatever their form: JSON, JSON lines, TSV or parquet.

    for row in read_published("mmbench/MMBench_DEV_EN.tsv"):
        row.entry.text("question"), row.pictures["image"].read()

Pictures inside a file (a parquet column, base64 in a TSV column) are read one by one when they are needed,
and never held all together. Everything is bounded, and an error names file, row and remedy.
"""

from __future__ import annotations

import base64
import binascii
import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from reverse.errors import DataError, MissingFileError, MissingPackageError
from reverse.files.cell_values import describe
from reverse.files.entries import FileEntry, read_entries, read_value
from reverse.files.text_reading import decode_text

__all__ = ["ParquetPicture", "PublishedRow", "TsvPicture", "import_pyarrow", "read_published"]

MAX_GROUP_BYTES = 1 << 31  # uncompressed, of the columns of a row group that are read at once
MAX_CELL = 1 << 26  # characters of a TSV cell: a picture of 50 MB in base64
MAX_TSV_LINE = 1 << 27  # bytes
LONGEST_INDEX = 64  # characters: a TSV cell for a picture that is shorter names another row
PICTURE = "image"  # the TSV column that holds pictures


@dataclass(frozen=True)
class PublishedRow:
    """One row: its values with their place, and the pictures that the file holds, by column.

    `number` counts rows from 0; `name` is the row's key where the file is an object of rows.
    """

    entry: FileEntry
    number: int
    name: str = ""
    pictures: Mapping[str, ParquetPicture | TsvPicture] = field(default_factory=dict)


def read_published(place: str | Path, pattern: str = "*.parquet") -> Iterator[PublishedRow]:
    """Yield the rows of a file, or of the parquet files of a folder whose names match `pattern`, in order.

    A JSON file may hold a list of rows, an object of rows by name, an object whose `questions` are a list, or
    one row, whose name is that of the file.

    Raises MissingFileError, MissingPackageError without pyarrow, and DataError for damage, naming the row.
    """
    path = Path(place)
    if path.is_dir():
        files = sorted(each for each in path.glob(pattern) if each.is_file())
        if not files:
            raise MissingFileError(f"{path} holds no file {pattern}: fetch the published files into it")
    else:
        files = [path]
    number = 0
    for file in files:
        for row in _read_file(file):
            yield PublishedRow(row.entry, number, row.name, row.pictures)
            number += 1


def _read_file(path: Path) -> Iterator[PublishedRow]:
    if path.suffix == ".parquet":
        return _read_parquet(path)
    if path.suffix == ".tsv":
        return _read_tsv(path)
    return _read_json(path)


def _read_json(path: Path) -> Iterator[PublishedRow]:
    value = read_value(path) if path.suffix == ".json" else None
    if isinstance(value, dict) and isinstance(value.get("questions"), list):
        value = value["questions"]
    if isinstance(value, list):
        named = [("", each, f"{path}, entry {number}") for number, each in enumerate(value, 1)]
    elif isinstance(value, dict) and not all(isinstance(each, dict) for each in value.values()):
        named = [(path.stem, value, str(path))]
    elif isinstance(value, dict):
        named = [(name, each, f"{path}, key {describe(name)}") for name, each in value.items()]
    else:
        named = [("", entry.row, entry.where) for entry in read_entries(path)]
    for number, (name, row, where) in enumerate(named):
        if not isinstance(row, dict):
            raise DataError(f"{where} is not a JSON object but {describe(row)}: fetch the file again")
        yield PublishedRow(FileEntry(row, where), number, name)


# ---------------------------------------------------------------------- parquet
class ParquetPicture:
    """A picture inside a parquet file."""

    def __init__(self, file: Path, group: int, row: int, column: str = "image"):
        self.file, self.group, self.row, self.column = file, group, row, column

    def read(self) -> bytes:
        """Return the bytes of the picture's file."""
        value = _read_pictures(self.file, self.group, self.column)[self.row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise DataError(
                f"{self.file}, row {self.row} of row group {self.group}: {self.column!r} holds no picture "
                f"but {describe(value)}: fetch the file again"
            )
        return data


@lru_cache(maxsize=2)
def _read_pictures(path: Path, group: int, column: str) -> Any:
    """Read a column of a row group. Pictures are read in order, so only two columns are cached."""
    return _read_group(_open_parquet(path), path, group, [column]).column(column)


def _read_parquet(path: Path) -> Iterator[PublishedRow]:
    import_pyarrow()
    import pyarrow.types as types

    file = _open_parquet(path)
    stored: list[str] = []
    others: list[str] = []
    for column in file.schema_arrow:
        kind = column.type
        is_picture = types.is_binary(kind) or types.is_large_binary(kind)
        if types.is_struct(kind):
            is_picture = "bytes" in [kind.field(i).name for i in range(kind.num_fields)]
        (stored if is_picture else others).append(column.name)
    number = 0
    for group in range(file.num_row_groups):
        for at, row in enumerate(_read_group(file, path, group, others).to_pylist()):
            pictures = {name: ParquetPicture(path, group, at, name) for name in stored}
            yield PublishedRow(FileEntry(row, f"{path}, row {number + 1}"), number, "", pictures)
            number += 1


def import_pyarrow() -> Any:
    """Import pyarrow.parquet. Raises MissingPackageError if it is not installed."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingPackageError("parquet files need pyarrow: pip install 'reverse-vlm[eval]'") from error
    return pq


def _open_parquet(path: Path) -> Any:
    pq = import_pyarrow()
    if not path.is_file():
        raise MissingFileError(f"no such file: {path}: check the path")
    try:
        return pq.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are among these
        raise DataError(f"{path} is not a parquet file ({describe(str(error))}): fetch it again") from error


def _read_group(file: Any, path: Path, group: int, columns: list[str]) -> Any:
    facts = file.metadata.row_group(group)
    chunks = [facts.column(i) for i in range(facts.num_columns)]
    size = sum(
        chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns
    )
    if size > MAX_GROUP_BYTES:
        raise DataError(
            f"{path}, row group {group} takes {size:,} bytes, at most {MAX_GROUP_BYTES:,} are read at once: "
            "write the file with smaller row groups"
        )
    try:
        return file.read_row_group(group, columns=columns)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}, row group {group} is damaged ({describe(str(error))}): fetch it again"
        ) from error


# ---------------------------------------------------------------------- TSV
class TsvPicture:
    """A picture as base64 in a TSV file, or the index of the row that holds it."""

    def __init__(self, file: Path, offset: int, line: int, place: int, others: Mapping[str, TsvPicture]):
        self.file, self.offset, self.line, self.place, self.others = file, offset, line, place, others

    def read(self) -> bytes:
        """Return the bytes of the picture's file. Raises DataError for a cell that holds no picture."""
        cell = self._read_cell()
        if len(cell) <= LONGEST_INDEX and cell in self.others:
            cell = self.others[cell]._read_cell()
        try:
            data = base64.b64decode(cell, validate=True)
        except (binascii.Error, ValueError) as error:
            data, cell = b"", f"{cell[:20]} ({error})"
        if not data:
            raise DataError(
                f"{self.file}, line {self.line}: {PICTURE!r} is not base64 and not an index of a row, got "
                f"{describe(cell)}: fetch the file again"
            )
        return data

    def _read_cell(self) -> str:
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            return next(_parse_tsv(_TsvLines(stream, self.file, self.line)))[self.place].strip()


class _TsvLines:
    """The lines of a TSV file as text; `offset` and `number` are of the next line."""

    def __init__(self, stream: BinaryIO, path: Path, number: int = 1):
        self.stream, self.path, self.number = stream, path, number
        self.offset = stream.tell()

    def __iter__(self) -> _TsvLines:
        return self

    def __next__(self) -> str:
        data = self.stream.readline(MAX_TSV_LINE + 1)
        if not data:
            raise StopIteration
        if len(data) > MAX_TSV_LINE:
            raise DataError(
                f"{self.path}, line {self.number}: longer than {MAX_TSV_LINE:,} bytes: fetch the file again"
            )
        text = decode_text(data, str(self.path), line=self.number)
        self.offset += len(data)
        self.number += 1
        return text


def _parse_tsv(lines: _TsvLines) -> Iterator[list[str]]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))
    try:
        yield from csv.reader(lines, delimiter="\t")
    except csv.Error as error:
        raise DataError(
            f"{lines.path}, line {lines.number - 1} is not TSV ({error}): fetch the file again"
        ) from error


def _read_tsv(path: Path) -> Iterator[PublishedRow]:
    if not path.is_file():
        raise MissingFileError(f"no such file: {path}: check the path")
    others: dict[str, TsvPicture] = {}
    with path.open("rb") as stream:
        lines = _TsvLines(stream, path)
        cells = _parse_tsv(lines)
        names = next(cells, [])
        if PICTURE in names and len(set(names)) < len(names):
            raise DataError(f"{path}, line 1 names a column twice: fetch the file again")
        number = 0
        while True:
            offset, line = lines.offset, lines.number
            row = next(cells, None)
            if row is None:
                return
            if not any(row):
                continue
            where = f"{path}, line {line}"
            if len(row) != len(names):
                raise DataError(
                    f"{where} has {len(row)} cells, the first line names {len(names)}: fetch the file again"
                )
            values: dict[str, Any] = dict(zip(names, row, strict=True))
            pictures = {}
            if PICTURE in values:
                pictures[PICTURE] = TsvPicture(path, offset, line, names.index(PICTURE), others)
                others.setdefault(str(values.get("index", "")), pictures[PICTURE])
                del values[PICTURE]
            yield PublishedRow(FileEntry(values, where), number, "", pictures)
            number += 1
