"""AI2D (https://arxiv.org/abs/1603.07396), test: questions about diagrams of school books."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from reverse.evaluation.benchmarks.benchmark import PublishedFile, QuestionRow
from reverse.evaluation.benchmarks.graded.graded_benchmark import find_picture, make_graded, make_question
from reverse.evaluation.benchmarks.published_rows import read_published

__all__ = ["AI2D"]


def read_questions(files: Mapping[str, Path]) -> Iterator[QuestionRow]:
    """Read test-*.parquet: question, options, answer (an index), image. The row's number is its id."""
    for row in read_published(files["questions"], "test-*.parquet"):
        yield make_question(
            "ai2d", row, id=row.number, question=row.entry.text("question"),
            pictures=[find_picture(row, "image")],
        )  # fmt: skip


AI2D = make_graded(
    "ai2d",
    "AI2D",
    files={
        "questions": PublishedFile(
            ("ai2d/data",), "folder of test-*.parquet, pictures inside", "hub: lmms-lab/ai2d"
        )
    },
    images=("ai2d/images",),
    images_source="inside the parquet files",
    read_questions=read_questions,
    pictures_in="questions",
    count=3088,
)
