"""What could be said wrongly instead of one phrase: by rule, offline, seeded.

Yes and no are flipped, numbers changed, "no dog" becomes "a dog", of "red or blue" the other is taken, a
letter becomes another of the listed options; everything else has one word swapped for another of its kind.

    >>> next(replacements(Slot("red", "Is it red or blue?", ""), Random(0), load_lexicon()))
    ('blue', True)
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from reverse.data.tagging import numbers, yes_no_words
from reverse.data.tagging.lexicon import Lexicon, correct_articles

COUNT_SHARE = 0.35  # of the phrases with a count have it changed before a word is swapped
DRAWS = 4  # different numbers tried

_LETTER = re.compile(r"\(?([A-H])[.)]?")
_OPTION = re.compile(r"(?:^|\n|\s)\(?([A-H])[.):]\s")
_NO = re.compile(r"(?P<no>no)\s+(?P<rest>\w.*)", re.IGNORECASE | re.DOTALL)
_NOTHING = re.compile(r"nothing|nobody|no one", re.IGNORECASE)
_PERSON = re.compile(r"\b(?:who|whose|author|wrote|written by|name|player|person)\b", re.IGNORECASE)
_TITLE = re.compile(r"\b(?:title|book|called|movie|song)\b", re.IGNORECASE)
_SIGN = re.compile(r"\b(?:say|says|read|reads|written|word|words|sign)\b", re.IGNORECASE)
_NAME = re.compile(r"[A-Z][\w.'’-]*(?:\s+(?:(?:de|van|von|la|der|bin)\s+)*[A-Z][\w.'’-]*)*")
COMMON = ("dog", "cat", "person", "car", "chair", "bird", "bicycle", "umbrella", "backpack", "potted plant")


@dataclass(frozen=True, slots=True)
class PhraseSlot:
    """A phrase that is to become wrong: its text, the question, and the answer's text before it."""

    phrase: str
    question: str
    before: str


def find_replacements(slot: PhraseSlot, rng: Random, lexicon: Lexicon) -> Iterator[tuple[str, bool]]:
    """What may be said instead, best first, and whether the question's words may be used (`closed`).

    Not yet filtered: see `filters.trivial`.
    """
    phrase = slot.phrase
    if not slot.before.strip(" \t\n\"'*“«¡(") and (
        flipped := yes_no_words.find_opposite(phrase, slot.question)
    ):
        yield flipped, True
        return
    if other := _other_choice(phrase, slot.question):
        yield other, True
    if letters := _other_letters(phrase, slot.question, rng):
        yield from ((letter, True) for letter in letters)
        return
    if numbers.is_number(phrase):
        yield from ((number, True) for number in _numbers(phrase, rng))
        return
    if _NOTHING.fullmatch(phrase.strip()):
        yield from ((thing, False) for thing in _something(phrase, rng))
        return
    if negated := _without_no(phrase, lexicon, rng):
        yield negated, True
    counted = [(text, True) for text in _counts(phrase, rng)]
    named = [(text, False) for text in _names(slot, rng, lexicon)]
    if _PERSON.search(slot.question):  # "Tom Hopkins": both names, not the one that the lexicon knows
        yield from named
    swapped = lexicon.swaps(phrase, rng, slot.question)
    if rng.random() < COUNT_SHARE:
        yield from counted
        counted = []
    yield from ((text, False) for text in swapped)
    yield from counted
    yield from named


def _numbers(phrase: str, rng: Random, least: int = 0) -> Iterator[str]:
    for _ in range(DRAWS):
        changed = numbers.change_number(phrase, rng, least=least)
        if changed is not None:
            yield changed


def _counts(phrase: str, rng: Random) -> list[str]:
    """A phrase of more words that holds a number: "three dogs" stays a plural, "one dog" is left alone."""
    found = numbers.find_numbers(phrase)
    if not found:
        return []
    start, end, kind = found[0]
    said = phrase[start:end].lower()
    if kind in ("word", "integer"):
        if said in ("one", "1", "zero", "0"):
            return []
        return list(_numbers(phrase, rng, least=2))
    return list(_numbers(phrase, rng))


