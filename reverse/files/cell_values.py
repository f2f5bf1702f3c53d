"""Read single values of rows that other programs wrote (numbers, ids) and describe any value in a message.

    read_number(1e400), read_number("3")     # None, None
    read_id(42), read_id("42")               # "42", "42"
    describe([1] * 10_000)             # "[1, 1, 1, 1, 1, 1, ...]"

No function here raises, however large, deep or strange the value is.
"""

from __future__ import annotations

import reprlib
from pathlib import PurePosixPath
from typing import Any

from reverse.files.text_reading import find_surrogate

__all__ = ["LONGEST_ID", "describe", "file_name", "read_id", "read_number", "shorten"]

LARGEST = 1e15  # no count or time is larger, and squares of larger numbers overflow in the statistics
LONGEST_ID = 500  # characters of an id; published ids have at most a few dozen
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 60


def read_number(value: Any) -> float | None:
    """Return a number of at most 1e15 as float; None for anything else, also for booleans and text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if abs(number) <= LARGEST else None


def read_id(value: Any) -> str | None:
    """Return an id as text, so that 42 in one file matches "42" in another; None if it is not an id.

    Ids are texts of 1 to 500 characters and whole numbers; 42.0 is 42.
    """
    if isinstance(value, str):
        return value if 0 < len(value) <= LONGEST_ID and find_surrogate(value) is None else None
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and abs(value) < 10**LONGEST_ID:
        return str(value)
    return None


def file_name(path: Any) -> str:
    """Return the name of a file without its folders, whichever slash separates them."""
    return PurePosixPath(str(path).replace("\\", "/")).name


def describe(value: Any, longest: int = 60) -> str:
    """Return the repr of a value in at most `longest` characters, for a message."""
    try:
        return shorten(_REPR.repr(value), longest)
    except (ValueError, RecursionError):  # a whole number with too many digits
        return f"a very large {type(value).__name__}"


def shorten(text: str, longest: int = 60) -> str:
    """Return a text in at most `longest` characters; "…" marks a cut end."""
    return text if len(text) <= longest else text[: longest - 1] + "…"
