"""What the true phrases of a conversation say, counted once, so that each question about it is one look-up.

told = Told(["two birds", "a bike"])
Others(plus=(told,), minus=(Told(["a bike"]),)).say_word("bird")
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache

from reverse.data.tagging.lexicon import Lexicon, load_lexicon

Content = tuple[str, ...]  # the words of a phrase that say something, in their base form


class PhraseCounts:
    """Phrases, as how many say the same and how many speak of each thing; counted when it is first asked."""

    def __init__(self, phrases: Iterable[str]):
        self.phrases = tuple(phrases)

    @cached_property
    def contents(self) -> Counter[Content]:
        return Counter(_taken_apart(phrase)[0] for phrase in self.phrases)

    @cached_property
    def words(self) -> Counter[str]:
        return Counter(word for phrase in self.phrases for word in _taken_apart(phrase)[1])


class OtherPhrases:
    """All phrases of `plus` without those of `minus`, each of which is among the former."""

    def __init__(self, plus: Sequence[PhraseCounts], minus: Sequence[PhraseCounts] = ()):
        self.plus, self.minus = plus, minus

    def say(self, content: Content) -> bool:
        """Whether a phrase says the same."""
        many = sum(told.contents[content] for told in self.plus)
        return many > sum(told.contents[content] for told in self.minus)

    def say_word(self, word: str) -> bool:
        """Whether a phrase holds the word, in its base form."""
        many = sum(told.words[word] for told in self.plus)
        return many > sum(told.words[word] for told in self.minus)

    def speak_of(self, word: str, lexicon: Lexicon) -> bool:
        """Whether a phrase holds the word, or one that may be true of the same thing."""
        base = lexicon.singular(word)
        return any(self.say_word(other) for other in (base, *lexicon.alike.get(base, ())))


@lru_cache(maxsize=4096)
def _taken_apart(phrase: str) -> tuple[Content, frozenset[str]]:
    """What a phrase says, and the base forms of its words and of what the lexicon finds in it."""
    from reverse.data.negatives.negative_filters import content_words

    lexicon = load_lexicon()
    content = tuple(content_words(phrase, lexicon))
    words = {match.entry.word.lower() for match in lexicon.find(phrase)} | set(content)
    return content, frozenset(map(lexicon.singular, words))
