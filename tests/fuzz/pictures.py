"""Pictures: mutants of the accepted formats and of others, as bytes and as files."""

from __future__ import annotations

import functools
import io
import re
import warnings
from random import Random

import numpy as np
from PIL import Image

from reverse.data.pictures.opening import MAX_PIXELS, MAX_RATIO, MIN_SIDE, open_image, read_image_size
from tests.fuzz.mutating import mutate_bytes
from tests.fuzz.running import REFUSALS, Target, check_refusal, expect
from tests.fuzz.scratch import folder

ACCEPTED = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|BM|II\*\0|MM\0\*|II\0\*|MM\*\0|II\+\0|MM\0\+",
    re.DOTALL,
)
_HOW: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("PNG", "RGB", {}),
    ("PNG", "RGBA", {}),
    ("PNG", "P", {}),
    ("PNG", "I;16", {}),
    ("PNG", "1", {}),
    ("JPEG", "RGB", {"quality": 50}),
    ("JPEG", "L", {}),
    ("JPEG", "CMYK", {}),
    ("JPEG", "RGB", {"progressive": True}),
    ("WEBP", "RGB", {}),
    ("WEBP", "RGBA", {"lossless": True}),
    ("GIF", "P", {}),
    ("GIF", "L", {}),
    ("BMP", "RGB", {}),
    ("BMP", "P", {}),
    ("BMP", "1", {}),
    ("TIFF", "RGB", {}),
    ("TIFF", "L", {}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ("TIFF", "RGB", {"compression": "tiff_deflate"}),
    ("TIFF", "RGB", {"compression": "jpeg"}),
    ("TIFF", "F", {}),
    ("TIFF", "I;16", {}),
    ("TIFF", "1", {"compression": "group4"}),
)
_OTHERS = (
    "PPM",
    "ICO",
    "TGA",
    "PCX",
    "SGI",
    "DDS",
    "EPS",
    "PDF",
    "JPEG2000",
    "XBM",
    "IM",
    "SPIDER",
    "MSP",
    "ICNS",
    "DIB",
    "BLP",
)


@functools.cache
def samples() -> tuple[list[bytes], list[bytes]]:
    """Small pictures in the accepted formats, and in others that Pillow knows."""
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    ours, others = [], []
    for kind, mode, options in _HOW:
        image = (
            Image.new("F", pixels.size, 0.5)
            if mode == "F"
            else pixels.convert("L" if mode == "I;16" else mode)
        )
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image).astype(np.uint16) << 8)
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        ours.append(stream.getvalue())
    frames = [pixels.rotate(angle) for angle in (0, 90, 180)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        stream = io.BytesIO()
        frames[0].save(stream, kind, save_all=True, append_images=frames[1:])
        ours.append(stream.getvalue())
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    pixels.save(stream, "JPEG", exif=exif)
    ours.append(stream.getvalue())
    for kind in _OTHERS:
        for mode in ("RGB", "L", "1", "P", "RGBA", "F"):
            stream = io.BytesIO()
            try:
                pixels.convert(mode).save(stream, kind)
            except Exception:
                continue  # a format that this Pillow does not write, or not in this mode
            others.append(stream.getvalue())
            break
    return ours, others


def make(rng: Random) -> bytes:
    ours, others = samples()
    draw = rng.random()
    if draw < 0.02:
        return rng.randbytes(rng.choice((0, 1, 10, 500)))
    data = rng.choice(ours) if draw < 0.75 else rng.choice(others)
    return data if rng.random() < 0.02 else mutate_bytes(rng, data)


def check(data: bytes) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = open_image(data)
        except REFUSALS as error:
            check_refusal(error)
            image = None
        path = folder() / "picture.png"  # a name that says nothing of the content
        path.write_bytes(data)
        try:
            size = read_image_size(path)
        except REFUSALS as error:
            check_refusal(error, path.name)
            expect(image is None, "it opens, and its size is refused", error)
            size = None
        if image is None:
            return "refused"
    expect(ACCEPTED.match(data), "a picture of none of the accepted formats was opened", data[:16])
    expect(image.mode == "RGB", "not RGB", image.mode)
    width, height = image.size
    expect(
        size is not None and sorted(size) == sorted(image.size),
        "another size than its header's",
        size,
        image.size,
    )
    small, large = min(image.size), max(image.size)
    expect(
        small >= MIN_SIDE and width * height <= MAX_PIXELS and large <= MAX_RATIO * small, "size", image.size
    )
    expect(np.asarray(image).shape == (height, width, 3), "pixels are missing")
    return "read"


TARGET = Target("pictures", make, check, share=0.25, quick=800, seconds=4.0)
