"""Open a picture safely: from a path under a root, from bytes, or from a PIL image.

    >>> open_image("kitchen.png").mode
    'RGB'

A file's size is read from its header and checked before any pixel is decoded, so that a hostile or broken
file costs nothing and says what is wrong with it.
"""

import io
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MIN_SIDE = 8  # pixels: below it there is nothing to see, and image processors fail on it
MAX_PIXELS = 50_000_000  # a 50-megapixel photograph; decoded it takes 150 MB
MAX_RATIO = 100  # of the sides: a processor that scales the shorter one up makes the longer one explode


def resolve_image(root: str | Path, relative: str | Path) -> Path:
    """The path of `relative` under `root`, symbolic links followed; the file itself need not exist.

    Raises ValueError for an absolute path, or one that leaves `root` by ".." or by a link.
    """
    root = Path(root).resolve()
    if not str(relative) or "\0" in str(relative):
        raise ValueError(
            f"image path must name a file, got {str(relative)!r}: give a path relative to {root}"
        )
    if Path(relative).is_absolute():
        raise ValueError(f"image path must be relative, got {str(relative)!r}: give it relative to {root}")
    path = (root / relative).resolve()
    if not path.is_relative_to(root):
        raise ValueError(
            f"image path {str(relative)!r} leaves {root}: pictures must lie under that directory"
        )
    return path


def look_for_images(root: str | Path, relatives: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Of pictures under `root`: those that are no file there, and those that `resolve_image` refuses (why).

    Each folder is listed once: a disk in the network answers a question about every picture much more slowly.
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
            there = _files_of(path)
        except (ValueError, OSError):
            pass  # each of them is asked for below, and says why
        for relative in names:
            if relative[len(folder) :].lstrip("/") in there:
                continue
            try:
                if not resolve_image(root, relative).is_file():
                    missing.append(relative)
            except (ValueError, OSError) as error:
                refused[relative] = str(error)
    return missing, refused


def _files_of(folder: Path) -> set[str]:
    """The plain files of a folder; links are left out, for they may lead anywhere."""
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of a picture as its header says them, before EXIF turns it; no pixel is decoded.

    Raises FileNotFoundError and ValueError as `open_image` does; that a file is damaged is not seen here.
    """
    with Path(path).open("rb") as stream:
        image = _read_header(stream, str(path))
        _check_size(image, str(path))
        return image.size


def open_image(source: str | Path | bytes | Image.Image) -> Image.Image:
    """The picture as a decoded PIL image in RGB: upright (EXIF), first frame, transparency on white.

    Raises FileNotFoundError for a missing file; ValueError when the picture is smaller than 8 pixels a side,
    larger than 50 megapixels, over 100 times as long as wide, cut off or no picture at all; TypeError for any
    other kind of source.
    """
    if isinstance(source, Image.Image):
        return _decode(source, "image")
    if isinstance(source, (bytes, bytearray)):
        return _open(io.BytesIO(source), f"image of {len(source)} bytes")
    if not isinstance(source, (str, Path)):
        raise TypeError(
            f"image must be a path, bytes or a PIL image, got {type(source).__name__}: open it first"
        )
    if not str(source).strip():
        raise ValueError(f"image path is empty, got {source!r}: give the path of a picture, or None for none")
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"no such image: {path}: check the path and the image root")
    if not path.is_file():
        raise ValueError(f"{path} is not a file: give the path of one picture")
    with path.open("rb") as stream:
        return _open(stream, str(path))


def _open(stream, name: str) -> Image.Image:
    return _decode(_read_header(stream, name), name)


def _read_header(stream, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Ours is the limit that speaks: PIL's own warns from 89 megapixels on and raises at 179.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(stream)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name} is larger than {MAX_PIXELS} pixels ({error}): scale it down first"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"{name} is not a picture that can be read ({error}): save it again as PNG or JPEG"
        ) from error


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise ValueError(
            f"{name} is {width}x{height} pixels, too small to see anything: give at least {MIN_SIDE} a side"
        )
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{name} is {width}x{height} pixels, {width * height} of at most {MAX_PIXELS}: scale it down"
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ValueError(
            f"{name} is {width}x{height} pixels, a side over {MAX_RATIO} times the other: crop it"
        )


def _decode(image: Image.Image, name: str) -> Image.Image:
    _check_size(image, name)
    try:
        if image.tell():
            image.seek(0)
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        elif image.mode.startswith("I"):  # 16-bit grey: PIL would clip it to white
            image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
        return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise ValueError(f"{name} is damaged or cut off ({error}): copy or download it again") from error
