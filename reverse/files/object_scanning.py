"""Read the members of one large JSON object, or the items of one list in it, in bounded memory.

    with open("problems.json", "rb") as stream:               # {"1": {...}, "2": {...}}
        for member in scan_members(stream):
            member.key, member.value
    with open("questions.json", "rb") as stream:              # {"info": {...}, "questions": [{...}, ...]}
        for member in scan_members(stream, into="questions"):
            member.number                                     # -1 of "info", then 0, 1, 2 of the questions

A list of items is read by `json_scanning`, which also continues after broken items. An object has no safe
place to continue, so broken JSON ends the scan.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from reverse.errors import DataError
from reverse.files.json_window import TOO_DEEP, JsonWindow, Source, is_too_deep

__all__ = ["JsonMember", "scan_members"]


class JsonMember(NamedTuple):
    """A member of the object, or an item of the list under the key `into`."""

    key: str
    number: int  # of an item in its list, from 0; -1 of a member
    offset: int  # bytes from the beginning of the file
    value: Any


def scan_members(stream: Source, into: str | None = None) -> Iterator[JsonMember]:
    """Yield the members of the object that a file holds, in order, each decoded on its own.

    Args:
        into: key of a list whose items are yielded one by one.

    Raises DataError naming the byte, for what is not JSON, not UTF-8, too deep, or no object.
    """
    window = JsonWindow(stream, b"", 0)
    window.extend()
    if window.text.startswith("\ufeff"):
        window.move(1)
    _expect(window, "{", "the beginning of an object")
    if _skip(window, "}"):
        return
    while True:
        key = _decode(window)
        if not isinstance(key, str):
            raise DataError(f"byte {window.offset}: a key must be a text: save the file as JSON again")
        _expect(window, ":", f"a colon behind the key {key[:40]!r}")
        window.skip_spaces()
        if key == into and window.text[window.at : window.at + 1] == "[":
            yield from _scan_list(window, key)
        else:
            offset = window.offset
            yield JsonMember(key, -1, offset, _decode(window))
        if _skip(window, "}"):
            break
        _expect(window, ",", "a comma or the object's end")
    if window.skip_spaces():
        raise DataError(
            f"byte {window.offset}: text follows the end of the object: save the file as one JSON object"
        )


def _scan_list(window: JsonWindow, key: str) -> Iterator[JsonMember]:
    _expect(window, "[", "a list")
    number = 0
    if _skip(window, "]"):
        return
    while True:
        window.skip_spaces()
        offset = window.offset
        yield JsonMember(key, number, offset, _decode(window))
        number += 1
        if _skip(window, "]"):
            return
        _expect(window, ",", "a comma or the list's end")


def _skip(window: JsonWindow, char: str) -> bool:
    """Move behind `char` if it comes next."""
    if window.skip_spaces() != char:
        return False
    window.move(window.at + 1)
    return True


def _expect(window: JsonWindow, char: str, what: str) -> None:
    if not _skip(window, char):
        found = window.text[window.at : window.at + 1]
        ends = "the file ends" if not found else f"got {found!r}"
        raise DataError(f"byte {window.offset}: {what} is missing, {ends}: was the file cut off?")


def _decode(window: JsonWindow) -> Any:
    """Decode the value that comes next and move behind it."""
    if not window.skip_spaces():
        raise DataError(f"byte {window.offset}: a value is missing, the file ends: was it cut off?")
    offset = window.offset
    try:
        value, end = window.decode()
    except json.JSONDecodeError as error:
        raise DataError(f"byte {offset}: not valid JSON ({error.msg})") from error
    except ValueError as error:
        raise DataError(f"byte {offset}: {error}") from error
    piece = window.text[window.at : end]
    try:
        piece.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"byte {offset}: the value is not UTF-8: save the file as UTF-8") from error
    if is_too_deep(piece, "[", "{", value):
        raise DataError(f"byte {offset}: {TOO_DEEP}")
    window.move(end)
    return value
