"""Sentence ends as token positions, found in the text of the tokens.

`.` `!` `?` `。` and newlines end a sentence; "3.5", "e.g." and anything inside a phrase do not. One token of
look-ahead is needed.

    find_sentence_ends(["A", " cup", ".", " It", " costs", " 3", ".", "5"])   # (3,)
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from reverse.tokens.spans import CN, SPAN, TAGS, UN, TokenIds

__all__ = ["find_sentence_ends"]

_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'])(?:(?:[A-Za-z]\.){2,}|(?:mr|mrs|ms|dr|st|vs|etc|approx|fig|no|prof|inc|ca|cf)\.)$", re.I
)
_END = re.compile(r"(?:[.!?]+[\"'”’)\]]*|。[”’」』）]*)$")
_SEEN = 32  # characters that are read before and in a piece


def find_sentence_ends(
    pieces: Sequence[str], before: str = "", *, ids: Sequence[int] | None = None, tags: TokenIds | None = None
) -> tuple[int, ...]:
    """Return the numbers of pieces after which a sentence ends, ascending. The last piece is look-ahead only.

    Args: `pieces` the text of each token, tags included; `before` the text before them; `ids` the tokens, and
    `tags` the ids of the three tags. Without `ids`, a piece that reads as a tag is one.
    """
    if ids is None or tags is None:
        written = [piece.strip() if piece.strip() in TAGS else None for piece in pieces]
    else:
        names = {tags.span: SPAN, tags.cn: CN, tags.un: UN}
        written = [names.get(token) for token in ids]
    ends: list[int] = []
    text, inside = before[-_SEEN:], False
    for i, piece in enumerate(pieces[:-1]):
        if written[i] is not None:
            inside = written[i] == SPAN
            continue
        text = text[-_SEEN:] + piece[-8 * _SEEN :]
        if inside or not piece.strip(" \t"):
            continue
        if _ends_sentence(text, pieces[i + 1], written[i + 1] is not None):
            ends.append(i + 1)
    return tuple(ends)


def _ends_sentence(text: str, following: str, before_tag: bool) -> bool:
    if text.rstrip(" \t").endswith("\n"):
        return bool(text.strip())
    shown = text.rstrip()
    match = _END.search(shown)
    if match is None:
        return False
    if match.group().startswith("。"):
        return True
    spaced = len(shown) < len(text) or following[:1].isspace() or before_tag
    return spaced and not _ABBREVIATION.search(shown)
