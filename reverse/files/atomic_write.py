"""Write files and folders atomically: under a temporary name, flushed to disk, then renamed.

A reader sees the old content or the new one. A process that is killed leaves at most the temporary name
behind. `atomic_write` and `atomic_write_dir` hold the lock of their output (`reverse.files.file_lock`).
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from reverse.errors import OutputExistsError
from reverse.files.file_lock import output_lock

LOCK_WAIT = 5.0  # seconds to wait for another process that writes the same file; most writes take less


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary stream that replaces `path` when the block ends without an error.

    Missing folders above `path` are created. An error in the block leaves `path` as it was. Raises
    OutputInUseError if another process keeps writing the same file for longer than `LOCK_WAIT`.
    """
    with output_lock(path, wait=LOCK_WAIT):
        with replace_file(path) as stream:
            yield stream
        sync_folder(path.parent)


@contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Replace a file like `atomic_write`, but without a lock and without flushing its folder, which must be
    locked.
    """
    temporary = path.with_name(path.name + ".tmp")
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


@contextmanager
def atomic_write_dir(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `out` when the block ends without an error.

    Every file is flushed to disk before the rename, so `out` is complete or absent. A killed process leaves
    `.NAME.*` beside `out`, which may be deleted. Raises what `check_new` raises, and OutputInUseError.
    """
    check_new(out)
    with output_lock(out):
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            yield temporary
            for path in temporary.rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes for the owner alone
            temporary.chmod(0o755)
            sync_files(temporary)
            temporary.replace(out)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def check_new(out: Path) -> None:
    """Check that a new folder can be created at `out`, before long work on it starts.

    Raises:
        OutputExistsError: `out` exists and is not an empty folder, or lies below a file.
        PermissionError: the folder above may not be written to.
    """
    if out.is_symlink():
        raise OutputExistsError(f"{str(out)!r} is a symbolic link: name a folder that does not exist yet")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputExistsError(f"{str(out)!r} is not empty: name a folder that does not exist yet")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise OutputExistsError(f"{str(out)!r} would lie in {str(above)!r}, a file: name another folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{str(out)!r} cannot be made, {str(above)!r} is read-only: name another folder"
        )


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    with atomic_write(path) as stream:
        stream.write(json_bytes(content, indent=1) + b"\n")


def json_bytes(content: Any, **options: Any) -> bytes:
    """Return JSON in UTF-8, or in ASCII if a text holds a lone surrogate, which UTF-8 cannot encode."""
    try:
        return json.dumps(content, ensure_ascii=False, **options).encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(content, **options).encode("ascii")


def sync_files(folder: Path) -> None:
    """Flush all files below a folder to disk; some disks report only then that they are full."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to disk, which makes a rename in it durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
