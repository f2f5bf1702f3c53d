"""Write the reasoning world to disk: pictures, drafts with verified steps, and files of published benchmarks.

    out/images/test-000000.png …  the pictures
    out/drafts.jsonl              draft records: question, right answer, rationales (annotator, truth)
    out/instruct.json             published instruct records: true captions, and pointing
    out/tabmwp/ "ChartQA Dataset/" clevr-math/ scienceqa/   published benchmarks (`reasoning_formats`)
    out/manifest.json             arguments, versions, SHA-256 of everything; written last

The benchmarks' pictures are hard links to `images/`, or copies where the file system has no links. Crash
safety: `reverse.data.scenes.block_writing`.

    >>> write_reasoning("out/reasoning", "test", 500)["count"]
    500
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

import reverse.data.scenes.reasoning.reasoning_formats as formats
from reverse.data.drafts.draft_files import draft_line
from reverse.data.drafts.draft_record import DraftRecord
from reverse.data.scenes.block_writing import (
    BlockFormat,
    BlockParts,
    encode_json,
    write_block_file,
    write_blocks,
)
from reverse.data.scenes.reasoning.rationale_steps import make_verified_draft
from reverse.data.scenes.reasoning.reasoning_annotator import annotate, write_rationale
from reverse.data.scenes.reasoning.reasoning_pictures import (
    REASONING_VERSION,
    TABLE_SHARE,
    ReasoningPicture,
    draw_reasoning_picture,
    make_reasoning_picture,
)
from reverse.data.scenes.reasoning.reasoning_questions import (
    QUESTION_KINDS,
    ReasoningQuestion,
    make_reasoning_questions,
)
from reverse.errors import DataError

__all__ = ["make_draft_record", "write_reasoning"]


def write_reasoning(
    out: str | Path,
    split: str,
    count: int,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    *,
    questions: int = 2,
    tables: float = TABLE_SHARE,
) -> dict[str, Any]:
    """Write pictures 0 … count-1 of a split under `out` with their questions, and return the manifest.

    `progress(done, total)` is called after every block. Killed at any moment and called again with the same
    arguments, it goes on where it was.

    Args:
        questions: number of questions about each picture, 1 to 8.
        tables: share of the pictures that are tables.

    Raises DataError for a bad argument, and if `out` is a file or holds anything but what these arguments
    made.
    """
    make_reasoning_picture(split, 0, seed, tables)  # its errors come before the first file
    if not 1 <= questions <= len(QUESTION_KINDS):
        raise DataError(
            f"questions must lie in 1..{len(QUESTION_KINDS)}, got {questions}: it is the number of "
            "questions about each picture"
        )
    plan = {
        "format": 1, "world": "reasoning", "version": REASONING_VERSION, "split": split, "count": count,
        "seed": seed, "questions": questions, "tables": tables, "numpy": np.__version__,
        "pillow": PIL.__version__,
    }  # fmt: skip
    return write_blocks(Path(out), plan, _FORMAT, workers, progress)


def make_draft_record(picture: ReasoningPicture, question: ReasoningQuestion) -> DraftRecord:
    """Make a record of a question with two drafts of verified steps: the annotator's rationale and a true
    one.

    Roles tell them apart, so that what learns from rationales keeps the annotator's prejudice. `source` keeps
    what `read_reasoning_question` needs to verify the steps of further drafts.
    """
    said, true = annotate(picture, question).text, write_rationale(question, picture.truth)
    return DraftRecord(
        id=question.id,
        question=question.text,
        images=(f"images/{picture.id}.png",),
        gold=question.gold,
        drafts=(
            make_verified_draft(question, said, role="rationale", made_by="annotator"),
            make_verified_draft(question, true, role="correction", parent=0, made_by="truth"),
        ),
        source={
            "reasoning": {
                "picture": picture.kind, "theme": picture.theme, "kind": question.kind,
                "names": list(question.names), "amount": question.amount, "truth": picture.truth,
                "places": question.places, "seed": picture.seed,
            }
        },
    )  # fmt: skip


def _make_reasoning_block(out: Path, plan: dict[str, Any], block: range) -> dict[str, list]:
    keys = ("sha256", "drafts", "instruct", "tabmwp", "human", "augmented", "clevr_math", "scienceqa")
    part: dict[str, list] = {key: [] for key in keys}
    for index in block:
        picture = make_reasoning_picture(plan["split"], index, plan["seed"], plan["tables"])
        buffer = io.BytesIO()
        Image.fromarray(draw_reasoning_picture(picture)).save(buffer, "PNG")
        image = out / "images" / f"{picture.id}.png"
        write_block_file(image, buffer.getvalue())
        part["sha256"].append(hashlib.sha256(buffer.getvalue()).hexdigest())
        part["instruct"] += formats.make_replay_records(picture)
        for question in make_reasoning_questions(picture, plan["questions"]):
            part["drafts"].append(draft_line(make_draft_record(picture, question)))
            _add_published_rows(part, picture, question)
            for place in formats.find_published_places(picture, question):
                _link(image, out / place)
        if picture.kind == "chart":
            split = formats.name_published_split(picture.split)
            table = out / f"ChartQA Dataset/{split}/tables/{picture.id}.csv"
            table.parent.mkdir(parents=True, exist_ok=True)
            write_block_file(table, formats.make_chartqa_table(picture).encode())
    return part


def _add_published_rows(
    part: dict[str, list], picture: ReasoningPicture, question: ReasoningQuestion
) -> None:
    if (problem := formats.make_tabmwp_problem(picture, question)) is not None:
        part["tabmwp"].append(problem)
    if (named := formats.make_chartqa_row(picture, question)) is not None:
        part[named[0]].append(named[1])
    if (asked := formats.make_clevr_math_question(picture, question)) is not None:
        part["clevr_math"].append(asked)
    if (problem := formats.make_scienceqa_problem(picture, question)) is not None:
        part["scienceqa"].append(problem)


def _link(image: Path, place: Path) -> None:
    """Link a picture at a second path; a link that a killed run left there is replaced."""
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(place.name + ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(image, temporary)
    except OSError:
        shutil.copyfile(image, temporary)
    temporary.replace(place)
    temporary.unlink(missing_ok=True)  # a rename between two links of one file leaves both


def _list_reasoning_files(plan: dict[str, Any], parts: BlockParts) -> Mapping[str, Iterable[bytes]]:
    split = formats.name_published_split(plan["split"])
    dev = formats.name_published_split(plan["split"], "dev")
    charts = f"ChartQA Dataset/{split}/{split}"
    info = {"split": split, "version": "1", "license": "Apache-2.0", "date": ""}
    clevr = ({**row, "question_index": number} for number, row in enumerate(parts.rows("clevr_math")))
    ids = [number for number, _ in parts.rows("scienceqa")]
    return {
        "drafts.jsonl": (line.encode() for line in parts.rows("drafts")),
        "instruct.json": _encode_list(parts.rows("instruct")),
        f"tabmwp/problems_{dev}.json": _encode_object(parts.rows("tabmwp")),
        f"{charts}_human.json": _encode_list(parts.rows("human")),
        f"{charts}_augmented.json": _encode_list(parts.rows("augmented")),
        f"clevr-math/clevr-math-{split}.json": _encode_clevr(info, clevr),
        "scienceqa/problems.json": _encode_object(parts.rows("scienceqa")),
        "scienceqa/pid_splits.json": [encode_json({split: ids})],
    }


def _encode_list(rows: Iterable[Any]) -> Iterator[bytes]:
    """Yield a JSON list, one row per line."""
    between = b"[\n"
    for row in rows:
        yield between + encode_json(row).rstrip(b"\n")
        between = b",\n"
    yield b"[]\n" if between == b"[\n" else b"\n]\n"


def _encode_object(rows: Iterable[tuple[str, Any]]) -> Iterator[bytes]:
    """Yield a JSON object, one key per line."""
    between = b"{\n"
    for key, row in rows:
        yield between + json.dumps(key).encode() + b":" + encode_json(row).rstrip(b"\n")
        between = b",\n"
    yield b"{}\n" if between == b"{\n" else b"\n}\n"


def _encode_clevr(info: dict[str, str], rows: Iterable[Any]) -> Iterator[bytes]:
    """Yield a file of CLEVR-Math with its two keys."""
    yield b'{"info":' + json.dumps(info).encode() + b',"questions":'
    yield from _encode_list(rows)
    yield b"}\n"


_FORMAT = BlockFormat(_make_reasoning_block, _list_reasoning_files, "pictures to reason about")
