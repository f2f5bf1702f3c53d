"""The record of a benchmark: its published files, the reader of its questions, and its scorer.

    benchmark = benchmarks.named("pope")[0]
    questions = benchmark.questions("playground/data/eval")
    table, metrics = benchmark.score(answers, "playground/data/eval", ScoringOptions())

This module is independent of models. Pictures are found under one folder of a benchmark and never outside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from reverse.data.pictures.opening import resolve_image
from reverse.errors import DataError, MissingFileError
from reverse.evaluation.reading.answers import BenchmarkAnswer
from reverse.files.cell_values import read_id, shorten
from reverse.files.entries import FileEntry, read_entries

if TYPE_CHECKING:
    from reverse.data.drafts.draft_record import DraftSegment
    from reverse.evaluation.scoring.judge import Judge
    from reverse.evaluation.stats.scored_tables import Metric, Table
    from reverse.grading import AnswerKey

__all__ = [
    "COCO_IMAGES",
    "DEFAULT_SCORING",
    "SHARED_IMAGES",
    "Benchmark",
    "BenchmarkQuestion",
    "PublishedFile",
    "QuestionRow",
    "ScoringOptions",
    "SeveralPictures",
    "StoredPicture",
    "digest_ids",
    "make_row",
    "read_items",
]

MANIFEST = "benches.json"  # lies in a root that the scenes world wrote
REASONING_MANIFEST = "manifest.json"  # lies in one of the reasoning world
SHARED_IMAGES = "images"  # a root may hold all pictures in one folder, as that of scenes does
COCO_IMAGES = (
    "chair_mscoco/coco/val2014", "pope/coco/val2014", "coco/val2014", "../coco/val2014", SHARED_IMAGES,
)  # fmt: skip
SHOWN = 3  # names in an error
SCENES_REQUEST = " Please answer yes or no."  # ends MME's questions about scenes, as published


@dataclass(frozen=True)
class PublishedFile:
    """A published file and where it may lie under the root; users are told the first place."""

    places: tuple[str, ...]
    description: str
    source: str  # where it is published
    needed: Literal["run", "score"] = "run"

    def find(self, root: Path) -> Path | None:
        """The file in the first place that has it; None if it is missing."""
        return next((root / place for place in self.places if (root / place).exists()), None)


class StoredPicture(Protocol):
    """A picture inside another file, such as a parquet file. It is read when it is needed."""

    def read(self) -> Any:
        """The picture's bytes, or a PIL image."""
        ...


@dataclass(frozen=True)
class SeveralPictures:
    """The pictures of a question that has more than one, in order."""

    pictures: tuple[Path | StoredPicture, ...]

    def read(self) -> list[Any]:
        """Return the pictures as `reverse.generate` takes them."""
        return [str(each) if isinstance(each, Path) else each.read() for each in self.pictures]


@dataclass(frozen=True)
class BenchmarkQuestion:
    """One question. `image` is the name that the benchmark uses; `source` is where the picture is."""

    id: str | int
    image: str
    prompt: str
    source: Path | StoredPicture
    metadata: Mapping[str, Any] = field(default_factory=dict)  # label, category, type: what scoring groups by
    key: AnswerKey | None = None  # of a graded benchmark: the right answer, and the form of answers
    # Checks the steps of an answer, where somebody knows the truth of every step.
    verify: Callable[[str], tuple[DraftSegment, ...]] | None = None

    def picture(self) -> Any:
        """Return the picture as `reverse.generate` takes it."""
        return str(self.source) if isinstance(self.source, Path) else self.source.read()


@dataclass(frozen=True)
class ScoringOptions:
    """Options of scoring."""

    partial: bool = False  # score what is there even if questions have no answer
    judge: Judge | None = None  # of the benchmarks with needs="judge"
    workers: int | None = None  # processes that read captions; None: one a core
    progress: Callable[[int, int], None] | None = None  # called with (done, total)


DEFAULT_SCORING = ScoringOptions()


