"""Numbers in answers: find them, and change them into other plausible numbers.

These are counts in words and digits, "a dozen", ordinals, years, times, percentages, prices, decimals, boxes
("[0.12, 0.4, 0.5, 0.9]") and longer strings of digits (dates, telephone numbers, text on a sign).

    >>> [change_number(text, random.Random(0)) for text in ("three", "10:25", "1998")]
    ['five', '10:35', '1999']
"""

import re
from collections.abc import Iterator
from random import Random

ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
    "twelfth",
)  # fmt: skip
WORDS = {word: value for value, word in enumerate(ONES)} | {
    word: 10 * tens for tens, word in enumerate(TENS, 2)
}

_TENS_WORD = rf"(?:{'|'.join(TENS)})(?:[- ](?:{'|'.join(ONES[1:10])}))?"
_WORD = rf"(?:{_TENS_WORD}|{'|'.join(sorted(ONES, key=len, reverse=True))})"
_ORDINAL_WORD = "|".join(ORDINALS)

MAX_LENGTH = 200  # characters; longer strings of digits are not counts, and int() refuses them
MAX_STEP = 1000  # from a count to another

# Kinds in the order in which they are tried; each pattern matches a whole number.
KINDS = {
    "box": r"\[\s*\d*\.\d+(?:\s*,\s*\d*\.\d+){3}\s*\]",
    "time": r"(?:[01]?\d|2[0-3]):[0-5]\d(?!\d)",
    "percent": r"\d+(?:\.\d+)?(?=\s?(?:%|percent\b|per cent\b))",
    "ordinal": r"\d+(?:st|nd|rd|th)\b",
    "string": r"\d+(?:[-/.]\d+){2,}|\d+[-/]\d+|0\d+|\d{5,}",
    "thousands": r"\d{1,3}(?:,\d{3})+(?!\d)",
    "decimal": r"\d*\.\d+",
    "year": r"(?:1[5-9]|20)\d\d(?!\d)",
    "integer": r"\d+",
    "dozen": r"(?:half a |a |one |two |three )?dozen\b|(?:a )?couple\b",
    "ordinal_word": rf"(?:{_ORDINAL_WORD})\b",
    "word": rf"{_WORD}\b",
    "nothing": r"none\b",
}
_NUMBER = re.compile(
    r"(?<![\w.])(?:" + "|".join(f"(?P<{kind}>{pattern})" for kind, pattern in KINDS.items()) + ")",
    re.IGNORECASE,
)
# The first two characters of a number, searched first: to try all kinds at each character takes 1.4 s per
# megabyte, and at each letter with which a number may begin 2 s.
_BEGINS = re.compile(r"(?<![\w.])(?:\d|\.\d|\[\s*+[\d.]|a [cd]|[cdefhnostz][aehilnow])", re.IGNORECASE)
_WHOLE = re.compile(
    rf"(?:(?:about|around|approximately|over|nearly|almost)\s+)?[$€£¥]?(?:{_NUMBER.pattern})"
    r"(?:\s?(?:%|percent|per cent|am|pm|a\.m\.|p\.m\.|o'clock|st|nd|rd|th))?",
    re.IGNORECASE,
)


def find_numbers(text: str) -> list[tuple[int, int, str]]:
    """Return all numbers in `text`, from left to right: start, end, kind (a key of KINDS)."""
    return [(match.start(), match.end(), match.lastgroup or "") for match in _find_matches(text)]


def _find_matches(text: str) -> Iterator[re.Match[str]]:
    at = 0
    while (begin := _BEGINS.search(text, at)) is not None:
        match = _NUMBER.match(text, begin.start())
        at = begin.start() + 1 if match is None else match.end()
        if match is not None:
            yield match


def is_number(text: str) -> bool:
    """Whether `text` is a number and nothing else ("12", "a dozen", "$4.99", "10:25 am")."""
    return _WHOLE.fullmatch(text.strip()) is not None


def change_number(text: str, rng: Random, *, least: int = 0) -> str | None:
    """Change the first number of `text`: never to the same value or a negative one, small ones by 1 to 3.

    The text around the number, its case and its notation stay. `least` is the smallest count that may result
    (2 keeps a plural a plural). Returns None if there is no number, or no other number fits.
    """
    match = next(_find_matches(text), None)
    if match is None:
        return None
    old, kind = match.group(), match.lastgroup or ""
    if len(old) > MAX_LENGTH:
        return None
    new = _CHANGES[kind](old, rng, least)
    return None if new is None else text[: match.start()] + match_case(old, new) + text[match.end() :]


def match_case(old: str, new: str) -> str:
    """Return `new` in the case of `old`: all upper, first letter upper, or unchanged."""
    letters = [letter for letter in old if letter.isalpha()]
    if len(letters) > 1 and all(letter.isupper() for letter in letters):
        return new.upper()
    if letters and letters[0].isupper():
        return new[:1].upper() + new[1:]
    return new


