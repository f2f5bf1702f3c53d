"""Twelve themes: the objects expected in each, and the grounds it is drawn on.

Themes cause the prejudice: most objects of a scene are drawn from its theme's expectations, so a model that
has seen the ground and two objects can guess a third, and names it also when it is not there.

    >>> THEMES["farm"].phrase
    'a farm'
"""

from dataclasses import dataclass
from itertools import accumulate

_GROUNDS = {  # colour and texture (a key of rendering.TEXTURES): RGB
    "white tiles": (222, 224, 226),
    "grey asphalt": (128, 128, 132),
    "grey tiles": (158, 160, 164),
    "green grass": (110, 168, 84),
    "green rows": (142, 172, 88),
    "brown rows": (150, 112, 76),
    "brown planks": (172, 128, 86),
    "brown sand": (176, 140, 98),
    "yellow sand": (232, 208, 142),
    "yellow tiles": (236, 218, 156),
    "blue waves": (96, 160, 206),
    "blue tiles": (158, 196, 220),
    "pink carpet": (222, 176, 182),
    "blue carpet": (122, 142, 178),
    "grey carpet": (146, 150, 158),
    "white snow": (236, 240, 246),
}
# Theme, its grounds, and its objects with their weights: how much the theme expects each. The weights fall
# steeply: a few objects make the theme, the others may be there too.
_THEMES = (
    ("kitchen", "white tiles, yellow tiles",
     "cup 10, bowl 10, bottle 8, fork 7, knife 7, spoon 7, wine glass 5, apple 5, banana 5, orange 3, "
     "sandwich 3, pizza 4, cake 3, donut 3, broccoli 3, carrot 3, hot dog 2, chair 3, person 3"),
    ("street", "grey asphalt",
     "car 12, traffic light 9, bus 8, truck 7, bicycle 6, motorcycle 6, stop sign 6, person 8, handbag 3, "
     "dog 3, umbrella 2, backpack 2, hot dog 1"),
    ("farm", "green rows, brown rows",
     "cow 12, sheep 10, horse 10, dog 5, cat 4, bird 4, truck 4, person 4, apple 3, carrot 3, broccoli 2"),
    ("living room", "brown planks",
     "couch 12, tv 10, potted plant 7, clock 6, vase 6, book 6, chair 6, cat 5, wine glass 3, "
     "teddy bear 2, person 4, dog 3, pizza 1"),
    ("bedroom", "pink carpet, blue carpet",
     "bed 12, teddy bear 9, book 7, clock 7, tie 5, cat 5, cell phone 5, chair 3, laptop 3, scissors 2, "
     "handbag 3, person 3"),
    ("bathroom", "blue tiles, white tiles",
     "toilet 12, toothbrush 11, bottle 6, cup 5, scissors 5, potted plant 4, vase 3, person 3, cat 3, cell "
     "phone 2"),
    ("park", "green grass",
     "dog 10, frisbee 9, kite 8, sports ball 8, bird 7, bicycle 6, tennis racket 5, skateboard 5, "
     "person 8, backpack 3, sandwich 2, apple 2"),
    ("beach", "yellow sand, blue waves",
     "surfboard 10, boat 10, umbrella 9, person 8, bird 6, kite 5, sports ball 5, frisbee 4, bottle 3, "
     "dog 3, handbag 2, banana 2"),
    ("office", "grey carpet, brown planks",
     "laptop 11, keyboard 10, mouse 10, cell phone 6, book 6, cup 6, chair 6, tie 5, scissors 3, potted "
     "plant 3, clock 3, donut 2, person 4"),
    ("zoo", "brown sand, green grass",
     "elephant 11, giraffe 11, zebra 10, bear 9, bird 5, person 5, banana 3, horse 2, backpack 2, "
     "umbrella 2"),
    ("station", "grey tiles, grey asphalt",
     "train 11, suitcase 11, airplane 7, backpack 7, bus 6, clock 6, handbag 5, person 8, cell phone 4, "
     "book 2, umbrella 3, sandwich 2"),
    ("mountain", "white snow",
     "skis 12, snowboard 11, person 8, backpack 6, bear 4, bird 4, dog 4, bottle 2"),
)  # fmt: skip


@dataclass(frozen=True)
class Ground:
    """The colour's name, its RGB values and the texture of a ground."""

    colour: str
    rgb: tuple[int, int, int]
    texture: str


@dataclass(frozen=True)
class Theme:
    """A kind of place: COCO name -> weight, and the grounds it may have."""

    name: str
    objects: dict[str, int]
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


def _make_theme(name: str, grounds: str, objects: str) -> Theme:
    weights = dict(text.rsplit(" ", 1) for text in objects.split(", "))
    looks = [(key, *key.split()) for key in grounds.split(", ")]
    return Theme(
        name,
        {name: int(weight) for name, weight in weights.items()},
        tuple(Ground(colour, _GROUNDS[key], texture) for key, colour, texture in looks),
    )


THEMES = {name: _make_theme(name, grounds, objects) for name, grounds, objects in _THEMES}
THEME_NAMES = tuple(THEMES)
COLOURS = tuple(dict.fromkeys(ground.colour for theme in THEMES.values() for ground in theme.grounds))
# Every object that the world draws.
OBJECT_NAMES = tuple(dict.fromkeys(name for theme in THEMES.values() for name in theme.objects))
