"""Read English words as the published metrics do, with NLTK's tokens, tags and WordNet lemmas, but faster.

    tokenize("Two dogs near a hot dog.".lower())       # nltk.word_tokenize
    lemmatize("dogs", "n")                               # WordNetLemmatizer().lemmatize
    Tags(["two", "dogs"])[1]                         # nltk.pos_tag(...)[1][1], worked out when asked for

Three shortcuts change no result (tests compare them with NLTK over thousands of sentences): one expression
instead of twenty splits plain sentences; a tag is computed only when it is asked for, with the tags before it
that it depends on; only the words of WordNet's index are read (0.2 s instead of 4).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from reverse.errors import DataError, MissingPackageError
from reverse.evaluation.reading.language_data import find_missing
from reverse.files.cell_values import shorten

__all__ = [
    "LONGEST",
    "Tags",
    "describe_versions",
    "find_nouns",
    "lemmatize",
    "prepare_words",
    "tokenize",
    "wordnet_pos",
]

# Characters of a text that is read: NLTK takes up to 70 µs for each. Published captions have 2,000 at most.
LONGEST = 16_000

# A sentence of plain words, commas between them, at most a full stop at the end; the words that NLTK divides
# although they hold no punctuation ("cannot": "can", "not") are left to it.
_WORD = r"[a-z0-9]+(?:-[a-z0-9]+)*"
_PLAIN = re.compile(rf" ?{_WORD}(?:,? {_WORD})*(?: ?\.)? ?")
_PART = re.compile(rf"{_WORD}|[,.]")
_DIVIDED = frozenset({"cannot", "gimme", "gonna", "gotta", "lemme", "wanna"})

# https://wordnet.princeton.edu/documentation/morphy7wn: endings and what stands for them in a base form.
_ENDINGS = {
    "n": (("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"),
          ("men", "man"), ("ies", "y")),
    "v": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing",
    "")), "a": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "r": (),
}  # fmt: skip
_FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}


def prepare_words() -> None:
    """Load NLTK's data. Raises MissingPackageError without NLTK, DataError without its data."""
    try:
        absent = find_missing()
    except ImportError as error:
        raise MissingPackageError(
            'this metric reads words with NLTK: pip install "reverse-vlm[eval]"'
        ) from error
    if absent:
        raise DataError(
            f"NLTK finds no {', '.join(absent)}: run `reverse data language` once (57 MB from the package "
            f"index), "
            "or python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng wordnet"
        )
    _tagger()
    _words("n")


def describe_versions() -> dict[str, str]:
    """Return the versions of the libraries and data that read words, for reports."""
    import nltk

    return {"nltk": nltk.__version__, "tagger": "averaged_perceptron_tagger_eng", "lemmas": "WordNet 3.0"}


def tokenize(text: str) -> list[str]:
    """Split a text into words and punctuation as nltk.word_tokenize does.

    Raises DataError for a text of more than `LONGEST` characters.
    """
    _refuse_longer(text)
    if _PLAIN.fullmatch(text):
        found = _PART.findall(text)
        if _DIVIDED.isdisjoint(found):
            return found
    return _word_tokenize(text)


@lru_cache(maxsize=1 << 17)
def lemmatize(word: str, pos: str = "n") -> str:
    """Return the shortest of WordNet's base forms of a word, or the word itself; `pos` is n, v, a or r."""
    known = _words(pos)
    forms = [word, *_exceptions(pos).get(word, ())]
    if len(forms) == 1:
        forms += [word[: -len(old)] + new for old, new in _ENDINGS[pos] if word.endswith(old)]
    return min((form for form in forms if form in known), key=len, default=word)


def wordnet_pos(tag: str) -> str:
    """Return n, v, a or r for a Penn Treebank tag; n for any other tag, as in the published evaluator."""
    return {"J": "a", "V": "v", "R": "r"}.get(tag[:1], "n")


def find_nouns(text: str) -> list[str]:
    """Return the lemmas of words tagged NN…, in order, case kept, as AMBER reads an answer.

    Raises DataError for a text of more than `LONGEST` characters.
    """
    _refuse_longer(text)
    words = _word_tokenize(text)
    tags = Tags(words)
    return [lemmatize(word) for i, word in enumerate(words) if tags[i].startswith("NN")]


