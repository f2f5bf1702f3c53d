"""A published file format: how its items become draft records, and how draft records become its items.

    from reverse.data.drafts.formats import FORMATS
    records = FORMATS["tsst-beam"].read("scienceqa_beam_verify.jsonl")
    FORMATS["tsst-value"].write(records, "value.jsonl")

`write` gives back the items of records that `read` made, changed where the records were changed: what a
record has no place for stands in `record.source` (`item_difference`). A record of another origin gives the
items that follow from its drafts and links; there may be none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reverse.data.drafts.draft_files import draft_line
from reverse.data.drafts.draft_record import LONGEST_TEXT, DraftRecord, parse_draft_record
from reverse.data.drafts.item_difference import find_difference, restore_item
from reverse.data.drafts.item_files import (
    BadItem,
    FileItem,
    FileLayout,
    holds_non_finite,
    read_items,
    write_items,
)
from reverse.data.drafts.picture_names import find_picture
from reverse.errors import DataError, RequestError
from reverse.files.cell_values import describe
from reverse.files.text_reading import MAX_DEPTH, MAX_LINE_BYTES, is_deeper

__all__ = ["ExportTexts", "PublishedFormat", "PublishedItem", "SkippedItems"]

REMEDY = "mend it, or leave such items out with --skip-corrupt"
MOST_LISTED = 1000  # skipped items that are listed; all are counted


@dataclass(frozen=True)
class ExportTexts:
    """Sentences of our own around questions and drafts, where published files have theirs."""

    refine: str = "Decide whether the prediction is right. If it is not, mend it. Give the full answer."
    select: str = "One of the predictions is right. Give the right final answer."
    self_correct: str = "Check your answer against the picture and the question. Then give your final answer."
    reflect: str = "Think, answer, reflect on what you said, and answer again."


TEXTS = ExportTexts()
LIST = FileLayout()  # a JSON list or JSON lines of conversations


@dataclass(frozen=True)
class PublishedItem:
    """A parsed item. Its methods read one part each, and raise errors that say what is wrong."""

    value: dict[str, Any]
    key: str | None = None  # in a file that is an object
    root: str | None = None  # of pictures, to take away from their paths

    def text(self, key: str) -> str:
        """Return the text under a key. Raises DataError for any other value."""
        value = self.value.get(key)
        if not isinstance(value, str):
            names = describe(", ".join(self.value))
            found = f"got {describe(value)}" if key in self.value else f"the item has only {names}"
            raise DataError(f"{key!r} must be a text, {found}")
        if len(value) > LONGEST_TEXT:
            raise DataError(f"{key!r} has {len(value):,} characters, the most are {LONGEST_TEXT:,}")
        return value

    def plain(self, key: str) -> str:
        """Return the text under a key; a number becomes text."""
        value = self.value.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        return self.text(key)

    def texts(self, key: str) -> list[str]:
        """Return the list of texts under a key."""
        value = self.value.get(key)
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise DataError(f"{key!r} must be a list of texts, got {describe(value)}")
        return value

    def objects(self, key: str) -> list[dict[str, Any]]:
        """Return the list of objects under a key."""
        value = self.value.get(key)
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise DataError(f"{key!r} must be a list of objects, got {describe(value)}")
        return value

    def turns(self, key: str, who: str, what: str, roles: tuple[str, ...]) -> list[str]:
        """Return the texts of a conversation whose first turns have these roles, in this order."""
        turns = self.objects(key)
        for number, role in enumerate(roles):
            turn = turns[number] if number < len(turns) else {}
            if len(str(turn.get(what))) > LONGEST_TEXT:
                raise DataError(f"turn {number} of {key!r} has more than {LONGEST_TEXT:,} characters")
            if turn.get(who) != role or not isinstance(turn.get(what), str):
                raise DataError(f"turn {number} of {key!r} must be a text of {role!r}, got {describe(turn)}")
        return [turn[what] for turn in turns[: len(roles)]]

    def picture(self, name: Any) -> str:
        """A picture's path below the folder of pictures. Raises what `find_picture` raises."""
        return find_picture(name, self.root)

    def pictures(self, key: str) -> list[str]:
        """Return the pictures under a key: none, one, or a list of them."""
        value = self.value.get(key)
        if value is None or value == "":
            return []
        return [self.picture(each) for each in (value if isinstance(value, list) else [value])]


@dataclass
class SkippedItems:
    """Items that were left out: how many, and the first of them with their reasons."""

    count: int = 0
    listed: list[dict[str, str]] = field(default_factory=list)

    def add(self, where: str, reason: str) -> None:
        self.count += 1
        if len(self.listed) < MOST_LISTED:
            self.listed.append({"where": where, "reason": reason})


Values = dict[str, Any]
Item = dict[str, Any]


