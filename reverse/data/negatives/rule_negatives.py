"""Wrong phrases by rule: offline and seeded.

"Yes" becomes "No", numbers change, "no dog" becomes "a dog", "red" becomes "blue" if the question is "red or
blue?", a letter becomes another of the listed options; in everything else one word is swapped for another of
its kind.

    >>> next(find_replacements(PhraseSlot("red", "Is it red or blue?", ""), Random(0)))
    ('blue', True)
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from reverse.data.tagging import numbers
from reverse.data.tagging.lexicon import correct_articles, load_lexicon
from reverse.data.tagging.yes_no_words import find_opposite

COUNT_SHARE = 0.35  # of the phrases with a count have it changed before a word is swapped
MAX_TRIES = 4  # different numbers, names or titles

_LETTER = re.compile(r"\(?([A-H])[.)]?")
_OPTION = re.compile(r"(?:^|\n|\s)\(?([A-H])[.):]\s")
_NO = re.compile(r"(?P<no>no)\s+(?P<rest>\w.*)", re.IGNORECASE | re.DOTALL)
_NOTHING = re.compile(r"nothing|nobody|no one", re.IGNORECASE)
_PERSON = re.compile(r"\b(?:who|whose|author|wrote|written by|name|player|person)\b", re.IGNORECASE)
_TITLE = re.compile(r"\b(?:title|book|called|movie|song)\b", re.IGNORECASE)
_SIGN = re.compile(r"\b(?:say|says|read|reads|written|word|words|sign)\b", re.IGNORECASE)
_NAME = re.compile(r"[A-Z][\w.'’-]*(?:\s+(?:(?:de|van|von|la|der|bin)\s+)*[A-Z][\w.'’-]*)*")
_COMMON_THINGS = (
    "dog", "cat", "person", "car", "chair", "bird", "bicycle", "umbrella", "backpack", "potted plant",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PhraseSlot:
    """A phrase to be replaced: its text, the question, and the answer's text before it."""

    phrase: str
    question: str
    before: str


def find_replacements(slot: PhraseSlot, rng: Random) -> Iterator[tuple[str, bool]]:
    """Yield replacements, best first, each with `closed`: whether the question lists the possible answers.

    They are not filtered yet: see `negative_filters.find_rejection`.
    """
    phrase = slot.phrase
    if not slot.before.strip(" \t\n\"'*“«¡(") and (opposite := find_opposite(phrase, slot.question)):
        yield opposite, True
        return
    if other := _find_other_choice(phrase, slot.question):
        yield other, True
    if letters := _find_other_letters(phrase, slot.question, rng):
        yield from ((letter, True) for letter in letters)
        return
    if numbers.is_number(phrase):
        yield from ((number, True) for number in _change_number(phrase, rng))
        return
    if _NOTHING.fullmatch(phrase.strip()):
        things = _COMMON_THINGS if phrase.strip().lower() == "nothing" else ("person",)
        for thing in rng.sample(things, len(things)):
            yield numbers.match_case(phrase, correct_articles(f"a {thing}")), False
        return
    if positive := _remove_no(phrase, rng):
        yield positive, True
    counted = [(text, True) for text in _change_count(phrase, rng)]
    named = [(text, False) for text in _replace_name(slot, rng)]
    if _PERSON.search(slot.question):  # "Tom Hopkins": both names, not the one that the lexicon knows
        yield from named
    swapped = load_lexicon().swap_words(phrase, rng, slot.question)
    if rng.random() < COUNT_SHARE:
        yield from counted
        counted = []
    yield from ((text, False) for text in swapped)
    yield from counted
    yield from named


def _change_number(phrase: str, rng: Random, least: int = 0) -> Iterator[str]:
    for _ in range(MAX_TRIES):
        changed = numbers.change_number(phrase, rng, least=least)
        if changed is not None:
            yield changed


def _change_count(phrase: str, rng: Random) -> list[str]:
    """Yield other numbers for a number in a longer phrase: "three dogs" stays plural; "one dog" is not
    changed.
    """
    found = numbers.find_numbers(phrase)
    if not found:
        return []
    start, end, kind = found[0]
    is_count = kind in ("word", "integer")
    if is_count and phrase[start:end].lower() in ("one", "1", "zero", "0"):
        return []
    return list(_change_number(phrase, rng, least=2 if is_count else 0))


