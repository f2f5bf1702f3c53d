"""The text of ids that are still growing, as far as no further id can change it.

What has been told must never be put right: tags are left out, a character that spreads over several ids
comes when it is whole, and white space at either end waits until it is known to lie inside the answer.
However the ids are cut into pieces, the text told is a prefix of `Result.text`.

    text = ShownText(decode)
    text.feed([11, 5, 12])          # "A dog"
    text.feed([6])                  # ""      (a tag)
    text.cut(1)                     # the number of characters that remain
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from reverse.tokens.spans import TAGS

__all__ = ["ShownText", "half_character"]

_WINDOW = 64  # ids decoded together before the window moves on
_ANCHOR = 8  # ids it keeps, so that joints between words come out right
_HALF = "\ufffd"


def half_character(tokenizer: Any) -> int | None:
    """An id that is a part of a character, or None where the tokenizer has none.

    Half a character spoils the bytes before it too (SentencePiece), so it shows what may still change.
    """
    ids = tokenizer.encode("\U000130b8", add_special_tokens=False)
    return next((i for i in ids if _HALF in tokenizer.decode([i])), None)


class ShownText:
    """Ids in, text out.

    Args: `decode` turns ids into text, tags included; `half` see `half_character`; `silent` ids without text.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        half: int | None = None,
        silent: frozenset[int] = frozenset(),
    ):
        self.decode, self.half, self.silent = decode, half, silent
        self.ids: list[int] = []
        self._clear()

    def _clear(self) -> None:
        self.ids = []
        self.length = 0  # characters told
        self._window: list[int] = []
        self._read = 0  # characters of the window's text that were read
        self._clean = _Untagged()

    def feed(self, ids: Sequence[int]) -> str:
        """Add ids; returns the text that is settled by them, often ""."""
        self.ids.extend(ids)
        self._window.extend(i for i in ids if i not in self.silent)
        text = self.decode(self._window)
        settled = self._settled(text)
        told = self._clean.feed(settled[self._read :])
        self._read = max(self._read, len(settled))
        if len(self._window) > _WINDOW and len(settled) == len(text):
            anchor = self._window[-_ANCHOR:]
            start = self.decode(anchor)
            if _HALF not in start:
                self._window, self._read = anchor, len(start)
        self.length += len(told)
        return told

    def cut(self, to: int) -> int:
        """Forget all but the first `to` ids; returns how many characters remain of what was told."""
        kept = self.ids[:to]
        self._clear()
        if kept:
            self.feed(kept)
        return self.length

    def _settled(self, text: str) -> str:
        end = len(text)
        if self.half is not None:
            spoiled = self.decode([*self._window, self.half])
            same = (i for i, (a, b) in enumerate(zip(text, spoiled, strict=False)) if a != b)
            end = next(same, min(len(text), len(spoiled)))
        return text[:end].rstrip(_HALF)


class _Untagged:
    """`parse(tagged.strip()).text`, a character at a time."""

    def __init__(self) -> None:
        self._begun = False
        self._spaces = ""  # at the end so far: dropped, should nothing follow
        self._held = ""  # may turn out to be part of a tag

    def feed(self, text: str) -> str:
        told = []
        for character in text:
            if character.isspace():
                if self._begun:
                    self._spaces += character
                continue
            self._begun = True
            for c in self._spaces + character:
                self._held += c
                for tag in TAGS:
                    self._held = self._held.removesuffix(tag)
            self._spaces = ""
            end = self._sure()
            told.append(self._held[:end])
            self._held = self._held[end:]
        return "".join(told)

    def _sure(self) -> int:
        """How much of what is held can no longer become a tag, even should what follows it vanish."""
        end = len(self._held)
        while True:
            at = self._held.rfind("<", 0, end)
            if at < 0 or not any(t.startswith(self._held[at:end]) for t in TAGS):
                return end
            end = at
