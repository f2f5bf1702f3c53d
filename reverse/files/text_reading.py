"""Read text and JSON files that users bring: UTF-8, of bounded size and depth; errors name the place.

    read_text("recipe.yaml", max_bytes=1 << 20)
    read_json("instances_val2014.json")

Every error is a DataError (MissingFileError if there is no file) that names file, line and remedy. The
byte-order mark that Windows editors write is removed. Other encodings are refused and never guessed, because
a wrong guess yields other words without an error.
"""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reverse.errors import DataError, MissingFileError

MAX_BYTES = 1 << 31  # of one file: COCO's largest annotations take 0.5 GB
MAX_LINE_BYTES = 1 << 24  # of one line of JSON lines
MAX_DEPTH = 64  # of nested brackets; published files nest 5 deep
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # UTF-32's little-endian mark begins like the first
_CONTEXT = 30  # characters that a message shows on each side of an error
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def read_text(path: str | Path, *, max_bytes: int = MAX_BYTES) -> str:
    """Return the text of a UTF-8 file, without its byte-order mark.

    Raises MissingFileError, and DataError for a folder, more than `max_bytes`, or bytes that are not UTF-8.
    """
    path = _check_is_file(Path(path))
    with path.open("rb") as stream:
        data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise DataError(f"{path} is larger than {max_bytes:,} bytes: name another file, or split this one")
    return decode_text(data, str(path))


def read_json(path: str | Path, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Any:
    """Return the value of a JSON file. Raises what `read_text` and `parse_json` raise."""
    return parse_json(read_text(path, max_bytes=max_bytes), str(path), max_depth=max_depth)


def read_json_lines(
    path: str | Path, *, max_line_bytes: int = MAX_LINE_BYTES, max_depth: int = MAX_DEPTH
) -> Iterator[tuple[int, Any]]:
    """Yield the number (from 1) and the value of each line that is not blank; memory holds one line.

    Raises what `read_text` and `parse_json` raise, naming the line.
    """
    path = _check_is_file(Path(path))
    with path.open("rb") as stream:
        number = 0
        while data := stream.readline(max_line_bytes + 1):
            number += 1
            if len(data) > max_line_bytes:
                raise DataError(
                    f"{path}, line {number}: longer than {max_line_bytes:,} bytes: write one value a line"
                )
            text = decode_text(data, str(path), line=number)
            if text.strip():
                yield number, parse_json(text, str(path), line=number, max_depth=max_depth)


def decode_text(data: bytes, name: str, *, line: int = 1) -> str:
    """Decode UTF-8 bytes, without a byte-order mark.

    `name` is the file's and `line` the number of the first line, for errors. Raises DataError naming file,
    line and byte if the bytes are not UTF-8.
    """
    if line == 1:
        if data.startswith(_UTF16) or data.startswith(codecs.BOM_UTF32_BE):
            raise DataError(
                f"{name}, line 1: the byte-order mark says UTF-16 or UTF-32: save the file as UTF-8 "
                "(`iconv -f utf-16 -t utf-8 OLD > NEW`)"
            )
        data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        at = line + data.count(b"\n", 0, error.start)
        begin = max(data.rfind(b"\n", 0, error.start) + 1, error.start - _CONTEXT)
        near = data[begin : error.start + _CONTEXT].split(b"\n")[0].decode("latin-1")
        raise DataError(
            f"{name}, line {at}: byte 0x{data[error.start]:02x} is not UTF-8, near {near!r} (shown as "
            "Latin-1): save the file as UTF-8 (`iconv -f latin1 -t utf-8 OLD > NEW` if it is Latin-1)"
        ) from error


def parse_json(text: str, name: str, *, line: int = 1, max_depth: int = MAX_DEPTH) -> Any:
    """Return the value of a JSON text whose brackets nest at most `max_depth` deep.

    `name` is the file's and `line` the number of the text's first line, for errors. Raises DataError naming
    both if the text is not JSON or is nested too deeply.
    """
    text = text.removeprefix("\ufeff")
    too_deep = (
        f"{name}, from line {line} on: brackets are nested more than {max_depth} deep: flatten the value"
    )
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - _CONTEXT) : error.pos + _CONTEXT]
        raise DataError(
            f"{name}, line {line + error.lineno - 1}, column {error.colno}: not valid JSON ({error.msg}), "
            f"near {near!a}: mend it there, or copy or download the file again"
        ) from error
    except RecursionError as error:
        raise DataError(too_deep) from error
    except ValueError as error:  # a whole number of more than 4,300 digits
        raise DataError(f"{name}, from line {line} on: {error}: write a smaller number") from error
    if is_deeper(value, max_depth):
        raise DataError(too_deep)
    return value


def is_deeper(value: Any, max_depth: int) -> bool:
    """Whether lists and objects nest more than `max_depth` deep."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(max_depth):
        if not level:
            return False
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
    return bool(level)


def find_surrogate(text: str) -> re.Match[str] | None:
    """Find the first lone surrogate, such as half of an emoji; JSON may hold one, no tokenizer takes it."""
    return None if text.isascii() else _SURROGATE.search(text)


def replace_surrogates(text: str) -> str:
    """Replace each lone surrogate by U+FFFD; the length stays."""
    return _SURROGATE.sub("\ufffd", text)


def _check_is_file(path: Path) -> Path:
    if not path.exists():
        raise MissingFileError(f"no such file: {path}: check the path")
    if path.is_dir():
        raise DataError(f"{path} is a folder: name a file in it")
    return path
