"""Items of a scanned file: what `scanning.scan` yields, and where it stops since they can be no records."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

SHORT = 32  # bytes; every record is longer
MOST_SHORT = 100_000  # items so short after which a file that has fewer others is not scanned further


class Item(NamedTuple):
    """One item: its place, its bytes as they stand in the file, and what they mean."""

    number: int  # of the item, from 0; broken ones count
    offset: int  # bytes from the beginning of the file
    line: int  # from 1, of JSON lines; 0 in a list
    raw: bytes
    value: Any

    @property
    def where(self) -> str:
        return where(self)


class Broken(NamedTuple):
    """What is not an item: its place, how many bytes are passed over, and why."""

    number: int
    offset: int
    line: int
    size: int
    reason: str

    @property
    def where(self) -> str:
        return where(self)


def where(item: Item | Broken) -> str:
    """For messages: "line 3" of JSON lines, "item 2" of a list, and the byte."""
    return f"{f'line {item.line}' if item.line else f'item {item.number}'} (byte {item.offset})"


class Source(Protocol):
    """What is scanned: an open binary file, or what counts or hashes the bytes of one."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where to go on: right behind the item before `number`."""

    kind: Literal["list", "lines"]
    number: int
    offset: int
    line: int


def place_after(item: Item) -> Place:
    end = item.offset + len(item.raw)
    return Place("lines" if item.line else "list", item.number + 1, end, item.line)


class CountedSource:
    """A source that knows how many bytes of the file were read."""

    def __init__(self, stream: Source, offset: int):
        self.stream, self.offset = stream, offset

    def read(self, size: int, /) -> bytes:
        data = self.stream.read(size)
        self.offset += len(data)
        return data

    def pass_over_rest(self, item: Item | Broken) -> Broken:
        """All from an item to the end of the file, as one broken item."""
        while self.read(1 << 20):
            pass
        reason = (
            f"more than {MOST_SHORT:,} items before this are too short to be records: is it another file?"
        )
        return Broken(item.number, item.offset, item.line, self.offset - item.offset, reason)


def stop_at_short_items(source: CountedSource, items: Iterable[Item | Broken]) -> Iterator[Item | Broken]:
    """The items of a source; what follows too many short ones is one broken item."""
    short = others = 0
    for item in items:
        size = item.size if isinstance(item, Broken) else len(item.raw)
        if size > SHORT:
            others += 1
        elif (short := short + 1) > max(MOST_SHORT, others):
            yield source.pass_over_rest(item)
            return
        yield item