def _refuse_longer(text: str) -> None:
    if len(text) > LONGEST:
        raise DataError(
            f"the text {shorten(text, 40)!r} has {len(text):,} characters: words of at most {LONGEST:,} are "
            "read, shorten it"
        )


class Tags:
    """The tags of a tokenised text by NLTK's averaged perceptron, each worked out when it is asked for.

    A tag depends on the two before it, unless the tagger's dictionary knows the word: so tags[i] works out
    those back to the nearest pair of words whose tags are known.
    """

    def __init__(self, words: Sequence[str]):
        self._words = words
        tagdict = _tagger().tagdict
        self._tags: list[str | None] = [tagdict.get(word) for word in words]
        self._context: list[str] = []

    def __getitem__(self, i: int) -> str:
        begin = i
        while begin >= 0 and not (self._known(begin) and (begin == i or self._known(begin - 1))):
            begin -= 1
        for at in range(max(begin, 0), i + 1):
            if self._tags[at] is None:
                self._tags[at] = self._predict(at)
        tag = self._tags[i]
        assert tag is not None
        return tag

    def _known(self, i: int) -> bool:
        return i < 0 or self._tags[i] is not None

    def _predict(self, i: int) -> str:
        """Predict a tag from NLTK's features in NLTK's order (sums of floats depend on it)."""
        tagger = _tagger()
        if not self._context:
            self._context = [*tagger.START, *map(_normalised, self._words), *tagger.END]
        word, context, at = self._words[i], self._context, i + 2
        before = self._tags[i - 1] if i > 0 else tagger.START[0]
        before2 = self._tags[i - 2] if i > 1 else tagger.START[i == 0]
        last, after = context[at - 1], context[at + 1]
        scores = dict.fromkeys(tagger.classes, 0.0)
        weights = tagger.model.weights
        for feature in (
            "bias",
            f"i suffix {word[-3:]}",
            f"i pref1 {word[:1]}",
            f"i-1 tag {before}",
            f"i-2 tag {before2}",
            f"i tag+i-2 tag {before} {before2}",
            f"i word {context[at]}",
            f"i-1 tag+i word {before} {context[at]}",
            f"i-1 word {last}",
            f"i-1 suffix {last[-3:]}",
            f"i-2 word {context[at - 2]}",
            f"i+1 word {after}",
            f"i+1 suffix {after[-3:]}",
            f"i+2 word {context[at + 2]}",
        ):
            for label, weight in weights.get(feature, {}).items():
                scores[label] += weight
        return max(scores, key=lambda label: (scores[label], label))


@lru_cache(maxsize=1 << 16)
def _normalised(word: str) -> str:
    return _tagger().normalize(word)


@cache
def _tagger() -> Any:
    from nltk.tag.perceptron import PerceptronTagger

    return PerceptronTagger()


def _word_tokenize(text: str) -> list[str]:
    from nltk import word_tokenize

    return word_tokenize(text)


@cache
def _words(pos: str) -> frozenset[str]:
    """Return all of WordNet's words of a part of speech."""
    lines = _wordnet_file(f"index.{_FILES[pos]}").splitlines()
    return frozenset(line[: line.index(" ")] for line in lines if not line.startswith(" "))


@cache
def _exceptions(pos: str) -> dict[str, list[str]]:
    lines = _wordnet_file(f"{_FILES[pos]}.exc").splitlines()
    return {first: rest for first, *rest in (line.split() for line in lines if line.strip())}


def _wordnet_file(name: str) -> str:
    import nltk

    find_missing()  # puts our folder on NLTK's path
    for place in (f"corpora/wordnet/{name}", f"corpora/wordnet.zip/wordnet/{name}"):
        try:
            with nltk.data.find(place).open() as stream:
                return stream.read().decode("utf-8")
        except LookupError:
            continue
    raise DataError(f"NLTK finds no WordNet file {name}: run `reverse data language`")
