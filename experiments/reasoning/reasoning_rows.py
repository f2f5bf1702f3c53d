"""Pictures and tokenised rows of the reasoning world, made by several processes and held as plain arrays.

    made = make_rows(base_rows, indices, settings, workers=16)
    made.pictures            # uint8 (pictures, 112, 112, 3)
    made.pools["solve"]      # RowPool: ids and labels, and the picture of each row

What a process makes depends on indices and seeds alone, never on how the work is shared out.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from experiments.array_files import save_arrays
from experiments.reasoning.reasoning_recipe import REFLECTION
from experiments.scene_dataset import ScenePictures
from reverse.data.drafts.draft_record import DraftRecord, RecordedDraft
from reverse.data.records.schema import make_record
from reverse.data.scenes.reasoning import (
    ReasoningPicture,
    ReasoningQuestion,
    annotate,
    draw_reasoning_picture,
    make_reasoning_picture,
    make_reasoning_questions,
    make_verified_draft,
    write_pointing,
    write_rationale,
    write_reasoning_caption,
)
from reverse.data.scenes.reasoning.reasoning_annotator import read_as_annotator
from reverse.data.scenes.reasoning.reasoning_pictures import make_picture_rng
from reverse.errors import DataError
from reverse.files.file_lock import output_lock
from reverse.modes import Reflect
from reverse.training.data.encoding import Encoder
from reverse.training.data.labels import IGNORE
from reverse.training.data.record_turns import turns_of
from reverse.training.views.correction_views import view_refine, view_reflect, view_self_correct
from reverse.training.views.selection_view import view_select
from reverse.training.views.solving_views import view_cot, view_judge, view_reflect_judge
from reverse.training.views.view_rows import ViewSettings

__all__ = [
    "AnsweredPicture",
    "MadeRows",
    "RowPool",
    "RowSource",
    "answered_rows",
    "base_rows",
    "encode_pictures",
    "find_first",
    "join_pools",
    "join_rows",
    "load_encoder",
    "make_draft_records",
    "make_rows",
    "question_prompts",
    "share_rows",
]

POOL_FIELDS = ("ids", "labels", "pictures")
CHUNK = 256  # pictures that a process makes at a time
CAPTION, PLACES = "Describe this image.", "images"
Array = npt.NDArray[Any]


@dataclass
class RowPool:
    """Rows of one kind. Padding: 0 in `ids`, `IGNORE` in `labels`."""

    ids: npt.NDArray[np.int16]  # (rows, length)
    labels: npt.NDArray[np.int16]  # (rows, length)
    pictures: npt.NDArray[np.int32]  # (rows,): indices of `MadeRows.pictures`

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Ids of each row without padding, (rows,)."""
        return np.asarray((self.ids != 0).cumsum(axis=1).argmax(axis=1) + 1)

    def shorten(self, most: int) -> RowPool:
        """The rows of at most `most` ids, with arrays of that length."""
        kept = self.lengths <= most
        return RowPool(self.ids[kept, :most], self.labels[kept, :most], self.pictures[kept])


@dataclass
class MadeRows:
    """Pictures, the rows about them by pool, and where pictures stand in rows."""

    pictures: npt.NDArray[np.uint8]
    pools: dict[str, RowPool]
    first: int  # where a picture's ids begin
    count: int  # how many there are


@dataclass(frozen=True)
class RowSource:
    """What all processes need: a checkpoint's processor, and how pictures are drawn."""

    checkpoint: str
    seed: int
    side: int
    tables: float
    pools: tuple[str, ...] = ()  # kinds of rows about answered questions; empty: all
    split: str = "train"

    def wants(self, pool: str) -> bool:
        """Whether rows of this kind are made."""
        return not self.pools or pool in self.pools

    def picture(self, index: int) -> ReasoningPicture:
        """Picture number `index`."""
        return make_reasoning_picture(self.split, index, self.seed, self.tables)


RowMaker = Callable[[RowSource, Sequence[Any]], "Chunk"]


@dataclass
class Chunk:
    """What one process made of some pictures: pools whose pictures are counted from 0."""

    pictures: npt.NDArray[np.uint8]
    rows: dict[str, RowPool]


@lru_cache(maxsize=4)
def load_encoder(checkpoint: str) -> Encoder:
    """The encoder of a checkpoint's processor."""
    from reverse.models.families import family_named
    from reverse.models.processors.picture_processors import load_processor

    config = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))
    return Encoder(load_processor(checkpoint, family_named(config["model_type"], checkpoint)))


@lru_cache(maxsize=4)
def count_picture_ids(checkpoint: str, side: int) -> int:
    """Ids that stand for one picture."""
    return ScenePictures(load_encoder(checkpoint).processor)(np.zeros((side, side, 3), np.uint8))[1]


