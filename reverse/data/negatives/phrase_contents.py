"""The content words of phrases in base form, counted so that every look-up takes constant time.

>>> phrases = PhraseCounts(["two birds", "a bike"])
>>> OtherPhrases(included=[phrases], excluded=[PhraseCounts(["a bike"])]).contains_word("bird")
True
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache

from reverse.data.tagging.lexicon import load_lexicon

_SMALL_WORDS_TEXT = """
    a an the this that these those i me my mine you your yours he him his she her hers its it we us
    our ours they them their theirs one's some any another other each every both either neither such
    same very really quite there here"""
SMALL_WORDS = frozenset(_SMALL_WORDS_TEXT.split())
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


class PhraseCounts:
    """Phrases counted by their content and by their words. The counts are made when they are first needed."""

    def __init__(self, phrases: Iterable[str]):
        self.phrases = tuple(phrases)

    @cached_property
    def contents(self) -> Counter[tuple[str, ...]]:
        return Counter(_analyse(phrase)[0] for phrase in self.phrases)

    @cached_property
    def words(self) -> Counter[str]:
        return Counter(word for phrase in self.phrases for word in _analyse(phrase)[1])


class OtherPhrases:
    """The phrases of `included` without those of `excluded`, which is a part of `included`."""

    def __init__(self, included: Sequence[PhraseCounts], excluded: Sequence[PhraseCounts] = ()):
        self.included, self.excluded = included, excluded

    def contains_content(self, content: tuple[str, ...]) -> bool:
        """Whether a phrase has exactly these content words."""
        total = sum(counts.contents[content] for counts in self.included)
        return total > sum(counts.contents[content] for counts in self.excluded)

    def contains_word(self, word: str) -> bool:
        """Whether a phrase contains the word (in base form)."""
        total = sum(counts.words[word] for counts in self.included)
        return total > sum(counts.words[word] for counts in self.excluded)

    def mentions(self, word: str) -> bool:
        """Whether a phrase contains the word, or a word that the lexicon lists as compatible with it."""
        lexicon = load_lexicon()
        base = lexicon.singularize(word)
        return any(self.contains_word(other) for other in (base, *lexicon.compatible.get(base, ())))


def split_words(text: str) -> list[str]:
    """The words of a text in lower case."""
    return [word.lower() for word in _WORD.findall(text)]


def drop_small_words(words: Iterable[str]) -> list[str]:
    """The words without articles, pronouns and the like."""
    return [word for word in words if word not in SMALL_WORDS]


def find_content_words(text: str) -> list[str]:
    """The words of a text that carry its meaning, in base form."""
    return [load_lexicon().singularize(word) for word in drop_small_words(split_words(text))]


@lru_cache(maxsize=4096)
def _analyse(phrase: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the content words of a phrase, and the base forms of these and of its lexicon entries."""
    lexicon = load_lexicon()
    content = tuple(find_content_words(phrase))
    words = {match.entry.word.lower() for match in lexicon.find_words(phrase)} | set(content)
    return content, frozenset(map(lexicon.singularize, words))
