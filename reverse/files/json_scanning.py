"""Take a JSON list, or JSON lines, apart item by item in bounded memory; go on after what is broken.

    with open("reverse_ft.json", "rb") as stream:
        for item in scan(stream):
            item.value if isinstance(item, Item) else item.reason

A window slides over the file; an item is decoded where it stands (json's own scanner, 115 MB/s a core), so
that its bytes, its number and its offset are known. A list is accepted exactly where `json.load` accepts it.
ijson (yajl) was measured too: 103 MB/s, no bytes of the item, and no way on after an error.

After broken JSON the next item is found by trial: the next object that decodes and holds "conversations",
or, undecodable itself, begins as records do. The turns of the broken record begin otherwise. Trials that fail
may go over the same text again and again, so their sum is bounded by what was read: where more is tried in
vain, the rest of the file counts as one broken item. So does the rest of a file of items that are too short
to be records, once there are more than `MOST_SHORT` of them, and more than of others.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, Literal

from reverse.errors import DataError
from reverse.files.json_items import (
    Broken,
    CountedSource,
    Item,
    Place,
    Source,
    place_after,
    stop_at_short_items,
    where,
)
from reverse.files.text_reading import MAX_DEPTH, is_deeper

__all__ = ["LONGEST", "Broken", "Item", "Place", "Source", "place_after", "scan", "where"]

CHUNK = 1 << 20  # bytes a read
LONGEST = 1 << 24  # characters of one item: what is longer is a bracket or quote that is missing
EFFORT = (
    8  # characters of failed trials for each that was read; a file with a broken record now and then has 0.1
)
FREE_EFFORT = 1 << 23  # characters of failed trials that are allowed besides
PIECE = 1 << 14  # characters that are decoded at first, more where they end within the item
A_TRIAL = 256  # characters that could be decoded in the time that a failed trial takes besides its own

_SPACE = re.compile(r"[ \t\r\n]*")
_SEPARATOR = re.compile(r"[ \t\r\n]*+,[ \t\r\n]*+(?=[^ \t\r\n])")  # nearly all, at one glance
_OBJECT = re.compile(r'\{[ \t\r\n]*"([^"\\]{0,200})"[ \t\r\n]*:')
_HEADS = frozenset({"id", "image", "images", "conversations"})  # the first key of a record
_TURNS = frozenset({"from", "value"})  # the first key of a turn
_PLAIN = frozenset("-0123456789tfnNI")  # the first character of a value whose errors do not count lines
_END = 16  # characters: an error so near the window's end may be the cut of a literal, not an error


def scan(stream: Source, start: Place | None = None) -> Iterator[Item | Broken]:
    """The items of a JSON list, or of JSON lines, in order; the first character tells which it is.

    Values are not looked into: whether an item is a record is the caller's to say. `stream` stands at the
    beginning of the file, or at `start.offset`. Never raises for what the file holds.
    """
    counted = CountedSource(stream, 0 if start is None else start.offset)
    return stop_at_short_items(counted, _scan(counted, start))


def _scan(stream: Source, start: Place | None) -> Iterator[Item | Broken]:
    if start is not None:
        if start.kind == "lines":
            yield from _scan_lines(stream, b"", start.number, start.offset, start.line)
        else:
            yield from _ListScan(_Window(stream, b"", start.offset), start.number, "separator").items()
        return
    head = stream.read(CHUNK)
    offset = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
    head = head[offset:]
    while head.isspace():
        more = stream.read(CHUNK)
        if not more:
            return
        head += more
    blank = len(head) - len(head.lstrip(b" \t\r\n"))
    if head[blank : blank + 1] == b"[":
        yield from _ListScan(_Window(stream, head[blank + 1 :], offset + blank + 1), 0, "first").items()
    else:
        yield from _scan_lines(stream, head, 0, offset, 1)


def _scan_lines(
    stream: Source, buffer: bytes, number: int, offset: int, line: int
) -> Iterator[Item | Broken]:
    more = True
    while more:
        chunk = stream.read(CHUNK)
        more = bool(chunk)
        lines = (buffer + chunk).split(b"\n")
        buffer = lines.pop() if more else b""  # the file's last line may end without a newline
        for text in lines:
            item = _line(text, number, offset, line)
            if item is not None:
                yield item
                number += 1
            offset += len(text) + 1
            line += 1
        if len(buffer) > LONGEST:
            size = len(buffer)
            while more and b"\n" not in buffer:
                buffer = stream.read(CHUNK)
                more = bool(buffer)
                size += len(buffer)
            buffer = buffer[buffer.find(b"\n") :] if more else b""
            size -= len(buffer)
            yield Broken(number, offset, line, size, f"the line is longer than {LONGEST} bytes")
            number, offset = number + 1, offset + size


def _line(text: bytes, number: int, offset: int, line: int) -> Item | Broken | None:
    raw = text.strip(b" \t\r\n")
    if not raw:
        return None
    if len(raw) < len(text):
        offset += len(text) - len(text.lstrip(b" \t\r\n"))
    try:
        decoded = raw.decode("utf-8")
        value, end = _scan_once(decoded, 0) if decoded[0] != "\ufeff" else (json.loads(decoded), len(decoded))
        if end == len(decoded):
            if _is_too_deep(raw, b"[", b"{", value):
                return Broken(number, offset, line, len(raw), TOO_DEEP)
            return Item(number, offset, line, raw, value)
        end = _skip_spaces(decoded, end)
        reason = f"Extra data: line 1 column {end + 1} (char {end})"
    except StopIteration as stop:  # as json.loads has it, which takes four times as long to say so
        reason = f"Expecting value: line 1 column {stop.value + 1} (char {stop.value})"
    except UnicodeDecodeError as error:
        place = offset + error.start
        return Broken(number, offset, line, len(raw), f"byte {place} is not UTF-8: save the file as UTF-8")
    except (ValueError, RecursionError) as error:
        reason = str(error)
    return Broken(number, offset, line, len(raw), f"not valid JSON ({reason}): one record a line")


TOO_DEEP = f"brackets are nested more than {MAX_DEPTH} deep"


def _is_too_deep(text: Any, bracket: Any, brace: Any, value: Any) -> bool:
    """Whether a value breaks what copies or shows it; nearly all have too few brackets to be asked."""
    return (
        len(text) > MAX_DEPTH
        and text.count(bracket) + text.count(brace) > MAX_DEPTH
        and is_deeper(value, MAX_DEPTH)
    )


class _Window:
    """The part of the file that is looked at, as text; bytes that are not UTF-8 stand in it as surrogates."""

    def __init__(self, stream: Source, head: bytes, offset: int):
        self.stream = stream
        self.decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text = self.decoder.decode(head)
        self.at = 0  # characters
        self.offset = offset  # of `at`, bytes
        self.whole = False  # the file's end is in the window
        self.chunk = CHUNK
        self.read = len(head)  # bytes so far

    def more(self) -> bool:
        """Read on; False at the end of the file. A window that does not move grows by doubling."""
        if self.whole:
            return False
        self.chunk = 2 * self.chunk if self.at == 0 else CHUNK
        data = self.stream.read(self.chunk)
        self.whole = not data
        self.read += len(data)
        self.text = self.text[self.at :] + self.decoder.decode(data, final=self.whole)
        self.at = 0
        return True

    def move(self, to: int) -> None:
        if self.text.isascii():  # known without looking
            self.offset += to - self.at
        else:
            self.offset += len(self.text[self.at : to].encode("utf-8", "surrogateescape"))
        self.at = to

    def peek(self) -> str:
        """The next character that is no space, to which the window moves; "" at the end of the file."""
        while True:
            match = _SPACE.match(self.text, self.at)
            assert match is not None
            self.move(match.end())
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def decode(self) -> tuple[Any, int]:
        """The value that begins here, and its end in the text. Raises ValueError where there is none.

        A JSONDecodeError counts from here. It also counts the lines before it, so that a piece is decoded
        and not the whole text, which would be gone over again for each error.
        """
        if self.text[self.at] in _PLAIN:
            try:
                value, end = _scan_once(self.text, self.at)
                if len(self.text) - end > _END:
                    return value, end
            except StopIteration:
                pass
        size = PIECE
        while True:
            piece = self.text[self.at : self.at + size]
            is_rest = self.at + size >= len(self.text)
            try:
                value, end = _decode(piece, 0)
                if (is_rest and self.whole) or _is_settled(value, piece, end):
                    return value, self.at + end
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(piece) - _END
                if (is_rest and self.whole) or not cut:
                    raise
            except RecursionError as error:
                raise DataError("brackets are nested too deeply") from error
            size *= 4
            if is_rest:
                if len(piece) > LONGEST:
                    raise DataError(f"longer than {LONGEST} characters: a bracket or a quote is missing")
                self.more()

    def explain(self, error: ValueError) -> str:
        if not isinstance(error, json.JSONDecodeError):
            return str(error)
        before = self.text[self.at : self.at + error.pos]
        return f"{error.msg} at byte {self.offset + len(before.encode('utf-8', 'surrogateescape'))}"


def _is_settled(value: Any, text: str, end: int) -> bool:
    """Whether what is read next cannot change the value: "-0" may go on as "-0.5" or "-0e7"."""
    if not isinstance(value, (int, float)):
        return True
    after = text[end : end + 1]
    return (after != "" and after in " ,]\t\r\n") or len(text) - end > _END


_decode = json.JSONDecoder().raw_decode
_scan_once = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


def _skip_spaces(text: str, at: int) -> int:
    """Where the next character is that is no space."""
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


class _ListScan:
    """A list's items; what may come next is the first item, an item, or a separator."""

    def __init__(self, window: _Window, number: int, state: Literal["first", "item", "separator"]):
        self.window, self.number, self.state = window, number, state
        self.effort = 0  # characters of failed trials
        self.told = False  # that the file ends too soon, with the item that was passed over last

    def items(self) -> Iterator[Item | Broken]:
        window = self.window
        while True:
            separator = _SEPARATOR.match(window.text, window.at) if self.state == "separator" else None
            if separator is not None:
                window.move(separator.end())
                self.state = "item"
            char = window.peek() if separator is None else window.text[window.at]
            if char == "":
                if not self.told:
                    yield self._broken(window.offset, "the file ends before the list does: was it cut off?")
                return
            if char == "]" and self.state != "item":
                break
            if self.state == "separator":
                if char == ",":
                    window.move(window.at + 1)
                    self.state = "item"
                else:
                    yield self._pass_over("a comma or the list's end is missing before this", window.at)
                continue
            try:
                value, end = window.decode()
            except ValueError as error:
                if char == "]":
                    yield self._broken(window.offset, "a comma stands before the list's end")
                    break
                self._charge(error)
                yield self._pass_over(f"not valid JSON: {window.explain(error)}", window.at + 1)
                continue
            yield self._item(value, end)
        window.move(window.at + 1)
        if window.peek():
            yield self._pass_over("something stands behind the list's end", len(window.text))

    def _item(self, value: Any, end: int) -> Item | Broken:
        window = self.window
        number, offset = self.number, window.offset
        piece = window.text[window.at : end]
        self.number, self.state = number + 1, "separator"
        try:
            raw = piece.encode("utf-8")
        except UnicodeEncodeError as error:
            raw = piece.encode("utf-8", "surrogateescape")
            window.at, window.offset = end, offset + len(raw)
            byte = offset + len(piece[: error.start].encode("utf-8", "surrogateescape"))
            return Broken(number, offset, 0, len(raw), f"byte {byte} is not UTF-8: save the file as UTF-8")
        window.at, window.offset = end, offset + len(raw)
        if _is_too_deep(piece, "[", "{", value):
            return Broken(number, offset, 0, len(raw), TOO_DEEP)
        return Item(number, offset, 0, raw, value)

    def _broken(self, begin: int, reason: str) -> Broken:
        self.number += 1
        return Broken(self.number - 1, begin, 0, self.window.offset - begin, reason)

    def _pass_over(self, reason: str, search: int) -> Broken:
        """Move to the next record, from `search` on; what lies between is one broken item."""
        begin = self.window.offset
        self.state = "item" if self._find_record(search) else "separator"
        if self._has_tried_enough():
            self._read_to_the_end()
            self.told = True
            reason += (
                "; what follows is so broken that it was not searched for records: mend the file from here"
            )
        elif self.window.whole and self.window.at == len(self.window.text):
            reason += "; nothing readable follows: was the file cut off?"
            self.told = True
        return self._broken(begin, reason)

    def _find_record(self, search: int) -> bool:
        window = self.window
        while not self._has_tried_enough():
            match = _OBJECT.search(window.text, search)
            if match is None:
                if not window.whole:
                    # A key cut by the window's end lies in its last characters.
                    window.move(max(window.at, len(window.text) - 512, search))
                    window.more()
                    search = window.at
                    continue
                last = window.text.rstrip()
                window.move(max(window.at, len(last) - 1 if last.endswith("]") else len(window.text)))
                return False
            key, search = match.group(1), match.start() + 1
            if key in _TURNS:
                continue
            window.move(match.start())
            try:
                value, end = window.decode()
            except ValueError as error:
                if key in _HEADS:
                    return True
                self._charge(error)
                search = window.at + 1
                continue
            if isinstance(value, dict) and "conversations" in value:
                return True
            search = end
        return False

    def _charge(self, error: ValueError) -> None:
        """Count a failed trial where the window stands, by the text that it went over."""
        window = self.window
        size = len(window.text) - window.at
        if isinstance(error, json.JSONDecodeError) and not error.msg.startswith("Unterminated string"):
            size = error.pos
        self.effort += size + A_TRIAL

    def _has_tried_enough(self) -> bool:
        return self.effort > FREE_EFFORT + EFFORT * self.window.read

    def _read_to_the_end(self) -> None:
        window = self.window
        window.move(len(window.text))
        while window.more():
            window.move(len(window.text))