def make_rows(
    make: RowMaker, jobs: Sequence[Any], source: RowSource, *, workers: int = 0, draws: bool = True
) -> MadeRows:
    """Run `make` over the jobs, `CHUNK` at a time, and join what comes out.

    Args:
        jobs: one for each picture, in order.
        workers: processes; 0: this one.
        draws: whether pictures are wanted, too.
    """
    parts = [jobs[at : at + CHUNK] for at in range(0, len(jobs), CHUNK)]
    rows: dict[str, list[RowPool]] = defaultdict(list)
    pictures, offset = [], 0
    for part, chunk in zip(parts, _run(make, source, parts, workers), strict=True):
        for name, pool in chunk.rows.items():
            pool.pictures += offset
            rows[name].append(pool)
        if draws:
            pictures.append(chunk.pictures)
        offset += len(part)
    encoder, count = load_encoder(source.checkpoint), count_picture_ids(source.checkpoint, source.side)
    pools = {name: join_pools(found) for name, found in rows.items()}
    first = find_first(pools.values(), encoder.image_id) if pools else 0
    shape = (0, source.side, source.side, 3)
    drawn = np.concatenate(pictures) if pictures else np.empty(shape, np.uint8)
    return MadeRows(drawn, pools, first, count)


def share_rows(path: Path, make: Callable[[], MadeRows]) -> MadeRows:
    """The rows in a file, made and written first if it is not there. Other processes wait meanwhile."""
    with output_lock(path, wait=-1):
        if not path.is_file():
            made = make()
            arrays = {"pictures": made.pictures, "places": np.array([made.first, made.count])}
            for name, pool in made.pools.items():
                arrays |= {f"{name}.{field}": getattr(pool, field) for field in POOL_FIELDS}
            save_arrays(arrays, path)
            return made
    arrays = load_file(path)
    names = sorted({name.partition(".")[0] for name in arrays if "." in name})
    pools = {name: RowPool(*(arrays[f"{name}.{field}"] for field in POOL_FIELDS)) for name in names}
    first, count = arrays["places"].tolist()
    return MadeRows(arrays["pictures"], pools, first, count)


def _run(make: RowMaker, source: RowSource, parts: Sequence[Any], workers: int) -> Iterator[Chunk]:
    if workers < 1:
        yield from (make(source, part) for part in parts)
        return
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])  # what all workers import is imported once
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_use_one_thread) as pool:
        yield from pool.map(make, [source] * len(parts), parts)


