"""A scene and its truth: which objects stand where, drawn from a theme, a pure function of its arguments.

    >>> scene = make_scene("test", 123)
    >>> scene.id
    'test-000123'
    >>> sum(scene.truth.values()) == len(scene.objects)
    True

An object of which less than 60 % could be seen is not in the scene: the truth never asks for what is hidden.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

from reverse.data.scenes.object_names import UNCOUNTABLE
from reverse.data.scenes.sprites import Sprite, make_sprite
from reverse.data.scenes.themes import OBJECT_NAMES, THEME_NAMES, THEMES, Ground
from reverse.errors import DataError

Option = TypeVar("Option")
SPLITS = ("train", "val", "test", "shift")
SIDE = 112  # pixels; the sizes below are for it and grow in proportion
MIN_SIDE, MAX_SIDE = 64, 2048
MIN_VISIBLE = 0.6  # of an object's own pixels
OUTSIDE = 0.2  # share of objects that the theme does not expect
WORLD_VERSION = 1  # raise it whenever the same arguments give another scene


@dataclass(frozen=True)
class Statistics:
    """What distinguishes the shifted split from the others."""

    sizes: tuple[int, ...]  # few, so that every sprite variant is cached
    angles: tuple[int, ...]
    classes: tuple[int, ...]  # how many different objects, to draw from evenly
    counts: tuple[int, ...]  # how many of each, to draw from evenly
    most: int  # objects in a scene


USUAL = Statistics(
    sizes=(13, 15, 17, 19, 21, 23, 25, 27, 29, 32),
    angles=(-45, -30, -15, 0, 15, 30, 45),
    classes=(2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 6),
    counts=(1,) * 16 + (2,) * 3 + (3,),
    most=7,
)
SHIFTED = Statistics(
    sizes=(11, 12, 14, 34, 36),
    angles=(-90, -60, -30, 0, 30, 60, 90),
    classes=(4, 5, 5, 6, 6, 7),
    counts=(1,) * 12 + (2,) * 5 + (3,) * 3,
    most=10,
)


@dataclass(frozen=True)
class SceneObject:
    """One object: COCO name, centre and side in pixels, degrees counter-clockwise, mirrored or not."""

    name: str
    x: float
    y: float
    size: float
    angle: float
    flip: bool


@dataclass(frozen=True)
class Scene:
    """Everything that is drawn, back to front, and everything that is true of it."""

    split: str
    index: int
    seed: int
    theme: str
    side: int
    objects: tuple[SceneObject, ...]
    ground: Ground
    texture_offset: tuple[int, int]  # where the texture and the noise are cut out
    light: tuple[int, int, int]  # brightness, and its slope over x and y, grey levels
    noise: int  # strength of the pixel noise, in 1/16

    @property
    def id(self) -> str:
        return f"{self.split}-{self.index:06d}"

    @cached_property
    def truth(self) -> dict[str, int]:
        """COCO name -> how many there are."""
        counts: dict[str, int] = {}
        for thing in self.objects:
            counts[thing.name] = counts.get(thing.name, 0) + 1
        return counts


def draw_option(rng: np.random.Generator, options: Sequence[Option]) -> Option:
    """One of `options`, evenly (a tenth of the cost of `rng.choice`)."""
    return options[int(rng.random() * len(options))]


def draw_weighted_option(
    rng: np.random.Generator, options: Sequence[Option], cumulative: Sequence[float]
) -> Option:
    """One of `options`, with the running sums of their weights."""
    return options[bisect_right(cumulative, rng.random() * cumulative[-1])]


def make_scene(split: str, index: int, seed: int = 0, side: int = SIDE) -> Scene:
    """Scene number `index` of a split: the same for the same arguments, on any machine, in any order.

    Raises ValueError for an unknown split, a negative index or seed, or a side outside 64..2048.
    """
    if split not in SPLITS:
        raise DataError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if index < 0 or seed < 0:
        raise DataError(f"index and seed must not be negative, got index={index}, seed={seed}: count from 0")
    if not MIN_SIDE <= side <= MAX_SIDE:
        raise DataError(f"side must lie in {MIN_SIDE}..{MAX_SIDE} pixels, got {side}: {SIDE} is usual")
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    statistics = SHIFTED if split == "shift" else USUAL
    theme = THEMES[draw_option(rng, THEME_NAMES)]
    # The shifted split puts one theme's objects on another theme's ground.
    source = (
        THEMES[draw_option(rng, [name for name in THEME_NAMES if name != theme.name])]
        if split == "shift"
        else theme
    )
    names = _draw_names(rng, statistics, source.names, source.cumulative)
    objects = _place(rng, names, statistics, side)
    return Scene(
        split, index, seed, theme.name, side, objects, draw_option(rng, theme.grounds),
        (int(rng.random() * 256), int(rng.random() * 256)),
        (int(rng.random() * 25) - 12, int(rng.random() * 41) - 20, int(rng.random() * 41) - 20),
        6 + int(rng.random() * 11),
    )  # fmt: skip


def _draw_names(
    rng: np.random.Generator, statistics: Statistics, expected: Sequence[str], cumulative: Sequence[int]
) -> list[str]:
    """The objects to place, a class's copies next to each other."""
    chosen: dict[str, int] = {}
    wanted = draw_option(rng, statistics.classes)
    while len(chosen) < wanted:
        name = (
            draw_option(rng, OBJECT_NAMES)
            if rng.random() < OUTSIDE
            else draw_weighted_option(rng, expected, cumulative)
        )
        count = 1 if name in UNCOUNTABLE else draw_option(rng, statistics.counts)
        if name not in chosen:
            chosen[name] = count
    return [name for name, count in chosen.items() for _ in range(count)][: statistics.most]