def _other_choice(phrase: str, question: str) -> str | None:
    """ "blue" for "red" where the question asks "red or blue"."""
    bare = re.sub(r"^(?:an?|the)\s+", "", phrase.strip(), flags=re.IGNORECASE)
    if not bare or not re.search(r"\bor\b", question):
        return None
    this = re.escape(bare)
    after = re.search(
        rf"\b{this},?\s+or\s+(?:(?:an?|the)\s+)?(\w[\w -]{{0,120}}?)\s{{0,9}}(?:[?,.;]|$)",
        question,
        re.IGNORECASE,
    )
    many = min(len(bare.split()) - 1, 9)
    before = re.search(
        rf"(?<![\w-])([\w-]+(?:\s[\w-]+){{{many}}}),?\s+or\s+(?:(?:an?|the)\s+)?{this}\b",
        question,
        re.IGNORECASE,
    )
    found = after or before
    if (
        found is None
        or len(found[1].split()) > many + 2
        or found[1].lower() in ("a", "an", "the", "not", "no")
    ):
        return None
    other = found[1].lower() if bare.islower() else found[1]
    return correct_articles(phrase.replace(bare, numbers.match_case(bare, other), 1))


def _other_letters(phrase: str, question: str, rng: Random) -> list[str]:
    """Other options of a multiple choice whose answer is a letter."""
    letter = _LETTER.fullmatch(phrase.strip())
    if letter is None:
        return []
    options = list(dict.fromkeys(_OPTION.findall(question)))
    if letter[1] not in options:
        return []
    others = [option for option in options if option != letter[1]]
    return [phrase.replace(letter[1], other, 1) for other in rng.sample(others, len(others))]


def _something(phrase: str, rng: Random) -> Iterator[str]:
    things = ("person",) if phrase.strip().lower() != "nothing" else COMMON
    for thing in rng.sample(things, len(things)):
        yield numbers.match_case(phrase, correct_articles(f"a {thing}"))


def _without_no(phrase: str, lexicon: Lexicon, rng: Random) -> str | None:
    """ "no dogs" -> "two dogs", "no dog" -> "a dog", "no broccoli" -> "some broccoli"."""
    match = _NO.fullmatch(phrase)
    if match is None:
        return None
    found = [known for known in lexicon.find(match["rest"]) if known.end == len(match["rest"])]
    many = found[0].many if found else match["rest"].endswith("s") and not match["rest"].endswith("ss")
    if found and found[0].entry.form == "uncounted":
        word = "some"
    elif many:
        word = rng.choice(("two", "three", "several"))
    else:
        word = "a"
    return correct_articles(numbers.match_case(match["no"], word) + phrase[match.end("no") :])


def _names(slot: PhraseSlot, rng: Random, lexicon: Lexicon) -> Iterator[str]:
    """Names that no kind holds: persons, titles and signs, told apart by what is asked; of the same shape."""
    phrase = slot.phrase
    match = _NAME.search(phrase)
    if match is None:
        return
    start, end, asked = match.start(), match.end(), slot.question
    capitals = sum(word[:1].isupper() for word in phrase.split())
    if _TITLE.search(asked) and not _PERSON.search(asked) and 2 * capitals >= len(phrase.split()):
        kind, start, end = "titles", 0, len(phrase)
    elif _is_person(slot, match.group(), lexicon):
        kind = "persons"
    elif _SIGN.search(asked) and len(match.group().split()) <= 2:
        kind = "signs"
    else:
        return
    old = phrase[start:end]
    for new in _named(kind, old, rng, lexicon):
        yield phrase[:start] + (new.upper() if old.isupper() else new) + phrase[end:]


def _is_person(slot: PhraseSlot, name: str, lexicon: Lexicon) -> bool:
    """A name that a person is asked for by, or one that begins with a first name."""
    if _PERSON.search(slot.question) and not name.isupper():
        return True
    return len(name.split()) > 1 and name.split()[0] in lexicon.kinds["first names"]


def _named(kind: str, old: str, rng: Random, lexicon: Lexicon) -> Iterator[str]:
    if kind == "titles":
        yield from lexicon.words_like("titles", rng)[:DRAWS]
    elif kind == "signs":
        yield from (
            sign.title() for sign in lexicon.words_like("signs", rng) if len(sign.split()) == len(old.split())
        )
    else:
        first, last = lexicon.words_like("first names", rng), lexicon.words_like("surnames", rng)
        for _ in range(DRAWS):
            parts = old.split()
            if len(parts) == 1:
                yield (first if parts[0] in lexicon.kinds["first names"] else last).pop()
            else:
                middle = [f"{rng.choice('ABCDEFGHJKLMNPRSTW')}." for _ in parts[1:-1]]
                yield " ".join([first.pop(), *middle, last.pop()])
