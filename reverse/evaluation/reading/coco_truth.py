"""Read which objects COCO images hold: their instances and what their five captions name.

    truth = read_coco_truth("playground/data/eval/chair_mscoco/coco/annotations")
    truth.objects("COCO_val2014_000000000042.jpg")        # frozenset({"dog", ...})

Images are found by file name or by id. Ids may be numbers of any size or text, and differ in that between
files. Two images of one name in two folders are different images.

The annotation files (700 MB for all of COCO 2014) are streamed, and captions are read on all cores given. The
truth is cached as one .npz without pickles in the user's cache folder, named by path, size and times of the
sources. It holds their SHA-256, which reports show. A cache that cannot be read is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from reverse.errors import DataError, MissingFileError
from reverse.evaluation.reading import english_words
from reverse.evaluation.reading.chair_words import OBJECTS, find_mentions
from reverse.evaluation.reading.file_lookup import Pictures, are_same, clear_path, find_files
from reverse.evaluation.reading.language_data import cache_root
from reverse.files.atomic_write import atomic_write, sha256
from reverse.files.cell_values import LONGEST_ID, describe, file_name, read_id, shorten
from reverse.files.entries import FileEntry
from reverse.files.text_reading import read_text, replace_surrogates

__all__ = ["PLACES", "CocoTruth", "read_coco_truth"]

PLACES = (  # as running looks for them
    "chair_mscoco/coco/annotations", "coco/annotations", "chair_mscoco", "chair", "annotations", ".",
)  # fmt: skip
VERSION = 2  # of what is counted: another number, another cache
SHARE = 5000  # captions a task
ALONE = 20_000  # captions that are read without further processes
_COLUMN = {name: i for i, name in enumerate(OBJECTS)}
_NUMBER = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?0*(\d+)(?:\.(?:jpe?g|png))?", re.ASCII)
# Files of COCO and of scenes: others beside them, such as COCO's examples of results, are not annotations.
_PUBLISHED = re.compile(r"(?:instances|captions)(?:_(?:train|val|minival|valminusminival)\d{4})?\.json")


@dataclass(frozen=True)
class CocoTruth:
    """`ids` and `names` (images,) text, names with the folders that the files give; `packed` (images, 10)
    uint8, a bit per object; `annotated` (images,) bool: the image has an instance or a caption."""

    ids: np.ndarray
    names: np.ndarray
    packed: np.ndarray
    annotated: np.ndarray
    sources: dict[str, str]  # file name to SHA-256

    def objects(self, image: str) -> frozenset[str]:
        """Return the objects of an image, by file name or id. Raises what `place` raises."""
        return self.objects_at(self.place(image))

    def objects_at(self, place: int) -> frozenset[str]:
        """Return the objects of the image at an index of the arrays."""
        bits = np.unpackbits(self.packed[place], count=len(OBJECTS))
        return frozenset(OBJECTS[i] for i in np.flatnonzero(bits))

    def place(self, image: str) -> int:
        """Return the index of an image in the arrays, by file name or id.

        Raises KeyError for an image that is not there, DataError if several have its name.
        """
        name = self._pictures.find(image) if image else None
        found = self._by_name[name] if name is not None else self._by_id.get(image)
        if found is None and (number := _NUMBER.fullmatch(file_name(image))):
            found = self._by_id.get(number[1])
        if found is None:
            raise KeyError(image)
        return found

    @cached_property
    def _pictures(self) -> Pictures:
        return Pictures(self._by_name)

    @cached_property
    def _by_name(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names.tolist()) if name}

    @cached_property
    def _by_id(self) -> dict[str, int]:
        return {identity: i for i, identity in enumerate(self.ids.tolist())}


def read_coco_truth(
    folder: str | Path,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    cache: bool = True,
) -> CocoTruth:
    """Read the truth of all images of the annotation files in `folder`.

    These are instances and captions, `*_train2014.json`, `*_val2014.json`, or those of scenes.
    `progress(done, total)` counts captions. Raises MissingFileError naming what is missing; DataError for
    damaged files and for a category that is not one of the 80.
    """
    instances = _choose_published(find_files(folder, PLACES, ["instances*.json"]))
    captions = _choose_published(find_files(folder, PLACES, ["captions*.json"]))
    for what, found in (("instances", instances), ("captions", captions)):
        if not found:
            raise MissingFileError(
                f"no {what}*.json under {folder}: CHAIR needs instances_val2014.json and "
                f"captions_val2014.json of "
                "annotations_trainval2014.zip (cocodataset.org), or a folder of scenes"
            )
    english_words.prepare_words()
    sources = [*instances, *captions]
    path = cache_root() / "chair" / f"{_fingerprint(sources)}.npz"
    if cache and (known := _read_cache(path)) is not None:
        return known
    before = _fingerprint(sources)
    truth = _build(instances, captions, workers or _count_cores(), progress)
    if _fingerprint(sources) != before:
        raise DataError(f"the files under {folder} changed while they were read: score again")
    if cache:
        _write_cache(path, truth)
    return truth


def _choose_published(paths: Sequence[Path]) -> list[Path]:
    """Return the files with published names; all files if none has one."""
    known = [path for path in paths if _PUBLISHED.fullmatch(path.name)]
    return known or list(paths)


def _fingerprint(paths: Sequence[Path]) -> str:
    """Return a hash that changes with a file's size or time; contents are not read (700 MB)."""
    import nltk

    content: list[Any] = [VERSION, nltk.__version__]
    for path in paths:
        stat = path.stat()
        content.append([str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino])
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _build(
    instances: Sequence[Path],
    captions: Sequence[Path],
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> CocoTruth:
    names: dict[str, str] = {}
    held: dict[str, set[int]] = {}
    for path in instances:
        _add_instances(path, names, held)
    said: list[tuple[str, str]] = []
    for path in captions:
        for key, entry in _entries(path, needed=("annotations",), others=("images",)):
            if key == "images":
                _add_name(names, entry)
            else:
                caption = replace_surrogates(entry.text("caption"))
                if len(caption) > english_words.LONGEST:
                    raise entry.wrong(
                        "caption", caption, f"text of at most {english_words.LONGEST:,} characters"
                    )
                said.append((_id(entry, "image_id"), caption))
    for done, (identity, columns) in enumerate(_objects_of_captions(said, workers), 1):
        held.setdefault(identity, set()).update(columns)
        if progress is not None and (done % SHARE == 0 or done == len(said)):
            progress(done, len(said))
    ids = list(names | dict.fromkeys(held))
    if not ids:
        raise DataError(f"{instances[0]} holds no images: fetch it again")
    bits = np.zeros((len(ids), len(OBJECTS)), bool)
    for row, identity in enumerate(ids):
        bits[row, list(held.get(identity, ()))] = True
    return CocoTruth(
        np.array(ids),
        np.array([names.get(identity, "") for identity in ids]),
        np.packbits(bits, axis=1),
        np.array([identity in held for identity in ids]),
        {path.name: sha256(path) for path in (*instances, *captions)},
    )


def _add_instances(path: Path, names: dict[str, str], held: dict[str, set[int]]) -> None:
    """Add the images of a file, and for each the categories of its instances."""
    categories: dict[str, int] = {}
    seen: list[tuple[str, str, str]] = []
    for key, entry in _entries(path, needed=("images", "annotations", "categories")):
        if key == "images":
            _add_name(names, entry)
        elif key == "categories":
            name = entry.text("name")
            if name not in _COLUMN:
                raise DataError(
                    f"{entry.where}: category {shorten(name)!r} is not one of the 80 of COCO that CHAIR knows"
                )
            categories[_id(entry, "id")] = _COLUMN[name]
        else:
            seen.append((_id(entry, "image_id"), _id(entry, "category_id"), entry.where))
    for image, category, where in seen:
        if category not in categories:
            raise DataError(f"{where}: its category {category!r} is one that the file does not list")
        held.setdefault(image, set()).add(categories[category])


def _add_name(names: dict[str, str], entry: FileEntry) -> None:
    """Add an image's file name. Raises DataError if another file has another image of its id."""
    identity = _id(entry, "id")
    name = clear_path(replace_surrogates(entry.text("file_name"))) if "file_name" in entry.row else ""
    if len(name) > LONGEST_ID:
        raise entry.wrong("file_name", name, f"text of at most {LONGEST_ID} characters")
    before = names.get(identity, "")
    if before and name and not are_same(before, name):
        raise DataError(
            f"{entry.where}: image id {identity!r} is {shorten(name)!r} here and {shorten(before)!r} before: "
            "one id must mean the same image in all files"
        )
    names[identity] = max(before, name, key=len)


def _id(entry: FileEntry, key: str) -> str:
    """Return an id as text: 42, "42" and "0042" are one image."""
    identity = str(read_id(entry.id(key)))
    return identity.lstrip("0") or "0" if identity.isascii() and identity.isdigit() else identity


def _objects_of_captions(said: list[tuple[str, str]], workers: int) -> Iterator[tuple[str, list[int]]]:
    """Return (image id, columns of the objects named) of each caption, in order."""
    texts = [caption for _, caption in said]
    shares = [texts[i : i + SHARE] for i in range(0, len(texts), SHARE)]
    numbers = iter([number for number, _ in said])
    if workers == 1 or len(texts) <= ALONE:
        for share in shares:
            yield from zip(islice(numbers, len(share)), map(_find_columns, share), strict=True)
        return
    # "spawn": a fork of a process with threads (torch's) may hang.
    workers = min(workers, len(shares))
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=english_words.prepare_words) as pool:
        for share, found in zip(shares, pool.map(_find_columns_of_all, shares), strict=True):
            yield from zip(islice(numbers, len(share)), found, strict=True)