def _place(
    rng: np.random.Generator, names: Sequence[str], statistics: Statistics, side: int
) -> tuple[SceneObject, ...]:
    """Put the objects down one after another; what finds no room in 24 tries is left out."""
    owner = np.full((side, side), -1, np.int8)  # which object shows at a pixel
    placed: list[SceneObject] = []
    areas: list[int] = []
    visible: list[int] = []
    for name in names:
        size = max(8, round(draw_option(rng, statistics.sizes) * side / SIDE))
        angle, flip = draw_option(rng, statistics.angles), rng.random() < 0.5
        sprite = make_sprite(name, size, angle, flip)
        height, width = sprite.mask.shape
        for _ in range(24):
            left, top = int(rng.random() * (side - width + 1)), int(rng.random() * (side - height + 1))
            window = owner[top : top + height, left : left + width]
            hidden = np.bincount(window[sprite.mask] + 1, minlength=len(placed) + 1)[1:]
            if all(
                now - lost >= MIN_VISIBLE * full
                for now, lost, full in zip(visible, hidden, areas, strict=True)
            ):
                break
        else:
            continue
        window[sprite.mask] = len(placed)
        visible = [now - int(lost) for now, lost in zip(visible, hidden, strict=True)] + [sprite.area]
        areas.append(sprite.area)
        placed.append(
            SceneObject(
                name, float(left - sprite.dx), float(top - sprite.dy), float(size), float(angle), flip
            )
        )
    return tuple(placed)


def locate_sprite(thing: SceneObject) -> tuple[Sprite, int, int]:
    """(variant, left, top): what to blend where for one object."""
    sprite = make_sprite(thing.name, int(thing.size), int(thing.angle), thing.flip)
    return sprite, int(thing.x) + sprite.dx, int(thing.y) + sprite.dy


def make_owner_map(scene: Scene) -> np.ndarray:
    """int8 (side, side): the index of the object that shows at each pixel, -1 for the ground."""
    owner = np.full((scene.side, scene.side), -1, np.int8)
    for i, thing in enumerate(scene.objects):
        sprite, left, top = locate_sprite(thing)
        height, width = sprite.mask.shape
        owner[top : top + height, left : left + width][sprite.mask] = i
    return owner
