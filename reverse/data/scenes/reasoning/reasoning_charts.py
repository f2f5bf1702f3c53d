"""Bar charts to read: two to four bars in different colours, 1 to 20 high, over grid lines at every five.

A unit is 2.5 pixels: bars that differ by one look alike to a small model, so reading them has headroom. The
half pixel of an odd value is drawn as a row of mixed colour.
"""

from dataclasses import dataclass

import numpy as np

from reverse.data.scenes.reasoning.reasoning_scenes import make_ground
from reverse.data.scenes.reasoning.reasoning_tables import HIGHEST_VALUE, PAPER_NOISE, PAPERS
from reverse.data.scenes.scene import SIDE, draw_option
from reverse.data.scenes.themes import Ground

__all__ = ["BAR_COLOURS", "HALF_PIXELS", "ChartLayout", "draw_chart", "make_chart"]

HALF_PIXELS = 5  # of half a pixel each, a unit
GRID_STEP = 5  # units
BAR_COLOURS = {
    "red": (214, 48, 44), "blue": (48, 92, 204), "green": (52, 156, 72), "yellow": (240, 204, 48),
    "orange": (240, 138, 36), "purple": (138, 62, 176), "brown": (122, 80, 48), "black": (40, 40, 44),
}  # fmt: skip
GRID_LINE = (178, 178, 184)
AXIS = (70, 70, 76)


@dataclass(frozen=True)
class ChartLayout:
    """The bars from left to right as colour -> value, and how they are drawn. Offsets are in pixels."""

    values: dict[str, int]
    left: int  # of the first bar
    base: int  # row of the axis
    width: int  # of a bar
    gap: int  # between bars
    paper: Ground
    offset: tuple[int, int]  # where the paper is cut out of its pattern


def make_chart(rng: np.random.Generator) -> ChartLayout:
    """Make a chart of two to four bars; all numbers of bars and all values are equally frequent."""
    count = 2 + int(rng.random() * 3)
    names = tuple(BAR_COLOURS)
    colours = [names[at] for at in rng.permutation(len(names))[:count].tolist()]
    values = {colour: 1 + int(rng.random() * HIGHEST_VALUE) for colour in colours}
    width, gap = 12 + int(rng.random() * 5), 5 + int(rng.random() * 4)
    room = SIDE - 12 - count * (width + gap)
    return ChartLayout(
        values, 8 + int(rng.random() * room), 70 + int(rng.random() * 34), width, gap,
        draw_option(rng, PAPERS), (int(rng.random() * 256), int(rng.random() * 256)),
    )  # fmt: skip


def draw_chart(chart: ChartLayout) -> np.ndarray:
    """Draw the chart: uint8 of shape (112, 112, 3)."""
    x, y = chart.offset
    canvas = make_ground(chart.paper, 0, PAPER_NOISE)[y : y + SIDE, x : x + SIDE].copy()
    for value in range(GRID_STEP, HIGHEST_VALUE + 1, GRID_STEP):
        canvas[chart.base - value * HALF_PIXELS // 2, 4 : SIDE - 4] = GRID_LINE
    left = chart.left
    for colour, value in chart.values.items():
        ink = np.asarray(BAR_COLOURS[colour], np.uint8)
        top, half = divmod(2 * chart.base - value * HALF_PIXELS, 2)
        top += half
        canvas[top : chart.base, left : left + chart.width] = ink
        if half:
            row = canvas[top - 1, left : left + chart.width]
            row[...] = (row.astype(np.uint16) + ink) // 2
        left += chart.width + chart.gap
    canvas[chart.base, 4 : SIDE - 4] = AXIS
    return canvas
