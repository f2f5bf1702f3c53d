"""Numbers in answers: thousands separators, percent, fractions, powers of ten, words, units and signs."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from reverse.grading.answer_key import AnswerKey

__all__ = ["Number", "compare_numbers", "find_numbers", "read_number"]

_SMALL = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORDS = {word: value for value, word in enumerate(_SMALL)} | {
    word: 10 * value for value, word in enumerate(_TENS, 2)
}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SUFFIXES = {"k": 1000, "m": 10**6, "bn": 10**9, "b": 10**9}
_WORD = "|".join([*_SMALL, *_TENS])
_NUMBER_WORDS = rf"(?:{_WORD})(?:[\s-]+(?:and\s+)?(?:{_WORD}|{'|'.join(_SCALES)}))*"
_DIGITS = r"(?:\d{1,3}(?:[, \u00a0\u202f]\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"""(?<![\w.])(?P<sign>[-+\u2212\u2013](?=\s?[\d.$€£¥\\]))?\s?
    (?P<currency>\\?[$€£¥]\s?)?(?P<sign2>[-\u2212](?=\d))?
    (?:
        (?:(?P<whole>\d+)[\s-]+)?\\[dt]?frac\{{(?P<tex_top>-?\d+)\}}\{{(?P<tex_bottom>\d+)\}}
        |(?:(?P<mixed>\d+)\s+)?(?P<top>\d+)\s?/\s?(?P<bottom>\d+)(?![\d/])
        |(?P<digits>{_DIGITS})(?:\s?(?:[eE]|(?:\\times|[x×*])\s?10\s?\^)\s?\{{?(?P<power>[-+\u2212]?\d+)\}}?)?
    )
    (?:\s?(?P<percent>\\?%|per\s?cent\b|percent\b)|\s?(?P<scale>hundred|thousand|million|billion|trillion)\b
      |(?P<suffix>k|m|bn|b)(?![\w²³]))?
    |\b(?P<words>(?:(?:minus|negative)\s+)?{_NUMBER_WORDS})\b""",
    re.IGNORECASE | re.VERBOSE,
)
_DATE = re.compile(r"(?<![\d-])\d{4}-\d\d?-\d\d?(?![\d-])|(?<![\d/])\d\d?/\d\d?/\d{4}(?![\d/])")
_COMMA_DECIMAL = re.compile(r"(?<![\d.,])(\d+),(\d{1,2})(?![\d,])")


@dataclass(frozen=True, slots=True)
class Number:
    """A number in a text: its value, whether it is a percentage, and where it stands."""

    value: float
    is_percent: bool = False
    start: int = 0
    end: int = 0

    @property
    def text(self) -> str:
        """The number in its shortest form."""
        return f"{self.value:.12g}" + ("%" if self.is_percent else "")


def find_numbers(text: str) -> list[Number]:
    """Return all numbers of a text, from left to right. Numbers that no float can hold are left out."""
    found = []
    for match in _NUMBER.finditer(text):
        value = _value_of(match)
        if value is not None and math.isfinite(value):
            found.append(Number(value, bool(match["percent"]), match.start(), match.end()))
    return found


def read_number(text: str, *, is_marked: bool) -> Number | str:
    """Return the number that an answer gives, or the reason why it gives none.

    A text that a marker names as the answer gives its number if it holds only one value, or if it is an
    equation ("3 + 4 = 7": what stands behind the last equals sign). A longer text without a marker gives
    its last number.
    """
    text = _DATE.sub(" ", _COMMA_DECIMAL.sub(r"\1.\2", text.strip()))
    if is_marked or len(text) <= 40:
        text = re.split(r"(?<![<>=!])=(?!=)|≈", text)[-1]
    numbers = find_numbers(text)
    if not numbers:
        return "no number"
    if len({(each.value, each.is_percent) for each in numbers}) == 1:
        return numbers[-1]
    if _is_range(text, numbers[:2] if is_marked else numbers[-2:]):
        return "a range, no number"
    if not is_marked:
        return numbers[-1]
    return numbers[0] if _is_explained(text, numbers) else "several numbers"


def compare_numbers(given: Number, key: AnswerKey) -> str | None:
    """Return the reason why `given` equals a right number; None if it equals none."""
    for answer in key.answers:
        right = read_number(answer, is_marked=False)
        if isinstance(right, str):
            continue
        for value, wanted in _same_scale(given, right, key):
            room = max(key.absolute, key.tolerance * abs(wanted))
            if abs(value - wanted) <= room * (1 + 1e-9):
                if value == wanted:
                    return f"{value:.12g} equals {wanted:.12g}"
                share = f"{100 * key.tolerance:g}% of " if key.tolerance else f"{key.absolute:g} of "
                return f"{value:.12g} is within {share}{wanted:.12g}"
    return None


def _same_scale(given: Number, right: Number, key: AnswerKey) -> list[tuple[float, float]]:
    """Return the pairs of values to compare. 25 % equals 0.25, but a bare 25 does not.

    Where percent is the unit that was asked for, a bare number is taken as a percentage.
    """
    asked = key.unit.strip() in ("%", "percent", "per cent")
    if given.is_percent == right.is_percent:
        return [(given.value, right.value)]
    if given.is_percent:
        return (
            [(given.value, right.value)]
            if asked
            else [(given.value / 100, right.value), (given.value, right.value)]
        )
    return (
        [(given.value, right.value)]
        if asked
        else [(given.value, right.value / 100), (given.value, right.value)]
    )


def _value_of(match: re.Match[str]) -> float | None:
    sign = -1.0 if (match["sign"] or match["sign2"] or "+") in "-\u2212\u2013" else 1.0
    try:
        if match["words"]:
            return _value_of_words(match["words"])
        if match["tex_bottom"] or match["bottom"]:
            bottom = int(match["tex_bottom"] or match["bottom"])
            if bottom == 0:
                return None
            whole = int(match["whole"] or match["mixed"] or 0)
            return sign * float(whole + Fraction(int(match["tex_top"] or match["top"]), bottom))
        value = float(re.sub(r"[, \u00a0\u202f]", "", match["digits"]))
        if match["power"]:
            value *= 10.0 ** int(match["power"].replace("\u2212", "-"))
    except (OverflowError, ValueError):
        return None
    factor = (
        _SCALES.get((match["scale"] or "").lower()) or _SUFFIXES.get((match["suffix"] or "").lower()) or 1
    )
    return sign * value * factor


def _value_of_words(text: str) -> float:
    words = [word for word in re.split(r"[\s-]+", text.lower()) if word != "and"]
    sign = 1.0
    if words[0] in ("minus", "negative"):
        sign, words = -1.0, words[1:]
    total = current = 0
    for word in words:
        if word == "hundred":
            current = max(current, 1) * 100
        elif word in _SCALES:
            total, current = total + max(current, 1) * _SCALES[word], 0
        else:
            current += _WORDS[word]
    return sign * (total + current)


def _is_range(text: str, numbers: list[Number]) -> bool:
    """Whether the first two numbers are the ends of a range, "3 to 5", or alternatives, "3 or 5"."""
    between = text[numbers[0].end : numbers[1].start].strip().lower()
    return between in ("to", "or", "-", "\u2013", "and", "/")


def _is_explained(text: str, numbers: list[Number]) -> bool:
    """Whether the first number is the answer and the rest explains it: "7, since 3 + 4 = 7", "5 (of 8)"."""
    behind = text[numbers[0].end :].lstrip()
    return bool(re.match(r"[\w²³°%./]*\s*(?:[,;(]|because\b|since\b|as\b|out of\b|of\b)", behind))
