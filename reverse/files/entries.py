"""Entries of published files, JSON lists or JSON lines; each entry knows where it stands.

    for entry in read_entries("annotations.json"):
        entry.id("id"), entry.text("type"), entry.texts("truth")

A missing value, or one of another type, is a DataError that names file, entry, key and value. Files are
decoded as `reverse.files.text_reading` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from reverse.errors import DataError
from reverse.files.cell_values import LONGEST_ID, describe, read_id
from reverse.files.text_reading import parse_json, read_text

__all__ = ["FileEntry", "read_entries", "read_value"]


class FileEntry(NamedTuple):
    """One object of a file; `where` names the file and the number of the entry, from 1."""

    row: dict[str, Any]
    where: str

    def id(self, *keys: str) -> str | int:
        """Return the id under the first key that is present, as it is written.

        Raises DataError for a value that `reverse.files.cell_values.read_id` does not take.
        """
        key, value = self._first(keys)
        if read_id(value) is None:
            wanted = f"an id: text of 1 to {LONGEST_ID} characters, or a whole number"
            raise self.wrong(key, value, wanted)
        return int(value) if isinstance(value, float) else value

    def text(self, *keys: str) -> str:
        """Return the text under the first key that is present; a number as it is written."""
        key, value = self._first(keys)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise self.wrong(key, value, "text")
        return value

    def texts(self, key: str) -> list[str]:
        """Return the list of texts under a key."""
        _, value = self._first((key,))
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.wrong(key, value, "a list of texts")
        return value

    def wrong(self, key: str, value: Any, wanted: str) -> ValueError:
        """Make the error for a value of a wrong type."""
        shown = "null" if value is None else describe(value)
        return DataError(
            f"{self.where}: {key!r} must be {wanted}, got {shown}: mend it, or fetch the file again"
        )

    def _first(self, keys: tuple[str, ...]) -> tuple[str, Any]:
        for key in keys:
            if key in self.row:
                return key, self.row[key]
        names = describe(", ".join(self.row))
        wanted = " or ".join(keys) if len(keys) > 1 else repr(keys[0])
        raise DataError(f"{self.where} has no {wanted}, only {names}: fetch the file again")


def read_entries(path: Path) -> list[FileEntry]:
    """Read the objects of a file that is a JSON list, JSON lines or one object, whatever its name says.

    Raises MissingFileError, and DataError for damage (with the line) and for an entry that is not an object.
    """
    entries = []
    for number, value in enumerate(_read_values(path), 1):
        if not isinstance(value, dict):
            shown = describe(value)
            raise DataError(f"{path}, entry {number} is not a JSON object but {shown}: fetch the file again")
        entries.append(FileEntry(value, f"{path}, entry {number}"))
    return entries


def read_value(path: Path) -> Any:
    """Read the one value of a JSON file. Raises what `read_entries` raises."""
    text = read_text(path)
    try:
        return parse_json(text, str(path))
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}): fetch it again") from error


def _read_values(path: Path) -> Iterator[Any]:
    text = read_text(path)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        return
    if text.lstrip()[:1] == "[" or (len(lines) > 1 and not _is_json(lines[0][1])):  # one value, many lines
        value = read_value(path)
        yield from value if isinstance(value, list) else [value]
        return
    for number, line in lines:
        try:
            yield parse_json(line, str(path), line=number)
        except ValueError as error:
            raise DataError(f"{path} is damaged in line {number} ({error}): fetch it again") from error


def _is_json(line: str) -> bool:
    try:
        parse_json(line, "")
    except ValueError:
        return False
    return True
