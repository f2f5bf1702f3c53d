"""Check that results can be written, before long work starts.

check_output_file(Path("out/table.json"))       # makes out/, raises if nothing can be written there
check_output_folder(Path("out"))
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from reverse.errors import DataError

__all__ = ["check_output_file", "check_output_folder"]


def check_output_file(path: Path) -> None:
    """Make the folders above a file that will be written, and check that it can be written.

    Raises DataError for a folder; OSError if nothing can be written there.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder: name a file in it, such as {path / 'scored.json'}")
    check_output_folder(path.parent)


def check_output_folder(path: Path) -> None:
    """Make a folder for results, and check that they can be written.

    Raises DataError if a file has its name; OSError if nothing can be written there.
    """
    if path.exists() and not path.is_dir():
        raise DataError(f"{path} is a file: name a folder")
    path.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:  # the user named the folder and not the temporary file
        raise OSError(error.errno, error.strerror, str(path)) from error
