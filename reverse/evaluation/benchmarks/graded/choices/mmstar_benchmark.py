"""MMStar (https://arxiv.org/abs/2403.20330): questions that cannot be answered without the picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from reverse.evaluation.benchmarks.benchmark import PublishedFile, QuestionRow
from reverse.evaluation.benchmarks.graded.graded_benchmark import find_picture, make_graded, make_question
from reverse.evaluation.benchmarks.published_rows import read_published

__all__ = ["MMSTAR"]


def read_questions(files: Mapping[str, Path]) -> Iterator[QuestionRow]:
    """Read mmstar.parquet: index, question (it lists the options), image, answer, category."""
    for row in read_published(files["questions"]):
        yield make_question(
            "mmstar", row, id=row.entry.id("index"), question=row.entry.text("question"),
            pictures=[find_picture(row, "image")], group=row.entry.row.get("category"), shows_options=False,
        )  # fmt: skip


MMSTAR = make_graded(
    "mmstar",
    "MMStar",
    files={
        "questions": PublishedFile(
            ("mmstar/mmstar.parquet",), "questions and answers, pictures inside", "hub: Lin-Chen/MMStar"
        )
    },
    images=("mmstar/images",),
    images_source="inside the parquet file",
    read_questions=read_questions,
    pictures_in="questions",
    count=1500,
)
