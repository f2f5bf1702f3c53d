"""A window that slides over a JSON file and decodes the values in it, in bounded memory.

window = JsonWindow(stream, stream.read(CHUNK), offset=0)
if window.skip_spaces():
    value, end = window.decode()
    window.move(end)
"""

import codecs
import json
import re
from typing import Any, Protocol

from reverse.errors import DataError
from reverse.files.text_reading import MAX_DEPTH, is_deeper

__all__ = ["CHUNK", "LONGEST", "TOO_DEEP", "JsonWindow", "Source", "is_too_deep"]

CHUNK = 1 << 20  # bytes of one read
LONGEST = 1 << 24  # characters of one item; a longer one lacks a bracket or a quote
PIECE = 1 << 14  # characters that are decoded at first; more if the item goes on
TOO_DEEP = f"brackets are nested more than {MAX_DEPTH} deep"

_SPACE = re.compile(r"[ \t\r\n]*")
_PLAIN = frozenset("-0123456789tfnNI")  # first character of a value whose errors do not count lines
_MARGIN = 16  # characters; an error so near the window's end may be a literal that the end cuts
_decode = json.JSONDecoder().raw_decode
_scan_once = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


class Source(Protocol):
    """The input of a scan: an open binary file, or an object that counts or hashes its bytes."""

    def read(self, size: int, /) -> bytes: ...


def is_too_deep(text: Any, bracket: Any, brace: Any, value: Any) -> bool:
    """Whether a value is too deep to be copied or shown.

    Most texts have so few brackets that their depth is not computed.
    """
    return (
        len(text) > MAX_DEPTH
        and text.count(bracket) + text.count(brace) > MAX_DEPTH
        and is_deeper(value, MAX_DEPTH)
    )


class JsonWindow:
    """The part of the file that is in memory, as text; bytes that are not UTF-8 stand in it as surrogates."""

    def __init__(self, stream: Source, head: bytes, offset: int):
        self.stream = stream
        self.decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text = self.decoder.decode(head)
        self.at = 0  # characters
        self.offset = offset  # of `at`, bytes
        self.is_complete = False  # the file's end is in the window
        self.chunk = CHUNK
        self.read = len(head)  # bytes so far

    def extend(self) -> bool:
        """Read more; False at the end of the file. A window that does not move grows by doubling."""
        if self.is_complete:
            return False
        self.chunk = 2 * self.chunk if self.at == 0 else CHUNK
        data = self.stream.read(self.chunk)
        self.is_complete = not data
        self.read += len(data)
        self.text = self.text[self.at :] + self.decoder.decode(data, final=self.is_complete)
        self.at = 0
        return True

    def move(self, to: int) -> None:
        if self.text.isascii():  # Python knows this without a search
            self.offset += to - self.at
        else:
            self.offset += len(self.text[self.at : to].encode("utf-8", "surrogateescape"))
        self.at = to

    def move_to_end(self) -> None:
        """Move behind the last character of the file."""
        self.move(len(self.text))
        while self.extend():
            self.move(len(self.text))

    def skip_spaces(self) -> str:
        """Move to the next character that is not a space and return it; "" at the end of the file."""
        while True:
            match = _SPACE.match(self.text, self.at)
            assert match is not None
            self.move(match.end())
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.extend():
                return ""

    def decode(self) -> tuple[Any, int]:
        """Return the value that begins here, and its end in the text. Raises ValueError if there is none.

        A JSONDecodeError counts from here. It also counts the lines before it, so pieces are decoded and not
        the whole text, which would be read again for each error.
        """
        if self.text[self.at] in _PLAIN:
            try:
                value, end = _scan_once(self.text, self.at)
                if len(self.text) - end > _MARGIN:
                    return value, end
            except StopIteration:
                pass
        size = PIECE
        while True:
            piece = self.text[self.at : self.at + size]
            is_rest = self.at + size >= len(self.text)
            try:
                value, end = _decode(piece, 0)
                if (is_rest and self.is_complete) or _is_final(value, piece, end):
                    return value, self.at + end
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string") or error.pos >= len(piece) - _MARGIN
                if (is_rest and self.is_complete) or not is_cut:
                    raise
            except RecursionError as error:
                raise DataError("brackets are nested too deeply") from error
            size *= 4
            if is_rest:
                if len(piece) > LONGEST:
                    raise DataError(f"longer than {LONGEST} characters: a bracket or a quote is missing")
                self.extend()


def _is_final(value: Any, text: str, end: int) -> bool:
    """Whether further text cannot change the value. "-0" can change: it may go on as "-0.5" or "-0e7"."""
    if not isinstance(value, (int, float)):
        return True
    after = text[end : end + 1]
    return (after != "" and after in " ,]\t\r\n") or len(text) - end > _MARGIN
