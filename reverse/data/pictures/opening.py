"""Open a picture safely: from a path, bytes, an open file, an array, a tensor, or a PIL image.

    >>> open_image("kitchen.png").mode
    'RGB'

JPEG, PNG, WebP, GIF, BMP and TIFF are accepted, recognised by their content and not by the name: Pillow's
decoders of rare formats are old and seldom tested. A file's size is read from its header and checked before
any pixel is decoded, so a hostile or broken file costs little, and the error says what is wrong with it.
"""

import io
import os
import threading
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from reverse.data.pictures.picture_sources import find_file, from_array, is_array, read_stream
from reverse.errors import DataError, RequestTypeError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # MPO, a phone's JPEG with a second one, is JPEG
MIN_SIDE = 8  # pixels: below it there is nothing to see, and image processors fail on it
MAX_PIXELS = 50_000_000  # a 50-megapixel photograph; decoded it takes 150 MB
MAX_WORK = 100 * MAX_PIXELS  # pixels that a progressive JPEG goes over; 10 scans are usual
MAX_RATIO = 100  # of the sides; a processor that scales the shorter one up would make the longer one huge
_MODES = frozenset(("1", "L", "P", "RGB", "RGBA", "LA", "PA", "La", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"))
_PIL_IMAGE = "image"  # name of a PIL image in errors
_header_lock = threading.Lock()  # `warnings.catch_warnings` changes what all threads see
# A PIL image decodes itself when it is first looked at, and a stream has one position: each has a lock.
_source_locks = [threading.RLock() for _ in range(64)]
_NO_RANGE = {"F": "floating point", "I": "32-bit numbers", "LAB": "Lab, which needs a colour profile"}


def resolve_image(root: str | Path, relative: str | Path) -> Path:
    """Return the path of `relative` under `root` with symbolic links followed; the file need not exist.

    Raises DataError for an absolute path, or one that leaves `root` by ".." or by a link.
    """
    root = Path(root).resolve()
    if not str(relative) or "\0" in str(relative):
        raise DataError(f"image path must name a file, got {str(relative)!r}: give a path relative to {root}")
    if Path(relative).is_absolute():
        raise DataError(f"image path must be relative, got {str(relative)!r}: give it relative to {root}")
    path = (root / relative).resolve()
    if not path.is_relative_to(root):
        raise DataError(f"image path {str(relative)!r} leaves {root}: pictures must lie under that directory")
    return path


def find_missing_images(root: str | Path, relatives: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Return the pictures that have no file under `root`, and the reasons for those that `resolve_image`
    refuses.

    Each folder is listed once, because separate checks of each picture are much slower on a network disk.
    """
    folders: dict[str, list[str]] = {}
    for relative in relatives:
        folders.setdefault(os.path.split(relative)[0], []).append(relative)
    missing: list[str] = []
    refused: dict[str, str] = {}
    for folder, names in folders.items():
        there: set[str] = set()
        try:
            path = resolve_image(root, folder or ".")
            if not path.is_dir():
                missing += names
                continue
            there = _list_files(path)
        except (ValueError, OSError):
            pass  # each picture is resolved below, and its error says why
        for relative in names:
            if relative[len(folder) :].lstrip("/") in there:
                continue
            try:
                if not resolve_image(root, relative).is_file():
                    missing.append(relative)
            except (ValueError, OSError) as error:
                refused[relative] = str(error)
    return missing, refused


def _list_files(folder: Path) -> set[str]:
    """List the plain files of a folder, without links, which may lead anywhere."""
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}


def read_image_size(path: str | Path) -> tuple[int, int]:
    """Read width and height of a picture from its header, before EXIF turns it; no pixel is decoded.

    Raises MissingFileError and DataError as `open_image`, except for damage behind the header.
    """
    with Path(path).open("rb") as stream:
        image = _read_header(stream, str(path))
        _check_size(image, str(path))
        return image.size


def open_image(source: Any) -> Image.Image:
    """Decode a picture to a PIL image in RGB: upright (EXIF), first frame or page, transparency on white.

    Args:
        source: a path (`~` is the home folder), the bytes of a file, a binary stream (read from its
            beginning and left open), a PIL image, a numpy array of uint8 of shape (height, width), (height,
            width, 1), (height, width, 3) or (height, width, 4), or a torch tensor of uint8 of shape
            (channels, height, width).

    16-bit grey is scaled from 0..65535 to 0..255; CMYK is converted without a colour profile.

    Raises FileNotFoundError for a missing file; ValueError when the picture is smaller than 8 pixels a side,
    larger than 50 megapixels, over 100 times as long as wide, cut off, of another format, of a kind whose
    values have no known range (float, 32-bit, Lab), or no picture at all; TypeError for an array that is not
    uint8, and any other kind of source.
    """
    if isinstance(source, Image.Image):
        with _find_source_lock(source):
            return _decode(source, _PIL_IMAGE)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _open(io.BytesIO(source), f"image of {len(source)} bytes")
    if is_array(source):
        return _decode(from_array(source), "image")
    if hasattr(source, "read"):
        with _find_source_lock(source):
            data = read_stream(source)
        return _open(io.BytesIO(data), f"image of {len(data)} bytes")
    if not isinstance(source, (str, os.PathLike)):
        raise RequestTypeError(
            f"image must be a path, bytes or a PIL image, got {type(source).__name__}: open it first (open "
            "binary files, numpy arrays and torch tensors of uint8 will do too)"
        )
    path = find_file(source)
    with path.open("rb") as stream:
        return _open(stream, str(path))


def _find_source_lock(source: Any) -> AbstractContextManager[Any]:
    return _source_locks[id(source) // 64 % len(_source_locks)]


def _reset_after_fork() -> None:
    """Replace the locks in a child process, where the threads that held them do not exist."""
    global _header_lock, _source_locks
    _header_lock = threading.Lock()
    _source_locks = [threading.RLock() for _ in _source_locks]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


def _open(stream: BinaryIO, name: str) -> Image.Image:
    image = _read_header(stream, name)
    _check_size(image, name)
    _check_work(stream, image, name)
    return _decode(image, name)


def _read_header(stream: BinaryIO, name: str) -> Image.Image:
    try:
        with _header_lock, warnings.catch_warnings():
            # `_check_size` reports large pictures; PIL's own limit warns at 89 megapixels and raises at 179.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(stream, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{name} is larger than {MAX_PIXELS} pixels ({error}): scale it down first"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise DataError(
            f"{name} is not a picture that can be read (no JPEG, PNG, WebP, GIF, BMP or TIFF): save it again "
            "as PNG or JPEG"
        ) from error
    except Exception as error:  # decoders raise nearly any error on damaged bytes
        raise DataError(
            f"{name} is not a picture that can be read ({_one_line(error)}): save it again as PNG or JPEG"
        ) from error


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise DataError(
            f"{name} is {width}x{height} pixels, too small to see anything: give at least {MIN_SIDE} a side"
        )
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{name} is {width}x{height} pixels, {width * height} of at most {MAX_PIXELS}: scale it down"
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise DataError(
            f"{name} is {width}x{height} pixels, a side over {MAX_RATIO} times the other: crop it"
        )


def _check_work(stream: BinaryIO, image: Image.Image, name: str) -> None:
    """Refuse a JPEG with many scans or a TIFF with huge tiles, which decode more pixels than they show."""
    pixels = image.width * image.height
    if image.format in ("JPEG", "MPO") and image.info.get("progressive"):
        at = stream.tell()
        stream.seek(0)
        scans = sum(piece.count(b"\xff\xda") for piece in iter(lambda: stream.read(1 << 20), b""))
        stream.seek(at)
        if scans * pixels > MAX_WORK:
            raise DataError(f"{name} has {scans} scans of {pixels} pixels: save it again as PNG or JPEG")
    if image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2", {})
        tile = (tags.get(322, 1), tags.get(323, 1))  # width and length of a tile
        if not all(isinstance(side, int) for side in tile) or tile[0] * tile[1] > MAX_PIXELS:
            raise DataError(f"{name} has tiles of {tile!r:.60} pixels: save it again as PNG or JPEG")


def _decode(image: Image.Image, name: str) -> Image.Image:
    _check_size(image, name)
    _check_mode(image, name)
    try:
        if image.tell():
            image.seek(0)
        image.load()
        inverted = image.format == "TIFF" and getattr(image, "tag_v2", {}).get(262) == 0  # white is zero
        image = _turn_upright(image)
        if image.mode.startswith("I"):  # 16-bit grey: PIL would clip it to white
            values = np.asarray(image).clip(0, 65535)  # (height, width)
            grey = (values >> 8).astype(np.uint8)
            grey = 255 - grey if inverted else grey
            if isinstance(clear := image.info.get("transparency"), int):  # PNG: one value is transparent
                grey = np.where(values == clear, np.uint8(255), grey)
            return Image.fromarray(grey).convert("RGB")
        if image.mode == "La":  # PIL converts it to one other mode only
            image = image.convert("LA")
        if _is_transparent(image):
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return image.convert("RGB")
    except MemoryError as error:
        raise DataError(f"{name} needs more memory than there is to decode: scale it down first") from error
    except Exception as error:  # decoders raise nearly any error on damaged bytes
        if name == _PIL_IMAGE:
            raise DataError(
                f"the PIL image cannot be decoded ({_one_line(error)}): its file is damaged, or was closed "
                "before the pixels were read; open it again, or give its path"
            ) from error
        raise DataError(
            f"{name} is damaged or cut off ({_one_line(error)}): copy or download it again"
        ) from error


def _turn_upright(image: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF data say; if they cannot be read it stays as it is, as in viewers."""
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # only the EXIF data are damaged; the pixels are decoded already
        return image


def _check_mode(image: Image.Image, name: str) -> None:
    """Raise an error for modes whose values are not colours without a range or a profile."""
    if image.mode in _MODES or image.mode.startswith("I;16"):
        return
    if image.mode == "I" and image.format == "PNG":  # as older versions of Pillow open 16-bit PNG
        return
    raise DataError(
        f"{name} is in mode {image.mode!r} ({_NO_RANGE.get(image.mode, 'rarely used')}), and which of its "
        "values are black and white is not known: scale it to 8 bits and save it as PNG (numpy: "
        "`((a - a.min()) / (a.max() - a.min()) * 255).astype('uint8')`)"
    )


def _is_transparent(image: Image.Image) -> bool:
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return True
    return image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A")


def _one_line(error: BaseException) -> str:
    """Return the message of an error as one line of at most 200 characters."""
    return f"{' '.join(str(error).split()) or type(error).__name__:.200}"
