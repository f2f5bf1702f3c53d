"""Pictures of the reasoning world: scenes, tables and bar charts, with their truth.

A picture depends only on split, number, seed and share of tables: it is the same on any machine, in any
order. Drawing touches no file.

    >>> picture = make_reasoning_picture("test", 0)
    >>> picture.kind, picture.truth
    ('scene', {'cup': 2, 'boat': 3})
    >>> draw_reasoning_picture(picture).shape
    (112, 112, 3)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from reverse.data.scenes.reasoning.reasoning_charts import ChartLayout, draw_chart, make_chart
from reverse.data.scenes.reasoning.reasoning_scenes import (
    draw_counting_scene,
    find_cell,
    make_counting_scene,
)
from reverse.data.scenes.reasoning.reasoning_tables import TableLayout, draw_table, make_table
from reverse.data.scenes.scene import SIDE, SPLITS, Scene
from reverse.errors import DataError

__all__ = [
    "NOWHERE",
    "REASONING_VERSION",
    "TABLE_SHARE",
    "PictureKind",
    "ReasoningPicture",
    "draw_reasoning_picture",
    "draw_reasoning_pictures",
    "find_places",
    "make_picture_rng",
    "make_reasoning_picture",
]

PictureKind = Literal["scene", "table", "chart"]
REASONING_VERSION = 1  # raise it whenever the same arguments give another picture or text
NOWHERE = "none"  # the place of what is not there
TABLE_SHARE = 0.2
CHART_SHARE = 0.25  # of the pictures that are not tables; the others are scenes


@dataclass(frozen=True)
class ReasoningPicture:
    """A picture's content and its truth.

    `truth`: COCO name -> how many (scenes), COCO name -> number (tables), colour -> height (charts). `theme`
    is empty for tables and charts.
    """

    split: str
    index: int
    seed: int
    kind: PictureKind
    truth: dict[str, int]
    layout: Scene | TableLayout | ChartLayout
    theme: str = ""

    @property
    def id(self) -> str:
        return f"{self.split}-{self.index:06d}"


def make_reasoning_picture(
    split: str, index: int, seed: int = 0, tables: float = TABLE_SHARE
) -> ReasoningPicture:
    """Picture number `index` of a split.

    Args:
        tables: share of tables in [0, 1]. Of the other pictures three in four are scenes and one is a chart.

    Raises DataError for an unknown split, a negative index or seed, or a share outside [0, 1].
    """
    if split not in SPLITS:
        raise DataError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if index < 0 or seed < 0:
        raise DataError(f"index and seed must not be negative, got index={index}, seed={seed}: count from 0")
    if not 0 <= tables <= 1:
        raise DataError(f"tables must lie in [0, 1], got {tables}: it is a share of the pictures, try 0.2")
    rng = _make_rng(split, index, seed, 0)
    share = rng.random()
    if share < tables:
        table = make_table(rng)
        return ReasoningPicture(split, index, seed, "table", table.values, table)
    if share < tables + (1 - tables) * CHART_SHARE:
        chart = make_chart(rng)
        return ReasoningPicture(split, index, seed, "chart", chart.values, chart)
    scene = make_counting_scene(rng, split, index, seed)
    return ReasoningPicture(split, index, seed, "scene", scene.truth, scene, scene.theme)


def draw_reasoning_picture(picture: ReasoningPicture) -> np.ndarray:
    """Draw the picture: uint8 of shape (112, 112, 3)."""
    if isinstance(picture.layout, Scene):
        return draw_counting_scene(picture.layout)
    if isinstance(picture.layout, TableLayout):
        return draw_table(picture.layout)
    return draw_chart(picture.layout)


def draw_reasoning_pictures(pictures: Sequence[ReasoningPicture]) -> np.ndarray:
    """Draw a batch of pictures: uint8 of shape (n, 112, 112, 3)."""
    batch = np.empty((len(pictures), SIDE, SIDE, 3), np.uint8)
    for row, picture in zip(batch, pictures, strict=True):
        row[...] = draw_reasoning_picture(picture)
    return batch


def find_places(picture: ReasoningPicture, name: str) -> str:
    """Return where something is: cells of a scene ("41 43": row and column), "row 2" of a table, bar "3" of a
    chart.

    The result is "none" if the picture does not hold it.
    """
    if name not in picture.truth:
        return NOWHERE
    if isinstance(picture.layout, Scene):
        cells = sorted(find_cell(thing) for thing in picture.layout.objects if thing.name == name)
        return " ".join(f"{row}{column}" for row, column in cells)
    number = list(picture.truth).index(name) + 1
    return f"row {number}" if picture.kind == "table" else str(number)


def make_picture_rng(picture: ReasoningPicture, purpose: int) -> np.random.Generator:
    """Return a generator that depends only on the picture and on its purpose; `purpose` is at least 1."""
    return _make_rng(picture.split, picture.index, picture.seed, purpose)


def _make_rng(split: str, index: int, seed: int, purpose: int) -> np.random.Generator:
    # The fourth number tells these from the generators of the scenes world, which end below 100.
    return np.random.default_rng([seed, SPLITS.index(split), index, 100 + purpose])
