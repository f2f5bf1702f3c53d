"""Options in answers: a letter, an index in brackets, or the text of an option."""

from __future__ import annotations

import re
from collections.abc import Sequence

from reverse.grading.text_matching import normalise_text

__all__ = ["read_choice", "right_letters"]

_ALONE = re.compile(r"^\W*([A-Za-z])\W*$")
_LEADING = re.compile(r"^\W*\(?([A-Z])(?:[).:,\]]|\s*[-\u2013:]\s)(?!\s*(?:or|and|/|,)\s*\(?[A-Z]\b)")
_BRACKETS = re.compile(r"[(\[]([A-Z])[)\]]")
_NAMED = re.compile(
    r"\b(?:option|choice|answer(?:\s+is)?|letter|选项?|答案(?:是|为)?)\s*[:：]?\s*[(\[\"'*]*([A-Z])(?![\w'])"
)
_SINGLE = re.compile(r"(?<![\w'])([B-HJ-Z])(?![\w'])")  # A and I are words, too
_ARTICLE = re.compile(r"(?<![\w'])(A)(?![\w']|\s+[a-z])")
_NEGATED = re.compile(
    r"\b(?:not|isn't|neither|nor|cannot be|rather than|instead of|except|eliminate|rule out)"
    r"\s*(?:option|choice|answer|be)?\s*[(\[\"']?$",
    re.IGNORECASE,
)


def read_choice(text: str, choices: Sequence[str]) -> str | list[str]:
    """Return the letters of the options that an answer may mean: one if it is clear, otherwise none or
    several.

    A letter alone, a letter at the beginning ("B) four"), a letter that is named ("option B") or in
    brackets counts before the text of an option; the longest option's text counts before one that it
    contains. A letter that is part of a word never counts, and an option that is denied ("not B") does not
    either.
    """
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    text = text.strip()
    alone = _ALONE.match(text)
    if alone and alone[1].upper() in letters:
        return alone[1].upper()
    exact = [letter for letter, choice in zip(letters, choices, strict=True) if _same(text, choice)]
    if len(exact) == 1:
        return exact[0]
    leading = _LEADING.match(text)
    if leading and leading[1] in letters:
        return leading[1]
    named = _letters(_NAMED, text, letters)
    if len(named) == 1:
        return named[0]
    said = _by_text(text, letters, choices)
    found = named or _letters(_BRACKETS, text, letters) or said
    if not found:
        found = sorted({*_letters(_SINGLE, text, letters), *_letters(_ARTICLE, text, letters)})
    if len(found) > 1 and len(said) == 1:
        found = [letter for letter in found if letter in said] or found
    return found[0] if len(found) == 1 else found


def right_letters(answers: Sequence[str], choices: Sequence[str]) -> list[str]:
    """Return the letters of the right options, which are given by letter or text. A text takes precedence."""
    found = []
    for answer in answers:
        same = [i for i, choice in enumerate(choices) if _same(answer, choice)]
        letter = answer.strip().strip("().").upper()
        if same:
            found += [chr(ord("A") + i) for i in same]
        elif len(letter) == 1 and 0 <= ord(letter) - ord("A") < len(choices):
            found.append(letter)
    return sorted(set(found))


def _letters(pattern: re.Pattern[str], text: str, letters: Sequence[str]) -> list[str]:
    found = {m[1] for m in pattern.finditer(text) if m[1] in letters and not _is_denied(text, m.start(1))}
    return sorted(found)


def _is_denied(text: str, at: int) -> bool:
    """Whether the words before a position negate the option there: "not B"."""
    return _NEGATED.search(text[max(0, at - 40) : at].rstrip()) is not None


def _by_text(text: str, letters: Sequence[str], choices: Sequence[str]) -> list[str]:
    """Return the options whose text occurs in the answer as whole words, and outside of longer options."""
    plain = f" {normalise_text(text)} "
    taken = bytearray(len(plain))
    found = set()
    for letter, choice in sorted(zip(letters, choices, strict=True), key=lambda each: -len(each[1])):
        wanted = normalise_text(choice)
        at = plain.find(f" {wanted} ") if wanted else -1
        while at >= 0:
            end = at + 1 + len(wanted)
            if not taken[at + 1]:
                if not _is_denied(plain, at + 1):
                    found.add(letter)
                taken[at + 1 : end] = b"\1" * len(wanted)
            at = plain.find(f" {wanted} ", end)
    return sorted(found)


def _same(one: str, other: str) -> bool:
    first, second = normalise_text(one), normalise_text(other)
    return bool(first) and first == second
