"""See before the work that its results can be written.

check_output_file(Path("out/table.json"))       # makes out/, raises where nothing can be written there
check_output_folder(Path("out"))
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from reverse.errors import DataError

__all__ = ["check_output_file", "check_output_folder"]


def check_output_file(path: Path) -> None:
    """Make the folders above a file that is to be written, and see that it can be.

    Raises ValueError for a folder; OSError where nothing can be written there.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder: name a file in it, such as {path / 'scored.json'}")
    check_output_folder(path.parent)


def check_output_folder(path: Path) -> None:
    """Make a folder that results are to be written into, and see that they can be.

    Raises ValueError where a file of that name is there; OSError where nothing can be written there.
    """
    if path.exists() and not path.is_dir():
        raise DataError(f"{path} is a file: name a folder")
    path.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:  # the user named the folder and not the temporary file
        raise OSError(error.errno, error.strerror, str(path)) from error
