"""MathVista (https://arxiv.org/abs/2310.02255), testmini: mathematics in pictures of all kinds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from reverse.evaluation.benchmarks.benchmark import PublishedFile, QuestionRow
from reverse.evaluation.benchmarks.graded.graded_benchmark import find_picture, make_graded, make_question
from reverse.evaluation.benchmarks.published_rows import read_published

__all__ = ["MATHVISTA"]


def read_questions(files: Mapping[str, Path]) -> Iterator[QuestionRow]:
    """Read rows with the fields pid, question, image, choices, unit, precision, answer, question_type,
    answer_type, metadata.

    The parquet files hold the picture as decoded_image.
    """
    for row in read_published(files["questions"], "testmini-*.parquet"):
        known = row.entry.row.get("metadata")
        yield make_question(
            "mathvista", row, id=row.entry.id("pid"), question=row.entry.text("question"),
            pictures=[find_picture(row, "decoded_image", "image")], image=row.entry.text("image"),
            group=known.get("task") if isinstance(known, dict) else None,
        )  # fmt: skip


MATHVISTA = make_graded(
    "mathvista",
    "MathVista",
    files={
        "questions": PublishedFile(
            ("mathvista/data", "mathvista/testmini.json"),
            "folder of testmini-*.parquet, or testmini.json",
            "hub: AI4Math/MathVista",
        )
    },
    images=("mathvista",),
    images_source="inside the parquet files, or images.zip",
    read_questions=read_questions,
    pictures_in="questions",
    count=1000,
)
