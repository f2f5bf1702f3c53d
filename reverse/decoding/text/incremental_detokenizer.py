"""The text of ids that are still growing, as far as no further id can change it.

What has been told must never be put right: tags are left out, a character that spreads over several ids
comes when it is whole, white space at either end waits until it is known to lie inside the answer, and what
may become a spelled tag until it is one or none. However the ids are cut into pieces, the text told is a
prefix of `Result.text`. An id costs the same wherever it stands: only the last few are decoded again.

    text = ShownText(decode, tags=tags)
    text.feed([11, 5, 12])          # "A dog"
    text.feed([6])                  # ""      (a tag)
    text.cut(1)                     # the number of characters that remain
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from reverse.decoding.verifier import NO_TAGS
from reverse.tokens.spans import TAGS, TokenIds, break_tags

__all__ = ["ShownText", "half_character"]

_WINDOW = 64  # ids decoded together before the window moves on
_ANCHORS = (8, 9, 10, 11, 16, 32)  # ids it keeps, so that joints come out right: none splits a character
_LONG = 256  # a window that cannot move on, of halves of characters alone, is decoded less and less often
_LONGEST = max(map(len, TAGS))
_HALF = "\ufffd"


def half_character(tokenizer: Any) -> int | None:
    """An id that is a part of a character, or None where the tokenizer has none.

    Half a character spoils the bytes before it too (SentencePiece), so it shows what may still change.
    """
    ids = tokenizer.encode("\U000130b8", add_special_tokens=False)
    return next((i for i in ids if _HALF in tokenizer.decode([i])), None)


class ShownText:
    """Ids in, text out.

    Args: `decode` turns ids into text, tags included; `half` see `half_character`; `silent` ids without text;
    `tags` the ids of the three tokens: what only looks like a tag is text, see `answer_text`.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        half: int | None = None,
        silent: frozenset[int] = frozenset(),
        tags: TokenIds = NO_TAGS,
    ):
        self.decode, self.half, self.silent, self.tags = decode, half, silent, tags
        self.ids: list[int] = []
        self.length = 0  # characters told
        self._window: list[int] = []  # of the ids since the last tag, as many as still matter
        self._read = 0  # characters of the window's text that were read
        self._due = _LONG  # a longer window waits for so many ids before it is decoded again
        self._plain = _Plain()
        self._marks: list[_Mark] = []  # where `cut` may begin anew
        self._owed = ""  # text that is certain and was not told yet

    def feed(self, ids: Sequence[int]) -> str:
        """Add ids; returns the text that is settled by them, often ""."""
        told = [self._owed]
        self._owed = ""
        fresh = False
        for token in ids:
            self.ids.append(token)
            if token in self.tags:
                told.append(self._end_run(token))
                fresh = False
            elif token not in self.silent:
                self._window.append(token)
                fresh = True
        if fresh:
            told.append(self._settle())
        text = "".join(told)
        self.length += len(text)
        self._mark()
        return text

    def cut(self, to: int) -> int:
        """Forget all but the first `to` ids; returns how many characters remain of what was told."""
        told = self.length
        kept = self.ids[:to]
        while self._marks and self._marks[-1].ids > to:
            self._marks.pop()
        mark = self._marks[-1] if self._marks else _Mark(0, 0, (), 0, _Plain())
        self.ids, self.length, self._owed = kept[: mark.ids], mark.length, ""
        self._window, self._read, self._due = list(mark.window), mark.read, _LONG
        self._plain = mark.plain.copy()
        text = self.feed(kept[mark.ids :]) if to > mark.ids else ""
        if self.length > told:  # a long run that was not decoded at every id
            self._owed = text[len(text) - (self.length - told) :]
            self.length = told
        return self.length

    def _mark(self) -> None:
        """Remember where a later `cut` may begin, so that it need not read the answer from its start."""
        last = self._marks[-1].ids if self._marks else 0
        if len(self._window) <= _WINDOW and len(self.ids) - last >= _WINDOW and self._plain.is_short:
            mark = _Mark(len(self.ids), self.length, tuple(self._window), self._read, self._plain.copy())
            self._marks.append(mark)

    def _end_run(self, tag: int) -> str:
        """A tag ends a run of ids: nothing after it changes what stands before."""
        told = self._plain.feed(self.decode(self._window)[self._read :]) if self._window else ""
        self._window, self._due = [tag], _LONG
        self._read = len(self.decode(self._window))
        return told + self._plain.tag()

    def _settle(self) -> str:
        size = len(self._window)
        if size > _LONG and size < self._due:
            return ""
        text = self.decode(self._window)
        settled = self._settled(text)
        told = self._plain.feed(settled[self._read :])
        self._read = max(self._read, len(settled))
        self._due = size + size // 4
        if size > _WINDOW and len(settled) == len(text):
            for anchor in _ANCHORS:
                start = self.decode(self._window[-anchor:])
                if _HALF not in start:
                    self._window, self._read, self._due = self._window[-anchor:], len(start), _LONG
                    break
        return told

    def _settled(self, text: str) -> str:
        end = len(text)
        if self.half is not None:
            spoiled = self.decode([*self._window, self.half])
            same = (i for i, (a, b) in enumerate(zip(text, spoiled, strict=False)) if a != b)
            end = next(same, min(len(text), len(spoiled)))
        return text[:end].rstrip(_HALF)


class _Plain:
    """The clean text of an answer from its growing runs: blanks at its ends left out, spelled tags broken."""

    def __init__(self) -> None:
        self._begun = False
        self._spaces: list[str] = []  # at the end so far: dropped, should nothing follow
        self._held = ""  # may turn out to be part of a spelled tag

    def copy(self) -> _Plain:
        other = _Plain()
        other._begun, other._spaces, other._held = self._begun, self._spaces[:], self._held
        return other

    @property
    def is_short(self) -> bool:
        """Little enough is held back to be copied."""
        return len(self._spaces) <= _WINDOW

    def tag(self) -> str:
        """A tag stands here: blanks before it stay."""
        self._begun = True
        told, self._spaces = "".join(self._spaces), []
        return told

    def feed(self, text: str) -> str:
        """What is certain of the clean text, now that `text` follows."""
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        if not text:
            return ""
        body = text.rstrip()
        if not body:
            told, self._held = self._held, ""
            self._spaces.append(text)
            return told
        body = self._held + "".join(self._spaces) + body  # one of the two is empty
        spaces = text[len(text.rstrip()) :]
        self._held, self._spaces = "", [spaces] if spaces else []
        at = body.rfind("<", max(0, len(body) - _LONGEST + 1))
        if not spaces and at >= 0 and any(tag.startswith(body[at:]) and tag != body[at:] for tag in TAGS):
            body, self._held = body[:at], body[at:]
        return break_tags(body)


@dataclass(frozen=True, slots=True)
class _Mark:
    """The state after so many ids."""

    ids: int
    length: int
    window: tuple[int, ...]
    read: int
    plain: _Plain
