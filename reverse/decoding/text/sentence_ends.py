"""Where sentences end, found in the text and told as token positions.

The policy knows only ids, so the layer around it reads the text: `.` `!` `?` `。` and newlines end a
sentence; "3.5", "e.g." and anything inside a phrase do not. One token of look-ahead is needed.

    sentence_ends(["A", " cup", ".", " It", " costs", " 3", ".", "5"])   # (3,)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from reverse.tokens.spans import CN, SPAN, TAGS, UN, TokenIds

__all__ = ["sentence_ends", "token_pieces"]

_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'])(?:(?:[A-Za-z]\.){2,}|(?:mr|mrs|ms|dr|st|vs|etc|approx|fig|no|prof|inc|ca|cf)\.)$", re.I
)
_END = re.compile(r"(?:[.!?]+[\"'”’)\]]*|。[”’」』）]*)$")
_SEEN = 32  # characters before and in a piece that tell whether it ends a sentence
_WINDOW = 40  # ids decoded together; pieces come from growing prefixes, which costs the square of this
_UTF8 = 4  # bytes a character has at most
_ANCHOR = 8  # ids decoded before a chunk, so that joints between words come out right


def sentence_ends(
    pieces: Sequence[str], before: str = "", *, ids: Sequence[int] | None = None, tags: TokenIds | None = None
) -> tuple[int, ...]:
    """Numbers of pieces after which a sentence ends, ascending; the last piece only serves to look ahead.

    Args: `pieces` the text of each token, tags as they are written; `before` the text that came earlier;
    `ids` the tokens, and `tags` those of the three; without them a piece that reads as a tag is one.
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


def token_pieces(
    decode: Callable[[list[int]], str], ids: Sequence[int], context: Sequence[int] = ()
) -> list[str]:
    """The text each id adds, so that the pieces joined are the text of `ids` after `context`.

    A character that spreads over several ids is told with the last of them.
    """
    pieces: list[str] = []
    window, shown = _anchor(decode, list(context))
    for token in ids:
        window.append(int(token))
        text = decode(window)
        if text.endswith("\ufffd"):  # half a character: wait for the rest
            pieces.append("")
            if len(window) > 2 * _WINDOW:  # bytes that are no text: no character takes so many
                window, shown = window[-_UTF8:], ""
            continue
        pieces.append(text[len(shown) :])
        shown = text
        if len(window) > _WINDOW:
            window, shown = _anchor(decode, window)
    return pieces


def _anchor(decode: Callable[[list[int]], str], ids: list[int]) -> tuple[list[int], str]:
    """The end of `ids` from where a character begins, and its text without half a character at its end.

    Half a character spoils the whole run of byte tokens it stands in (SentencePiece), so it is cut off first.
    """
    tail = ids[-_WINDOW:]
    for whole in range(len(tail), max(-1, len(tail) - _UTF8), -1):
        for size in (_ANCHOR, 2 * _ANCHOR, 4 * _ANCHOR):
            for start in range(whole - size, whole - size - _UTF8, -1):  # a character begins at one of them
                text = decode(tail[max(0, start) : whole])
                if "\ufffd" not in text:
                    return tail[max(0, start) :], text
    return tail, decode(tail)
