"""How the questions of each benchmark are read from its published files: one function a format.

A row is {"id", "image", "prompt", "metadata"}; "source" is there where the picture lies inside a parquet
file. `metadata` keeps what scoring groups by (label, category, type), never what a judge should not see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from reverse.errors import DataError
from reverse.evaluation.benchmarks.benchmark import Row
from reverse.evaluation.benchmarks.mme_files import choose_files, read_questions
from reverse.files.cell_values import describe, file_name, read_id
from reverse.files.entries import Entry, read_entries

__all__ = ["amber", "chair", "haloquest", "mme", "mmhal", "pope", "pope_set"]

SETTINGS = ("random", "popular", "adversarial")
_ID = ("question_id", "id")
_TEXT = ("text", "query", "question")


def chair(root: Path, files: Mapping[str, Path]) -> Iterator[Row]:
    """chair-500.jsonl: question_id, image, text."""
    for entry in read_entries(files["questions"]):
        yield _row(entry, {})


def amber(root: Path, files: Mapping[str, Path]) -> Iterator[Row]:
    """Queries (id, image, query); annotations have the ids of the queries."""
    kinds: dict[str | None, str] = {}
    for entry in read_entries(files["annotations"]) if "annotations" in files else ():
        kinds[read_id(entry.id("id"))] = entry.text("type")
    for entry in read_entries(files["questions"]):
        row = _row(entry, {})
        kind = kinds.get(read_id(row["id"]))
        yield row | {"metadata": {} if kind is None else {"type": kind}}


def pope(root: Path, files: Mapping[str, Path]) -> Iterator[Row]:
    """LLaVA's file (unique ids, category) where it is there, else the three of POPE."""
    if "llava" not in files:
        yield from pope_set(root, files)
        return
    labels = {name: read_entries(files[name]) for name in SETTINGS if name in files}
    at: Counter[str] = Counter()
    for entry in read_entries(files["llava"]):
        category = entry.text("category")
        beside = labels.get(category, [])
        metadata = {"category": category}
        if at[category] < len(beside):  # published in the same order, label by label
            label = beside[at[category]]
            if label.row.get("image") != entry.row.get("image"):
                raise DataError(
                    f"{files['llava']} and {files[category]} do not ask the same: question "
                    f"{describe(entry.row.get('question_id'))} is about {describe(entry.row.get('image'))}, "
                    f"its label about {describe(label.row.get('image'))}; fetch both again"
                )
            metadata["label"] = label.text("label")
        at[category] += 1
        yield _row(entry, metadata)


def pope_set(root: Path, files: Mapping[str, Path]) -> Iterator[Row]:
    """POPE's own files, one a setting: question_id (from 1 in each), image, text, label."""
    for setting in SETTINGS:
        for entry in read_entries(files[setting]):
            made = _row(entry, {"category": setting, "label": entry.text("label")})
            yield made | {"id": f"{setting}/{made['id']}"}


def mme(tasks: tuple[str, ...] | None) -> Callable[[Path, Mapping[str, Path]], Iterator[Row]]:
    """Reader of the tasks (None: all), from JSON lines, parquet files or the released folders."""

    def read(root: Path, files: Mapping[str, Path]) -> Iterator[Row]:
        rows = read_questions(*choose_files(files))
        times: Counter[str] = Counter()
        for row in rows:
            if tasks is None or row["metadata"]["category"] in tasks:
                name = str(row["id"])
                times[name] += 1  # both questions of a picture have its id
                yield row | {"id": f"{name}#{times[name]}"}

    return read


def mmhal(root: Path, files: Mapping[str, Path]) -> Iterator[Row]:
    """response_template.json: the picture is the last part of image_src."""
    for number, entry in enumerate(read_entries(files["questions"])):
        image = file_name(entry.text("image_src"))
        keys = ("question_type", "question_topic")
        metadata = {key: entry.row[key] for key in keys if key in entry.row}
        own = next((key for key in ("question_id", "id") if entry.row.get(key) is not None), None)
        identity = number if own is None else entry.id(own)  # as scoring has it
        yield {"id": identity, "image": image, "prompt": entry.text("question"), "metadata": metadata}


def haloquest(root: Path, files: Mapping[str, Path]) -> Iterator[Row]:
    """haloquest-eval.jsonl: question_id, image, text, answer, hallucination_type, image_type."""
    for entry in read_entries(files["questions"]):
        keys = ("hallucination_type", "image_type")
        yield _row(entry, {key: entry.row[key] for key in keys if key in entry.row})


def _row(entry: Entry, metadata: Mapping[str, Any]) -> Row:
    number, image, prompt = entry.id(*_ID), entry.text("image"), entry.text(*_TEXT)
    return {"id": number, "image": image, "prompt": prompt, "metadata": dict(metadata)}