def _use_one_thread() -> None:
    """Keep the tokenizer of this process from starting one thread per core."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def join_rows(rows: Sequence[tuple[Array, Array, int]]) -> RowPool:
    """One pool of (ids, labels, picture)."""
    lengths = np.array([len(ids) for ids, _, _ in rows])
    filled = np.arange(lengths.max()) < lengths[:, None]
    ids, labels = np.zeros(filled.shape, np.int16), np.full(filled.shape, IGNORE, np.int16)
    ids[filled] = np.concatenate([ids for ids, _, _ in rows])
    labels[filled] = np.concatenate([labels for _, labels, _ in rows])
    return RowPool(ids, labels, np.array([picture for _, _, picture in rows], np.int32))


def join_pools(pools: Sequence[RowPool]) -> RowPool:
    """One pool of several, padded alike."""
    if len(pools) == 1:
        return pools[0]
    longest = max(pool.ids.shape[1] for pool in pools)

    def padded(array: Array, padding: int) -> Array:
        return np.pad(array, ((0, 0), (0, longest - array.shape[1])), constant_values=padding)

    return RowPool(
        np.concatenate([padded(pool.ids, 0) for pool in pools]),
        np.concatenate([padded(pool.labels, IGNORE) for pool in pools]),
        np.concatenate([pool.pictures for pool in pools]),
    )


def find_first(pools: Iterable[RowPool], image_id: int) -> int:
    """Where pictures begin in all rows. Raises ValueError if they do not begin at one place."""
    places = {int(place) for pool in pools for place in np.unique((pool.ids == image_id).argmax(axis=1))}
    if len(places) != 1:
        raise ValueError(f"pictures begin at {sorted(places)}: rows need one system prompt")
    return places.pop()


# ---------------------------------------------------------------------- what rows are made of
def base_rows(source: RowSource, indices: Sequence[int]) -> Chunk:
    """Four rows a picture: a caption and two rationales by the annotator, and one of pointing."""
    return encode_pictures(source, [source.picture(index) for index in indices], _base_records)


def _base_records(picture: ReasoningPicture) -> Iterator[tuple[str, dict[str, Any]]]:
    rng = make_picture_rng(picture, 30)
    reading = read_as_annotator(picture, tuple(picture.truth), rng)
    asked = [(CAPTION, write_reasoning_caption(picture, reading)), _draw_pointing(picture, rng)]
    questions = make_reasoning_questions(picture)
    asked += [(each.text, annotate(picture, each, rng).text) for each in (questions * 2)[:2]]
    for question, answer in asked:
        yield "base", make_record(picture.id, PLACES, question, answer)


def _draw_pointing(picture: ReasoningPicture, rng: np.random.Generator) -> tuple[str, str]:
    names = list(picture.truth)
    return write_pointing(picture, names[int(rng.random() * len(names))])


def question_prompts(source: RowSource, jobs: Sequence[tuple[int, int]]) -> Chunk:
    """For each (picture, number of questions) the prompts of its questions, without an answer."""

    def ask(picture: ReasoningPicture) -> Iterator[tuple[str, dict[str, Any]]]:
        for question in make_reasoning_questions(picture)[: limits[picture.index]]:
            yield "prompt", make_record(question.id, PLACES, question.text, "x")

    limits = dict(jobs)
    chunk = encode_pictures(source, [source.picture(index) for index, _ in jobs], ask)
    pool = chunk.rows["prompt"]
    answers = (pool.labels != IGNORE).argmax(axis=1)
    pool.ids[np.arange(pool.ids.shape[1]) >= answers[:, None]] = 0
    longest = answers.max()
    chunk.rows = {"prompt": RowPool(pool.ids[:, :longest], pool.labels[:, :longest], pool.pictures)}
    return chunk


@dataclass(frozen=True)
class AnsweredPicture:
    """A picture, and the texts that the base sampled for its first questions."""

    index: int
    texts: tuple[tuple[str, ...], ...]
    is_verified: bool = True


def answered_rows(source: RowSource, jobs: Sequence[AnsweredPicture]) -> Chunk:
    """Rows of all pools about answered questions."""
    by_index = {job.index: job for job in jobs}

    def view(picture: ReasoningPicture) -> Iterator[tuple[str, dict[str, Any]]]:
        rng = make_picture_rng(picture, 31)
        yield "replay", make_record(picture.id, PLACES, CAPTION, write_reasoning_caption(picture))
        yield "replay", make_record(picture.id, PLACES, *_draw_pointing(picture, rng))
        job = by_index[picture.index]
        for question, texts in zip(make_reasoning_questions(picture), job.texts, strict=False):
            solving, judged = make_draft_records(picture, question, texts, rng)
            yield from (("solve", row) for row in view_cot(solving, ViewSettings()).rows)
            if not job.is_verified:
                continue
            yield from _verified_rows(judged, source)

    return encode_pictures(source, [source.picture(job.index) for job in jobs], view)


def _verified_rows(record: DraftRecord, source: RowSource) -> Iterator[tuple[str, dict[str, Any]]]:
    settings = ViewSettings(seed=source.seed, roles=("sample",))
    reflect = Reflect(instruction=REFLECTION)
    for pool, view, mode in (
        ("judge", view_judge, None), ("reflect_judge", view_reflect_judge, reflect),
        ("select", view_select, None), ("correction", view_refine, None),
        ("correction", view_self_correct, None), ("correction", view_reflect, reflect),
    ):  # fmt: skip
        if source.wants(pool):
            yield from ((pool, row) for row in view(record, replace(settings, mode=mode)).rows)
    for pool, tagged in (("own", False), ("own_tagged", True)):
        if not source.wants(pool):
            continue
        own = ViewSettings(roles=("sample",), verified=True, tagged=tagged)
        yield from ((pool, row) for row in view_cot(record, own).rows)
    if source.wants("truth"):
        true = ViewSettings(verified=True, tagged=False)
        yield from (("truth", row) for row in view_cot(record, true).rows)


def make_draft_records(
    picture: ReasoningPicture, question: ReasoningQuestion, texts: Sequence[str], rng: np.random.Generator
) -> tuple[DraftRecord, DraftRecord]:
    """The annotator's two rationales, and the samples with the true rationale, each as a record."""

    def record(drafts: Sequence[RecordedDraft]) -> DraftRecord:
        return DraftRecord(
            id=question.id, question=question.text, images=(PLACES,), gold=question.gold, drafts=tuple(drafts)
        )

    known: dict[str, RecordedDraft] = {}  # texts are often equal

    def verify(text: str, role: str) -> RecordedDraft:
        if text not in known:
            known[text] = make_verified_draft(question, text)
        return known[text].model_copy(update={"role": role})

    rationales = [verify(annotate(picture, question, rng).text, "rationale") for _ in range(2)]
    samples = [verify(text, "sample") for text in texts]
    true = verify(write_rationale(question, picture.truth), "rationale")
    return record(rationales), record([*samples, true])


Records = Callable[[ReasoningPicture], Iterable[tuple[str, Mapping[str, Any]]]]


def encode_pictures(source: RowSource, pictures: Sequence[ReasoningPicture], records: Records) -> Chunk:
    """Pictures as bytes, and the encoded rows of the records about them, by pool."""
    encoder, count = load_encoder(source.checkpoint), count_picture_ids(source.checkpoint, source.side)
    rows: dict[str, list[tuple[Array, Array, int]]] = defaultdict(list)
    drawn = np.empty((len(pictures), source.side, source.side, 3), np.uint8)
    for at, picture in enumerate(pictures):
        drawn[at] = draw_reasoning_picture(picture)
        for pool, record in records(picture):
            try:
                row = encoder.row(turns_of(record), count)
            except DataError:  # a sample of a weak model that cannot be a row, such as a blank one
                if pool in ("base", "prompt", "replay", "solve", "truth"):
                    raise
                continue
            rows[pool].append((row.ids.astype(np.int16), row.labels.astype(np.int16), at))
    return Chunk(drawn, {pool: join_rows(found) for pool, found in rows.items()})
