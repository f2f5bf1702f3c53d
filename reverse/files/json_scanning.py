"""Read a JSON list, or JSON lines, item by item in bounded memory, and continue after what is broken.

    with open("reverse_ft.json", "rb") as stream:
        for item in scan(stream):
            item.value if isinstance(item, JsonItem) else item.reason

A window slides over the file and each item is decoded in its place (by json's own scanner, 115 MB/s on a
core), so its bytes, number and offset are known. A list is accepted exactly if `json.load` accepts it. ijson
(yajl) reaches 103 MB/s, but gives neither the bytes of an item nor a way to continue after an error.

After broken JSON the next item is found by trial: it is the next object that decodes and holds
"conversations" (`ItemShape` says what else), or that does not decode and begins as records do. (The turns of
the broken record begin with other keys.) Failed trials may read the same text many times, so their sum is
bounded by what was read of the file; beyond the bound, the rest of the file counts as one broken item. So
does the rest of a file of items that are too short to be records.
"""

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

from reverse.files import json_window
from reverse.files.json_window import TOO_DEEP, JsonWindow, Source, is_too_deep

__all__ = ["Broken", "ItemShape", "JsonItem", "JsonPlace", "place_after", "scan"]

SHORT = 32  # bytes; every record is longer
MAX_SHORT_ITEMS = 100_000  # a file with more of them, and fewer others, is not read further
EFFORT = 8  # characters of failed trials for each one read; a file with some broken records needs 0.1
FREE_EFFORT = 1 << 23  # characters of failed trials that are allowed besides
TRIAL_COST = 256  # characters that could be decoded in the time that a failed trial takes besides its text

_SEPARATOR = re.compile(r"[ \t\r\n]*+,[ \t\r\n]*+(?=[^ \t\r\n])")  # between nearly all items
_OBJECT = re.compile(r'\{[ \t\r\n]*"([^"\\]{0,200})"[ \t\r\n]*:')
_TURN_KEYS = frozenset({"from", "value"})  # the first key of a turn


class JsonItem(NamedTuple):
    """One item: its place, its bytes as they stand in the file, and its value."""

    number: int  # of the item, from 0; broken ones count
    offset: int  # bytes from the beginning of the file
    line: int  # of JSON lines, from 1; 0 in a list
    raw: bytes
    value: Any

    @property
    def where(self) -> str:
        return _describe_place(self)


class Broken(NamedTuple):
    """A part of the file that is not an item: its place, its number of bytes, and the reason."""

    number: int
    offset: int
    line: int
    size: int
    reason: str

    @property
    def where(self) -> str:
        return _describe_place(self)


def _describe_place(item: JsonItem | Broken) -> str:
    return f"{f'line {item.line}' if item.line else f'item {item.number}'} (byte {item.offset})"


class JsonPlace(NamedTuple):
    """Where to continue a scan: right behind the item before `number`."""

    kind: Literal["list", "lines"]
    number: int
    offset: int
    line: int


def place_after(item: JsonItem) -> JsonPlace:
    """Return the place where a scan continues behind `item`."""
    end = item.offset + len(item.raw)
    return JsonPlace("lines" if item.line else "list", item.number + 1, end, item.line)


class ItemShape(NamedTuple):
    """The shape by which an item of a list is recognised after broken JSON."""

    needed: str = "conversations"  # a key that every item has, and nothing inside of an item
    first: frozenset[str] = frozenset({"id", "image", "images", "conversations"})  # first keys of an item


RECORDS = ItemShape()


class _CountedSource:
    """A source that counts the bytes that were read."""

    def __init__(self, stream: Source, offset: int):
        self.stream, self.offset = stream, offset

    def read(self, size: int, /) -> bytes:
        data = self.stream.read(size)
        self.offset += len(data)
        return data


