"""The text of ids that are still growing. All growing ids are decoded by the window of this module.

`DecodeWindow` decodes the last ids only, so an id costs the same wherever it stands. `IncrementalDetokenizer`
returns clean text that no further id can change: an incomplete character, white space at either end and what
may become a spelled tag are held back. However the ids are cut into pieces, the text is a prefix of
`Result.text`.

    text = IncrementalDetokenizer(decode, tags)
    text.feed([11, 5, 12])          # "A dog"
    text.feed([6])                  # ""      (a tag)
    text.cut(1)                     # the number of characters that remain
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from reverse.decoding.verifier import NO_TAGS
from reverse.tokens.spans import TAGS, TokenIds, break_tags

__all__ = [
    "INCOMPLETE",
    "DecodeWindow",
    "IncrementalDetokenizer",
    "find_partial_byte_token",
    "split_into_pieces",
]

INCOMPLETE = "\ufffd"  # stands in a decoded text for bytes that are not characters
_UTF8 = 4  # most bytes of a character
_SIZE = 8  # ids that a window keeps at least, so that joints between words come out right
_WINDOW = 64  # ids that a window holds before it is shortened
_LONG = 256  # a longer window, of incomplete characters alone, is decoded less and less often
_LONGEST_TAG = max(map(len, TAGS))


def find_partial_byte_token(tokenizer: Any) -> int | None:
    """Return an id that is a part of a character, or None if the tokenizer has none.

    In SentencePiece an incomplete character spoils the bytes before it too, so appending this id shows which
    text may still change.
    """
    ids = tokenizer.encode("\U000130b8", add_special_tokens=False)
    return next((i for i in ids if INCOMPLETE in tokenizer.decode([i])), None)


@dataclass(slots=True)
class DecodeWindow:
    """The last ids of a growing text, as many as the text of further ids depends on."""

    decode: Callable[[list[int]], str]
    size: int = _SIZE  # ids that stay at least
    ids: list[int] = field(default_factory=list)
    text: str = ""  # of `ids`
    read: int = 0  # characters of `text` that were taken
    _due: int = _LONG  # length at which a long window is decoded next

    @classmethod
    def after(
        cls, decode: Callable[[list[int]], str], context: Sequence[int], size: int = _SIZE
    ) -> DecodeWindow:
        """Return a window at the end of `context`, beginning with a whole character if the context is cut."""
        tail = list(context[-2 * size :])
        text = decode(tail) if tail else ""
        for _ in range(_UTF8 - 1):
            if len(context) <= 2 * size or not text.startswith(INCOMPLETE):
                break
            del tail[0]
            text = decode(tail)
        return cls(decode, size, tail, text, len(text.rstrip(INCOMPLETE)))

    def copy(self) -> DecodeWindow:
        return replace(self, ids=self.ids[:])

    def extend(self, ids: Iterable[int]) -> bool:
        """Add ids; return whether they were decoded, which does not happen every time in a long window."""
        self.ids.extend(ids)
        is_due = len(self.ids) <= _LONG or len(self.ids) >= self._due
        if is_due:
            self.text = self.decode(self.ids)
            self._due = len(self.ids) * 5 // 4
        return is_due

    def restart(self) -> None:
        """Keep the last ids only, though they may begin inside a character."""
        other = self.after(self.decode, self.ids, self.size)
        self.ids, self.text, self.read, self._due = other.ids, other.text, other.read, _LONG

    def take(self, end: int) -> str:
        """Return the text up to `end` that was not taken yet. A long window that was taken whole is cut."""
        taken, self.read = self.text[self.read : end], max(self.read, end)
        if len(self.ids) > max(_WINDOW, 2 * self.size) and end == len(self.text):
            starts = range(self.size, self.size + _UTF8)  # a character begins at one of them
            for count in (*starts, 2 * self.size, 4 * self.size):
                text = self.decode(self.ids[-count:])
                if INCOMPLETE not in text:
                    self.ids, self.text, self.read, self._due = self.ids[-count:], text, len(text), _LONG
                    break
        return taken


def split_into_pieces(
    decode: Callable[[list[int]], str], ids: Sequence[int], context: Sequence[int] = ()
) -> list[str]:
    """Return the text that each id adds; the pieces joined are the text of `ids` after `context`.

    A character that spreads over several ids belongs to the last of them.
    """
    pieces: list[str] = []
    window = DecodeWindow.after(decode, context)
    for token in ids:
        window.extend((token,))
        pieces.append("" if window.text.endswith(INCOMPLETE) else window.take(len(window.text)))
        if len(window.ids) > 2 * _WINDOW:  # bytes that are not text: no character has so many
            window.restart()
    return pieces


class IncrementalDetokenizer:
    """Turns ids into clean text that is final.

    Args: `decode` maps ids to text with tags; `tags` are the ids of the three tokens (what only looks like a
    tag is text, see `answer_text`); `partial` as of `find_partial_byte_token`; `silent` ids have no text.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        tags: TokenIds = NO_TAGS,
        partial: int | None = None,
        silent: frozenset[int] = frozenset(),
    ):
        self.decode, self.tags, self.partial, self.silent = decode, tags, partial, silent
        self.ids: list[int] = []
        self.length = 0  # characters returned so far
        self._window = DecodeWindow(decode)  # of the ids since the last tag
        self._clean = _CleanText()
        self._snapshots: list[_Snapshot] = []  # where `cut` may start again
        self._owed = ""  # final text that was not returned yet

    def feed(self, ids: Sequence[int]) -> str:
        """Add ids; return the text that they make final, often ""."""
        texts, self._owed = [self._owed], ""
        fresh: list[int] = []
        for token in ids:
            if token in self.tags:
                texts.append(self._end_run(fresh, token))
                fresh = []
            elif token not in self.silent:
                fresh.append(token)
        if fresh and self._window.extend(fresh):
            texts.append(self._clean.feed(self._window.take(self._find_final_end())))
        self.ids.extend(ids)
        text = "".join(texts)
        self.length += len(text)
        self._save_snapshot()
        return text

    def cut(self, to: int) -> int:
        """Forget all but the first `to` ids; return how many characters of the returned text remain."""
        returned, kept = self.length, self.ids[:to]
        while self._snapshots and self._snapshots[-1].ids > to:
            self._snapshots.pop()
        if self._snapshots:
            last = self._snapshots[-1]
            start, self.length = last.ids, last.length
            self._window, self._clean = last.window.copy(), last.clean.copy()
        else:
            start, self.length = 0, 0
            self._window, self._clean = DecodeWindow(self.decode), _CleanText()
        self.ids, self._owed = kept[:start], ""
        text = self.feed(kept[start:]) if to > start else ""
        if self.length > returned:  # a long run that was not decoded at every id
            self._owed = text[len(text) - (self.length - returned) :]
            self.length = returned
        return self.length

    def _save_snapshot(self) -> None:
        last = self._snapshots[-1].ids if self._snapshots else 0
        if len(self._window.ids) <= _WINDOW and len(self.ids) - last >= _WINDOW and self._clean.is_short:
            copies = self._window.copy(), self._clean.copy()
            self._snapshots.append(_Snapshot(len(self.ids), self.length, *copies))

    def _end_run(self, fresh: list[int], tag: int) -> str:
        """Return the rest of a run of ids that a tag ends: nothing after the tag changes it."""
        window = self._window
        window.ids.extend(fresh)
        text = self.decode(window.ids)[window.read :] if window.ids else ""
        self._window = DecodeWindow.after(self.decode, (tag,))
        return self._clean.feed(text) + self._clean.take_blanks()

    def _find_final_end(self) -> int:
        """Return how many characters of the window's text no further id can change."""
        window = self._window
        end = len(window.text)
        if self.partial is not None:
            spoiled = self.decode([*window.ids, self.partial])
            same = (i for i, (a, b) in enumerate(zip(window.text, spoiled, strict=False)) if a != b)
            end = next(same, min(end, len(spoiled)))
        return len(window.text[:end].rstrip(INCOMPLETE))


