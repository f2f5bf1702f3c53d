"""The sprites: cut out of the atlas, rotated and scaled. The only module that reads the art.

Sizes and angles are few (see `scene.SplitStatistics`), so that after some hundred scenes every sprite
comes from a cache.

    >>> make_sprite("dog", 24, 15).alpha.shape[0] <= 34
    True
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import numpy as np
from PIL import Image

from reverse.errors import BackendError

ART = files("reverse.data.scenes") / "art"


@dataclass(frozen=True)
class Sprite:
    """A sprite at one size and angle, cropped to what is visible; its arrays are read-only.

    colour: uint16 (h, w, 3), colour times alpha, in 0..255*256; alpha: uint16 (h, w, 1), 256 minus the
    opacity in 0..256; mask: bool (h, w), opacity of at least one half; dx, dy: the crop's left and top edge
    measured from the sprite's centre, pixels; area: the number of pixels in the mask.
    """

    colour: np.ndarray
    alpha: np.ndarray
    mask: np.ndarray
    dx: int
    dy: int
    area: int


@lru_cache(maxsize=1)
def load_atlas() -> dict[str, Image.Image]:
    """Return the 67 sprites by name, as RGBA images of 64 pixels a side.

    Raises BackendError if the package data are missing or damaged.
    """
    try:
        index = json.loads((ART / "atlas.json").read_text(encoding="utf-8"))
        with (ART / "atlas.png").open("rb") as stream:
            sheet = Image.open(stream).convert("RGBA")
    except (OSError, ValueError) as error:
        raise BackendError(f"the sprite atlas cannot be read ({error}): reinstall the package") from error
    side = index["sprite"]
    return {
        name: sheet.crop((at["x"], at["y"], at["x"] + side, at["y"] + side))
        for name, at in index["sprites"].items()
    }


@lru_cache(maxsize=1024)
def _rotate_sprite(name: str, angle: int) -> Image.Image:
    return load_atlas()[name].rotate(angle, Image.Resampling.BICUBIC, expand=True)


@lru_cache(maxsize=8192)
def _make_plain_sprite(name: str, size: int, angle: int) -> Sprite:
    sprite = _rotate_sprite(name, angle)
    scale = size / load_atlas()[name].width
    width, height = (max(1, round(edge * scale)) for edge in sprite.size)
    pixels = np.asarray(sprite.resize((width, height), Image.Resampling.LANCZOS), np.uint16)
    rows, columns = (np.flatnonzero((pixels[..., 3] > 8).any(axis)) for axis in (1, 0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    pixels = pixels[top:bottom, left:right]
    opacity = pixels[..., 3:] + (pixels[..., 3:] > 127)  # 0..255 -> 0..256, so that blending is a shift
    colour = pixels[..., :3] * opacity
    mask = pixels[..., 3] >= 128
    result = Sprite(
        colour, 256 - opacity, mask, int(left) - width // 2, int(top) - height // 2, int(mask.sum())
    )
    for array in (result.colour, result.alpha, result.mask):
        array.flags.writeable = False
    return result


@lru_cache(maxsize=16384)  # a mirrored one is a view of the plain one
def make_sprite(name: str, size: int, angle: int, is_mirrored: bool = False) -> Sprite:
    """Return the sprite `name`, `size` pixels a side, rotated counter-clockwise by `angle`, then mirrored."""
    plain = _make_plain_sprite(name, size, angle)
    if not is_mirrored:
        return plain
    colour, alpha, mask = (array[:, ::-1] for array in (plain.colour, plain.alpha, plain.mask))
    return Sprite(colour, alpha, mask, -plain.dx - mask.shape[1], plain.dy, plain.area)
