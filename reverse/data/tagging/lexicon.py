"""Words by kind, and the swap of one word of a phrase for another of its kind.

The words stand in `lexicon.json`. A word is only ever replaced by one of its kind, in the same number and
case and with the right article:

    >>> lexicon = load_lexicon()
    >>> next(lexicon.swap_words("in an old red car", random.Random(0)))
    'in an old red wagon'

Words that may be true of the same thing ("couch" and "sofa", "man" and "person") are never swapped.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from random import Random
from typing import Any

from reverse.data.scenes.object_names import COCO_IDS, PLURALS, find_lookalikes
from reverse.data.tagging.numbers import match_case

NOUN_FORMS = ("noun", "uncounted", "pairs")
LOOKALIKE_SHARE = 0.4  # of the swaps of an object that has lookalikes use one: what an eye confuses
FORM_WEIGHTS = {"adjective": 0.6, "opposite": 0.7}  # all others 1

_FIRST_WORD = re.compile(r"\w+")
_WORD_START = re.compile(r"(?<![\w-])\w+")  # a word that is not joined to the one before it
_WORD_GOES_ON = re.compile(r"[\w-]")
_WORD_AFTER = re.compile(r"\s+(\w+)")
_ARTICLE_BEFORE = re.compile(r"\b(?:[Aa]n?|AN)\s+$")
_ASKS_PROPERTY = re.compile(r"\b(?:colou?r|made of|material|shape|weather)", re.IGNORECASE)
_CONSONANT_SOUND = re.compile(r"(?:uni|use|euro|one\b|once|ukulele|urinal|u-)", re.IGNORECASE)
_VOWEL_SOUND = re.compile(r"[aeiou]|hour|honest|heir", re.IGNORECASE)
_SPELLED_VOWEL = re.compile(r"[FHLMNRSX](?:-\w+)?|(?:SUV|HP|LG|HTC|MP3|NFL|X-ray)")  # "an SUV"


@dataclass(frozen=True, slots=True)
class LexiconEntry:
    """A word in its singular (or only) form, its kind ("colours"), and the part of speech of that kind."""

    word: str
    kind: str
    form: str


@dataclass(frozen=True, slots=True)
class WordMatch:
    """A word of the lexicon inside a phrase: `phrase[start:end]`."""

    start: int
    end: int
    entry: LexiconEntry
    is_plural: bool


@dataclass(eq=False)
class Lexicon:
    """The words and what may replace them.

    kinds: kind -> its words. forms: kind -> form.
    compatible: word -> words that may be true of the same thing.
    entries: lower-case spelling -> its readings, each an entry with whether the spelling is its plural.
    """

    kinds: dict[str, list[str]]
    forms: dict[str, str]
    opposites: dict[str, list[str]]
    plurals: dict[str, str]
    compatible: dict[str, list[str]]
    entries: dict[str, list[tuple[LexiconEntry, bool]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind, words in self.kinds.items():
            for word in words:
                entry = LexiconEntry(word, kind, self.forms[kind])
                self.entries.setdefault(word.lower(), []).append((entry, entry.form == "pairs"))
                if entry.form == "noun":
                    self.entries.setdefault(self.pluralize(word), []).append((entry, True))
        for word, others in self.compatible.items():  # "sofa" is in no kind: it has that of "couch"
            known = next((self.entries[other] for other in others if other in self.entries), None)
            if known is not None and word not in self.entries:
                entry = LexiconEntry(word, known[0][0].kind, known[0][0].form)
                self.entries[word] = [(entry, entry.form == "pairs")]
                if entry.form == "noun":
                    self.entries.setdefault(self.pluralize(word), [(entry, True)])
        self._singulars: dict[str, str] = {}
        for singular, plural in self.plurals.items():
            self._singulars.setdefault(plural, singular)
        # Spellings by their first word, the longest first: a text costs one look-up per word.
        self._spellings: dict[str, list[str]] = {}
        for spelling in sorted(self.entries, key=len, reverse=True):
            first = _FIRST_WORD.match(spelling)
            assert first is not None, spelling
            self._spellings.setdefault(first.group(), []).append(spelling)

    def pluralize(self, word: str) -> str:
        """Return the plural of a noun. Of several words the last one becomes plural."""
        if word in self.plurals:
            return self.plurals[word]
        *before, last = word.split(" ")
        return " ".join([*before, self.plurals.get(last) or _add_plural_ending(last)])

    def singularize(self, word: str) -> str:
        """Return a word's base form in lower case, by the lexicon or by the endings of regular plurals."""
        word = word.lower()
        for entry, is_plural in self.entries.get(word, ()):
            if is_plural or entry.form == "noun":
                return entry.word.lower()
        if word in self._singulars:
            return self._singulars[word]
        if len(word) > 3 and word.endswith("ies"):
            return word[:-3] + "y"
        if re.search(r"(?:[sx]|[cs]h)es$", word):
            return word[:-2]
        is_plural = len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is"))
        return word[:-1] if is_plural else word

    def may_be_same(self, one: str, other: str) -> bool:
        """Whether two words (in any form) may be true of the same thing."""
        one, other = self.singularize(one), self.singularize(other)
        return one == other or other in self.compatible.get(one, ())

    def find_words(self, phrase: str, question: str = "") -> list[WordMatch]:
        """Return the words of `phrase` that can be swapped, from left to right.

        Of overlapping words the longest counts.
        """
        matches = []
        for start, end in self._find_spellings(phrase):
            reading = _choose_reading(phrase, start, end, self.entries[phrase[start:end].lower()], question)
            if reading is not None:
                matches.append(WordMatch(start, end, *reading))
        return matches

    def _find_spellings(self, phrase: str) -> Iterator[tuple[int, int]]:
        """Return where spellings of the lexicon occur as whole words, none inside another."""
        at = 0
        while (found := _WORD_START.search(phrase, at)) is not None:
            start, at = found.span()
            for spelling in self._spellings.get(found.group().lower(), ()):
                end = start + len(spelling)
                if phrase[start:end].lower() == spelling and not _WORD_GOES_ON.match(phrase, end):
                    yield start, end
                    at = end
                    break

    def swap_words(self, phrase: str, rng: Random, question: str = "") -> Iterator[str]:
        """Yield `phrase` with one word swapped, in an order drawn by `rng`, until all swaps were tried."""
        matches = self.find_words(phrase, question)
        nouns = [match for match in matches if match.entry.form in NOUN_FORMS]
        weights = [
            FORM_WEIGHTS.get(match.entry.form, 1.0) * (1 + (match in nouns[-1:])) * rng.random()
            for match in matches
        ]
        for _, match in sorted(zip(weights, matches, strict=True), key=lambda pair: -pair[0]):
            for word in self._draw_words(match, rng):
                yield _replace_word(phrase, match, word)

    def shuffle_words(self, kind: str, rng: Random) -> list[str]:
        """All words of a kind in random order."""
        return rng.sample(self.kinds[kind], len(self.kinds[kind]))

    def _draw_words(self, match: WordMatch, rng: Random) -> list[str]:
        """Yield words that can replace a match, in random order."""
        entry = match.entry
        if entry.form == "opposite":
            return rng.sample(self.opposites[entry.word], len(self.opposites[entry.word]))
        others = self.shuffle_words(entry.kind, rng)
        if entry.word in COCO_IDS and rng.random() < LOOKALIKE_SHARE:
            known = [
                name
                for name in find_lookalikes(entry.word)
                if any(reading.form == entry.form for reading, _ in self.entries.get(name, ()))
            ]
            others = rng.sample(known, len(known)) + others
        words = [word for word in others if not self.may_be_same(word, entry.word)]
        is_plural_noun = entry.form == "noun" and match.is_plural
        return [self.pluralize(word) for word in words] if is_plural_noun else words


