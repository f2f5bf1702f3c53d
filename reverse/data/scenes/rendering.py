"""Draw a scene: a textured, unevenly lit, noisy ground and the sprites on it, in integer arithmetic.

>>> render(make_scene("test", 0)).shape
(112, 112, 3)
"""

from functools import lru_cache

import numpy as np

from reverse.data.scenes.scene import Scene, locate_sprite
from reverse.errors import DataError

TEXTURES = ("tiles", "planks", "rows", "grass", "sand", "waves", "carpet", "asphalt", "snow")
_TILE = 512  # side of the precomputed patterns; a scene cuts a window out of them


def render_scene(scene: Scene) -> np.ndarray:
    """Draw the picture: uint8 of shape (side, side, 3)."""
    canvas = _draw_ground(scene)
    for thing in scene.objects:
        sprite, left, top = locate_sprite(thing)
        height, width = sprite.mask.shape
        window = canvas[top : top + height, left : left + width]
        window *= sprite.alpha
        window += sprite.colour
        window >>= 8
    picture = canvas.astype(np.int16)
    picture += _cut_window(make_noise(scene.noise), scene)  # over ground and objects, as a camera's noise
    return np.clip(picture, 0, 255, out=picture).astype(np.uint8)


def _draw_ground(scene: Scene) -> np.ndarray:
    """Draw the ground: uint16 (side, side, 3) in 0..255."""
    brightness, slope_x, slope_y = scene.light
    ramp = np.arange(scene.side) * 2 - scene.side
    shade = _cut_window(make_pattern(scene.ground.texture), scene) + brightness
    shade += (ramp * slope_x // (2 * scene.side)).astype(np.int16)[None, :]
    shade += (ramp * slope_y // (2 * scene.side)).astype(np.int16)[:, None]
    ground = shade[..., None] + np.asarray(scene.ground.rgb, np.int16)
    return np.clip(ground, 0, 255, out=ground).astype(np.uint16)


def _cut_window(pattern: np.ndarray, scene: Scene) -> np.ndarray:
    x, y = scene.texture_offset
    if scene.side > _TILE - 256:  # larger than usual: the pattern repeats
        at = np.arange(scene.side)
        return pattern[np.ix_((at + y) % _TILE, (at + x) % _TILE)]
    return pattern[y : y + scene.side, x : x + scene.side].copy()


@lru_cache(maxsize=32)
def make_noise(strength: int) -> np.ndarray:
    """Return the noise of a camera, int16 (512, 512, 3); `strength` is in units of 1/16."""
    rng = np.random.default_rng(7)
    noise = rng.integers(-15, 16, (_TILE, _TILE, 3)) + rng.integers(-15, 16, (_TILE, _TILE, 1))
    return (noise * strength // 16).astype(np.int16)


@lru_cache(maxsize=len(TEXTURES))
def make_pattern(texture: str) -> np.ndarray:
    """Return the grey levels that a texture adds to the ground's colour, int16 (512, 512)."""
    rng = np.random.default_rng(TEXTURES.index(texture))
    y, x = np.mgrid[:_TILE, :_TILE]
    fine = rng.integers(-8, 9, (_TILE, _TILE))
    if texture == "tiles":
        joint = (x % 16 == 0) | (y % 16 == 0)
        pattern = fine // 3 - 34 * joint + 8 * ((x // 16 + y // 16) % 2)
    elif texture == "planks":
        board = rng.integers(-14, 15, _TILE // 8)[y // 8]
        pattern = fine // 2 + board - 30 * (y % 8 == 0) + _make_smooth_noise(rng, 1, 24)
    elif texture == "rows":
        pattern = fine + 18 * (((x + y) // 6) % 2) - 9
    elif texture == "grass":
        pattern = fine + _make_smooth_noise(rng, 5, 1) * 2
    elif texture == "sand":
        pattern = fine + _make_smooth_noise(rng, 24, 24)
    elif texture == "waves":
        pattern = fine // 2 + np.rint(14 * np.sin(y * (np.pi / 8) + 2 * np.sin(x * (np.pi / 32)))).astype(int)
    elif texture == "carpet":
        pattern = fine // 2 + 10 * ((x % 4 < 2) ^ (y % 4 < 2)) - 5
    elif texture == "asphalt":
        pattern = fine * 2 + _make_smooth_noise(rng, 12, 12)
    elif texture == "snow":
        pattern = fine // 3 + _make_smooth_noise(rng, 32, 16)
    else:
        raise DataError(f"texture must be one of {', '.join(TEXTURES)}, got {texture!r}")
    return pattern.astype(np.int16)


def _make_smooth_noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return smooth noise in -12..12 with spots of about height x width pixels, periodic at the edges."""
    noise = rng.integers(-1000, 1001, (_TILE, _TILE))
    for axis, length in ((0, height), (1, width)):
        for _ in range(2):
            rolled = np.concatenate([noise, noise.take(range(length), axis)], axis).cumsum(axis)
            total = rolled.take(range(length, _TILE + length), axis) - rolled.take(range(_TILE), axis)
            noise = total // length  # a running mean, twice along each axis
    return noise * 12 // max(1, int(np.abs(noise).max()))