# Keys: id, image, prompt, metadata; `file` if the picture's file has another name than `image` (a list if
# there are several), and `source` if the picture is not a file. Of graded benchmarks also `key`, `verify`,
# and `request`, which says how to answer and is added to the prompt, but not on scenes.
QuestionRow = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark. The module that makes the record also holds the functions in it."""

    name: str
    title: str
    kind: Literal["caption", "yes_no", "open", "graded"]
    files: Mapping[str, PublishedFile]
    images: tuple[str, ...]  # folders that may hold the pictures, relative to the root
    images_source: str  # where the pictures are published
    # Yields the questions of the files that were found, by their names in `files`.
    read_questions: Callable[[Mapping[str, Path]], Iterable[QuestionRow]]
    # Scores answers against the truth in a folder. Raises MissingFileError and DataError.
    score: Callable[[Sequence[BenchmarkAnswer], str | Path, ScoringOptions], tuple[Table, list[Metric]]]
    # Whether a folder holds the truth that the answers are scored with: tells the benchmark of answers that
    # do not.
    holds_truth: Callable[[str | Path, Sequence[BenchmarkAnswer]], bool] = lambda truth, answers: False
    pictures_in: str | None = None  # the one of `files` that may hold the pictures themselves
    max_new_tokens: int = 1024
    aliases: tuple[str, ...] = ()  # further names; several benchmarks may share one
    in_all: bool = True  # whether "all" runs it
    # To be scored: NLTK's language data, a judge, or math-verify.
    needs: Literal["words", "judge", "math"] | None = None
    unique_ids: bool = True  # False: a published id stands for several questions
    suffix: str = ""  # put behind published questions that do not say how to answer
    ids_sha256: str | None = None  # hash of the published ids, if it is known
    count: int | None = None  # number of published questions
    alternatives: tuple[tuple[str, ...], ...] = ()  # one of these sets of files is enough to run
    generated_from: str | None = None  # what identifies questions that are made and not read, however many

    def found(self, root: Path) -> dict[str, Path]:
        """Return the existing files by their names in `files`."""
        return {name: path for name, file in self.files.items() if (path := file.find(root)) is not None}

    def missing(self, root: Path, needed: Sequence[str] = ("run",)) -> list[PublishedFile]:
        """Return the missing files that running (or scoring) needs."""
        found = self.found(root)
        enough = any(all(name in found for name in names) for names in self.alternatives)
        optional = {name for names in self.alternatives for name in names}
        absent = []
        for name, file in self.files.items():
            runs = not enough if name in optional else file.needed == "run"
            scores = file.needed == "score" and "score" in needed
            if name not in found and ((runs and "run" in needed) or scores):
                absent.append(file)
        return absent

    def image_folder(self, root: Path) -> Path | None:
        """Return the folder that holds the pictures; None if it does not exist yet."""
        return next((root / place for place in self.images if (root / place).is_dir()), None)

    def questions(self, root: str | Path, images: int | None = None) -> list[BenchmarkQuestion]:
        """Read all questions, or those about the first `images` pictures.

        Raises MissingFileError if files or pictures are missing; DataError if they are damaged, ids occur
        twice or a picture would lie outside its folder.
        """
        root = Path(root)
        rows = self._rows(root)
        if images is not None:
            rows = _first_images(rows, images)
        folder = self.image_folder(root)
        questions = [self._question(row, folder, root) for row in rows]
        _refuse_duplicates(self.title, [question.id for question in questions])
        gone = [q for q in questions if not all(file.is_file() for file in _files_of(q.source))]
        if gone:
            told = ", ".join(question.image for question in gone[:SHOWN])
            raise MissingFileError(
                f"{len(gone)} of {len(questions)} pictures of {self.title} are not in {folder}: {told}…; "
                f"`reverse eval --where {self.name}` says where they come from"
            )
        return questions

    def digest(self, root: str | Path) -> str:
        """Return the SHA-256 of id, picture and prompt of all questions, also of those that a run does not
        ask.
        """
        if self.generated_from is not None:
            return hashlib.sha256(self.generated_from.encode()).hexdigest()
        digest = hashlib.sha256()
        for row in self._rows(Path(root)):
            digest.update(f"{row['id']}\0{row['image']}\0{row['prompt']}\n".encode())
        return digest.hexdigest()

    def compare_with_published(self, root: str | Path) -> str:
        """Say how the ids compare with the published list, for the run's record."""
        if _is_scenes(Path(root)):
            return "scenes"
        ids = [row["id"] for row in self._rows(Path(root))]
        if self.ids_sha256 is not None:
            return "the published ids" if digest_ids(ids) == self.ids_sha256 else "NOT the published ids"
        if self.count is not None and len(ids) != self.count:
            return f"{len(ids)} questions, NOT the published {self.count}"
        return "hash of the published ids not known, this one is recorded"

    def _rows(self, root: Path) -> list[QuestionRow]:
        absent = self.missing(root)
        if absent:
            told = "; ".join(f"{file.places[0]} ({file.description})" for file in absent[:SHOWN])
            raise MissingFileError(
                f"{self.title} lacks {told} under {root}: `reverse eval --where {self.name}` says where "
                "everything comes from and goes"
            )
        rows = list(self.read_questions(self.found(root)))
        if not rows:
            files = ", ".join(str(path) for path in self.found(root).values())
            raise DataError(f"{self.title}: {files} hold no questions: fetch the files again")
        if _is_scenes(root):  # worded as the bundled models have learnt to be asked
            for row in rows:
                row["prompt"] = row["prompt"].removesuffix(SCENES_REQUEST)
        else:
            for row in rows:
                ending = row.get("request", self.suffix)
                row["prompt"] = row["prompt"].removesuffix(ending) + ending
        return rows

    def _question(self, row: QuestionRow, folder: Path | None, root: Path) -> BenchmarkQuestion:
        source: Path | StoredPicture | None = row.get("source")
        if source is None:
            if folder is None:
                raise MissingFileError(
                    f"{self.title} has no pictures under {root}: put them into {self.images[0]}"
                )
            names = row.get("file", row["image"])
            if isinstance(names, list):
                source = SeveralPictures(tuple(resolve_image(folder, str(name)) for name in names))
            else:
                source = resolve_image(folder, str(names))
        known = row.get("metadata", {}), row.get("key"), row.get("verify")
        return BenchmarkQuestion(row["id"], row["image"], row["prompt"], source, *known)


