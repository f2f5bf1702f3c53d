"""The text of an answer, with and without tags, and its phrases. Ids decide what is a tag, not the text.

A model may spell `<SPAN>` in ordinary tokens (`<`, `SPAN`, `>`). That is text and is written `< SPAN>`, so
that it stays text when it is parsed or tokenised again: `parse_tags(read.tagged)` gives `read.text` and the
phrases of `read`.

    read = read_answer(decode, ids, tags)
    read.text, read.tagged, read.phrases
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from reverse.tokens.spans import CN, SPAN, UN, TokenIds, break_tags, find_tag_offsets

__all__ = ["AnswerText", "MarkedPhrase", "read_answer"]


@dataclass(frozen=True, slots=True)
class MarkedPhrase:
    """A phrase, its place in the text, and the position of its closing tag in the ids."""

    text: str
    start: int
    end: int
    confident: bool  # it closes with `</CN>`
    closing: int


@dataclass(frozen=True, slots=True)
class AnswerText:
    """The text of an answer; `tagged` is `text` with tags."""

    text: str
    tagged: str
    phrases: tuple[MarkedPhrase, ...]


def read_answer(decode: Callable[[list[int]], str], ids: Sequence[int], tags: TokenIds) -> AnswerText:
    """Return the text, tagged text and phrases of an answer's ids without EOS.

    Tags are read as by `reverse.tokens.parse`: a second `<SPAN>` before a closing tag replaces the first, and
    a tag without its counterpart is ignored. Blanks around the tagged text are removed.
    """
    spelled = {tags.span: SPAN, tags.cn: CN, tags.un: UN}
    places = [i for i, token in enumerate(ids) if token in spelled]
    bounds = [-1, *places, len(ids)]
    pieces = [_decode_after(decode, ids, before, end) for before, end in pairwise(bounds)]
    pieces[0] = pieces[0].lstrip()
    pieces[-1] = pieces[-1].rstrip()
    joined = "".join(pieces)
    blanks = find_tag_offsets(joined)
    text = break_tags(joined)
    tagged: list[str] = []
    phrases: list[MarkedPhrase] = []
    opened: int | None = None
    at = length = 0
    for place, piece in zip(places, pieces, strict=False):
        length += len(piece)
        here = length + bisect_right(blanks, length)
        tagged += [text[at:here], spelled[ids[place]]]
        at = here
        if ids[place] == tags.span:
            opened = here
        elif opened is not None:
            phrases.append(MarkedPhrase(text[opened:here], opened, here, ids[place] == tags.cn, place))
            opened = None
    return AnswerText(text, "".join([*tagged, text[at:]]), tuple(phrases))


def _decode_after(decode: Callable[[list[int]], str], ids: Sequence[int], before: int, end: int) -> str:
    """Return the text of the ids after the tag at `before` (-1: the start), as decoded after that tag."""
    if before + 1 == end:
        return ""
    if before < 0:
        return decode(list(ids[:end]))
    # SentencePiece leaves out a blank at the start of a text.
    return decode(list(ids[before:end]))[len(decode([ids[before]])) :]