@lru_cache(maxsize=1)
def load_lexicon() -> Lexicon:
    """Load the lexicon that comes with the package."""
    raw = json.loads(files("reverse.data.tagging").joinpath("lexicon.json").read_text(encoding="utf-8"))
    kinds, forms, opposites = {}, {}, {}
    for kind, content in raw["kinds"].items():
        words = content["words"].split(content.get("separator", ", "))
        if content["class"] == "opposite":
            pairs = [word.split("=") for word in words]
            opposites.update({word: opposite.split("/") for word, opposite in pairs})
            words = [word for word, _ in pairs]
        kinds[kind] = list(dict.fromkeys(words))
        forms[kind] = content["class"]
    return Lexicon(kinds, forms, opposites, PLURALS | raw["plurals"], _read_compatible_words(raw))


def _read_compatible_words(raw: dict[str, Any]) -> dict[str, list[str]]:
    """Return word -> words that may be true of the same thing: all words of a line of "synonyms" with each
    other; in a line of "general" only the first word with each other one.
    """
    compatible: dict[str, dict[str, None]] = {}
    for key in ("synonyms", "general"):
        for line in raw[key]:
            words = line.lower().split(", ")
            for one in words[:1] if key == "general" else words:
                for other in words:
                    if one != other:
                        compatible.setdefault(one, {})[other] = None
                        compatible.setdefault(other, {})[one] = None
    return {word: list(others) for word, others in compatible.items()}


