"""MMK12 (https://arxiv.org/abs/2503.07365), test: school questions about mathematics and sciences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from reverse.evaluation.benchmarks.benchmark import PublishedFile, QuestionRow
from reverse.evaluation.benchmarks.graded.graded_benchmark import find_picture, make_graded, make_question
from reverse.evaluation.benchmarks.published_rows import read_published

__all__ = ["MMK12"]


def read_questions(files: Mapping[str, Path]) -> Iterator[QuestionRow]:
    """Read rows with the fields id, question (it lists the options), answer, subject, image."""
    for row in read_published(files["questions"], "test-*.parquet"):
        yield make_question(
            "mmk12", row, id=row.entry.id("id"), question=row.entry.text("question"),
            pictures=[find_picture(row, "image")], group=row.entry.row.get("subject"), shows_options=False,
        )  # fmt: skip


MMK12 = make_graded(
    "mmk12",
    "MMK12",
    files={
        "questions": PublishedFile(
            ("mmk12/data",), "folder of test-*.parquet, pictures inside", "hub: FanqingM/MMK12"
        )
    },
    images=("mmk12/images",),
    images_source="inside the parquet files",
    read_questions=read_questions,
    pictures_in="questions",
    count=2000,
    needs="math",
)
