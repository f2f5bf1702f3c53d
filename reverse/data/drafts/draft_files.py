"""Draft files: JSON lines of draft records, read one at a time or found by id without holding them all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from reverse.data.drafts.draft_record import DraftRecord, parse_draft_record
from reverse.errors import DataError
from reverse.files.atomic_write import replace_file
from reverse.files.text_reading import MAX_LINE_BYTES, decode_text, parse_json, read_json_lines

__all__ = ["DraftIndex", "draft_line", "read_drafts", "write_drafts"]


def read_drafts(path: str | Path) -> Iterator[DraftRecord]:
    """Yield the records of a draft file in their order; memory holds one.

    Raises DataError naming file, line and key; MissingFileError if there is no file.
    """
    for number, value in read_json_lines(path):
        yield parse_draft_record(value, f"{path}, line {number}")


def draft_line(record: DraftRecord) -> str:
    """Return the line of a draft file for a record, with its newline.

    Keys with their default values are left out.
    """
    value = {"version": record.version, **record.model_dump(mode="json", exclude_defaults=True)}
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def write_drafts(path: str | Path, records: Iterable[DraftRecord]) -> int:
    """Write a draft file and return how many records it holds. The file appears when it is complete."""
    count = 0
    with replace_file(Path(path)) as stream:
        for record in records:
            stream.write(draft_line(record).encode("utf-8", "backslashreplace"))
            count += 1
    return count


class DraftIndex:
    """Finds the records of a draft file by id; memory holds only ids and file offsets.

    Raises DataError for an id that stands twice, and what `read_drafts` raises.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._places: dict[str, tuple[int, int]] = {}  # id -> (byte offset, line)
        with self.path.open("rb") as stream:
            number = 0
            while True:
                offset = stream.tell()
                data = stream.readline(MAX_LINE_BYTES + 1)
                if not data:
                    break
                number += 1
                if not data.strip():
                    continue
                record = self._parse(data, number)
                if record.id in self._places:
                    first = self._places[record.id][1]
                    raise DataError(
                        f"{self.path}, lines {first} and {number}: the id {record.id!r:.80} stands twice: "
                        "merge the two records"
                    )
                self._places[record.id] = (offset, number)
        self._stream = self.path.open("rb")

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> DraftRecord:
        offset, number = self._places[name]
        self._stream.seek(offset, os.SEEK_SET)
        return self._parse(self._stream.readline(), number)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _parse(self, data: bytes, number: int) -> DraftRecord:
        if len(data) > MAX_LINE_BYTES:
            raise DataError(f"{self.path}, line {number}: longer than {MAX_LINE_BYTES:,} bytes")
        text = decode_text(data, str(self.path), line=number)
        where = f"{self.path}, line {number}"
        return parse_draft_record(parse_json(text, str(self.path), line=number), where)
