"""Files of items as published: a JSON list, JSON lines, an object of items by id, or a list in an object.

    for item in read_items(path, FileLayout("map")):       # {"17": {"question": …}, …}
        item.key, item.value                               # "17", {"question": …}

An item that cannot be read is a `BadItem`; the reader of the items decides what becomes of it. Memory holds
one item, and of an object the keys.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from reverse.errors import DataError, MissingFileError
from reverse.files.atomic_write import atomic_write
from reverse.files.json_scanning import Broken, ItemShape, scan
from reverse.files.object_scanning import JsonMember, scan_members

__all__ = ["BadItem", "FileItem", "FileLayout", "read_items", "write_items"]


class FileLayout(NamedTuple):
    """The way a file holds its items."""

    kind: Literal["list", "map", "member"] = "list"
    member: str = ""  # key of the list in an object; such a file may also be a plain list
    shape: ItemShape = ItemShape()


class FileItem(NamedTuple):
    """One item. `around`: what the file holds before (first item) or behind (last item) its list."""

    number: int
    where: str
    value: Any
    key: str | None = None
    around: dict[str, Any] | None = None


class BadItem(NamedTuple):
    """A value that is not an item, and the reason."""

    number: int
    where: str
    reason: str


def read_items(path: str | Path, layout: FileLayout) -> Iterator[FileItem | BadItem]:
    """Yield the items of a file in their order. Raises MissingFileError; DataError for a folder."""
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"no such file: {path}: check the path")
    if path.is_dir():
        raise DataError(f"{path} is a folder: name a file in it")
    with path.open("rb") as stream:
        if layout.kind == "map":
            yield from _read_map(stream)
        elif layout.kind == "member" and _first_character(stream) == b"{":
            yield from _read_member(stream, layout.member)
        else:
            for item in scan(stream, shape=layout.shape):
                if isinstance(item, Broken):
                    yield BadItem(item.number, item.where, item.reason)
                else:
                    yield FileItem(item.number, item.where, item.value)


def write_items(path: str | Path, items: Iterable[tuple[str | None, Any, Any]], layout: FileLayout) -> int:
    """Write items, given as (key, item, what stands around the list), and return their number.

    A name that ends in .jsonl gives JSON lines, any other a JSON list or object. The file appears when it is
    complete. Raises DataError for a key of an object that stands twice.
    """
    path = Path(path)
    as_lines = path.suffix in (".jsonl", ".ndjson") and layout.kind != "map"
    count = 0
    with atomic_write(path) as stream:
        layout_kind = "lines" if as_lines else layout.kind
        for piece in _LAYOUTS[layout_kind](items, layout.member):
            stream.write(piece)
            count += 1
    return count - 1  # the last piece is the file's end


def _first_character(stream: BinaryIO) -> bytes:
    head = stream.read(1 << 16)
    stream.seek(0)
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


def _read_map(stream: BinaryIO) -> Iterator[FileItem | BadItem]:
    seen: set[str] = set()
    number = 0
    try:
        for number, member in enumerate(scan_members(stream)):
            where = f"item {number}, key {member.key!r:.60} (byte {member.offset})"
            if member.key in seen:
                yield BadItem(number, where, "this key stands twice: remove one of the two")
                continue
            seen.add(member.key)
            yield FileItem(number, where, member.value, member.key)
    except DataError as error:
        yield BadItem(number, f"item {number}", f"{error}; what follows was not read")


def _read_member(stream: BinaryIO, name: str) -> Iterator[FileItem | BadItem]:
    """Yield the items of one list; the last one is held back until the members behind the list are read."""
    before: dict[str, Any] = {}
    behind: dict[str, Any] = {}
    held: FileItem | None = None
    number = 0
    try:
        for member in scan_members(stream, into=name):
            if member.number < 0:
                (before if held is None else behind)[member.key] = member.value
                continue
            if held is not None:
                yield held
            held, number = _make_member_item(member, before), member.number + 1
    except DataError as error:
        if held is not None:
            yield held
        yield BadItem(number, f"item {number}", f"{error}; what follows was not read")
        return
    if held is not None:
        yield held._replace(around=(held.around or {}) | {"behind": behind}) if behind else held


def _make_member_item(member: JsonMember, before: dict[str, Any]) -> FileItem:
    around = {"before": before} if member.number == 0 and before else None
    return FileItem(member.number, f"item {member.number} (byte {member.offset})", member.value, None, around)


def _lay_out_list(items: Iterable[tuple[str | None, Any, Any]], _: str) -> Iterator[bytes]:
    between = b"[\n"
    for _key, item, _around in items:
        yield between + _encode(item)
        between = b",\n"
    yield b"[]\n" if between == b"[\n" else b"\n]\n"


def _lay_out_lines(items: Iterable[tuple[str | None, Any, Any]], _: str) -> Iterator[bytes]:
    for _key, item, _around in items:
        yield _encode(item) + b"\n"
    yield b""


def _lay_out_map(items: Iterable[tuple[str | None, Any, Any]], _: str) -> Iterator[bytes]:
    between = b"{\n"
    seen: set[str] = set()
    for key, item, _around in items:
        if key is None or key in seen:
            raise DataError(f"the key {key!r:.80} stands twice: such a file has one item for each key")
        seen.add(key)
        yield between + _encode(key) + b": " + _encode(item)
        between = b",\n"
    yield b"{}\n" if between == b"{\n" else b"\n}\n"


def _lay_out_member(items: Iterable[tuple[str | None, Any, Any]], name: str) -> Iterator[bytes]:
    begun = False
    behind: dict[str, Any] = {}
    for _key, item, around in items:
        around = around or {}
        behind |= around.get("behind", {})
        head = b",\n" if begun else b"{" + _members(around.get("before", {}), b"", b", ")
        yield (head if begun else head + _encode(name) + b": [\n") + _encode(item)
        begun = True
    head = b"" if begun else b"{" + _encode(name) + b": ["
    yield head + b"\n]" + _members(behind, b", ", b"") + b"}\n"


def _members(members: dict[str, Any], before: bytes, behind: bytes) -> bytes:
    return b"".join(before + _encode(key) + b": " + _encode(value) + behind for key, value in members.items())


_LAYOUTS = {"list": _lay_out_list, "lines": _lay_out_lines, "map": _lay_out_map, "member": _lay_out_member}


def _encode(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")


def holds_non_finite(value: Any) -> bool:
    """Whether a JSON value holds NaN or an infinity."""
    if isinstance(value, dict):
        return any(map(holds_non_finite, value.values()))
    if isinstance(value, list):
        return any(map(holds_non_finite, value))
    return isinstance(value, float) and not math.isfinite(value)
