"""Read single values of rows that other programs wrote: numbers, ids, and how any value is shown.

    read_number(1e400), read_number("3")     # None, None
    read_id(42), read_id("42")               # "42", "42"
    shown([1] * 10_000)                      # "[1, 1, 1, 1, 1, 1, ...]"

No value raises anything here, however large, deep or strange it is.
"""

from __future__ import annotations

import reprlib
from pathlib import PurePosixPath
from typing import Any

from reverse.data.records.schema import half_pair

__all__ = ["LONGEST_ID", "cut", "file_name", "read_id", "read_number", "shown"]

LARGEST = 1e15
LONGEST_ID = 500  # characters of an id: published ones have at most a few dozen
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 60


def read_number(value: Any) -> float | None:
    """A number of at most 1e15 as float; None for anything else, truth values and numbers in quotes too.

    No count or time is larger, and squares of larger ones overflow in the statistics.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if abs(number) <= LARGEST else None


def read_id(value: Any) -> str | None:
    """An id as text, so that 42 of one file is "42" of another; None for what can be no id.

    Ids are text of 1 to 500 characters and whole numbers of any size; 42.0 is 42.
    """
    if isinstance(value, str):
        return value if 0 < len(value) <= LONGEST_ID and half_pair(value) is None else None
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and abs(value) < 10**LONGEST_ID:
        return str(value)
    return None


def file_name(path: Any) -> str:
    """The name of a file without its folders, whichever slash stands between them."""
    return PurePosixPath(str(path).replace("\\", "/")).name


def shown(value: Any, most: int = 60) -> str:
    """The beginning of a value's repr, for an error."""
    try:
        return cut(_REPR.repr(value), most)
    except (ValueError, RecursionError):  # a whole number that is too long to be written
        return f"a very large {type(value).__name__}"


def cut(text: str, most: int = 60) -> str:
    """The beginning of a text, for an error; the end is an ellipsis where it is cut."""
    return text if len(text) <= most else text[: most - 1] + "…"
