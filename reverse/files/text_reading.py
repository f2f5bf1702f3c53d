"""Read text and JSON files that users bring: UTF-8, of bounded size and depth; errors name the place.

    read_text("recipe.yaml", max_bytes=1 << 20)
    read_json("instances_val2014.json")
    for line, value in read_json_lines("answers.jsonl"): ...

Every error is a ValueError (FileNotFoundError where there is no file) that names file, line and remedy. The
byte-order mark that Windows editors write is taken off. Other encodings are refused and not guessed: a file
that is read in the wrong one gives other words, and no error.
"""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reverse.errors import DataError, MissingFileError

MAX_BYTES = 1 << 31  # of one file: COCO's largest annotations take 0.5 GB
MAX_LINE_BYTES = 1 << 24  # of one line of JSON lines
MAX_DEPTH = 64  # of nested brackets; the files that we know have 5
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # UTF-32's little-endian mark begins like the first
_SHOWN = 30  # characters on each side of an error


def read_text(path: str | Path, *, max_bytes: int = MAX_BYTES) -> str:
    """The text of a UTF-8 file, without its byte-order mark.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a folder; more than `max_bytes`; bytes that are not UTF-8 (file, line and byte are named).
    """
    return decode_text(_read_bytes(Path(path), max_bytes), str(path))


def read_json(path: str | Path, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Any:
    """The value of a JSON file; raises as `read_text` and `parse_json` do."""
    return parse_json(read_text(path, max_bytes=max_bytes), str(path), max_depth=max_depth)


def read_json_lines(
    path: str | Path, *, max_line_bytes: int = MAX_LINE_BYTES, max_depth: int = MAX_DEPTH
) -> Iterator[tuple[int, Any]]:
    """The number (from 1) and the value of each line that is not blank; one line stands in memory at a time.

    Raises as `read_text` and `parse_json` do, naming the line.
    """
    path = _existing(Path(path))
    with path.open("rb") as stream:
        number = 0
        while data := stream.readline(max_line_bytes + 1):
            number += 1
            if len(data) > max_line_bytes:
                raise DataError(
                    f"{path}, line {number}: longer than {max_line_bytes:,} bytes: write one value a line"
                )
            if number == 1:
                data = _without_mark(data, str(path))
            if data.strip():
                yield (
                    number,
                    parse_json(
                        decode_text(data, str(path), line=number), str(path), line=number, max_depth=max_depth
                    ),
                )


def decode_text(data: bytes, name: str, *, line: int = 1) -> str:
    """UTF-8 bytes as text, without a byte-order mark.

    Args:
        name: of the file, for the error.
        line: number of the first line in the file.

    Raises ValueError naming file, line and byte where the bytes are not UTF-8.
    """
    data = _without_mark(data, name) if line == 1 else data
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        at = line + data.count(b"\n", 0, error.start)
        begin = max(data.rfind(b"\n", 0, error.start) + 1, error.start - _SHOWN)
        near = data[begin : error.start + _SHOWN].split(b"\n")[0].decode("latin-1")
        raise DataError(
            f"{name}, line {at}: byte 0x{data[error.start]:02x} is not UTF-8, near {near!r} (shown as "
            "Latin-1): save the file as UTF-8 (`iconv -f latin1 -t utf-8 OLD > NEW` where it is Latin-1)"
        ) from error


def parse_json(text: str, name: str, *, line: int = 1, max_depth: int = MAX_DEPTH) -> Any:
    """The value of a JSON text.

    Args:
        name: of the file, for the error.
        line: number of the text's first line in the file.
        max_depth: brackets that may stand in one another.

    Raises ValueError naming file and line where it is not JSON or nested too deeply.
    """
    text = text.removeprefix("\ufeff")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        begin = max(0, error.pos - _SHOWN)
        near = text[begin : error.pos + _SHOWN]
        raise DataError(
            f"{name}, line {line + error.lineno - 1}, column {error.colno}: not valid JSON ({error.msg}), "
            f"near {near!a}: mend it there, or copy or download the file again"
        ) from error
    except RecursionError as error:
        raise DataError(_too_deep(name, line, max_depth)) from error
    except ValueError as error:  # a whole number of more than 4,300 digits
        raise DataError(f"{name}, from line {line} on: {error}: write a smaller number") from error
    if is_deeper(value, max_depth):
        raise DataError(_too_deep(name, line, max_depth))
    return value


def is_deeper(value: Any, max_depth: int) -> bool:
    """Whether lists and objects stand in one another more than `max_depth` times."""
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


def _read_bytes(path: Path, max_bytes: int) -> bytes:
    with _existing(path).open("rb") as stream:
        data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise DataError(f"{path} is larger than {max_bytes:,} bytes: name another file, or split this one")
    return data


def _existing(path: Path) -> Path:
    if not path.exists():
        raise MissingFileError(f"no such file: {path}: check the path")
    if path.is_dir():
        raise DataError(f"{path} is a folder: name a file in it")
    return path


def _without_mark(data: bytes, name: str) -> bytes:
    if data.startswith(_UTF16) or data.startswith(codecs.BOM_UTF32_BE):
        raise DataError(
            f"{name}, line 1: the byte-order mark says UTF-16 or UTF-32: save the file as UTF-8 "
            "(`iconv -f utf-16 -t utf-8 OLD > NEW`)"
        )
    return data.removeprefix(codecs.BOM_UTF8)


def _too_deep(name: str, line: int, max_depth: int) -> str:
    return f"{name}, from line {line} on: brackets are nested more than {max_depth} deep: flatten the value"
