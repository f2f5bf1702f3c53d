"""One process at a time writes an output, and a second one is told who the first one is.

    with output_lock("runs/llava"):          # a folder or a file, which need not exist
        ...

The lock is the operating system's (`flock`, through filelock), taken on `.NAME.lock` beside the output, or on
`.lock` inside of a folder whose parent folder may not be written to. It ends with the process that holds it,
also after SIGKILL: a file that a killed process leaves behind locks nothing and is used again. While the lock
is held the file says who holds it; the file is removed at the end. NFS has had `flock` over several machines
since Linux 2.6.12; where a file system has no locks at all, a warning says so and the work goes on.

A thread may take a lock that it holds already, so that a function and those it calls may all take it.
Of a run with several processes only the first one takes locks.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from reverse.errors import DataError

__all__ = ["OutputInUseError", "check_free", "describe_owner", "lock_path", "output_lock"]

SHOWN = 200  # characters of a command in a message
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK}
_held: dict[tuple[str, int], int] = {}  # by path of the lock and thread: how often it was taken


class OutputInUseError(DataError):
    """Another process writes to the same output."""


@contextmanager
def output_lock(output: str | Path, wait: float = 0.0, *, reentrant: bool = True) -> Iterator[None]:
    """Hold the lock of an output while the block lasts.

    Args:
        output: folder or file that is written; folders above it are made.
        wait: seconds to wait for another process; negative: as long as it takes.
        reentrant: pass where this thread holds the lock already; False: that is refused too.

    Raises:
        OutputInUseError: another process, or another thread of this one, holds it.
        OSError: no file can be made there.
    """
    output = Path(output)
    path = lock_path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    key = (str(path), threading.get_ident())
    if reentrant and key in _held:
        _held[key] += 1
        try:
            yield
        finally:
            _held[key] -= 1
        return
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    if not _acquire(lock, output, wait):
        yield
        return
    _held[key] = 1
    try:
        _write_owner(path)
        yield
    finally:
        del _held[key]
        with suppress(OSError):  # before the release: whoever opened it meanwhile sees that it is gone
            path.unlink()
        lock.release()


def check_free(output: str | Path) -> None:
    """Raise OutputInUseError where another process holds the lock of `output`; makes no file."""
    if lock_path(output).exists():
        with output_lock(output):
            pass


def lock_path(output: str | Path) -> Path:
    """The file that is locked for `output`."""
    output = Path(os.path.realpath(output))
    if output.parent == output:  # the root of a disk
        return output / ".lock"
    if output.is_dir() and not os.access(output.parent, os.W_OK):  # a mounted folder
        return output / ".lock"
    # Names are bounded in bytes, and a character may take four.
    return output.with_name(f".{os.fsdecode(os.fsencode(output.name)[:200])}.lock")


def describe_owner(path: Path) -> str:
    """Who holds the lock `path`, as the file says: "process 17 on host (command), since …"."""
    try:
        with path.open("rb") as stream:
            owner = json.loads(stream.read(1 << 14))
        pid, host, since = int(owner["pid"]), _line(owner["host"]), _line(owner["since"])
        command = _line(owner["command"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return "another process"  # it has not written yet, or cannot
    here = " (this process, another thread)" if (pid, host) == (os.getpid(), socket.gethostname()) else ""
    return f"another process: {pid} on {host}{here}, `{command}`, since {since}"


def _acquire(lock: FileLock, output: Path, wait: float) -> bool:
    """Whether the lock is held now; False where the file system has none."""
    try:
        lock.acquire(timeout=wait)
        return True
    except Timeout:
        owner = describe_owner(Path(lock.lock_file))
        raise OutputInUseError(
            f"{output} is being written by {owner}: wait for it, stop it, or name another output"
        ) from None
    except (NotImplementedError, OSError) as error:  # filelock raises the former where flock is missing
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise OSError(error.errno, error.strerror, str(output)) from error  # the user named no lock
        warnings.warn(
            f"the file system of {output} has no locks: see to it that no other process writes there",
            stacklevel=4,
        )
        return False


def _write_owner(path: Path) -> None:
    owner: dict[str, Any] = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": shlex.join(sys.argv)[:SHOWN],
        "since": datetime.fromtimestamp(time.time()).strftime("%Y-%m-%d %H:%M:%S"),
    }
    with suppress(OSError):  # a full disk: the lock holds, its owner stays unnamed
        path.write_text(json.dumps(owner) + "\n", encoding="utf-8", errors="backslashreplace")


def _line(text: Any) -> str:
    """One printable line of bounded length."""
    shown = "".join(c if c.isprintable() else " " for c in str(text)[:SHOWN])
    return " ".join(shown.split())