def make_row(entry: FileEntry, metadata: Mapping[str, Any] | None = None) -> QuestionRow:
    """Make the question of an entry with the keys that most published files use.

    `metadata` is what scoring groups by (label, category, type), never what a judge should not see.
    """
    return {
        "id": entry.id("question_id", "id"),
        "image": entry.text("image"),
        "prompt": entry.text("text", "query", "question"),
        "metadata": dict(metadata or {}),
    }


def read_items(
    path: Path, parse: Callable[[FileEntry], dict[str, Any]], identify: Callable[[FileEntry, int], str | int]
) -> dict[str, dict[str, Any]]:
    """Parse each entry of a truth file with `parse`; return the results by id as text.

    `identify(entry, number)` is the id, where entries are counted from 0. Raises DataError naming the entry
    that has no id, or the id of an earlier one.
    """
    items: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(read_entries(path)):
        name = str(read_id(identify(entry, number)))
        if name in items:
            raise DataError(f"{entry.where}: id {name!r} stands in an earlier entry too: keep one of them")
        items[name] = parse(entry)
    return items


def digest_ids(ids: Iterable[Any]) -> str:
    """Return the SHA-256 of the ids as text, one per line, in their order."""
    return hashlib.sha256("".join(f"{i}\n" for i in ids).encode()).hexdigest()


def _is_scenes(root: Path) -> bool:
    """Whether a root was written by scenes or the reasoning world, whose models are trained on bare
    questions.
    """
    if (root / MANIFEST).is_file():
        return True
    manifest = root / REASONING_MANIFEST
    if not manifest.is_file():
        return False
    with manifest.open("rb") as stream:
        return b'"world":"reasoning"' in stream.read(200)


def _files_of(source: Path | StoredPicture) -> list[Path]:
    """Return the files of the pictures that have a file of their own."""
    sources = source.pictures if isinstance(source, SeveralPictures) else (source,)
    return [each for each in sources if isinstance(each, Path)]


def _first_images(rows: list[QuestionRow], images: int) -> list[QuestionRow]:
    """Return all questions about the first pictures, so that pairs and settings stay together."""
    kept = set(list(dict.fromkeys(row["image"] for row in rows))[:images])
    return [row for row in rows if row["image"] in kept]


def _refuse_duplicates(title: str, ids: Sequence[Any]) -> None:
    seen: set[str] = set()
    for name in (read_id(each) or str(each) for each in ids):
        if name in seen:
            raise DataError(
                f"{title}: question id {shorten(name)!r} occurs twice: the file is not the published one"
            )
        seen.add(name)
