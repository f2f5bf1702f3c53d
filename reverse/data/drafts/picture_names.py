"""Names of pictures in published files as paths that stay below one folder.

find_picture("train/a.png")                           # 'train/a.png'
find_picture("/data/vcr/a.jpg", root="/data/vcr")     # 'a.jpg'
find_picture("../a.jpg")                              # raises DataError
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from reverse.data.records.schema import LONGEST_PATH
from reverse.errors import DataError
from reverse.files.cell_values import describe

__all__ = ["find_picture"]


def find_picture(name: Any, root: str | None = None) -> str:
    """Return a picture's path below the folder of pictures.

    Args:
        name: the picture's name in the item.
        root: folder that is removed from the start of a path, which may be absolute.

    Raises DataError for what is not a path below the folder: "..", another absolute path, an address.
    """
    if not isinstance(name, str) or not name.strip() or len(name) > LONGEST_PATH:
        raise DataError(f"a picture must be named by a path, got {describe(name)}")
    if any(letter in name for letter in "\0\n\r"):
        raise DataError(f"a picture's path holds a line break or a zero byte: {describe(name)}")
    path = name.removeprefix("file://")
    if "://" in path or name.startswith("data:"):
        raise DataError(f"the picture {describe(name)} is an address: fetch it, and name its file")
    if root:
        head = root.rstrip("/") + "/"
        path = path.removeprefix(head)
    parts = PurePosixPath(path.replace("\\", "/")).parts
    if not parts:
        raise DataError(f"a picture must be named by a path, got {describe(name)}")
    if ".." in parts:
        raise DataError(f"the picture {describe(name)} leaves the folder of pictures: remove the '..'")
    if path.startswith(("/", "\\", "~")) or (len(path) > 1 and path[1] == ":"):
        remedy = "give the folder that pictures lie in as root (--root)"
        raise DataError(f"the picture {describe(name)} has an absolute path: {remedy}")
    return path