class _CleanText:
    """The clean text of growing runs: without blanks at its ends, spelled tags broken."""

    def __init__(self) -> None:
        self._has_begun = False
        self._blanks: list[str] = []  # at the end so far; they are dropped if nothing follows
        self._held = ""  # may become a spelled tag

    def copy(self) -> _CleanText:
        other = _CleanText()
        other._has_begun, other._blanks, other._held = self._has_begun, self._blanks[:], self._held
        return other

    @property
    def is_short(self) -> bool:
        """Whether little enough is held back to be copied."""
        return len(self._blanks) <= _WINDOW

    def take_blanks(self) -> str:
        """Return the blanks at the end, which stay because a tag follows them."""
        self._has_begun = True
        text, self._blanks = "".join(self._blanks), []
        return text

    def feed(self, text: str) -> str:
        """Return the clean text that is final once `text` follows."""
        if not self._has_begun:
            text = text.lstrip()
            self._has_begun = bool(text)
        if not text:
            return ""
        body = text.rstrip()
        if not body:
            final, self._held = self._held, ""
            self._blanks.append(text)
            return final
        blanks = text[len(body) :]
        body = self._held + "".join(self._blanks) + body  # one of the two is empty
        self._held, self._blanks = "", [blanks] if blanks else []
        at = body.rfind("<", max(0, len(body) - _LONGEST_TAG + 1))
        if not blanks and at >= 0 and any(tag.startswith(body[at:]) and tag != body[at:] for tag in TAGS):
            body, self._held = body[:at], body[at:]
        return break_tags(body)


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The state of a detokenizer after a number of ids."""

    ids: int
    length: int
    window: DecodeWindow
    clean: _CleanText
