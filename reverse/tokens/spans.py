"""The three tokens, and tagged text as phrases: this module maps text to text, without tensors.

A model that was trained to mark its phrases writes `<SPAN>two cups</CN>` for a phrase of which it is
confident and `<SPAN>two cups</UN>` for one of which it is not. This module reads and writes that notation:

    >>> from reverse.tokens.spans import parse_tags
    >>> parse_tags("I see <SPAN>two cups</UN>.").phrases
    (TaggedPhrase(text='two cups', start=6, end=14, confident=False),)

The notation: REVERSE, https://arxiv.org/abs/2504.13169, section 3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from reverse.errors import DataError

SPAN = "<SPAN>"  # opens a phrase
CN = "</CN>"  # closes a phrase the model is confident of
UN = "</UN>"  # closes a phrase the model is not confident of
TAGS = (SPAN, CN, UN)

# The characters for which `str.isspace` is true, for a character class of RE2, whose `\s` is ASCII only.
BLANKS = "\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# Every "<" belongs to a tag that opens or closes a non-empty phrase. A text that matches has no problem;
# matching takes one pass, in `re` and RE2, which makes it a fast check for millions of texts.
WELL_FORMED = f"[^<]*(?:{SPAN}[{BLANKS}]*[^<{BLANKS}][^<]*(?:{CN}|{UN})[^<]*)*"

# A tag with wrong case or blanks. `<span>` alone is HTML; a phrase also has a closing tag.
_NEAR_TAG = re.compile(r"<\s*/\s*(?:[cC][nN]|[uU][nN])\s*>|<\s*SPAN\s*>")
_TAG = re.compile("|".join(map(re.escape, TAGS)))
_OPENS_TAG = re.compile("<(?=" + "|".join(re.escape(tag[1:]) for tag in TAGS) + ")")
_LONGEST = max(map(len, TAGS))


@dataclass(frozen=True, slots=True)
class TokenIds:
    """The ids of the three tokens in one tokenizer."""

    span: int
    cn: int
    un: int

    @property
    def closing(self) -> tuple[int, int]:
        """The two ids that close a phrase: `</CN>`, `</UN>`."""
        return (self.cn, self.un)

    def __iter__(self) -> Iterator[int]:
        return iter((self.span, self.cn, self.un))


@dataclass(frozen=True, slots=True)
class TaggedPhrase:
    """One marked phrase; `text == parsed.text[start:end]`, offsets in characters of the clean text."""

    text: str
    start: int
    end: int
    confident: bool


@dataclass(frozen=True, slots=True)
class TaggedText:
    """Text without its tags, and its phrases in order."""

    text: str
    phrases: tuple[TaggedPhrase, ...]


@dataclass(frozen=True, slots=True)
class TagProblem:
    """One place where tags are not well-formed; `offset` counts characters of the tagged text.

    `kind` is one of "nested_open", "close_without_open", "never_closed", "empty_phrase" (nothing but blanks),
    "near_tag" (`</cn>`, `</CN >`: text to a tokenizer, and to `parse_tags`).
    """

    kind: str
    offset: int
    message: str


class _Tag(NamedTuple):
    tag: str
    offset: int  # where it begins in the tagged text
    place: int  # where it stood in the clean text


def remove_tags(text: str) -> str:
    """Return `text` without tags; no other character changes, spaces included.

    Tags are deleted until none is left (`<SP</CN>AN>` holds two), so the result never contains a tag.
    """
    return _scan(text)[0]


def parse_tags(tagged: str) -> TaggedText:
    """Split tagged text into clean text and phrases. Never raises: malformed phrases are left out.

    A second `<SPAN>` before a closing tag replaces the first; a closing tag without `<SPAN>`, and a `<SPAN>`
    that is never closed, mark nothing. `find_problems` reports such tags.
    """
    text, tags = _scan(tagged)
    phrases = []
    start = None
    for tag in tags:
        if tag.tag == SPAN:
            start = tag.place
        elif start is not None:
            phrases.append(TaggedPhrase(text[start : tag.place], start, tag.place, tag.tag == CN))
            start = None
    return TaggedText(text, tuple(phrases))


def break_tags(text: str) -> str:
    """Return `text` with a blank after the `<` of every tag, so that it is not read as a tag.

    It is for text that a model wrote in ordinary tokens: a tag that is spelled so is text, and must not
    become a tag when the text is parsed or tokenised again.
    """
    return _OPENS_TAG.sub("< ", text) if "<" in text else text


def find_tag_offsets(text: str) -> list[int]:
    """Return the offsets in `text` where `break_tags` inserts blanks, ascending."""
    return [match.end() for match in _OPENS_TAG.finditer(text)] if "<" in text else []


def add_tags(text: str, phrases: Iterable[TaggedPhrase]) -> str:
    """Make tagged text from clean text and its phrases: the inverse of `parse_tags`.

    Raises:
        DataError: `text` contains a tag, or the phrases overlap, are out of order, or differ from `text`
            at their offsets.
    """
    if remove_tags(text) != text:
        raise DataError(f"text to be tagged already contains a tag, got {text!r}: parse it first")
    parts = []
    at = 0
    for phrase in phrases:
        if not at <= phrase.start <= phrase.end <= len(text):
            raise DataError(
                f"phrase {phrase.text!r} covers characters {phrase.start} to {phrase.end} of a text of "
                f"{len(text)}, and the phrase before it ends at {at}: phrases stand in order, do not "
                "overlap and lie inside the text"
            )
        if text[phrase.start : phrase.end] != phrase.text:
            raise DataError(
                f"phrase {phrase.text!r} has the offset {phrase.start}, where the text reads "
                f"{text[phrase.start : phrase.end]!r}: offsets count characters of the clean text"
            )
        parts += [text[at : phrase.start], SPAN, phrase.text, CN if phrase.confident else UN]
        at = phrase.end
    return "".join([*parts, text[at:]])


def find_problems(tagged: str) -> list[TagProblem]:
    """Find the places where the tags of `tagged` are malformed; the list is empty if they are well-formed.

    Stricter than `parse_tags`, which accepts a phrase of blanks because models write them.
    """
    text, tags = _scan(tagged)
    found: list[TagProblem] = []

    def report(kind: str, offset: int, message: str) -> None:
        found.append(TagProblem(kind, offset, message))

    opened = None
    for tag in tags:
        at = tag.offset
        if tag.tag == SPAN:
            if opened is not None:
                report("nested_open", at, f"{SPAN} at {at} opens inside the phrase opened at {opened.offset}")
            opened = tag
        elif opened is None:
            report("close_without_open", at, f"{tag.tag} at {at} closes nothing")
        else:
            if not text[opened.place : tag.place].strip():
                report("empty_phrase", opened.offset, f"the phrase at {opened.offset} is empty")
            opened = None
    if opened is not None:
        report("never_closed", opened.offset, f"{SPAN} at {opened.offset} is never closed")
    for near in _NEAR_TAG.finditer(tagged):
        if near.group() not in TAGS:
            message = f"{near.group()!r} at {near.start()} is not a tag: write {', '.join(TAGS)} exactly so"
            report("near_tag", near.start(), message)
    return found


def _scan(tagged: str) -> tuple[str, list[_Tag]]:
    """Return the clean text and all tags with their two offsets, in time proportional to the text."""
    found: list[_Tag] = []
    pieces: list[str] = []
    at = length = 0
    for match in _TAG.finditer(tagged):
        pieces.append(tagged[at : match.start()])
        length += match.start() - at
        at = match.end()
        found.append(_Tag(match.group(), match.start(), length))
    if not found:
        return tagged, found
    clean = "".join([*pieces, tagged[at:]])
    return (clean, found) if _TAG.search(clean) is None else _scan_nested(tagged)


def _scan_nested(tagged: str) -> tuple[str, list[_Tag]]:
    """Do what `_scan` does for a text in which tags contain other tags.

    A tag is removed as soon as the text collected so far ends in one, so a tag that is completed by the
    removal of another from its middle is removed too. Tags do not overlap, so the order does not matter.
    """
    clean: list[str] = []  # characters: to append or remove some costs no more than their number
    found: list[tuple[str, int]] = []  # tags and their offsets in the tagged text
    places: list[list[int]] = []  # [offset in the clean text, number of tags there]

    def remove(tag: str, offset: int) -> None:
        found.append((tag, offset))
        here, length = 1, len(clean)
        while places and places[-1][0] >= length:  # a tag around others: they now stand here
            here += places.pop()[1]
        places.append([length, here])

    at = 0
    for match in _TAG.finditer(tagged):
        _append(clean, tagged, at, match.start(), remove)
        remove(match.group(), match.start())
        at = match.end()
    _append(clean, tagged, at, len(tagged), remove)
    where = (place for place, count in places for _ in range(count))
    return "".join(clean), [
        _Tag(tag, offset, place) for (tag, offset), place in zip(found, where, strict=True)
    ]


def _append(clean: list[str], tagged: str, at: int, end: int, remove: Callable[[str, int], None]) -> None:
    """Append `tagged[at:end]`, which holds no tag, and remove the tags that it completes."""
    while at < end and clean:
        bracket = tagged.find(">", at, min(end, at + _LONGEST - 1))
        if bracket < 0:
            break
        clean += tagged[at : bracket + 1]
        at = bracket + 1
        tail = "".join(clean[-_LONGEST:])
        tag = tail if tail == SPAN else tail[-len(CN) :]
        if tag not in TAGS:
            break
        del clean[-len(tag) :]
        remove(tag, at - len(tag))
    clean += tagged[at:end]
