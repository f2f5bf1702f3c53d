"""`reverse data import --as` and `reverse data export --as`: published files and draft files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.text import Text

from reverse.errors import DataError, MissingPackageError, OutputExistsError
from reverse.progress import ProgressCallback, show_progress

if TYPE_CHECKING:
    from reverse.data.drafts.draft_record import DraftRecord
    from reverse.data.drafts.published_format import PublishedFormat, SkippedItems


def import_drafts(file: Path, out: Path, name: str, *, root: str | None, skip_corrupt: bool) -> None:
    """Convert a published file to a draft file; what is left out is listed in a file beside it."""
    published = _find_format(name)
    from reverse.data.drafts.draft_files import write_drafts
    from reverse.data.drafts.published_format import SkippedItems
    from reverse.files.file_lock import output_lock

    _check_new(out)
    skipped = SkippedItems() if skip_corrupt else None
    with output_lock(out), show_progress("records") as progress:
        records = published.read(file, root=root, skipped=skipped)
        count = write_drafts(out, _check_some(_count(records, progress), file, name, skipped))
    typer.echo(f"{out}: {count:,} records of {name}")
    if skipped is not None and skipped.count:
        _report_skipped(skipped, out)


def export_drafts(drafts: Path, out: Path, name: str, *, seed: int | None = None) -> None:
    """Convert a draft file to a published file; with a seed, drafts are linked first."""
    published = _find_format(name)
    from reverse.data.drafts.draft_files import read_drafts
    from reverse.data.drafts.draft_links import add_links
    from reverse.data.drafts.published_format import SkippedItems

    _check_new(out)
    left = SkippedItems()
    records = read_drafts(drafts)
    if seed is not None:
        records = (add_links(record, seed=seed) for record in records)
    with show_progress("records") as progress:
        written = published.write(_count(_watch(records, published, left), progress), out)
    typer.echo(f"{out}: {written:,} items of {name}")
    if left.count:
        lacking = f"they lack the drafts or links that {name} is made of"
        note = f"{left.count:,} records gave none, such as {left.listed[0]['where']!r:.80}: {lacking}"
        Console(stderr=True).print(Text(note, "yellow"), soft_wrap=True)
    if not written:
        raise typer.Exit(1)


def _find_format(name: str) -> PublishedFormat:
    try:
        from reverse.data.drafts.formats import find_format
    except ModuleNotFoundError as error:
        if error.name != "pydantic":
            raise
        raise MissingPackageError("pydantic is not installed: pip install 'reverse-vlm[train]'") from error
    return find_format(name)


def _check_new(out: Path) -> None:
    if out.exists():
        raise OutputExistsError(f"{out} is there already: name another file, or remove it")
    if out.parent.exists() and not out.parent.is_dir():
        raise DataError(f"{out}: {out.parent} is a file: name a folder")


def _count(records: Iterator[DraftRecord], progress: ProgressCallback) -> Iterator[DraftRecord]:
    for number, record in enumerate(records, 1):
        yield record
        progress(number)


def _watch(
    records: Iterator[DraftRecord], published: PublishedFormat, left: SkippedItems
) -> Iterator[DraftRecord]:
    """Yield the records, and collect the ids of those that give no item."""
    for record in records:
        if not published.items(record):
            left.add(record.id, "no item")
            continue
        yield record


def _check_some(
    records: Iterator[DraftRecord], file: Path, name: str, skipped: SkippedItems | None
) -> Iterator[DraftRecord]:
    """Yield the records; raise DataError if there were none, so that no empty file is written."""
    some = False
    for record in records:
        some = True
        yield record
    if not some:
        first = ""
        if skipped is not None and skipped.listed:
            first = f", {skipped.listed[0]['where']}: {skipped.listed[0]['reason']}"
        raise DataError(f"{file} holds no items of {name}{first}: name its format with --as")


def _report_skipped(skipped: SkippedItems, out: Path) -> None:
    listing = out.with_name(out.name + ".skipped.jsonl")
    lines = [json.dumps(each, ensure_ascii=False) + "\n" for each in skipped.listed]
    listing.write_bytes("".join(lines).encode("utf-8", "backslashreplace"))
    console = Console(stderr=True)
    console.print(Text(f"left out: {skipped.count:,}, listed in {listing}", "yellow"), soft_wrap=True)
    for each in skipped.listed[:10]:
        console.print(Text(f"  {each['where']}: {each['reason']}"), soft_wrap=True)
