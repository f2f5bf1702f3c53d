"""Lock an output for one process at a time; a second process is told who the first one is.

    with output_lock("runs/llava"):          # a folder or a file, which need not exist
        ...

The lock is the operating system's (`flock`, through filelock), taken on `.NAME.lock` beside the output, or
on `.lock` inside a folder whose parent folder is read-only. It ends with the process that holds it, also
after SIGKILL: a file that a killed process leaves behind locks nothing and is used again. While the lock is
held the file says who holds it; the file is removed at the end. NFS has had `flock` over several machines
since Linux 2.6.12; if a file system has no locks at all, a warning says so and the work continues.

A thread may take a lock again that it holds, so a function and those it calls may all take it. Of a run with
several processes only the first one takes locks.
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

LONGEST_FIELD = 200  # characters of a command or host in a message
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK}
_held: set[tuple[str, int]] = set()  # paths of locks, and the threads that hold them


class OutputInUseError(DataError):
    """Another process writes to the same output."""


@contextmanager
def output_lock(output: str | Path, wait: float = 0.0, *, reentrant: bool = True) -> Iterator[None]:
    """Hold the lock of an output while the block lasts.

    Args:
        output: folder or file that is written; folders above it are created.
        wait: seconds to wait for another process; negative: without limit.
        reentrant: whether this thread may hold the lock already.

    Raises:
        OutputInUseError: another process, or another thread of this one, holds the lock.
        OSError: no file can be created there.
    """
    output = Path(output)
    path = lock_path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    key = (str(path), threading.get_ident())
    if reentrant and key in _held:
        yield
        return
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    if not _acquire(lock, output, wait):
        yield
        return
    _held.add(key)
    try:
        _write_owner(path)
        yield
    finally:
        _held.remove(key)
        with suppress(OSError):  # before the release: whoever opened it meanwhile sees that it is gone
            path.unlink()
        lock.release()


def check_free(output: str | Path) -> None:
    """Raise OutputInUseError if another process holds the lock of `output`; create no file."""
    if lock_path(output).exists():
        with output_lock(output):
            pass


def lock_path(output: str | Path) -> Path:
    """Return the path of the file that is locked for `output`."""
    output = Path(os.path.realpath(output))
    is_root = output.parent == output
    if is_root or (output.is_dir() and not os.access(output.parent, os.W_OK)):  # such as a mounted folder
        return output / ".lock"
    # Names are bounded in bytes, and a character may take four.
    return output.with_name(f".{os.fsdecode(os.fsencode(output.name)[:200])}.lock")


def describe_owner(path: Path) -> str:
    """Say who holds the lock file `path`: "another process: 17 on host, `command`, since …"."""
    try:
        with path.open("rb") as stream:
            owner = json.loads(stream.read(1 << 14))
        pid, host, since = int(owner["pid"]), _plain_line(owner["host"]), _plain_line(owner["since"])
        command = _plain_line(owner["command"])
    # The message about the lock must come, whatever stands in this file: it is not written yet or unreadable
    # (OSError), not JSON or not numbers (ValueError), too deep (RecursionError), or other JSON than an owner.
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return "another process"
    here = " (this process, another thread)" if (pid, host) == (os.getpid(), socket.gethostname()) else ""
    return f"another process: {pid} on {host}{here}, `{command}`, since {since}"


def _acquire(lock: FileLock, output: Path, wait: float) -> bool:
    """Acquire the lock; return False if the file system has no locks."""
    try:
        lock.acquire(timeout=wait)
        return True
    except Timeout:
        owner = describe_owner(Path(lock.lock_file))
        raise OutputInUseError(
            f"{output} is being written by {owner}: wait for it, stop it, or name another output"
        ) from None
    except (NotImplementedError, OSError) as error:  # filelock raises the former if flock is missing
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise OSError(error.errno, error.strerror, str(output)) from error  # the user named no lock
        warnings.warn(
            f"the file system of {output} has no locks: make sure that no other process writes there",
            stacklevel=4,
        )
        return False


def _write_owner(path: Path) -> None:
    owner = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": shlex.join(sys.argv)[:LONGEST_FIELD],
        "since": datetime.fromtimestamp(time.time()).strftime("%Y-%m-%d %H:%M:%S"),
    }
    with suppress(OSError):  # a full disk: the lock holds, its owner stays unnamed
        path.write_text(json.dumps(owner) + "\n", encoding="utf-8", errors="backslashreplace")


def _plain_line(text: Any) -> str:
    """Return the beginning of a text as one printable line."""
    shown = "".join(c if c.isprintable() else " " for c in str(text)[:LONGEST_FIELD])
    return " ".join(shown.split())
