"""A scene and its truth: which objects stand where. It depends only on the arguments of `make_scene`.

    >>> scene = make_scene("test", 123)
    >>> scene.id
    'test-000123'
    >>> sum(scene.truth.values()) == len(scene.objects)
    True

An object of which less than 60 % would be visible is left out: the truth never contains hidden objects.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

from reverse.data.scenes.object_names import UNCOUNTABLE
from reverse.data.scenes.sprites import Sprite, make_sprite
from reverse.data.scenes.themes import OBJECT_NAMES, THEME_NAMES, THEMES, Ground, Theme
from reverse.errors import DataError

T = TypeVar("T")

SPLITS = ("train", "val", "test", "shift")
SIDE = 112  # pixels; the sizes below are for it and grow in proportion
MIN_SIDE, MAX_SIDE = 64, 2048
MIN_VISIBLE = 0.6  # of an object's own pixels
OFF_THEME_SHARE = 0.2  # of the objects are drawn from all objects, not from the theme
WORLD_VERSION = 1  # raise it whenever the same arguments give another scene


@dataclass(frozen=True)
class SplitStatistics:
    """The distributions that a split draws from."""

    sizes: tuple[int, ...]  # pixels; few, so that every sprite is cached
    angles: tuple[int, ...]  # degrees counter-clockwise
    classes: tuple[int, ...]  # numbers of different objects, drawn evenly
    counts: tuple[int, ...]  # numbers of each, drawn evenly
    max_objects: int


USUAL = SplitStatistics(
    sizes=(13, 15, 17, 19, 21, 23, 25, 27, 29, 32),
    angles=(-45, -30, -15, 0, 15, 30, 45),
    classes=(2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 6),
    counts=(1,) * 16 + (2,) * 3 + (3,),
    max_objects=7,
)
SHIFTED = SplitStatistics(
    sizes=(11, 12, 14, 34, 36),
    angles=(-90, -60, -30, 0, 30, 60, 90),
    classes=(4, 5, 5, 6, 6, 7),
    counts=(1,) * 12 + (2,) * 5 + (3,) * 3,
    max_objects=10,
)


@dataclass(frozen=True)
class SceneObject:
    """One object: COCO name, centre and side in pixels, degrees counter-clockwise, whether it is mirrored."""

    name: str
    x: float
    y: float
    size: float
    angle: float
    is_mirrored: bool


@dataclass(frozen=True)
class Scene:
    """A scene: its ground, and its objects from back to front."""

    split: str
    index: int
    seed: int
    theme: str
    side: int
    objects: tuple[SceneObject, ...]
    ground: Ground
    texture_offset: tuple[int, int]  # where texture and noise are cut out of their patterns
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


def draw_option(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Draw one of `options` with equal probabilities (ten times as fast as `rng.choice`)."""
    return options[int(rng.random() * len(options))]


def draw_other_option(rng: np.random.Generator, options: Sequence[T], excluded: T) -> T:
    """Draw one of `options` except `excluded`, with equal probabilities."""
    return draw_option(rng, [option for option in options if option != excluded])


def draw_weighted_option(rng: np.random.Generator, options: Sequence[T], cumulative: Sequence[float]) -> T:
    """Draw one of `options`; `cumulative` holds the running sums of their weights."""
    return options[bisect_right(cumulative, rng.random() * cumulative[-1])]


def make_scene(split: str, index: int, seed: int = 0, side: int = SIDE) -> Scene:
    """Make scene number `index` of a split. Equal arguments give equal scenes on any machine, in any order.

    Raises DataError for an unknown split, a negative index or seed, or a side outside 64..2048.
    """
    if split not in SPLITS:
        raise DataError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if index < 0 or seed < 0:
        raise DataError(f"index and seed must not be negative, got index={index}, seed={seed}: count from 0")
    if not MIN_SIDE <= side <= MAX_SIDE:
        raise DataError(f"side must lie in {MIN_SIDE}..{MAX_SIDE} pixels, got {side}: try {SIDE}")
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    statistics = SHIFTED if split == "shift" else USUAL
    theme = THEMES[draw_option(rng, THEME_NAMES)]
    # The shifted split puts one theme's objects on another theme's ground.
    source = THEMES[draw_other_option(rng, THEME_NAMES, theme.name)] if split == "shift" else theme
    names = _draw_names(rng, statistics, source)
    objects = _place_objects(rng, names, statistics, side)
    return Scene(
        split, index, seed, theme.name, side, objects, draw_option(rng, theme.grounds),
        (int(rng.random() * 256), int(rng.random() * 256)),
        (int(rng.random() * 25) - 12, int(rng.random() * 41) - 20, int(rng.random() * 41) - 20),
        6 + int(rng.random() * 11),
    )  # fmt: skip


def _draw_names(rng: np.random.Generator, statistics: SplitStatistics, theme: Theme) -> list[str]:
    """Draw the names of the objects to place; equal names are neighbours."""
    chosen: dict[str, int] = {}
    wanted = draw_option(rng, statistics.classes)
    while len(chosen) < wanted:
        if rng.random() < OFF_THEME_SHARE:
            name = draw_option(rng, OBJECT_NAMES)
        else:
            name = draw_weighted_option(rng, theme.names, theme.cumulative)
        count = 1 if name in UNCOUNTABLE else draw_option(rng, statistics.counts)
        if name not in chosen:
            chosen[name] = count
    return [name for name, count in chosen.items() for _ in range(count)][: statistics.max_objects]


def _place_objects(
    rng: np.random.Generator, names: Sequence[str], statistics: SplitStatistics, side: int
) -> tuple[SceneObject, ...]:
    """Place the objects one after another; one that finds no room in 24 tries is left out."""
    owner = np.full((side, side), -1, np.int8)  # index of the object that is visible at a pixel
    placed: list[SceneObject] = []
    areas: list[int] = []
    visible: list[int] = []
    for name in names:
        size = max(8, round(draw_option(rng, statistics.sizes) * side / SIDE))
        angle, is_mirrored = draw_option(rng, statistics.angles), rng.random() < 0.5
        sprite = make_sprite(name, size, angle, is_mirrored)
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
                name, float(left - sprite.dx), float(top - sprite.dy), float(size), float(angle), is_mirrored
            )
        )
    return tuple(placed)


def locate_sprite(thing: SceneObject) -> tuple[Sprite, int, int]:
    """Return the sprite of an object, and the left and top pixel where it is drawn."""
    sprite = make_sprite(thing.name, int(thing.size), int(thing.angle), thing.is_mirrored)
    return sprite, int(thing.x) + sprite.dx, int(thing.y) + sprite.dy


def make_owner_map(scene: Scene) -> np.ndarray:
    """Return the index of the object that is visible at each pixel, int8 (side, side); -1 is the ground."""
    owner = np.full((scene.side, scene.side), -1, np.int8)
    for i, thing in enumerate(scene.objects):
        sprite, left, top = locate_sprite(thing)
        height, width = sprite.mask.shape
        owner[top : top + height, left : left + width][sprite.mask] = i
    return owner
