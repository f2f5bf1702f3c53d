"""Words by kind, and the swap of one word of a phrase for another of its kind.

The words stand in `lexicon.json`; a word is only ever replaced by one of its kind, in the same number, the
same case and with the right article:

    >>> lexicon = load_lexicon()
    >>> next(lexicon.swaps("in an old red car", random.Random(0)))
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

from reverse.data.scenes.object_names import COCO_IDS, PLURALS, find_lookalikes
from reverse.data.tagging.numbers import match_case

NOUNS = ("noun", "uncounted", "pairs")
ALIKE_SHARE = 0.4  # of the swaps of an object that has lookalikes go to one: what an eye confuses
WEIGHTS = {"adjective": 0.6, "opposite": 0.7, "name": 1.0, "action": 1.0, "noun": 1.0}

_FIRST = re.compile(r"\w+")
_BEGINS = re.compile(r"(?<![\w-])\w+")  # a word that no other is joined to
_NOT_ENDED = re.compile(r"[\w-]")
_AFTER = re.compile(r"\s+(\w+)")
_ARTICLE_BEFORE = re.compile(r"\b(?:[Aa]n?|AN)\s+$")
_ASKED = re.compile(r"\b(?:colou?r|made of|material|shape|weather)", re.IGNORECASE)
_CONSONANT = re.compile(r"(?:uni|use|euro|one\b|once|ukulele|urinal|u-)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LexiconEntry:
    """A word as the lexicon knows it: singular (or only) form, its kind, the kind's class."""

    word: str
    kind: str
    form: str  # a class of lexicon.json


@dataclass(frozen=True, slots=True)
class WordMatch:
    """A word of the lexicon inside a phrase: `phrase[start:end]`."""

    start: int
    end: int
    entry: LexiconEntry
    many: bool