def scan(
    stream: Source, start: JsonPlace | None = None, shape: ItemShape = RECORDS
) -> Iterator[JsonItem | Broken]:
    """Yield the items of a JSON list or of JSON lines in order; the first character tells which it is.

    The caller decides whether an item is a record. `stream` stands at the beginning of the file, or at
    `start.offset`. Never raises for what the file holds.
    """
    source = _CountedSource(stream, 0 if start is None else start.offset)
    if start is None:
        items = _scan_from_beginning(source, shape)
    elif start.kind == "lines":
        items = _scan_lines(source, b"", start.number, start.offset, start.line)
    else:
        items = _ListScan(JsonWindow(source, b"", start.offset), start.number, "separator", shape).items()
    return _stop_at_short_items(source, items)


def _stop_at_short_items(
    source: _CountedSource, items: Iterable[JsonItem | Broken]
) -> Iterator[JsonItem | Broken]:
    """Yield the items; after too many short ones, the rest is one broken item."""
    short = others = 0
    for item in items:
        size = item.size if isinstance(item, Broken) else len(item.raw)
        if size > SHORT:
            others += 1
        elif (short := short + 1) > max(MAX_SHORT_ITEMS, others):
            while source.read(json_window.CHUNK):
                pass
            reason = f"more than {MAX_SHORT_ITEMS:,} items before this are too short to be records"
            size = source.offset - item.offset
            yield Broken(item.number, item.offset, item.line, size, f"{reason}: is it another file?")
            return
        yield item


def _scan_from_beginning(stream: Source, shape: ItemShape) -> Iterator[JsonItem | Broken]:
    head = stream.read(json_window.CHUNK)
    offset = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
    head = head[offset:]
    while head.isspace() and (more := stream.read(json_window.CHUNK)):
        head += more
    blank = len(head) - len(head.lstrip(b" \t\r\n"))
    if head[blank : blank + 1] == b"[":
        window = JsonWindow(stream, head[blank + 1 :], offset + blank + 1)
        yield from _ListScan(window, 0, "first", shape).items()
    else:
        yield from _scan_lines(stream, head, 0, offset, 1)


def _scan_lines(
    stream: Source, buffer: bytes, number: int, offset: int, line: int
) -> Iterator[JsonItem | Broken]:
    more = True
    while more:
        chunk = stream.read(json_window.CHUNK)
        more = bool(chunk)
        lines = (buffer + chunk).split(b"\n")
        buffer = lines.pop() if more else b""  # the file's last line may end without a newline
        for text in lines:
            if raw := text.strip(b" \t\r\n"):
                begin = offset + len(text) - len(text.lstrip(b" \t\r\n"))
                yield _decode_line(raw, number, begin, line)
                number += 1
            offset += len(text) + 1
            line += 1
        if len(buffer) > json_window.LONGEST:
            size = len(buffer)
            while more and b"\n" not in buffer:
                buffer = stream.read(json_window.CHUNK)
                more = bool(buffer)
                size += len(buffer)
            buffer = buffer[buffer.find(b"\n") :] if more else b""
            size -= len(buffer)
            yield Broken(number, offset, line, size, f"the line is longer than {json_window.LONGEST} bytes")
            number, offset = number + 1, offset + size


def _decode_line(raw: bytes, number: int, offset: int, line: int) -> JsonItem | Broken:
    try:
        value = json.loads(raw.decode("utf-8"))
        if not is_too_deep(raw, b"[", b"{", value):
            return JsonItem(number, offset, line, raw, value)
        reason = TOO_DEEP
    except UnicodeDecodeError as error:
        reason = f"byte {offset + error.start} is not UTF-8: save the file as UTF-8"
    except (ValueError, RecursionError) as error:
        reason = f"not valid JSON ({error}): write one record per line"
    return Broken(number, offset, line, len(raw), reason)


