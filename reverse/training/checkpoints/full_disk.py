"""Handle a full disk during a run: raise a clear error and keep the last good checkpoint."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reverse.errors import ReverseError
from reverse.training.checkpoints.resuming import last_checkpoint, remove_torn
from reverse.training.optim.parallel import is_first, processes

__all__ = ["DiskFullError", "explain_full_disk", "is_full_disk"]

_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Writers in Rust and C++ (safetensors, tokenizers, torch) raise errors of their own.
_WORDS = (
    "No space left on device", "os error 28", "Disk quota exceeded", "os error 122", "File too large",
    "os error 27", "PytorchStreamWriter failed",
)  # fmt: skip


class DiskFullError(ReverseError, OSError):
    """The disk of a run's output is full."""


@contextmanager
def explain_full_disk(output: str | Path) -> Iterator[None]:
    """Turn an error about a full disk into one that names the last good checkpoint and the remedy.

    Partly written files (a checkpoint, the output's `.partial`) are removed: they are of no use, and the
    space is needed.

    Raises:
        DiskFullError: from the error that told of it.
    """
    output = Path(output)
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFullError) or not is_full_disk(error):
            raise
        checkpoints = output.with_name(output.name + ".checkpoints")
        if is_first():
            remove_torn(checkpoints)
            shutil.rmtree(output.with_name(output.name + ".partial"), ignore_errors=True)
        good = last_checkpoint(checkpoints, processes())
        kept = (
            f"the last good checkpoint is {good}: free disk space and run the same command again, which "
            "resumes from it"
            if good
            else "there is no good checkpoint: make room and start again"
        )
        said = f"the disk of {output} is full or its quota used up ({_first_line(error)}); {kept}"
        full = DiskFullError(said)
        full.errno = errno.ENOSPC
        raise full from error


def is_full_disk(error: BaseException) -> bool:
    """Whether `error`, or one of its causes, is about a full disk."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, OSError) and current.errno in _NUMBERS:
            return True
        if not isinstance(current, OSError) and any(word in str(current) for word in _WORDS):
            return True
        current = current.__cause__ or current.__context__
    return False


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
