"""What a benchmark is: its files and where they lie, how questions are read, and how they are answered.

    bench = benches.named("pope")[0]
    questions = bench.questions("playground/data/eval")

Nothing here knows a model. Pictures are found under one folder of a benchmark and never outside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from reverse.data.pictures.opening import resolve_image
from reverse.errors import DataError, MissingFileError
from reverse.files.cell_values import read_id, shorten
from reverse.files.entries import read_entries

__all__ = ["Bench", "File", "ParquetPicture", "Question", "ids_digest", "read_rows"]

MANIFEST = "benches.json"  # lies in a root that the scenes world wrote
SHOWN = 3  # names in an error
SCENES_REQUEST = " Please answer yes or no."  # ends MME's questions about scenes, as published


@dataclass(frozen=True)
class File:
    """A published file: where it may lie under the root (the first place is the one to be told)."""

    places: tuple[str, ...]
    what: str
    source: str  # where it is published, as users find it
    needed: Literal["run", "score"] = "run"

    def find(self, root: Path) -> Path | None:
        return next((root / place for place in self.places if (root / place).exists()), None)


@dataclass(frozen=True)
class ParquetPicture:
    """A picture inside a parquet file, read when it is needed."""

    file: Path
    group: int
    row: int

    def read(self) -> bytes:
        import pyarrow.parquet as pq

        column = pq.ParquetFile(self.file).read_row_group(self.group, columns=["image"]).column("image")
        return column[self.row].as_py()["bytes"]


@dataclass(frozen=True)
class Question:
    """One thing to be asked. `image` is the name that the benchmark uses; `source` where the picture is."""

    id: str | int
    image: str
    prompt: str
    source: Path | ParquetPicture
    metadata: Mapping[str, Any] = field(default_factory=dict)  # label, category, type: what scoring groups by

    def picture(self) -> str | bytes:
        return self.source.read() if isinstance(self.source, ParquetPicture) else str(self.source)


Row = dict[str, Any]  # id, image, prompt, metadata, and `source` where the picture is no file
Reader = Callable[[Path, Mapping[str, Path]], Iterable[Row]]


@dataclass(frozen=True)
class Bench:
    """One benchmark. `read(root, files)` yields rows; `files` maps the names in `files` to what was found."""

    name: str
    title: str
    files: Mapping[str, File]
    images: tuple[str, ...]  # folders that may hold the pictures, relative to the root; "": in the rows
    images_source: str
    read: Reader
    kind: Literal["caption", "yes_no", "open"]
    max_new_tokens: int
    suffix: str = ""  # put behind published questions that do not say how to answer
    ids_sha256: str | None = None  # of the published list, where it is known
    count: int | None = None  # of published questions
    alternatives: tuple[tuple[str, ...], ...] = ()  # one of these sets of files is enough to run

    def found(self, root: Path) -> dict[str, Path]:
        return {name: path for name, file in self.files.items() if (path := file.find(root)) is not None}

    def missing(self, root: Path, needed: Sequence[str] = ("run",)) -> list[File]:
        """The files without which the benchmark cannot be run (or scored)."""
        found = self.found(root)
        enough = any(all(name in found for name in names) for names in self.alternatives)
        asked = {name for names in self.alternatives for name in names}
        absent = []
        for name, file in self.files.items():
            runs = not enough if name in asked else file.needed == "run"
            scores = file.needed == "score" and "score" in needed
            if name not in found and ((runs and "run" in needed) or scores):
                absent.append(file)
        return absent

    def image_folder(self, root: Path) -> Path | None:
        return next((root / place for place in self.images if (root / place).is_dir()), None)

    def questions(self, root: str | Path, images: int | None = None) -> list[Question]:
        """All questions, or those about the first `images` pictures.

        Raises FileNotFoundError where files or pictures are missing; ValueError where they are damaged, ids
        occur twice or a picture would lie outside its folder.
        """
        root = Path(root)
        rows = self._rows(root)
        if images is not None:
            rows = _first_images(rows, images)
        folder = self.image_folder(root)
        questions = [self._question(row, folder, root) for row in rows]
        _no_duplicates(self.title, [question.id for question in questions])
        gone = [q for q in questions if isinstance(q.source, Path) and not q.source.is_file()]
        if gone:
            told = ", ".join(question.image for question in gone[:SHOWN])
            raise MissingFileError(
                f"{len(gone)} of {len(questions)} pictures of {self.title} are not in {folder}: {told}…; "
                f"`reverse eval --where {self.name}` says where they come from"
            )
        return questions

    def digest(self, root: str | Path) -> str:
        """SHA-256 of all that is asked, id, picture and prompt, however much of it a run asks."""
        digest = hashlib.sha256()
        for row in self._rows(Path(root)):
            digest.update(f"{row['id']}\0{row['image']}\0{row['prompt']}\n".encode())
        return digest.hexdigest()

    def _rows(self, root: Path) -> list[Row]:
        absent = self.missing(root)
        if absent:
            told = "; ".join(f"{file.places[0]} ({file.what})" for file in absent[:SHOWN])
            raise MissingFileError(
                f"{self.title} lacks {told} under {root}: `reverse eval --where {self.name}` says where "
                "everything comes from and goes"
            )
        rows = list(self.read(root, self.found(root)))
        if not rows:
            files = ", ".join(str(path) for path in self.found(root).values())
            raise DataError(f"{self.title}: {files} hold no questions: fetch the files again")
        if is_scenes(root):  # worded as the bundled models have learnt to be asked
            for row in rows:
                row["prompt"] = row["prompt"].removesuffix(SCENES_REQUEST)
        elif self.suffix:
            for row in rows:
                row["prompt"] = row["prompt"].removesuffix(self.suffix) + self.suffix
        return rows

    def _question(self, row: Row, folder: Path | None, root: Path) -> Question:
        source: Path | ParquetPicture | None = row.get("source")
        if source is None:
            if folder is None:
                raise MissingFileError(
                    f"{self.title} has no pictures under {root}: put them into {self.images[0]}"
                )
            source = resolve_image(folder, str(row.get("file", row["image"])))
        return Question(row["id"], row["image"], row["prompt"], source, row.get("metadata", {}))

    def published(self, root: str | Path) -> str:
        """How the ids stand to the published list, in words that go into the run's record."""
        if is_scenes(Path(root)):
            return "scenes"
        ids = [row["id"] for row in self._rows(Path(root))]
        if self.ids_sha256 is not None:
            same = ids_digest(ids) == self.ids_sha256
            return "the published ids" if same else "NOT the published ids"
        if self.count is not None and len(ids) != self.count:
            return f"{len(ids)} questions, NOT the published {self.count}"
        return "hash of the published ids not known, this one is recorded"


def is_scenes(root: Path) -> bool:
    return (root / MANIFEST).is_file()


def ids_digest(ids: Iterable[Any]) -> str:
    """SHA-256 of the ids as text, one a line, in their order."""
    return hashlib.sha256("".join(f"{i}\n" for i in ids).encode()).hexdigest()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """JSON objects of a file that is a JSON list or JSON lines, see `reverse.files.entries`."""
    return [entry.row for entry in read_entries(path)]


def _first_images(rows: list[Row], images: int) -> list[Row]:
    """Whole pictures: all questions about a picture stay together, pairs and settings too."""
    kept = set(list(dict.fromkeys(row["image"] for row in rows))[:images])
    return [row for row in rows if row["image"] in kept]


def _no_duplicates(title: str, ids: Sequence[Any]) -> None:
    seen: set[str] = set()
    for name in (read_id(each) or str(each) for each in ids):
        if name in seen:
            raise DataError(
                f"{title}: question id {shorten(name)!r} occurs twice: the file is not the published one"
            )
        seen.add(name)
