"""Which objects a COCO image holds: its instances and what its five captions name, read once and cached.

    truth = coco_truth("playground/data/eval/chair_mscoco/coco/annotations")
    truth.objects("COCO_val2014_000000000042.jpg")        # frozenset({"dog", ...})

The annotation files (700 MB for all of COCO 2014) are streamed; captions are read on all cores given. The
cache is one .npz without pickles under the user's cache folder, named by path, size and times of the
sources; it holds their SHA-256, which reports show. A cache that cannot be read is made anew.
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

from reverse.data.files import sha256, whole_file
from reverse.evaluation.scoring import language
from reverse.evaluation.scoring.chair_words import OBJECTS, mentions
from reverse.evaluation.scoring.language_data import cache_root
from reverse.evaluation.scoring.rows import locate

__all__ = ["PLACES", "Truth", "coco_truth"]

PLACES = (".", "annotations", "coco/annotations", "chair_mscoco/coco/annotations", "chair_mscoco", "chair")
VERSION = 1  # of what is counted: another number, another cache
SHARE = 5000  # captions a task
ALONE = 20_000  # captions that are read without further processes
_COLUMN = {name: i for i, name in enumerate(OBJECTS)}
_NUMBER = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?0*(\d+)(?:\.(?:jpe?g|png))?")


@dataclass(frozen=True)
class Truth:
    """`ids` (images,) int64; `names` (images,) file names; `packed` (images, 10) uint8, a bit an object."""

    ids: np.ndarray
    names: np.ndarray
    packed: np.ndarray
    sources: dict[str, str]  # file name to SHA-256

    def objects(self, image: str) -> frozenset[str]:
        """The objects of an image, by file name or id. Raises KeyError for one that is not there."""
        bits = np.unpackbits(self.packed[self.place(image)], count=len(OBJECTS))
        return frozenset(OBJECTS[i] for i in np.flatnonzero(bits))

    def place(self, image: str) -> int:
        found = self._by_name.get(image)
        if found is None and (number := _NUMBER.fullmatch(image)):
            found = self._by_id.get(int(number[1]))
        if found is None:
            raise KeyError(image)
        return found

    @cached_property
    def _by_name(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names.tolist()) if name}

    @cached_property
    def _by_id(self) -> dict[int, int]:
        return {number: i for i, number in enumerate(self.ids.tolist())}


def coco_truth(
    folder: str | Path,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    cache: bool = True,
) -> Truth:
    """The truth of all images of the annotation files in `folder`.

    Files: instances and captions, `*_train2014.json`, `*_val2014.json`, or those of scenes. `progress(done,
    total)` counts captions. Raises FileNotFoundError naming what is missing, ValueError for damaged files or
    a category that is none of the 80.
    """
    instances = locate(folder, PLACES, ["instances*.json"])
    captions = locate(folder, PLACES, ["captions*.json"])
    for what, found in (("instances", instances), ("captions", captions)):
        if not found:
            raise FileNotFoundError(
                f"no {what}*.json under {folder}: CHAIR needs instances_val2014.json and "
                f"captions_val2014.json of "
                "annotations_trainval2014.zip (cocodataset.org), or a folder of scenes"
            )
    language.prepare()
    sources = [*instances, *captions]
    path = cache_root() / "chair" / f"{_fingerprint(sources)}.npz"
    if cache and (known := _read(path)) is not None:
        return known
    before = _fingerprint(sources)
    truth = _build(instances, captions, workers or _cores(), progress)
    if _fingerprint(sources) != before:
        raise ValueError(f"the files under {folder} changed while they were read: score again")
    if cache:
        _write(path, truth)
    return truth


def _fingerprint(paths: Sequence[Path]) -> str:
    """Changes when a file does; contents are not read (700 MB)."""
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
) -> Truth:
    names: dict[int, str] = {}
    held: dict[int, set[int]] = {}
    for path in instances:
        _add_instances(path, names, held)
    said: list[tuple[int, str]] = []
    for path in captions:
        for key, value in _members(path, ("annotations", "images")):
            if key == "images":
                names.setdefault(_get(path, value, "id"), str(value.get("file_name", "")))
            else:
                said.append((_get(path, value, "image_id"), str(_get(path, value, "caption"))))
    for done, (number, columns) in enumerate(_objects_of_captions(said, workers), 1):
        held.setdefault(number, set()).update(columns)
        if progress is not None and (done % SHARE == 0 or done == len(said)):
            progress(done, len(said))
    ids = sorted(names.keys() | held.keys())
    if not ids:
        raise ValueError(f"{instances[0]} holds no images: fetch it again")
    bits = np.zeros((len(ids), len(OBJECTS)), bool)
    for row, number in enumerate(ids):
        bits[row, list(held.get(number, ()))] = True
    file_names = np.array([names.get(number, "").replace("\\", "/").rpartition("/")[2] for number in ids])
    digests = {path.name: sha256(path) for path in (*instances, *captions)}
    return Truth(np.array(ids, np.int64), file_names, np.packbits(bits, axis=1), digests)


def _add_instances(path: Path, names: dict[int, str], held: dict[int, set[int]]) -> None:
    """Images, and for each the categories of its instances."""
    categories: dict[int, int] = {}
    seen: list[tuple[int, int]] = []
    for key, value in _members(path, ("annotations", "images", "categories")):
        if key == "images":
            names[_get(path, value, "id")] = str(value.get("file_name", ""))
        elif key == "categories":
            name = _get(path, value, "name")
            if name not in _COLUMN:
                raise ValueError(f"{path}: category {name!r} is none of the 80 of COCO that CHAIR knows")
            categories[_get(path, value, "id")] = _COLUMN[name]
        else:
            seen.append((_get(path, value, "image_id"), _get(path, value, "category_id")))
    for image, category in seen:
        if category not in categories:
            raise ValueError(f"{path}: an instance is of category {category!r}, which the file does not list")
        held.setdefault(image, set()).add(categories[category])


def _get(path: Path, value: Any, key: str) -> Any:
    try:
        return value[key]
    except (KeyError, TypeError):
        raise ValueError(f"{path}: an entry has no {key!r}: {str(value)[:60]}; fetch it again") from None


def _objects_of_captions(said: list[tuple[int, str]], workers: int) -> Iterator[tuple[int, list[int]]]:
    """(image id, columns of the objects named) of each caption, in order."""
    texts = [caption for _, caption in said]
    shares = [texts[i : i + SHARE] for i in range(0, len(texts), SHARE)]
    numbers = iter([number for number, _ in said])
    if workers == 1 or len(texts) <= ALONE:
        for share in shares:
            yield from zip(islice(numbers, len(share)), map(_columns, share), strict=True)
        return
    # "spawn": a fork of a process with threads (torch's) may hang.
    workers = min(workers, len(shares))
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=language.prepare) as pool:
        for share, found in zip(shares, pool.map(_columns_of_all, shares), strict=True):
            yield from zip(islice(numbers, len(share)), found, strict=True)


def _columns_of_all(captions: list[str]) -> list[list[int]]:
    return [_columns(caption) for caption in captions]


def _columns(caption: str) -> list[int]:
    return [_COLUMN[name] for _, name in mentions(caption)[0]]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _write(path: Path, truth: Truth) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = np.array([name.encode("utf-8") for name in truth.names.tolist()], dtype=np.bytes_)
    sources = np.frombuffer(json.dumps(truth.sources).encode(), np.uint8)
    with whole_file(path) as stream:
        np.savez_compressed(stream, ids=truth.ids, names=names, packed=truth.packed, sources=sources)


def _read(path: Path) -> Truth | None:
    """The cached truth; None where there is none or it is damaged (every array has its checksum)."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = np.char.decode(stored["names"], "utf-8")
            sources = json.loads(stored["sources"].tobytes())
            truth = Truth(stored["ids"], names, stored["packed"], sources)
    except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile):
        return None
    whole = truth.packed.shape == (len(truth.ids), (len(OBJECTS) + 7) // 8) and len(names) == len(truth.ids)
    return truth if whole else None


# ------------------------------------------------------------------ streaming one JSON object with long lists
_CHUNK = 1 << 22  # characters a read
_LONGEST = 1 << 26  # characters of one value
_BLANK = re.compile(r"[ \t\r\n]*")
_DECODE = json.JSONDecoder().raw_decode


class _Window:
    """The part of a file that is being decoded."""

    def __init__(self, path: Path):
        self.path, self.stream = path, path.open(encoding="utf-8")
        self.text, self.at, self.ended = "", 0, False

    def more(self) -> bool:
        """Read on; False at the end of the file."""
        try:
            chunk = self.stream.read(_CHUNK)
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path} is not UTF-8 text ({error}): fetch it again") from None
        self.text, self.at = self.text[self.at :] + chunk, 0
        self.ended = not chunk
        return not self.ended

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            self.at = _BLANK.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def expect(self, characters: str) -> str:
        found = self.peek()
        if not found or found not in characters:
            raise ValueError(
                f"{self.path} is damaged: {found!r} where {characters!r} belongs; fetch it again"
            )
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
            except json.JSONDecodeError as found:
                error = found
            if len(self.text) - self.at > _LONGEST or not self.more():
                if error is None:
                    continue
                raise ValueError(f"{self.path} is damaged ({error}): fetch it again") from None


def _members(path: Path, wanted: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """(key, item) of every item of the lists `wanted` of the object that a file holds, in bounded memory."""
    window = _Window(path)
    with window.stream:
        window.expect("{")
        while True:
            key = window.value()
            window.expect(":")
            if key in wanted and window.peek() == "[":
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
