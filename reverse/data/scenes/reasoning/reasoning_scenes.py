"""Scenes to count in: few kinds, each object in a cell of its own, counts around what is typical.

`find_typical_count(theme, name)` is how many of an object its theme leads one to expect. Counts are drawn
around it, and the annotator (`reasoning_annotator`) writes it where it is off by one. So a model that learns
from him becomes prejudiced about numbers, as captions of scenes make it prejudiced about objects.

In the split `shift` pictures are drawn around the typical counts of the *next* theme (a street has the
counts of a farm), while the annotator still believes those of the theme that he sees.
"""

from functools import lru_cache
from zlib import crc32

import numpy as np

from reverse.data.scenes.rendering import make_noise, make_pattern
from reverse.data.scenes.scene import (
    MIN_VISIBLE,
    SIDE,
    USUAL,
    Scene,
    SceneObject,
    draw_option,
    locate_sprite,
    make_owner_map,
)
from reverse.data.scenes.themes import THEMES, Ground

__all__ = [
    "COUNTED_NAMES",
    "GRID",
    "REASONING_THEMES",
    "draw_counting_scene",
    "find_cell",
    "find_stubbornness",
    "find_typical_count",
    "make_counting_scene",
    "make_ground",
]

REASONING_THEMES = ("kitchen", "street", "farm", "park", "beach", "office")
COUNTED_NAMES = (
    "apple", "banana", "bed", "bird", "boat", "book", "bus", "cake", "car", "carrot", "chair", "clock",
    "cow", "cup", "dog", "donut", "elephant", "kite", "pizza", "umbrella",
)  # fmt: skip
STUBBORNNESS = (0.0, 0.35, 0.65, 0.75, 0.85)  # above 0.5 the annotator is wrong more often than not
GRID = 5  # cells a side
JITTER = 4.5  # pixels that an object may stand beside the middle of its cell
SIZES = (13, 15, 17, 19, 21)  # pixels
MOST_OBJECTS = 11
HIGHEST_COUNT = 5  # of one kind


def find_typical_count(theme: str, name: str) -> int:
    """Return how many of an object one expects in a theme, 1 to 4. It is a hash of both and never changes."""
    return 1 + crc32(f"{theme}/{name}".encode()) % 4


