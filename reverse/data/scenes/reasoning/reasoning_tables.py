"""Tables to read in: two to four ruled rows, each with a sprite and a number from 1 to 20.

The digits are drawn from a matrix of 5 x 7 dots of this module, since the look of a font depends on the
release of the drawing library.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from reverse.data.scenes.reasoning.reasoning_scenes import COUNTED_NAMES, make_ground
from reverse.data.scenes.scene import SIDE, draw_option
from reverse.data.scenes.sprites import make_sprite
from reverse.data.scenes.themes import Ground

__all__ = ["HIGHEST_VALUE", "PAPERS", "TableLayout", "TableRow", "draw_table", "make_table"]

HIGHEST_VALUE = 20
ROW_HEIGHT = 26  # pixels
PAPERS = (
    Ground("white", (240, 240, 238), "snow"),
    Ground("yellow", (244, 236, 210), "snow"),
    Ground("blue", (222, 232, 244), "snow"),
)
PAPER_NOISE = 4
SPRITE_SIZES = (17, 19, 21)
INKS = ((20, 20, 24), (24, 40, 120), (120, 24, 24))
LINE = (150, 150, 156)
_DOTS = {  # rows from top to bottom, five dots each
    "0": "01110 10001 10011 10101 11001 10001 01110",
    "1": "00100 01100 00100 00100 00100 00100 01110",
    "2": "01110 10001 00001 00110 01000 10000 11111",
    "3": "01110 10001 00001 00110 00001 10001 01110",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "5": "11111 10000 11110 00001 00001 10001 01110",
    "6": "00110 01000 10000 11110 10001 10001 01110",
    "7": "11111 00001 00010 00100 01000 01000 01000",
    "8": "01110 10001 10001 01110 10001 10001 01110",
    "9": "01110 10001 10001 01111 00001 00010 01100",
}


@dataclass(frozen=True)
class TableRow:
    """One row: COCO name, number, and the size of its sprite in pixels."""

    name: str
    value: int
    size: int


@dataclass(frozen=True)
class TableLayout:
    """The rows of a table from top to bottom, and how it is drawn. Offsets are in pixels."""

    rows: tuple[TableRow, ...]
    top: int  # of the first row
    sprite_x: int  # middle of the column of sprites
    number_x: int  # left edge of the numbers
    scale: int  # pixels a dot of the digits
    ink: tuple[int, int, int]
    paper: Ground
    offset: tuple[int, int]  # where the paper is cut out of its pattern

    @property
    def values(self) -> dict[str, int]:
        """Return COCO name -> number, from top to bottom."""
        return {row.name: row.value for row in self.rows}


def make_table(rng: np.random.Generator) -> TableLayout:
    """Make a table of two to four rows. All numbers of rows and all values are equally frequent."""
    count = 2 + int(rng.random() * 3)
    kinds = rng.permutation(len(COUNTED_NAMES))[:count].tolist()
    rows = tuple(
        TableRow(COUNTED_NAMES[kind], 1 + int(rng.random() * HIGHEST_VALUE), draw_option(rng, SPRITE_SIZES))
        for kind in kinds
    )
    room = SIDE - count * ROW_HEIGHT - 2
    return TableLayout(
        rows, 1 + int(rng.random() * room), 22 + int(rng.random() * 16), 58 + int(rng.random() * 14),
        2 + (rng.random() < 0.5), draw_option(rng, INKS), draw_option(rng, PAPERS),
        (int(rng.random() * 256), int(rng.random() * 256)),
    )  # fmt: skip


def draw_table(table: TableLayout) -> np.ndarray:
    """Draw the table: uint8 of shape (112, 112, 3)."""
    x, y = table.offset
    canvas = make_ground(table.paper, 0, PAPER_NOISE)[y : y + SIDE, x : x + SIDE].copy()
    for at, row in enumerate(table.rows):
        top = table.top + at * ROW_HEIGHT
        if at % 2:
            canvas[top : top + ROW_HEIGHT, 4 : SIDE - 4] -= 14
        sprite = make_sprite(row.name, row.size, 0)
        height, width = sprite.mask.shape
        left = table.sprite_x - width // 2
        upper = top + (ROW_HEIGHT - height) // 2
        window = canvas[upper : upper + height, left : left + width]
        window[...] = (window * sprite.alpha + sprite.colour) >> 8
        _write_number(canvas, row.value, table, top)
    bottom = table.top + len(table.rows) * ROW_HEIGHT
    canvas[table.top : bottom + 1 : ROW_HEIGHT, 4 : SIDE - 4] = LINE
    canvas[table.top : bottom + 1, (4, SIDE - 5)] = LINE
    return canvas


def _write_number(canvas: np.ndarray, value: int, table: TableLayout, top: int) -> None:
    left = table.number_x
    for digit in str(value):
        glyph = _make_glyph(digit, table.scale)
        height, width = glyph.shape
        upper = top + (ROW_HEIGHT - height) // 2
        canvas[upper : upper + height, left : left + width][glyph] = table.ink
        left += width + table.scale


@lru_cache(maxsize=64)
def _make_glyph(digit: str, scale: int) -> np.ndarray:
    """Return a mask of a digit's ink, bool (7 * scale, 5 * scale)."""
    dots = np.array([[dot == "1" for dot in row] for row in _DOTS[digit].split()])
    return dots.repeat(scale, 0).repeat(scale, 1)