def _find_other_choice(phrase: str, question: str) -> str | None:
    """Yield the other choice: "blue" for "red" if the question contains "red or blue"."""
    bare = re.sub(r"^(?:an?|the)\s+", "", phrase.strip(), flags=re.IGNORECASE)
    if not bare or not re.search(r"\bor\b", question):
        return None
    this = re.escape(bare)
    words = min(len(bare.split()) - 1, 9)
    after = rf"\b{this},?\s+or\s+(?:(?:an?|the)\s+)?(\w[\w -]{{0,120}}?)\s{{0,9}}(?:[?,.;]|$)"
    before = rf"(?<![\w-])([\w-]+(?:\s[\w-]+){{{words}}}),?\s+or\s+(?:(?:an?|the)\s+)?{this}\b"
    found = re.search(after, question, re.IGNORECASE) or re.search(before, question, re.IGNORECASE)
    if found is None or len(found[1].split()) > words + 2:
        return None
    if found[1].lower() in ("a", "an", "the", "not", "no"):
        return None
    other = found[1].lower() if bare.islower() else found[1]
    return correct_articles(phrase.replace(bare, numbers.match_case(bare, other), 1))


def _find_other_letters(phrase: str, question: str, rng: Random) -> list[str]:
    """The other options of a multiple choice whose answer is a letter."""
    letter = _LETTER.fullmatch(phrase.strip())
    options = list(dict.fromkeys(_OPTION.findall(question)))
    if letter is None or letter[1] not in options:
        return []
    others = [option for option in options if option != letter[1]]
    return [phrase.replace(letter[1], other, 1) for other in rng.sample(others, len(others))]


def _remove_no(phrase: str, rng: Random) -> str | None:
    """Yield the phrase without "no": "no dogs" -> "two dogs", "no dog" -> "a dog", "no broccoli" -> "some
    broccoli".
    """
    match = _NO.fullmatch(phrase)
    if match is None:
        return None
    rest = match["rest"]
    found = [known for known in load_lexicon().find_words(rest) if known.end == len(rest)]
    is_plural = found[0].is_plural if found else rest.endswith("s") and not rest.endswith("ss")
    if found and found[0].entry.form == "uncounted":
        word = "some"
    else:
        word = rng.choice(("two", "three", "several")) if is_plural else "a"
    return correct_articles(numbers.match_case(match["no"], word) + phrase[match.end("no") :])


def _replace_name(slot: PhraseSlot, rng: Random) -> Iterator[str]:
    """Yield other names of the same shape. The question tells whether it is a person, a title or a sign."""
    phrase = slot.phrase
    match = _NAME.search(phrase)
    if match is None:
        return
    start, end = match.span()
    capitals = sum(word[:1].isupper() for word in phrase.split())
    has_title = _TITLE.search(slot.question) and not _PERSON.search(slot.question)
    if has_title and 2 * capitals >= len(phrase.split()):
        start, end, kind = 0, len(phrase), "titles"
    elif _is_person(slot.question, match.group()):
        kind = "persons"
    elif _SIGN.search(slot.question) and len(match.group().split()) <= 2:
        kind = "signs"
    else:
        return
    old = phrase[start:end]
    for new in _draw_names(kind, old.split(), rng):
        yield phrase[:start] + (new.upper() if old.isupper() else new) + phrase[end:]


def _is_person(question: str, name: str) -> bool:
    """Whether the question is about a person, or the name begins with a first name."""
    if _PERSON.search(question) and not name.isupper():
        return True
    return len(name.split()) > 1 and name.split()[0] in load_lexicon().kinds["first names"]


def _draw_names(kind: str, parts: list[str], rng: Random) -> Iterator[str]:
    lexicon = load_lexicon()
    if kind == "titles":
        yield from lexicon.shuffle_words("titles", rng)[:MAX_TRIES]
    elif kind == "signs":
        signs = lexicon.shuffle_words("signs", rng)
        yield from (sign.title() for sign in signs if len(sign.split()) == len(parts))
    else:
        first, last = lexicon.shuffle_words("first names", rng), lexicon.shuffle_words("surnames", rng)
        for _ in range(MAX_TRIES):
            if len(parts) == 1:
                yield (first if parts[0] in lexicon.kinds["first names"] else last).pop()
            else:
                middle = [f"{rng.choice('ABCDEFGHJKLMNPRSTW')}." for _ in parts[1:-1]]
                yield " ".join([first.pop(), *middle, last.pop()])
