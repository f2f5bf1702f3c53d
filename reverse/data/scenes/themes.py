"""Twelve themes: what each expects to hold, and the ground it is drawn on.

A theme is where prejudice comes from: most objects of a scene are drawn from its theme's expectations, so a
model that has seen the ground and two objects can guess the third, and will guess it when it is not there.

    >>> THEMES["farm"].phrase
    'a farm'
"""

from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Ground:
    colour: str  # the word for it
    rgb: tuple[int, int, int]
    texture: str  # a key of render.TEXTURES


@dataclass(frozen=True)
class Theme:
    name: str
    objects: dict[str, int]  # COCO name -> weight: how much the theme expects it
    grounds: tuple[Ground, ...]

    @property
    def phrase(self) -> str:
        return ("an " if self.name[0] in "aeiou" else "a ") + self.name

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.objects)

    @property
    def cumulative(self) -> tuple[int, ...]:
        return tuple(accumulate(self.objects.values()))


_WHITE_TILES = Ground("white", (222, 224, 226), "tiles")
_GREY_ASPHALT = Ground("grey", (128, 128, 132), "asphalt")
_GREY_TILES = Ground("grey", (158, 160, 164), "tiles")
_GREEN_GRASS = Ground("green", (110, 168, 84), "grass")
_GREEN_ROWS = Ground("green", (142, 172, 88), "rows")
_BROWN_ROWS = Ground("brown", (150, 112, 76), "rows")
_BROWN_PLANKS = Ground("brown", (172, 128, 86), "planks")
_BROWN_SAND = Ground("brown", (176, 140, 98), "sand")
_YELLOW_SAND = Ground("yellow", (232, 208, 142), "sand")
_YELLOW_TILES = Ground("yellow", (236, 218, 156), "tiles")
_BLUE_WAVES = Ground("blue", (96, 160, 206), "waves")
_BLUE_TILES = Ground("blue", (158, 196, 220), "tiles")
_PINK_CARPET = Ground("pink", (222, 176, 182), "carpet")
_BLUE_CARPET = Ground("blue", (122, 142, 178), "carpet")
_GREY_CARPET = Ground("grey", (146, 150, 158), "carpet")
_WHITE_SNOW = Ground("white", (236, 240, 246), "snow")

# The weights fall steeply: a few objects make the theme, the rest may come along.
_ALL = (
    Theme(
        "kitchen",
        {
            "cup": 10, "bowl": 10, "bottle": 8, "fork": 7, "knife": 7, "spoon": 7, "wine glass": 5,
            "apple": 5, "banana": 5, "orange": 3, "sandwich": 3, "pizza": 4, "cake": 3, "donut": 3,
            "broccoli": 3, "carrot": 3, "hot dog": 2, "chair": 3, "person": 3,
        },
        (_WHITE_TILES, _YELLOW_TILES),
    ),
    Theme(
        "street",
        {
            "car": 12, "traffic light": 9, "bus": 8, "truck": 7, "bicycle": 6, "motorcycle": 6,
            "stop sign": 6, "person": 8, "handbag": 3, "dog": 3, "umbrella": 2, "backpack": 2,
            "hot dog": 1,
        },
        (_GREY_ASPHALT,),
    ),
    Theme(
        "farm",
        {
            "cow": 12, "sheep": 10, "horse": 10, "dog": 5, "cat": 4, "bird": 4, "truck": 4,
            "person": 4, "apple": 3, "carrot": 3, "broccoli": 2,
        },
        (_GREEN_ROWS, _BROWN_ROWS),
    ),
    Theme(
        "living room",
        {
            "couch": 12, "tv": 10, "potted plant": 7, "clock": 6, "vase": 6, "book": 6, "chair": 6,
            "cat": 5, "wine glass": 3, "teddy bear": 2, "person": 4, "dog": 3, "pizza": 1,
        },
        (_BROWN_PLANKS,),
    ),
    Theme(
        "bedroom",
        {
            "bed": 12, "teddy bear": 9, "book": 7, "clock": 7, "tie": 5, "cat": 5, "cell phone": 5,
            "chair": 3, "laptop": 3, "scissors": 2, "handbag": 3, "person": 3,
        },
        (_PINK_CARPET, _BLUE_CARPET),
    ),
    Theme(
        "bathroom",
        {
            "toilet": 12, "toothbrush": 11, "bottle": 6, "cup": 5, "scissors": 5, "potted plant": 4,
            "vase": 3, "person": 3, "cat": 3, "cell phone": 2,
        },
        (_BLUE_TILES, _WHITE_TILES),
    ),
    Theme(
        "park",
        {
            "dog": 10, "frisbee": 9, "kite": 8, "sports ball": 8, "bird": 7, "bicycle": 6,
            "tennis racket": 5, "skateboard": 5, "person": 8, "backpack": 3, "sandwich": 2,
            "apple": 2,
        },
        (_GREEN_GRASS,),
    ),
    Theme(
        "beach",
        {
            "surfboard": 10, "boat": 10, "umbrella": 9, "person": 8, "bird": 6, "kite": 5,
            "sports ball": 5, "frisbee": 4, "bottle": 3, "dog": 3, "handbag": 2, "banana": 2,
        },
        (_YELLOW_SAND, _BLUE_WAVES),
    ),
    Theme(
        "office",
        {
            "laptop": 11, "keyboard": 10, "mouse": 10, "cell phone": 6, "book": 6, "cup": 6,
            "chair": 6, "tie": 5, "scissors": 3, "potted plant": 3, "clock": 3, "donut": 2,
            "person": 4,
        },
        (_GREY_CARPET, _BROWN_PLANKS),
    ),
    Theme(
        "zoo",
        {
            "elephant": 11, "giraffe": 11, "zebra": 10, "bear": 9, "bird": 5, "person": 5,
            "banana": 3, "horse": 2, "backpack": 2, "umbrella": 2,
        },
        (_BROWN_SAND, _GREEN_GRASS),
    ),
    Theme(
        "station",
        {
            "train": 11, "suitcase": 11, "airplane": 7, "backpack": 7, "bus": 6, "clock": 6,
            "handbag": 5, "person": 8, "cell phone": 4, "book": 2, "umbrella": 3, "sandwich": 2,
        },
        (_GREY_TILES, _GREY_ASPHALT),
    ),
    Theme(
        "mountain",
        {
            "skis": 12, "snowboard": 11, "person": 8, "backpack": 6, "bear": 4, "bird": 4, "dog": 4,
            "bottle": 2,
        },
        (_WHITE_SNOW,),
    ),
)  # fmt: skip

THEMES = {theme.name: theme for theme in _ALL}
THEME_NAMES = tuple(THEMES)
COLOURS = tuple(dict.fromkeys(ground.colour for theme in _ALL for ground in theme.grounds))
OBJECT_NAMES = tuple(
    dict.fromkeys(name for theme in _ALL for name in theme.objects)
)  # every object the world draws
