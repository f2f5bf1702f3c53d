"""AMBER's word lists, its files, and the closeness of two words, as its published script defines them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from reverse.errors import DataError, MissingFileError
from reverse.evaluation.reading.file_lookup import find_files
from reverse.files.cell_values import describe
from reverse.files.entries import FileEntry, read_value
from reverse.files.text_reading import read_text

__all__ = ["PLACES", "AmberWords", "Close", "by_similarity", "find_amber_file", "find_closeness"]

PLACES = ("amber/metadata", "amber", "amber/data", "metadata", "data", ".")  # as running looks for them
MODEL = "en_core_web_lg"
THRESHOLD = 0.8  # https://github.com/junyangwang0410/AMBER, inference.py

Close = Callable[[str, str], bool]  # whether two words mean about the same


def find_closeness() -> tuple[Close, str]:
    """Return a test of closeness by spaCy's word vectors, or of equality without the model; and its name."""
    try:
        import spacy

        nlp = spacy.load(MODEL)
    except (ImportError, OSError):
        return _equal, f"equal words only: {MODEL} is not installed (python -m spacy download {MODEL})"
    return by_similarity(nlp), f"{MODEL} {nlp.meta.get('version', '')}, similarity above {THRESHOLD}"


def by_similarity(nlp: Callable[[str], Any]) -> Close:
    """Return a test whether two words are close by their spaCy documents; each word is parsed once."""
    read = cache(nlp)

    @cache
    def close(first: str, second: str) -> bool:
        return bool(read(first).similarity(read(second)) > THRESHOLD)

    return close


def _equal(first: str, second: str) -> bool:
    return first == second


def find_amber_file(truth: str | Path, name: str) -> Path:
    """Find one of AMBER's published files. Raises MissingFileError."""
    found = find_files(truth if Path(truth).is_dir() else Path(truth).parent, PLACES, [name])
    if not found:
        raise MissingFileError(
            f"no {name} under {truth}: AMBER needs annotations.json, relation.json and safe_words.txt of "
            "github.com/junyangwang0410/AMBER, data/"
        )
    return found[0]


class AmberWords:
    """AMBER's word lists: related words, and words that are never wrong."""

    def __init__(self, truth: str | Path):
        self.related = _read_relations(find_amber_file(truth, "relation.json"))
        self.safe = set(read_text(find_amber_file(truth, "safe_words.txt")).replace("\r\n", "\n").split("\n"))
        self.known = {*self.related, *(word for words in self.related.values() for word in words)}

    def words(self, objects: Sequence[str]) -> list[tuple[str, int]]:
        """Return words that may stand for the objects, each with the index of its object: related words
        before names.

        The order matters: a noun is credited to the first that fits (a "man" to a child that is annotated,
        before the man).
        """
        relatives = [(word, i) for i, name in enumerate(objects) for word in self.related.get(name, ())]
        return [*relatives, *((name, i) for i, name in enumerate(objects))]


def _read_relations(path: Path) -> dict[str, list[str]]:
    """Read the words that may stand for each word."""
    value = read_value(path)
    if not isinstance(value, dict):
        raise DataError(
            f"{path} must hold an object of lists of words, got {describe(value)}: fetch it again"
        )
    entry = FileEntry(value, str(path))
    return {word: entry.texts(word) for word in value}
