"""Find the picture that a name means among those of a benchmark, whatever folders stand before either.

    pictures = Pictures(["train/1.jpg", "val/1.jpg", "val/2.jpg"])
    pictures.find("data/val/1.jpg"), pictures.find("2.jpg")     # "val/1.jpg", "val/2.jpg"
    pictures.find("1.jpg")                                      # Ambiguous: ValueError

Files of answers and files of truth write the same picture with other folders before it, or with none, so
the name alone tells it, as long as no two pictures share it.
"""

from __future__ import annotations

from collections.abc import Iterable

from reverse.errors import DataError
from reverse.files.cell_values import file_name, shorten

__all__ = ["Pictures", "are_same", "clear_path"]


class Pictures:
    """The pictures of one benchmark, by the names that its files give them."""

    def __init__(self, names: Iterable[str]):
        self._paths: dict[str, str] = {}
        self._by_name: dict[str, list[str]] = {}
        self._meant: dict[str, str] = {}
        for name in names:
            path = clear_path(name)
            if path not in self._paths:
                self._paths[path] = name
                self._by_name.setdefault(file_name(path), []).append(path)

    def find(self, name: str) -> str | None:
        """The picture's own name, None where there is none.

        Raises ValueError where the name may mean several pictures, and where two names that cannot be of one
        picture would mean the same.
        """
        path = clear_path(name)
        found = path if path in self._paths else self._by_file_name(path)
        if found is None:
            return None
        before = self._meant.setdefault(found, path)
        if not are_same(before, path):
            raise DataError(
                f"pictures {shorten(before)!r} and {shorten(path)!r} would both be "
                f"{shorten(self._paths[found])!r}: two pictures of one name are told apart by "
                "their folders, so the benchmark's file must name them"
            )
        if len(path) > len(before):
            self._meant[found] = path
        return self._paths[found]

    def _by_file_name(self, path: str) -> str | None:
        candidates = self._by_name.get(file_name(path), [])
        if len(candidates) > 1:
            several = candidates
            candidates = [each for each in several if are_same(each, path)]
            if len(candidates) != 1:
                told = ", ".join(shorten(each) for each in several[:3])
                raise DataError(
                    f"picture {shorten(path)!r} may be any of {told}: name it with its folder in the answers"
                )
        return candidates[0] if candidates else None


def clear_path(name: str) -> str:
    """A picture's path with / between its parts, without ./ and / before it."""
    parts = [part for part in str(name).replace("\\", "/").split("/") if part not in ("", ".")]
    return "/".join(parts)


def are_same(first: str, second: str) -> bool:
    """Whether one of two clear paths ends with all parts of the other."""
    longer, shorter = (first, second) if len(first) >= len(second) else (second, first)
    return longer == shorter or longer.endswith(f"/{shorter}")