def _draw_near(value: int, rng: Random, least: int = 0) -> int:
    """Draw a count close to `value`: 1 to 3 away, or up to a tenth for large values."""
    reach = min(max(3, value // 10), MAX_STEP)
    steps = [step for step in range(-reach, reach + 1) if step and value + step >= least]
    return value + rng.choices(steps, [1 / abs(step) for step in steps])[0]


def _change_word(old: str, rng: Random, least: int) -> str | None:
    parts = re.split(r"[- ]", old.lower())
    if not all(part in WORDS for part in parts):
        return None  # "fıve", "ſix": letters that match others where case is ignored
    value = sum(WORDS[part] for part in parts)
    return spell_number(_draw_near(value, rng, least), hyphen=" " if " " in old else "-")


def spell_number(value: int, hyphen: str = "-") -> str:
    """Return a count in words up to 99, in digits above."""
    if value < 20:
        return ONES[value]
    if value > 99:
        return str(value)
    return TENS[value // 10 - 2] + (hyphen + ONES[value % 10] if value % 10 else "")


def _change_time(old: str, rng: Random, least: int) -> str:
    hours, minutes = old.split(":")
    hour, minute = int(hours), int(minutes)
    clock = 24 if hour > 12 or hour == 0 else 12
    if rng.random() < 0.6:
        new_hour = (hour + rng.choice((-3, -2, -1, 1, 2, 3))) % clock
        hour = new_hour or (clock if clock == 12 else 0)
    else:
        minute = (minute + rng.choice((-20, -15, -10, 10, 15, 20))) % 60
    return f"{hour:0{len(hours) if hours.startswith('0') else 1}d}:{minute:02d}"


def _change_percent(old: str, rng: Random, least: int) -> str:
    places = len(old.partition(".")[2])
    value = float(old)
    steps = [step for step in (-25, -20, -15, -10, -5, 5, 10, 15, 20, 25) if 0 <= value + step <= 100]
    return f"{value + rng.choice(steps or [10]):.{places}f}"


def _change_year(old: str, rng: Random, least: int) -> str:
    steps = [step for step in range(-12, 13) if step and 1500 <= int(old) + step <= 2099]
    return str(int(old) + rng.choice(steps))


def _change_integer(old: str, rng: Random, least: int) -> str:
    return str(_draw_near(int(old), rng, least))


def _change_thousands(old: str, rng: Random, least: int) -> str:
    value = int(old.replace(",", ""))
    step = 10 ** (len(str(value)) - 2)
    return f"{value + rng.choice((-3, -2, -1, 1, 2, 3)) * step:,}"


def _change_decimal(old: str, rng: Random, least: int) -> str:
    whole, _, places = old.partition(".")
    if int(whole or 0):
        return f"{_draw_near(int(whole), rng, 0)}.{places}"
    first = next((place for place, digit in enumerate(places) if digit != "0"), 0)
    digit = str((int(places[first]) + rng.choice((2, 3, 4, 5, 6, 7, 8))) % 10)
    return f"{whole}.{places[:first]}{digit}{places[first + 1 :]}"


def _change_ordinal(old: str, rng: Random, least: int) -> str:
    value = _draw_near(int(old[:-2]), rng, 1)
    ending = "th" if value % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(value % 10, "th")
    return f"{value}{ending}"


def _change_ordinal_word(old: str, rng: Random, least: int) -> str | None:
    if old.lower() not in ORDINALS:
        return None  # letters as in `_change_word`
    place = ORDINALS.index(old.lower())
    near = [other for other in range(max(0, place - 3), min(len(ORDINALS), place + 4)) if other != place]
    return ORDINALS[rng.choice(near)]


def _change_dozen(old: str, rng: Random, least: int) -> str | None:
    if "couple" in old.lower():
        return None  # "a couple of" may also mean three: no number is surely false
    return rng.choice([many for many in ("two dozen", "half a dozen", "three dozen") if many != old.lower()])


def _change_string(old: str, rng: Random, least: int) -> str:
    """Change one or two digits. The first digit is changed only if there is no other."""
    places = [place for place, letter in enumerate(old) if letter.isdigit()]
    chosen = rng.sample(places[1:] or places, min(len(places[1:]) or 1, rng.choice((1, 2))))
    new = list(old)
    for place in chosen:
        new[place] = rng.choice([digit for digit in "0123456789" if digit != old[place]])
    return "".join(new)


def _change_box(old: str, rng: Random, least: int) -> str | None:
    """Draw a box of similar size elsewhere, whose overlap (IoU) with the old one is at most a fifth;
    coordinates are left, top, right, bottom as shares of the picture."""
    numbers = re.findall(r"\d*\.\d+", old)
    left, top, right, bottom = map(float, numbers)
    width, height = right - left, bottom - top
    if not (0 < width <= 1 and 0 < height <= 1):
        return None
    for _ in range(64):
        scale_x, scale_y = rng.uniform(0.6, 1.3), rng.uniform(0.6, 1.3)
        wide, high = min(width * scale_x, 0.95), min(height * scale_y, 0.95)
        x, y = rng.uniform(0, 1 - wide), rng.uniform(0, 1 - high)
        shared = max(0.0, min(right, x + wide) - max(left, x)) * max(0.0, min(bottom, y + high) - max(top, y))
        if shared <= 0.2 * (width * height + wide * high - shared):
            parts = re.split(r"(\d*\.\d+)", old)
            for place, number in zip((1, 3, 5, 7), (x, y, x + wide, y + high), strict=True):
                parts[place] = f"{number:.{len(parts[place].partition('.')[2])}f}"
            return "".join(parts)
    return None


def _change_nothing(old: str, rng: Random, least: int) -> str:
    return spell_number(rng.choice((1, 1, 2, 2, 3)))


_CHANGES = {
    "box": _change_box, "time": _change_time, "percent": _change_percent, "ordinal": _change_ordinal,
    "string": _change_string, "thousands": _change_thousands, "decimal": _change_decimal,
    "year": _change_year, "integer": _change_integer, "dozen": _change_dozen,
    "ordinal_word": _change_ordinal_word, "word": _change_word, "nothing": _change_nothing,
}  # fmt: skip