def correct_articles(phrase: str) -> str:
    """Correct each "a" or "an" of `phrase` to fit the word after it; the case stays."""

    def correct(match: re.Match[str]) -> str:
        article = "an" if takes_an(match[3]) else "a"
        if match[1] == "AN":
            article = article.upper()
        elif match[1][0] == "A":
            article = article.capitalize()
        return article + match[2] + match[3]

    return re.sub(r"\b([Aa]n?|AN)(\s+)(\w[\w-]*)", correct, phrase)


def takes_an(word: str) -> bool:
    """Whether `word` takes "an": its spelling suggests that it begins with a vowel sound."""
    if _CONSONANT_SOUND.match(word):
        return False
    return bool(_VOWEL_SOUND.match(word) or _SPELLED_VOWEL.fullmatch(word))


def _replace_word(phrase: str, match: WordMatch, word: str) -> str:
    """Replace the matched word of `phrase`; case and article are adapted."""
    old = phrase[match.start : match.end]
    new = word if match.entry.form in ("name", "surname") and not old.isupper() else match_case(old, word)
    is_title = old[:1].isupper() and " " in old and all(part[:1].isupper() for part in old.split())
    if is_title and not new.isupper():
        new = " ".join(part[:1].upper() + part[1:] for part in new.split(" "))
    changed = phrase[: match.start] + new + phrase[match.end :]
    article = _ARTICLE_BEFORE.search(phrase, max(0, match.start - 32), match.start)
    if article is None:
        return changed
    return phrase[: article.start()] + correct_articles(changed[article.start() :])


def _choose_reading(
    phrase: str, start: int, end: int, readings: list[tuple[LexiconEntry, bool]], question: str
) -> tuple[LexiconEntry, bool] | None:
    """Choose the reading of a word: "orange" is a colour before a noun or if the question is about a colour,
    else a fruit; a name begins with a capital.
    """
    is_capital = phrase[start].isupper()
    fitting = [
        (entry, is_plural)
        for entry, is_plural in readings
        if entry.form not in ("name", "surname", "title", "sign") or (is_capital and entry.word[:1].isupper())
    ]
    if not is_capital or start == 0:
        fitting = [pair for pair in fitting if pair[0].form != "name"] or fitting
    if not fitting:
        return None
    if len({entry.form for entry, _ in fitting}) == 1:
        return fitting[0]
    after = _WORD_AFTER.match(phrase, end)
    is_before_noun = after and after[1].lower() not in ("of", "and", "or", "in", "on", "with", "at")
    is_property = is_before_noun or _ASKS_PROPERTY.search(question)
    forms = ("adjective", "opposite") if is_property else NOUN_FORMS
    return next((pair for pair in fitting if pair[0].form in forms), fitting[0])


def _add_plural_ending(word: str) -> str:
    if re.search(r"(?:s|x|z|ch|sh)$", word):
        return word + "es"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    if word.endswith("man") and word not in ("human", "german"):
        return word[:-3] + "men"
    return word + "s"
