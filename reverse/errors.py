"""The errors that this library raises on purpose.

All of them are `ReverseError`. The command line prints a `ReverseError` as one line and exits with code 2.
It does the same with an error of the operating system, such as a full disk. Any other exception is a bug: the
command line shows its traceback. Every class is also a built-in exception, so that `except ValueError` works.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "CheckpointError",
    "DataError",
    "MissingFileError",
    "MissingPackageError",
    "OutputExistsError",
    "RequestError",
    "RequestTypeError",
    "ReverseError",
]


class ReverseError(Exception):
    """Base class. The message says what was wrong, the value and the remedy."""


class RequestError(ReverseError, ValueError):
    """A request, an option, a setting or a recipe has a value that cannot be used."""


class RequestTypeError(RequestError, TypeError):
    """A value of a request has the wrong type."""


class CheckpointError(ReverseError, ValueError):
    """A checkpoint, an adapter, a tokenizer or a processor cannot be used as it is."""


class DataError(ReverseError, ValueError):
    """A file, a record, a picture or an answer cannot be read or does not hold what it must hold."""


class MissingFileError(DataError, FileNotFoundError):
    """A file or folder that was named does not exist."""


class OutputExistsError(DataError, FileExistsError):
    """An output would replace something that exists."""


class MissingPackageError(ReverseError, ImportError):
    """An optional dependency is not installed."""


class BackendError(ReverseError, RuntimeError):
    """Decoding or training met a fault of the runtime: the device, its memory, or a model's logits."""