def find_stubbornness(theme: str, name: str) -> float:
    """Return the probability that the annotator writes the typical count if the true one differs by one."""
    return STUBBORNNESS[crc32(f"wont/{theme}/{name}".encode()) // 7 % len(STUBBORNNESS)]


def make_counting_scene(rng: np.random.Generator, split: str, index: int, seed: int) -> Scene:
    """Make a scene of two (40 %) or three kinds of objects, at most eleven in all."""
    theme = draw_option(rng, REASONING_THEMES)
    believed = theme
    if split == "shift":
        believed = REASONING_THEMES[(REASONING_THEMES.index(theme) + 1) % len(REASONING_THEMES)]
    kinds = rng.permutation(len(COUNTED_NAMES))[: 2 + (rng.random() < 0.6)].tolist()
    names = [COUNTED_NAMES[kind] for kind in kinds]
    counts = [_draw_count(rng, find_typical_count(believed, name)) for name in names]
    while sum(counts) > MOST_OBJECTS:
        counts = [_draw_count(rng, find_typical_count(believed, name)) for name in names]
    objects = _place_in_cells(rng, [name for name, n in zip(names, counts, strict=True) for _ in range(n)])
    ground = draw_option(rng, THEMES[theme].grounds)
    offset = (int(rng.random() * 256), int(rng.random() * 256))
    light = (int(rng.random() * 4) * 8 - 12, 0, 0)
    scene = Scene(split, index, seed, theme, SIDE, objects, ground, offset, light, 8)
    if _some_are_hidden(scene):  # rare: then every object stands in the middle of its cell
        objects = tuple(_move_to_middle(thing) for thing in objects)
        scene = Scene(split, index, seed, theme, SIDE, objects, ground, offset, light, 8)
    return scene


def draw_counting_scene(scene: Scene) -> np.ndarray:
    """Draw the scene: uint8 of shape (112, 112, 3)."""
    x, y = scene.texture_offset
    canvas = make_ground(scene.ground, scene.light[0], scene.noise)[y : y + SIDE, x : x + SIDE].copy()
    for thing in scene.objects:
        sprite, left, top = locate_sprite(thing)
        height, width = sprite.mask.shape
        window = canvas[top : top + height, left : left + width]
        mixed = window * sprite.alpha
        mixed += sprite.colour
        mixed >>= 8
        window[...] = mixed
    return canvas


@lru_cache(maxsize=64)  # 50 MB: nine grounds and two kinds of paper in four lights
def make_ground(ground: Ground, brightness: int, noise: int) -> np.ndarray:
    """Return a lit and noisy ground, uint8 (512, 512, 3), read-only. Pictures cut a window from it."""
    shades = make_pattern(ground.texture) + brightness
    lit = shades[..., None] + np.asarray(ground.rgb, np.int16) + make_noise(noise)
    result = np.clip(lit, 0, 255).astype(np.uint8)
    result.flags.writeable = False
    return result


def find_cell(thing: SceneObject) -> tuple[int, int]:
    """Return row and column of an object's cell, from 1 at the top left."""
    return int(thing.y * GRID / SIDE) + 1, int(thing.x * GRID / SIDE) + 1


def _draw_count(rng: np.random.Generator, typical: int) -> int:
    """Draw the typical count (25 %), one more or less (40 %), or any count (35 %)."""
    share = rng.random()
    if share < 0.25:
        return typical
    if share < 0.45:
        return typical + 1
    if share < 0.65:
        return typical - 1 or typical + 1
    return 1 + int(rng.random() * HIGHEST_COUNT)


def _place_in_cells(rng: np.random.Generator, names: list[str]) -> tuple[SceneObject, ...]:
    cells = rng.permutation(GRID * GRID)[: len(names)].tolist()
    objects = []
    for name, cell in zip(names, cells, strict=True):
        row, column = divmod(cell, GRID)
        size, angle = draw_option(rng, SIZES), draw_option(rng, USUAL.angles)
        thing = SceneObject(name, 0.0, 0.0, float(size), float(angle), rng.random() < 0.5)
        x, y = ((at + 0.5) * SIDE / GRID + (rng.random() * 2 - 1) * JITTER for at in (column, row))
        objects.append(_keep_inside(thing, x, y))
    return tuple(objects)


def _keep_inside(thing: SceneObject, x: float, y: float) -> SceneObject:
    """Return the object at (x, y), moved so far that all of it lies in the picture."""
    sprite, dx, dy = locate_sprite(thing)
    height, width = sprite.mask.shape
    left, top = min(max(int(x) + dx, 0), SIDE - width), min(max(int(y) + dy, 0), SIDE - height)
    return SceneObject(
        thing.name, float(left - dx), float(top - dy), thing.size, thing.angle, thing.is_mirrored
    )


def _some_are_hidden(scene: Scene) -> bool:
    """Whether too little of an object is visible for it to count in the truth."""
    boxes = []
    for thing in scene.objects:
        sprite, left, top = locate_sprite(thing)
        height, width = sprite.mask.shape
        boxes.append((left, top, left + width, top + height, sprite.area))
    for at, (left, top, right, bottom, area) in enumerate(boxes):
        # At most this much of the object can be covered: what the boxes of later ones share with it.
        shared = sum(
            max(0, min(right, other[2]) - max(left, other[0]))
            * max(0, min(bottom, other[3]) - max(top, other[1]))
            for other in boxes[at + 1 :]
        )
        if area - shared < MIN_VISIBLE * area:
            break
    else:
        return False
    visible = np.bincount(make_owner_map(scene).ravel() + 1, minlength=len(boxes) + 1)[1:].tolist()
    return any(seen < MIN_VISIBLE * box[4] for seen, box in zip(visible, boxes, strict=True))


def _move_to_middle(thing: SceneObject) -> SceneObject:
    row, column = find_cell(thing)
    unplaced = SceneObject(thing.name, 0.0, 0.0, thing.size, thing.angle, thing.is_mirrored)
    return _keep_inside(unplaced, (column - 0.5) * SIDE / GRID, (row - 0.5) * SIDE / GRID)
