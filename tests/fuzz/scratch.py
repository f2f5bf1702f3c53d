"""One folder of this process for files that fuzzers write, in memory where the system has such a place."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path


@functools.cache
def _folder(process: int) -> Path:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix=f"fuzz-{process}-", dir=memory))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def folder(name: str = "") -> Path:
    """A folder of this process (a forked one has another); `name` is made below it."""
    path = _folder(os.getpid()) / name
    path.mkdir(exist_ok=True)
    return path
