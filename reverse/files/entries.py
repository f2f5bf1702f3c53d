"""Entries of the published files: JSON lists or JSON lines, each entry knowing where it stands.

    for entry in read_entries("annotations.json"):
        entry.id("id"), entry.text("type"), entry.texts("truth")

A value that is missing or of another kind is a ValueError that names file, entry, key and value. A
byte-order mark is taken off; what is no UTF-8 is refused with its line (`reverse.files.text_reading`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from reverse.errors import DataError
from reverse.files.cell_values import LONGEST_ID, read_id, shown
from reverse.files.text_reading import parse_json, read_text

__all__ = ["Entry", "read_entries", "read_value"]


class Entry(NamedTuple):
    """One object of a file; `where` is the file and the entry's number, from 1."""

    row: dict[str, Any]
    where: str

    def id(self, *keys: str) -> str | int:
        """The id under the first of the keys that is there, as it is written.

        Raises ValueError for what can be none, see `reverse.files.cell_values.read_id`.
        """
        key, value = self._first(keys)
        if read_id(value) is None:
            wanted = f"an id: text of 1 to {LONGEST_ID} characters, or a whole number"
            raise self.wrong(key, value, wanted)
        return int(value) if isinstance(value, float) else value

    def text(self, *keys: str) -> str:
        """The text under the first of the keys that is there; a number as it is written."""
        key, value = self._first(keys)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise self.wrong(key, value, "text")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of texts."""
        _, value = self._first((key,))
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.wrong(key, value, "a list of texts")
        return value

    def wrong(self, key: str, value: Any, wanted: str) -> ValueError:
        """The error for a value of another kind than is wanted."""
        told = "null" if value is None else shown(value)
        return DataError(
            f"{self.where}: {key!r} must be {wanted}, got {told}: mend it, or fetch the file again"
        )

    def _first(self, keys: tuple[str, ...]) -> tuple[str, Any]:
        for key in keys:
            if key in self.row:
                return key, self.row[key]
        names = shown(", ".join(self.row))
        wanted = repr(keys[0]) if len(keys) == 1 else " or ".join(keys)
        raise DataError(f"{self.where} has no {wanted}, only {names}: fetch the file again")


def read_entries(path: Path) -> list[Entry]:
    """The objects of a file that is a JSON list, JSON lines or one object, whatever its name says.

    Raises FileNotFoundError; ValueError for damage, with the line, and for an entry that is no object.
    """
    return [_entry(path, number, value) for number, value in enumerate(_values(path), 1)]


def read_value(path: Path) -> Any:
    """The one value of a JSON file. Raises as `read_entries`."""
    text = read_text(path)
    try:
        return parse_json(text, str(path))
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}): fetch it again") from error


def _entry(path: Path, number: int, value: Any) -> Entry:
    if not isinstance(value, dict):
        raise DataError(f"{path}, entry {number} is no JSON object but {shown(value)}: fetch the file again")
    return Entry(value, f"{path}, entry {number}")


def _values(path: Path) -> Iterator[Any]:
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
