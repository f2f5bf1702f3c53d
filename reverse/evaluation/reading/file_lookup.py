"""Find the files of a benchmark's truth, and the picture that a name means.

    find_files("playground/data/eval", ("amber/metadata", "."), ["relation.json"])   # [PosixPath(...)]

    pictures = Pictures(["train/1.jpg", "val/1.jpg", "val/2.jpg"])
    pictures.find("data/val/1.jpg"), pictures.find("2.jpg")     # "val/1.jpg", "val/2.jpg"
    pictures.find("1.jpg")                                      # DataError: it may be either

Files of answers and of truth name the same picture with different folders before it, or without folders. The
file name alone identifies a picture as long as no two pictures share it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from reverse.errors import DataError
from reverse.files.cell_values import file_name, shorten

__all__ = ["Pictures", "are_same", "clear_path", "find_files"]


def find_files(truth: str | Path, places: Sequence[str], names: Sequence[str]) -> list[Path]:
    """Return the files whose names match, in the first of the places under `truth` that has any.

    `truth` may also be a file: the list then holds this file if its name matches.
    """
    root = Path(truth)
    if root.is_file():
        return [root] if any(PurePosixPath(root.name).match(name) for name in names) else []
    for folder in (root / place for place in places):
        found = sorted({path for name in names for path in folder.glob(name) if path.is_file()})
        if found:
            return found
    return []


class Pictures:
    """The pictures of one benchmark, by the names that its files give them."""

    def __init__(self, names: Iterable[str]):
        self._names: dict[str, str] = {}  # clear path to the name in the benchmark's file
        self._by_file_name: dict[str, list[str]] = {}
        self._asked: dict[str, str] = {}  # clear path to the longest path that was looked up for it
        for name in names:
            path = clear_path(name)
            if path not in self._names:
                self._names[path] = name
                self._by_file_name.setdefault(file_name(path), []).append(path)

    def find(self, name: str) -> str | None:
        """Return the name of the picture in the benchmark's file; None if there is no such picture.

        Raises DataError if the name may mean several pictures, and if two names that cannot belong to one
        picture would mean the same one.
        """
        path = clear_path(name)
        found = path if path in self._names else self._find_by_file_name(path)
        if found is None:
            return None
        before = self._asked.setdefault(found, path)
        if not are_same(before, path):
            raise DataError(
                f"pictures {shorten(before)!r} and {shorten(path)!r} would both be "
                f"{shorten(self._names[found])!r}: two pictures of one name are told apart by their folders, "
                "so the benchmark's file must name them"
            )
        if len(path) > len(before):
            self._asked[found] = path
        return self._names[found]

    def _find_by_file_name(self, path: str) -> str | None:
        several = self._by_file_name.get(file_name(path), [])
        candidates = several if len(several) < 2 else [each for each in several if are_same(each, path)]
        if len(several) > 1 and len(candidates) != 1:
            told = ", ".join(shorten(each) for each in several[:3])
            raise DataError(
                f"picture {shorten(path)!r} may be any of {told}: name it with its folder in the answers"
            )
        return candidates[0] if candidates else None


def clear_path(name: str) -> str:
    """Return a picture's path with / between its parts and without leading ./ or /."""
    parts = [part for part in str(name).replace("\\", "/").split("/") if part not in ("", ".")]
    return "/".join(parts)


def are_same(first: str, second: str) -> bool:
    """Whether one of two clear paths ends with all parts of the other."""
    longer, shorter = (first, second) if len(first) >= len(second) else (second, first)
    return longer == shorter or longer.endswith(f"/{shorter}")