@dataclass(eq=False)
class Lexicon:
    """`kinds`: kind -> its words; `entries`: lower-case form -> what it may be."""

    kinds: dict[str, list[str]]
    forms: dict[str, str]  # kind -> class
    opposites: dict[str, list[str]]
    plurals: dict[str, str]
    alike: dict[str, list[str]]  # word -> words that may be true of the same thing
    entries: dict[str, list[tuple[LexiconEntry, bool]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind, words in self.kinds.items():
            for word in words:
                entry = LexiconEntry(word, kind, self.forms[kind])
                self.entries.setdefault(word.lower(), []).append((entry, entry.form == "pairs"))
                if entry.form == "noun":
                    self.entries.setdefault(self.plural(word), []).append((entry, True))
        for word, others in self.alike.items():  # "sofa": of no kind itself, but as a couch
            known = next((self.entries[other] for other in others if other in self.entries), None)
            if known is not None and word not in self.entries:
                entry = LexiconEntry(word, known[0][0].kind, known[0][0].form)
                self.entries[word] = [(entry, entry.form == "pairs")]
                if entry.form == "noun":
                    self.entries.setdefault(self.plural(word), [(entry, True)])
        self._singulars: dict[str, str] = {}
        for one, many_form in self.plurals.items():
            self._singulars.setdefault(many_form, one)
        # Forms by their first word, the longest first: a text costs a look-up a word, however many forms.
        self._forms: dict[str, list[str]] = {}
        for form in sorted(self.entries, key=len, reverse=True):
            first = _FIRST.match(form)
            assert first is not None, form
            self._forms.setdefault(first.group(), []).append(form)

    def plural(self, word: str) -> str:
        """The plural of a noun; of several words, that of the last."""
        if word in self.plurals:
            return self.plurals[word]
        *before, last = word.split(" ")
        last = self.plurals.get(last) or _regular_plural(last)
        return " ".join([*before, last])

    def singular(self, word: str) -> str:
        """A word's base form, by the lexicon or by the endings of regular plurals; lower case."""
        word = word.lower()
        for entry, many in self.entries.get(word, ()):
            if many or entry.form == "noun":
                return entry.word.lower()
        if word in self._singulars:
            return self._singulars[word]
        if len(word) > 3 and word.endswith("ies"):
            return word[:-3] + "y"
        if re.search(r"(?:[sx]|[cs]h)es$", word):
            return word[:-2]
        return (
            word[:-1]
            if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is"))
            else word
        )

    def may_be_same(self, one: str, other: str) -> bool:
        """Whether two words (any form) may be true of the same thing."""
        one, other = self.singular(one), self.singular(other)
        return one == other or other in self.alike.get(one, ())

    def find(self, phrase: str, question: str = "") -> list[WordMatch]:
        """The words of `phrase` that can be swapped, left to right, the longest first where they overlap."""
        matches = []
        for start, end in self._words(phrase):
            readings = self.entries[phrase[start:end].lower()]
            reading = _reading(phrase, start, end, readings, question)
            if reading is not None:
                matches.append(WordMatch(start, end, *reading))
        return matches

    def _words(self, phrase: str) -> Iterator[tuple[int, int]]:
        """Where forms of the lexicon stand, whole words alone, none inside another."""
        at = 0
        while (found := _BEGINS.search(phrase, at)) is not None:
            start, at = found.start(), found.end()
            for form in self._forms.get(found.group().lower(), ()):
                end = start + len(form)
                if phrase[start:end].lower() == form and not _NOT_ENDED.match(phrase, end):
                    yield start, end
                    at = end
                    break

    def swaps(self, phrase: str, rng: Random, question: str = "") -> Iterator[str]:
        """`phrase` with one word swapped, in an order drawn by `rng`, until nothing is left to try."""
        matches = self.find(phrase, question)
        heads = [match for match in matches if match.entry.form in NOUNS]
        head = heads[-1] if heads else None
        weights = [
            WEIGHTS.get(match.entry.form, 1.0) * (2.0 if match is head else 1.0) * rng.random()
            for match in matches
        ]
        for _, match in sorted(zip(weights, matches, strict=True), key=lambda pair: -pair[0]):
            for word in self._candidates(match, phrase, rng):
                yield _put(phrase, match, word)

    def words_like(self, kind: str, rng: Random) -> list[str]:
        """All words of a kind, shuffled."""
        return rng.sample(self.kinds[kind], len(self.kinds[kind]))

    def _candidates(self, match: WordMatch, phrase: str, rng: Random) -> list[str]:
        entry = match.entry
        if entry.form == "opposite":
            return rng.sample(self.opposites[entry.word], len(self.opposites[entry.word]))
        others = self.words_like(entry.kind, rng)
        if entry.word in COCO_IDS and rng.random() < ALIKE_SHARE:
            known = [name for name in find_lookalikes(entry.word) if self._has(name, entry.form)]
            others = rng.sample(known, len(known)) + others
        words = [word for word in others if not self.may_be_same(word, entry.word)]
        return [self.plural(word) for word in words] if entry.form == "noun" and match.many else words

    def _has(self, word: str, form: str) -> bool:
        return any(entry.form == form for entry, _ in self.entries.get(word, ()))


@lru_cache(maxsize=1)
def load_lexicon() -> Lexicon:
    """The lexicon that comes with the package."""
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
    return Lexicon(kinds, forms, opposites, PLURALS | raw["plurals"], _alike(raw))


def _alike(raw: dict) -> dict[str, list[str]]:
    """Who may be true of the same thing: all words of a line of "synonyms"; the first of a line of "general"
    with each of the others, but not those with one another."""
    alike: dict[str, dict[str, None]] = {}
    lines = [(line.lower().split(", "), False) for line in raw["synonyms"]]
    lines += [(line.lower().split(", "), True) for line in raw["general"]]
    for words, general in lines:
        for one in words[:1] if general else words:
            for other in words:
                if one != other:
                    alike.setdefault(one, {})[other] = None
                    alike.setdefault(other, {})[one] = None
    return {word: list(others) for word, others in alike.items()}


def correct_articles(phrase: str) -> str:
    """`phrase` with "a" or "an" as the words after each ask for."""

    def mend(match: re.Match[str]) -> str:
        right = "an" if takes_an(match[3]) else "a"
        return match_case_of_article(match[1], right) + match[2] + match[3]

    return re.sub(r"\b([Aa]n?|AN)(\s+)(\w[\w-]*)", mend, phrase)


def match_case_of_article(old: str, new: str) -> str:
    """ "A" opens a sentence as "An" does; "AN" is a sign's."""
    return new.upper() if old == "AN" else new.capitalize() if old[0] == "A" else new


def takes_an(word: str) -> bool:
    """Whether "an" goes before `word`, by its first sound as far as spelling tells."""
    if _CONSONANT.match(word):
        return False
    return bool(re.match(r"[aeiou]|hour|honest|heir", word, re.IGNORECASE)) or bool(
        re.fullmatch(r"[FHLMNRSX](?:-\w+)?|(?:SUV|HP|LG|HTC|MP3|NFL|X-ray)", word)
    )


def _put(phrase: str, match: WordMatch, word: str) -> str:
    old = phrase[match.start : match.end]
    new = word if match.entry.form in ("name", "surname") and not old.isupper() else match_case(old, word)
    if (
        old[:1].isupper()
        and " " in old
        and all(part[:1].isupper() for part in old.split())
        and not new.isupper()
    ):
        new = " ".join(part[:1].upper() + part[1:] for part in new.split(" "))
    changed = phrase[: match.start] + new + phrase[match.end :]
    begin = max(0, match.start - 32)
    before = _ARTICLE_BEFORE.search(phrase, begin, match.start)
    if before is None:
        return changed
    return phrase[: before.start()] + correct_articles(changed[before.start() :])


def _reading(
    phrase: str, start: int, end: int, readings: list[tuple[LexiconEntry, bool]], question: str
) -> tuple[LexiconEntry, bool] | None:
    """What a word is here: "orange" is a colour before a noun or where a colour is asked for, else a fruit;
    a name begins with a capital."""
    capital = phrase[start].isupper()
    fitting = [
        (entry, many)
        for entry, many in readings
        if entry.form not in ("name", "surname", "title", "sign") or (capital and entry.word[:1].isupper())
    ]
    if not capital or start == 0:
        fitting = [pair for pair in fitting if pair[0].form != "name"] or fitting
    if not fitting:
        return None
    forms = {entry.form for entry, _ in fitting}
    if len(forms) == 1:
        return fitting[0]
    after = _AFTER.match(phrase, end)
    described = after is not None and after[1].lower() not in ("of", "and", "or", "in", "on", "with", "at")
    wanted = ("adjective", "opposite") if described or _ASKED.search(question) else NOUNS
    return next((pair for pair in fitting if pair[0].form in wanted), fitting[0])


def _regular_plural(word: str) -> str:
    if re.search(r"(?:s|x|z|ch|sh)$", word):
        return word + "es"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    if word.endswith("man") and word not in ("human", "german"):
        return word[:-3] + "men"
    return word + "s"
