"""Replies of a model on disk, found by the hash of what was asked."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reverse.errors import DataError, RequestTypeError
from reverse.files.file_lock import output_lock

__all__ = ["Reply", "ReplyCache"]


@dataclass(frozen=True)
class Reply:
    """The text of a reply and what it cost; `replies` counts unusable ones before it too."""

    text: str
    tokens_in: int
    tokens_out: int
    cached: bool = False
    replies: int = 1


class ReplyCache:
    """Replies by the hash of what was asked, in a file of JSON lines that only grows.

    A reply is flushed before `put` returns, so a killed process loses no reply that was used. An incomplete
    last line is removed when the file is opened. The index takes about 150 MB for a million replies; the
    replies stay on disk. One process at a time holds the file. Raises DataError if the file is something
    else, and OutputInUseError.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._places: dict[bytes, int] = {}
        self._lock = ExitStack()
        self._lock.enter_context(output_lock(self.path, reentrant=False))
        try:
            self._file = self._lock.enter_context(self.path.open("a+b"))
            self._read()
        except BaseException:
            self._lock.close()
            raise

    def _read(self) -> None:
        self._file.seek(0)
        good = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break  # torn by a kill
            try:
                self._places[_read_line(line)[0]] = good
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise DataError(
                    f"{self.path}, byte {good}: no reply of a model: is it another file?"
                ) from error
            good += len(line)
        self._file.truncate(good)

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> Reply | None:
        """Return the reply that was put under `key`, or None."""
        place = self._places.get(bytes.fromhex(key))
        if place is None:
            return None
        self._file.seek(place)
        return _read_line(self._file.readline())[1]

    def put(self, key: str, reply: Reply) -> None:
        """Write a reply; a later kill does not lose it (a power cut may lose the last seconds)."""
        line: dict[str, Any] = {
            "key": key,
            "reply": reply.text,
            "tokens_in": reply.tokens_in,
            "tokens_out": reply.tokens_out,
        }
        if reply.replies > 1:
            line["replies"] = reply.replies
        place = self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(line, ensure_ascii=True).encode() + b"\n")
        self._file.flush()
        self._places[bytes.fromhex(key)] = place

    def close(self) -> None:
        self._lock.close()  # closes the file, then releases its lock


def _read_line(line: bytes) -> tuple[bytes, Reply]:
    """Return key and reply of a line. Raises ValueError, KeyError or TypeError for any other line."""
    content = json.loads(line)
    text = content["reply"]
    read, written, replies = content["tokens_in"], content["tokens_out"], content.get("replies", 1)
    if not isinstance(text, str) or not all(isinstance(count, int) for count in (read, written, replies)):
        raise RequestTypeError(f"no reply of a model: {line[:60]!r}")
    return bytes.fromhex(content["key"]), Reply(text, read, written, cached=True, replies=replies)
