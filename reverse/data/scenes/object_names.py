"""The 80 COCO names as words: their phrases, plurals and groups, and how to find them in a text.

Captions of this world contain "two wine glasses" or "a pair of skis", and CHAIR reads such phrases back. Both
directions stand here, so that they stay consistent.

    >>> noun_phrase("wine glass", 2)
    'two wine glasses'
    >>> [(m.name, m.count) for m in find_objects("A hot dog and two teddy bears are here.")]
    [('hot dog', 1), ('teddy bear', 2)]
"""

import re
from dataclasses import dataclass

from reverse.errors import DataError

COCO_IDS = {
    "person": 1, "bicycle": 2, "car": 3, "motorcycle": 4, "airplane": 5, "bus": 6, "train": 7, "truck": 8,
    "boat": 9, "traffic light": 10, "fire hydrant": 11, "stop sign": 13, "parking meter": 14, "bench": 15,
    "bird": 16, "cat": 17, "dog": 18, "horse": 19, "sheep": 20, "cow": 21, "elephant": 22, "bear": 23,
    "zebra": 24, "giraffe": 25, "backpack": 27, "umbrella": 28, "handbag": 31, "tie": 32, "suitcase": 33,
    "frisbee": 34, "skis": 35, "snowboard": 36, "sports ball": 37, "kite": 38, "baseball bat": 39,
    "baseball glove": 40, "skateboard": 41, "surfboard": 42, "tennis racket": 43, "bottle": 44,
    "wine glass": 46, "cup": 47, "fork": 48, "knife": 49, "spoon": 50, "bowl": 51, "banana": 52,
    "apple": 53, "sandwich": 54, "orange": 55, "broccoli": 56, "carrot": 57, "hot dog": 58, "pizza": 59,
    "donut": 60, "cake": 61, "chair": 62, "couch": 63, "potted plant": 64, "bed": 65, "dining table": 67,
    "toilet": 70, "tv": 72, "laptop": 73, "mouse": 74, "remote": 75, "keyboard": 76, "cell phone": 77,
    "microwave": 78, "oven": 79, "toaster": 80, "sink": 81, "refrigerator": 82, "book": 84, "clock": 85,
    "vase": 86, "scissors": 87, "teddy bear": 88, "hair drier": 89, "toothbrush": 90,
}  # fmt: skip

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

PAIR_NOUNS = ("skis", "scissors")  # written "a pair of skis", "two pairs of skis"
UNCOUNTABLE = ("broccoli",)  # written "some broccoli"; a scene holds at most one
PLURALS = {
    "person": "people", "bus": "buses", "sheep": "sheep", "stop sign": "stop signs", "skis": "skis",
    "bench": "benches", "wine glass": "wine glasses", "knife": "knives", "sandwich": "sandwiches",
    "broccoli": "broccoli", "couch": "couches", "mouse": "mice", "scissors": "scissors",
    "toothbrush": "toothbrushes",
}  # fmt: skip

# Objects that a model confuses because they look alike.
LOOKALIKES = (
    ("dog", "cat", "sheep", "cow", "horse", "bear", "teddy bear"),
    ("horse", "cow", "zebra", "giraffe", "elephant"),
    ("cup", "bowl", "wine glass", "bottle", "vase", "potted plant"),
    ("fork", "knife", "spoon", "toothbrush", "scissors"),
    ("car", "bus", "truck", "train"),
    ("bicycle", "motorcycle"),
    ("airplane", "boat", "bird", "kite"),
    ("apple", "orange", "donut", "sports ball", "clock", "stop sign"),
    ("banana", "carrot", "hot dog"),
    ("pizza", "sandwich", "cake", "hot dog"),
    ("broccoli", "potted plant"),
    ("tv", "laptop", "keyboard", "book", "cell phone"),
    ("mouse", "cell phone", "keyboard"),
    ("backpack", "handbag", "suitcase"),
    ("skateboard", "skis", "snowboard", "surfboard"),
    ("frisbee", "sports ball", "tennis racket"),
    ("chair", "couch", "bed", "toilet"),
    ("umbrella", "kite", "tie"),
    ("traffic light", "stop sign", "cell phone"),
    ("person", "snowboard", "surfboard", "tie"),
)

GROUPS = {
    "animals": ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"),
    "vehicles": ("bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    "food": (
        "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake",
    ),
    "furniture": ("chair", "couch", "bed", "toilet"),
}  # fmt: skip


@dataclass(frozen=True)
class Mention:
    """An object named in a text: COCO `name`, how many, and `text[start:end]`, determiner included."""

    name: str
    count: int
    start: int
    end: int


def make_plural(name: str) -> str:
    return PLURALS.get(name, name + "s")


def make_noun_phrase(name: str, count: int = 1) -> str:
    """`count` of `name` in words, lower case: "a dog", "two dogs", "a pair of skis", "some broccoli".

    Raises DataError for a count below 1 or above 9.
    """
    if not 1 <= count < len(NUMBERS):
        raise DataError(f"count must lie in 1..{len(NUMBERS) - 1}, got {count}: say how many there are")
    if name in UNCOUNTABLE:
        return f"some {name}"
    if name in PAIR_NOUNS:
        return f"a pair of {name}" if count == 1 else f"{NUMBERS[count]} pairs of {name}"
    if count > 1:
        return f"{NUMBERS[count]} {make_plural(name)}"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def find_lookalikes(name: str) -> tuple[str, ...]:
    """Return the names of objects that look like `name`, in a fixed order."""
    return _LOOKALIKES.get(name, ())


def find_objects(text: str) -> list[Mention]:
    """Return every object that a text without tags names, from left to right; longer names take precedence.

    A "hot dog" is not a dog, a "teddy bear" not a bear, "no dog" names nothing; a bare plural counts as two.
    """
    mentions = []
    for match in _MENTION.finditer(text):
        determiner, pairs, form = ((part or "").lower() for part in match.groups())
        if determiner == "no":
            continue
        name, is_plural = _FORMS[" ".join(form.split())]
        if determiner in _COUNTS:
            count = _COUNTS[determiner]
        else:
            count = 2 if (pairs == "pairs" or (is_plural and not pairs and name not in PAIR_NOUNS)) else 1
        mentions.append(Mention(name, count, match.start(), match.end()))
    return mentions


def _read_lookalikes() -> dict[str, tuple[str, ...]]:
    table: dict[str, dict[str, None]] = {}
    for family in LOOKALIKES:
        for name in family:
            table.setdefault(name, {}).update(dict.fromkeys(other for other in family if other != name))
    return {name: tuple(others) for name, others in table.items()}


def _list_forms() -> dict[str, tuple[str, bool]]:
    forms = {make_plural(name): (name, make_plural(name) != name) for name in COCO_IDS}
    forms.update({name: (name, False) for name in COCO_IDS})
    forms["persons"] = ("person", True)
    return forms


_LOOKALIKES = _read_lookalikes()
_FORMS = _list_forms()
_COUNTS = {"a": 1, "an": 1, "some": 1} | {word: i for i, word in enumerate(NUMBERS) if i}
_MENTION = re.compile(
    r"\b(?:(no|the|" + "|".join(_COUNTS) + r")\s+)?(?:(pairs?)\s+of\s+)?\b("
    + "|".join(re.escape(form).replace(r"\ ", r"\s+") for form in sorted(_FORMS, key=len, reverse=True))
    + r")\b",
    re.IGNORECASE,
)  # fmt: skip
