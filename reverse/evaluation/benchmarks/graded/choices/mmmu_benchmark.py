"""MMMU (https://arxiv.org/abs/2311.16502), validation: questions of 30 subjects, some with several pictures.

The test split is published without answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from reverse.evaluation.benchmarks.benchmark import PublishedFile, QuestionRow
from reverse.evaluation.benchmarks.graded.graded_benchmark import find_picture, make_graded, make_question
from reverse.evaluation.benchmarks.published_rows import read_published

__all__ = ["MMMU"]


_PICTURE = re.compile(r"<image (\d)>")


def read_questions(files: Mapping[str, Path]) -> Iterator[QuestionRow]:
    """Read SUBJECT/validation-*.parquet: id, question, options, answer, question_type, image_1 … image_7."""
    for row in read_published(files["questions"], "*/validation-*.parquet"):
        name = str(row.entry.id("id"))
        marks = _PICTURE.findall(f"{row.entry.text('question')} {row.entry.row.get('options')}")
        columns = [f"image_{number}" for number in sorted(set(marks) or {"1"})]
        yield make_question(
            "mmmu", row, id=name, question=row.entry.text("question"),
            pictures=[find_picture(row, column) for column in columns],
            group="_".join(name.split("_")[1:-1]) or None,
        )  # fmt: skip


MMMU = make_graded(
    "mmmu",
    "MMMU",
    files={
        "questions": PublishedFile(
            ("mmmu",), "folder of SUBJECT/validation-*.parquet, pictures inside", "hub: MMMU/MMMU"
        )
    },
    images=("mmmu/images",),
    images_source="inside the parquet files",
    read_questions=read_questions,
    pictures_in="questions",
    count=900,
)
