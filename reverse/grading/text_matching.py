"""Texts and sets of texts as answers: compared without case, punctuation and articles."""

from __future__ import annotations

import re
import unicodedata

from reverse.grading.numbers_in_answers import find_numbers

__all__ = ["normalise_text", "read_members", "same_text"]

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = re.compile(r"[^\w\s%$€£/.+-]|(?<!\d)[.](?!\d)|[.](?!\d)|(?<!\w)-(?!\d)|(?<=\w)-(?=\w)")
_PREFIX = re.compile(r"^(?:it is|it's|they are|this is|that is|there is|there are)\s+")
_SEPARATORS = re.compile(r"\s*(?:[,;、，]|\band\b|&|\n)\s*", re.IGNORECASE)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")


def normalise_text(text: str) -> str:
    """Return a text in lower case, without punctuation and articles, in Unicode form NFKC, with single
    spaces.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = _PUNCTUATION.sub(" ", _THOUSANDS.sub("", text))
    return " ".join(_ARTICLES.sub(" ", text).split())


def same_text(given: str, right: str) -> bool:
    """Whether two texts are equal after normalisation, or give the same single number."""
    one, other = normalise_text(given), normalise_text(right)
    if one == other or (one and _PREFIX.sub("", one) == other):
        return True
    first, second = find_numbers(one), find_numbers(other)
    whole = len(first) == len(second) == 1 and all(
        number.end - number.start >= len(text) for number, text in ((first[0], one), (second[0], other))
    )
    return whole and first[0].value == second[0].value and first[0].is_percent == second[0].is_percent


def read_members(text: str) -> list[str]:
    """Return the members of a list such as "red, blue and 3", in normal form, sorted, each once."""
    text = re.sub(r"^[\[({]|[\])}]$", "", text.strip().rstrip("."))
    members = {
        normalise_text(_PREFIX.sub("", member)) for member in _SEPARATORS.split(_THOUSANDS.sub("", text))
    }
    return sorted(member for member in members if member)
