"""Write a file whole or not at all: temporary name, flush to disk, rename; one process at a time."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from reverse.files.file_lock import output_lock

WAIT = 5.0  # seconds for another process that writes the same file: most are written in less


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary stream that becomes `path` when the block ends well, and is thrown away when it does not.

    Folders above `path` are made. Raises OutputInUseError where another process writes the same file, and
    goes on doing so for `WAIT` seconds.
    """
    temporary = path.with_name(path.name + ".tmp")
    with output_lock(path, wait=WAIT):
        try:
            with temporary.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
                raise OSError(error.errno, error.strerror, str(path)) from error  # a write names no file
            raise
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def write_json(path: Path, content: Any) -> None:
    with whole_file(path) as stream:
        stream.write(json_bytes(content, indent=1) + b"\n")


def json_bytes(content: Any, **options: Any) -> bytes:
    """JSON in UTF-8; in ASCII where a text holds half of a surrogate pair, which UTF-8 lacks."""
    try:
        return json.dumps(content, ensure_ascii=False, **options).encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(content, **options).encode("ascii")


def sync_files(folder: Path) -> None:
    """Flush all files of a folder to the disk: some disks tell only then that they are full."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())


def sync_folder(path: Path) -> None:
    """A rename is on disk when the folder is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
