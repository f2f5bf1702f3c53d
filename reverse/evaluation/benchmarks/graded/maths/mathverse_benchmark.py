"""MathVerse (https://arxiv.org/abs/2403.14624), testmini: each problem in several versions.

Questions of the version "Vision Only" have no text; they are asked as "Answer the question in the picture.".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from reverse.evaluation.benchmarks.benchmark import PublishedFile, QuestionRow
from reverse.evaluation.benchmarks.graded.graded_benchmark import find_picture, make_graded, make_question
from reverse.evaluation.benchmarks.published_rows import read_published

__all__ = ["MATHVERSE"]


def read_questions(files: Mapping[str, Path]) -> Iterator[QuestionRow]:
    """Read rows with the fields sample_index, problem_index, problem_version, question, image, answer,
    question_type.
    """
    for row in read_published(files["questions"], "testmini*.parquet"):
        yield make_question(
            "mathverse", row, id=row.entry.id("sample_index"),
            question=row.entry.text("question").strip() or "Answer the question in the picture.",
            pictures=[find_picture(row, "image")], image=f"problem {row.entry.id('problem_index')}",
            group=row.entry.row.get("problem_version"), shows_options=False,
        )  # fmt: skip


MATHVERSE = make_graded(
    "mathverse",
    "MathVerse",
    files={
        "questions": PublishedFile(
            ("mathverse/testmini.parquet", "mathverse/testmini.json"),
            "testmini.parquet, or testmini.json",
            "hub: AI4Math/MathVerse",
        )
    },
    images=("mathverse/images", "mathverse"),
    images_source="inside the parquet file, or images.zip",
    read_questions=read_questions,
    pictures_in="questions",
    count=3940,
    needs="math",
)
