"""Supported releases of other libraries, and the error for one that does not behave as expected.

This library relies on internals of transformers, peft, accelerate and TRL, which change without notice. The
ranges below are those of pyproject.toml. Code that relies on an internal checks it once and raises
`IncompatibleLibraryError` if it does not hold, whatever the version is.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from reverse.errors import BackendError

__all__ = ["SUPPORTED", "IncompatibleLibraryError", "format_supported_range", "warn_of_newer_versions"]

_log = logging.getLogger(__name__)

# The oldest and the newest tested minor release of each library whose internals are relied on.
SUPPORTED = {
    "transformers": ("5.18", "5.24"),
    "peft": ("0.19", "0.21"),
    "accelerate": ("1.12", "1.15"),
    "trl": ("1.16", "1.16"),
}


class IncompatibleLibraryError(BackendError):
    """An installed library does not behave as expected, so results would be wrong."""

    def __init__(self, library: str, what: str):
        super().__init__(
            f"{library} {_find_version(library) or '(not installed)'} is not compatible with reverse-vlm: "
            f"{what:.300}; supported is {library} {format_supported_range(library)}: "
            f"pip install '{pip_requirement(library)}'"
        )
        self.library = library


def format_supported_range(library: str) -> str:
    """Return the tested releases, as "5.18 to 5.24"."""
    oldest, newest = SUPPORTED[library]
    return f"{oldest} to {newest}"


def pip_requirement(library: str) -> str:
    """Return the range for pip, as "transformers>=5.18,<5.25"."""
    oldest, newest = SUPPORTED[library]
    major, minor = _release(newest)
    return f"{library}>={oldest},<{major}.{minor + 1}"


@cache
def warn_of_newer_versions() -> None:
    """Log a warning for each installed library that is newer than the tested ones, once per process."""
    for library, (_, newest) in SUPPORTED.items():
        installed = _find_version(library)
        if installed is not None and _release(installed) > _release(newest):
            _log.warning(
                "%s %s is newer than any that was tested (%s): results are guarded but not tested; "
                "pip install '%s'",
                library,
                installed,
                format_supported_range(library),
                pip_requirement(library),
            )


def _find_version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _release(number: str) -> tuple[int, int]:
    """Return the major and minor number of a version such as "5.24.0.dev0"."""
    parts = [*number.split("."), "0"][:2]
    major, minor = ("".join(c for c in part if c.isdigit()) or "0" for part in parts)
    return int(major), int(minor)
