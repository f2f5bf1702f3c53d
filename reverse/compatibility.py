"""Supported releases of other libraries, and the error where one does not behave as this library assumes.

This library relies on internals of transformers, peft and accelerate, which change without notice. The
ranges below are those of pyproject.toml. Each place that relies on an internal checks once that it holds and
raises `IncompatibleLibraryError` where it does not, whatever the version is.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from reverse.errors import BackendError

__all__ = ["SUPPORTED", "IncompatibleLibraryError", "supported_range", "warn_of_newer_versions"]

_log = logging.getLogger(__name__)

# The oldest and the newest tested minor release of each library whose internals are relied on.
SUPPORTED = {
    "transformers": ("5.18", "5.24"),
    "peft": ("0.19", "0.21"),
    "accelerate": ("1.12", "1.15"),
}


class IncompatibleLibraryError(BackendError):
    """An installed library does not do what this one relies on; going on would give wrong results."""

    def __init__(self, library: str, what: str):
        super().__init__(
            f"{library} {_installed(library) or '(not installed)'} is not compatible with reverse-vlm: "
            f"{what:.300}; supported is {library} {supported_range(library)}: "
            f"pip install '{requirement(library)}'"
        )
        self.library = library


def supported_range(library: str) -> str:
    """The tested releases, as people write them: "5.18 to 5.24"."""
    oldest, newest = SUPPORTED[library]
    return f"{oldest} to {newest}"


def requirement(library: str) -> str:
    """The range as pip reads it: "transformers>=5.18,<5.25"."""
    oldest, newest = SUPPORTED[library]
    major, minor = _release(newest)
    return f"{library}>={oldest},<{major}.{minor + 1}"


@cache
def warn_of_newer_versions() -> None:
    """Log one warning for each installed library that is newer than the newest tested one, once a process."""
    for library, (_, newest) in SUPPORTED.items():
        installed = _installed(library)
        if installed is not None and _release(installed) > _release(newest):
            _log.warning(
                "%s %s is newer than any that was tested (%s): results are guarded but not tested; "
                "pip install '%s'",
                library,
                installed,
                supported_range(library),
                requirement(library),
            )


def _installed(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _release(number: str) -> tuple[int, int]:
    """Major and minor number of a version such as "5.24.0.dev0"."""
    parts = [*number.split("."), "0"][:2]
    major, minor = ("".join(c for c in part if c.isdigit()) or "0" for part in parts)
    return int(major), int(minor)
