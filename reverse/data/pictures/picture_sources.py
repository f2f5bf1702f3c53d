"""Read pictures from their sources: a checked path, a bounded stream, an array of uint8.

Errors show only the beginning of what was given: base64 in place of a path may have megabytes.
"""

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from reverse.data.records.schema import LONGEST_PATH
from reverse.errors import DataError, MissingFileError, RequestTypeError

MAX_BYTES = 1 << 29  # of an encoded picture: 50 megapixels of 16-bit RGBA, not compressed, take 400 MB
# What the base64 of a JPEG, PNG, GIF, WebP, BMP or TIFF file begins with.
_BASE64 = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk0", "Qk1", "SUkq", "TU0A")


def find_file(source: str | os.PathLike[Any]) -> Path:
    """Return the path of one existing file; `~` is the home folder unless such a file exists.

    Raises MissingFileError for a missing file; DataError for a folder, an empty path, or a text that is not a
    path (base64, an address, a caption).
    """
    given = os.fspath(source)
    text = given if isinstance(given, str) else os.fsdecode(given)
    if not text.strip():
        raise DataError(f"image path is empty, got {text!r}: give the path of a picture, or None for none")
    if len(text) > LONGEST_PATH or any(letter in text for letter in "\0\n\r"):
        raise DataError(_describe_no_path(text))
    try:
        path = Path(text)
        if not path.exists() and text.startswith("~"):
            path = path.expanduser()
        there, is_file = path.exists(), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a name that is too long, a lone surrogate
        raise DataError(_describe_no_path(text)) from error
    if not there:
        if len(text) > 40 and text.startswith(_BASE64):
            raise DataError(_describe_no_path(text))
        raise MissingFileError(f"no such image: {_shorten(path)}: check the path and the image root")
    if not is_file:
        raise DataError(f"{_shorten(path)} is not a file: give the path of one picture")
    return path


def _describe_no_path(text: str) -> str:
    return (
        f"image is a text of {len(text)} characters and no path: give base64 as "
        "'data:image/png;base64,…' or as bytes (base64.b64decode), anything else as the path of a picture"
    )


def _shorten(path: Path) -> str:
    text = str(path).encode("utf-8", "backslashreplace").decode("utf-8")  # terminals take no lone surrogate
    return text if len(text) <= 300 else f"{text[:140]}…{text[-140:]}"


def read_stream(stream: BinaryIO) -> bytes:
    """Return all bytes of an open, seekable binary file from its beginning; it stays open.

    Raises RequestTypeError for a file opened as text; DataError for a closed one, one that cannot be
    rewound, or more than MAX_BYTES.
    """
    try:
        if not (hasattr(stream, "seekable") and stream.seekable()):
            raise DataError("it cannot be rewound, give the bytes of its read()")
        stream.seek(0)
        data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise DataError(
            f"image is an open file that cannot be read ({error!s:.200}): open it again"
        ) from error
    if not isinstance(data, bytes):
        raise RequestTypeError(
            f"image is a file whose read() gives {type(data).__name__}, which must be bytes: open it with "
            "mode 'rb'"
        )
    if len(data) > MAX_BYTES:
        raise DataError(f"image is a file of more than {MAX_BYTES} bytes: scale the picture down")
    return data


def is_array(source: Any) -> bool:
    """Whether it is a numpy array or a torch tensor (torch is not imported for it)."""
    return isinstance(source, np.ndarray) or _is_tensor(source)


def _is_tensor(source: Any) -> bool:
    return any(
        kind.__name__ == "Tensor" and kind.__module__.partition(".")[0] == "torch"
        for kind in type(source).__mro__
    )


def from_array(source: Any) -> Image.Image:
    """Convert a uint8 array (height, width[, 1, 3 or 4]) or tensor (1, 3 or 4, height, width) to a PIL image.

    The fourth channel is opacity. Raises RequestTypeError for another dtype, DataError for another shape.
    """
    tensor = _is_tensor(source)
    kind = "torch.Tensor" if tensor else "numpy.ndarray"
    dtype, shape = str(source.dtype).removeprefix("torch."), tuple(source.shape)
    if dtype != "uint8":
        remedy = "(x * 255).round()" if dtype.startswith(("float", "bfloat")) else "(x scaled to 0..255)"
        remedy += ".to(torch.uint8)" if tensor else ".astype('uint8')"
        raise RequestTypeError(
            f"image is a {kind} of {dtype}, which must be uint8: whether its values reach 1, 255 or 65535 is "
            f"not known; give {remedy}"
        )
    wanted = "(height, width), (height, width, 3) or (height, width, 4)"
    if tensor:
        wanted = "(3, height, width), (1, height, width) or (4, height, width)"
    channels = (shape[0] if tensor else shape[2]) if len(shape) == 3 else 1
    if len(shape) not in (2, 3) or channels not in (1, 3, 4) or 0 in shape:
        raise DataError(
            f"image is a {kind} of shape {shape!s:.80}, which must be {wanted}: give one picture, and its "
            f"channels {'first' if tensor else 'last'} "
            f"({'x.permute(2, 0, 1)' if tensor else 'x.transpose(1, 2, 0)'})"
        )
    array = np.asarray(source.detach().cpu().numpy() if tensor else source)
    if array.ndim == 3:
        array = array.transpose(1, 2, 0) if tensor else array
        array = array[:, :, 0] if channels == 1 else array
    return Image.fromarray(np.ascontiguousarray(array))