class _ListScan:
    """Scans a list; `state` is what may come next: the first item, an item, or a separator."""

    def __init__(
        self,
        window: JsonWindow,
        number: int,
        state: Literal["first", "item", "separator"],
        shape: ItemShape,
    ):
        self.window, self.number, self.state, self.shape = window, number, state, shape
        self.effort = 0  # characters of failed trials
        self.has_reported_end = False  # a broken item says already that the file ends too soon

    def items(self) -> Iterator[JsonItem | Broken]:
        window = self.window
        while True:
            separator = _SEPARATOR.match(window.text, window.at) if self.state == "separator" else None
            if separator is not None:
                window.move(separator.end())
                self.state = "item"
            char = window.skip_spaces() if separator is None else window.text[window.at]
            if char == "":
                if not self.has_reported_end:
                    yield self._break(window.offset, "the file ends before the list does: was it cut off?")
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
                    yield self._break(window.offset, "a comma stands before the list's end")
                    break
                self._count_failed_trial(error)
                yield self._pass_over(f"not valid JSON: {self._explain(error)}", window.at + 1)
                continue
            yield self._take(value, end)
        window.move(window.at + 1)
        if window.skip_spaces():
            yield self._pass_over("something stands behind the list's end", len(window.text))

    def _take(self, value: Any, end: int) -> JsonItem | Broken:
        """Move behind the item that ends at `end`, and return it."""
        window = self.window
        number, offset = self.number, window.offset
        piece = window.text[window.at : end]
        reason = TOO_DEEP if is_too_deep(piece, "[", "{", value) else ""
        try:
            raw = piece.encode("utf-8")
        except UnicodeEncodeError as error:
            raw = piece.encode("utf-8", "surrogateescape")
            byte = offset + len(piece[: error.start].encode("utf-8", "surrogateescape"))
            reason = f"byte {byte} is not UTF-8: save the file as UTF-8"
        self.number, self.state = number + 1, "separator"
        window.at, window.offset = end, offset + len(raw)
        return (
            Broken(number, offset, 0, len(raw), reason) if reason else JsonItem(number, offset, 0, raw, value)
        )

    def _explain(self, error: ValueError) -> str:
        if not isinstance(error, json.JSONDecodeError):
            return str(error)
        window = self.window
        before = window.text[window.at : window.at + error.pos]
        return f"{error.msg} at byte {window.offset + len(before.encode('utf-8', 'surrogateescape'))}"

    def _break(self, begin: int, reason: str) -> Broken:
        """Return the bytes between `begin` and the window as one broken item."""
        self.number += 1
        return Broken(self.number - 1, begin, 0, self.window.offset - begin, reason)

    def _pass_over(self, reason: str, search: int) -> Broken:
        """Move to the next record, from `search` on, and return the bytes between as one broken item."""
        begin = self.window.offset
        self.state = "item" if self._find_record(search) else "separator"
        if self._has_spent_effort():
            self.window.move_to_end()
            self.has_reported_end = True
            reason += (
                "; what follows is so broken that it was not searched for records: mend the file from here"
            )
        elif self.window.is_complete and self.window.at == len(self.window.text):
            reason += "; nothing readable follows: was the file cut off?"
            self.has_reported_end = True
        return self._break(begin, reason)

    def _find_record(self, search: int) -> bool:
        """Move to the next record; False at the end of the list or the file if there is none."""
        window = self.window
        while not self._has_spent_effort():
            match = _OBJECT.search(window.text, search)
            if match is None:
                if not window.is_complete:
                    # A key cut by the window's end lies in its last characters.
                    window.move(max(window.at, len(window.text) - 512, search))
                    window.extend()
                    search = window.at
                    continue
                last = window.text.rstrip()
                window.move(max(window.at, len(last) - 1 if last.endswith("]") else len(window.text)))
                return False
            key, search = match.group(1), match.start() + 1
            if key in _TURN_KEYS:
                continue
            window.move(match.start())
            try:
                value, end = window.decode()
            except ValueError as error:
                if key in self.shape.first:
                    return True
                self._count_failed_trial(error)
                search = window.at + 1
                continue
            if isinstance(value, dict) and self.shape.needed in value:
                return True
            search = end
        return False

    def _count_failed_trial(self, error: ValueError) -> None:
        """Add the length of the text that a failed trial at the window's place has read to the effort."""
        size = len(self.window.text) - self.window.at
        if isinstance(error, json.JSONDecodeError) and not error.msg.startswith("Unterminated string"):
            size = error.pos
        self.effort += size + TRIAL_COST

    def _has_spent_effort(self) -> bool:
        return self.effort > FREE_EFFORT + EFFORT * self.window.read