@dataclass(frozen=True)
class PublishedFormat:
    """One kind of published file.

    Args:
        name: as in `--as`.
        about: what such a file is, in a few words.
        read_values: values of a draft record from an item; `source` holds what `say` needs beyond the record.
        say: writes the item of a record that was read from this format, as far as the record knows it.
        make: writes the items of a record of any other origin; None: `say` does.
        layout: how files hold items.
        unpack, pack: open a value that holds JSON as text, and close it again.
    """

    name: str
    about: str
    read_values: Callable[[PublishedItem], Values]
    say: Callable[[DraftRecord, ExportTexts], Item]
    make: Callable[[DraftRecord, ExportTexts], Iterable[Item]] | None = None
    layout: FileLayout = LIST
    unpack: Callable[[Item], Item] = dict
    pack: Callable[[Item], Item] = dict

    def read(
        self, path: str | Path, *, root: str | None = None, skipped: SkippedItems | None = None
    ) -> Iterator[DraftRecord]:
        """Yield the records of a file in their order; memory holds one, and the ids.

        Args:
            root: folder of pictures that absolute paths lie in; it is taken away from them.
            skipped: receives what is not an item of this format; None: it raises.

        Raises MissingFileError; DataError naming file, item and remedy.
        """
        seen: dict[str, int] = {}
        for item in read_items(path, self.layout):
            try:
                if isinstance(item, BadItem):
                    raise DataError(item.reason)
                record = self.parse_item(item, seen, Path(path).stem, root)
            except (DataError, RequestError) as error:
                if skipped is None:
                    raise DataError(f"{path}, {item.where}: {error}: {REMEDY}") from error
                skipped.add(item.where, str(error))
                continue
            yield record

    def write(self, records: Iterable[DraftRecord], path: str | Path, texts: ExportTexts = TEXTS) -> int:
        """Write the items of records and return their number. The file appears when it is complete."""
        return write_items(path, self._items_with_keys(records, texts), self.layout)

    def items(self, record: DraftRecord, texts: ExportTexts = TEXTS) -> list[Item]:
        """Return the items of one record."""
        if record.source.get("format") == self.name:
            said = self.say(record, texts)
            return [self.pack(restore_item(said, record.source.get("difference")))]
        if self.make is not None:
            return list(self.make(record, texts))
        return [self.say(record, texts)]

    def parse(self, value: Item) -> DraftRecord:
        """Return the record of a single item. Raises DataError or RequestError."""
        return self.parse_item(FileItem(0, "the item", value, "0" if self.layout.kind == "map" else None))

    def parse_item(
        self, item: FileItem, seen: dict[str, int] | None = None, stem: str = "item", root: str | None = None
    ) -> DraftRecord:
        """Return the record of one item. `seen` counts ids: a repeated id gets "#2" appended.

        Raises DataError or RequestError, without the place.
        """
        if not isinstance(item.value, dict):
            raise DataError(f"an item of {self.name} must be an object, got {describe(item.value)}")
        if holds_non_finite(item.value):
            raise DataError("a number is NaN or infinite, which JSON has no value for")
        opened = self.unpack(item.value)
        values: Values = {"id": f"{stem}-{item.number}"} | self.read_values(
            PublishedItem(opened, item.key, root)
        )
        values["id"] = _number_id(values["id"], {} if seen is None else seen)
        source: Values = {"format": self.name, **values.pop("source", {})}
        if item.key is not None:
            source["key"] = item.key
        if item.around is not None:
            source["around"] = item.around
        record = parse_draft_record(values | {"source": source}, "its record")
        difference = find_difference(self.say(record, TEXTS), opened)
        if difference is not None:
            source["difference"] = difference
        record = record.model_copy(update={"source": source})
        if is_deeper(source, MAX_DEPTH - 2):
            raise DataError(f"brackets are nested too deeply for a record, more than {MAX_DEPTH} deep")
        if len(draft_line(record)) * 4 > MAX_LINE_BYTES and _line_bytes(record) > MAX_LINE_BYTES:
            raise DataError(f"the item is too large: its record takes more than {MAX_LINE_BYTES:,} bytes")
        return record

    def _items_with_keys(
        self, records: Iterable[DraftRecord], texts: ExportTexts
    ) -> Iterator[tuple[str, Item, Any]]:
        for record in records:
            is_own = record.source.get("format") == self.name
            key = record.source.get("key", record.id) if is_own else record.id
            around = record.source.get("around") if is_own else None
            for item in self.items(record, texts):
                yield key, item, around
                around = None


def _number_id(name: str, seen: dict[str, int]) -> str:
    """Return an id that no earlier record has: the name, or the name with "#2" and so on appended."""
    free = name
    while free in seen:
        seen[name] += 1
        free = f"{name}#{seen[name]}"
    seen[free] = 1
    return free


def _line_bytes(record: DraftRecord) -> int:
    return len(draft_line(record).encode("utf-8", "backslashreplace"))