def _find_columns_of_all(captions: list[str]) -> list[list[int]]:
    return [_find_columns(caption) for caption in captions]


def _find_columns(caption: str) -> list[int]:
    return [_COLUMN[name] for _, name in find_mentions(caption)[0]]


def _count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _write_cache(path: Path, truth: CocoTruth) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ids, names = (np.char.encode(texts, "utf-8") for texts in (truth.ids, truth.names))
    sources = np.frombuffer(json.dumps(truth.sources).encode(), np.uint8)
    with atomic_write(path) as stream:
        np.savez_compressed(
            stream, ids=ids, names=names, packed=truth.packed, annotated=truth.annotated, sources=sources
        )


def _read_cache(path: Path) -> CocoTruth | None:
    """Read the cached truth; None if there is none or it is damaged (every array has a checksum)."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            ids, names = (np.char.decode(stored[name], "utf-8") for name in ("ids", "names"))
            sources = json.loads(stored["sources"].tobytes())
            truth = CocoTruth(ids, names, stored["packed"], stored["annotated"], sources)
    except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile):
        return None
    whole = truth.packed.shape == (len(ids), (len(OBJECTS) + 7) // 8)
    return truth if whole and len(names) == len(truth.annotated) == len(ids) else None


# ------------------------------------------------------------------ streaming one JSON object with long lists
_CHUNK = 1 << 22  # characters a read
_LONGEST = 1 << 26  # characters of one value
_BLANK = re.compile(r"[ \t\r\n]*")
_DECODE = json.JSONDecoder().raw_decode


class _Window:
    """The part of a file that is being decoded."""

    def __init__(self, path: Path):
        self.path, self.stream = path, path.open(encoding="utf-8-sig")
        self.text, self.at, self.ended = "", 0, False

    def more(self) -> bool:
        """Read more of the file; False at its end."""
        try:
            chunk = self.stream.read(_CHUNK)
        except UnicodeDecodeError:
            read_text(self.path)  # raises the error that names the line
            raise
        self.text, self.at = self.text[self.at :] + chunk, 0
        self.ended = not chunk
        return not self.ended

    def peek(self) -> str:
        """Return the next character that is not white space; "" at the end."""
        while True:
            self.at = _BLANK.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def expect(self, characters: str) -> str:
        found = self.peek()
        if not found or found not in characters:
            raise DataError(f"{self.path} is damaged: {found!r} where {characters!r} belongs; fetch it again")
        self.at += 1
        return found

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = _DECODE(self.text, self.at)
                if end < len(self.text) or self.ended:  # else a number may go on
                    self.at = end
                    return value
                error: ValueError | None = None
            except RecursionError:
                raise DataError(f"{self.path} is damaged: brackets are nested too deeply") from None
            except ValueError as found:
                error = found
            if len(self.text) - self.at > _LONGEST or not self.more():
                if error is None:
                    continue
                raise DataError(f"{self.path} is damaged ({error}): fetch it again") from None


def _entries(
    path: Path, needed: Sequence[str], others: Sequence[str] = ()
) -> Iterator[tuple[str, FileEntry]]:
    """Yield (key, entry) of the lists of a file. Raises DataError if a needed list is missing."""
    counts = dict.fromkeys((*needed, *others), 0)
    there: set[str] = set()
    for key, item in _members(path, (*needed, *others), there):
        counts[key] += 1
        where = f"{path}, entry {counts[key]} of {key!r}"
        if not isinstance(item, dict):
            raise DataError(f"{where} is not a JSON object but {describe(item)}: fetch the file again")
        yield key, FileEntry(item, where)
    for key in needed:
        if key not in there:
            raise DataError(f"{path} has no list {key!r}: fetch it again")


def _members(path: Path, wanted: Sequence[str], there: set[str] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield (key, item) of every item of the lists `wanted` of the object that a file holds, in bounded
    memory.

    Names of lists that are there are added to `there`. Raises DataError for a value that is not a list.
    """
    window = _Window(path)
    with window.stream:
        window.expect("{")
        while True:
            key = window.value()
            window.expect(":")
            if key in wanted:
                if window.peek() != "[":
                    told = "null" if (value := window.value()) is None else describe(value)
                    raise DataError(f"{path}: {key!r} must be a list, got {told}: fetch it again")
                if there is not None:
                    there.add(key)
                window.expect("[")
                if window.peek() == "]":
                    window.expect("]")
                else:
                    yield key, window.value()
                    while window.expect(",]") == ",":
                        yield key, window.value()
            else:
                window.value()
            if window.expect(",}") == "}":
                return
