"""MathVision (MATH-V, https://arxiv.org/abs/2402.14804): competition problems with pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from reverse.evaluation.benchmarks.benchmark import PublishedFile, QuestionRow
from reverse.evaluation.benchmarks.graded.graded_benchmark import find_picture, make_graded, make_question
from reverse.evaluation.benchmarks.published_rows import read_published

__all__ = ["MATHVISION"]


def read_questions(files: Mapping[str, Path]) -> Iterator[QuestionRow]:
    """Read test.jsonl: id, question, options (empty for open questions), answer, image, level, subject."""
    for row in read_published(files["questions"], "test-*.parquet"):
        yield make_question(
            "mathvision", row, id=row.entry.id("id"), question=row.entry.text("question"),
            pictures=[find_picture(row, "decoded_image", "image")], image=row.entry.text("image"),
            group=row.entry.row.get("subject"),
        )  # fmt: skip


MATHVISION = make_graded(
    "mathvision",
    "MathVision",
    files={
        "questions": PublishedFile(
            ("mathvision/data/test.jsonl", "mathvision/test.jsonl", "mathvision/data"),
            "test.jsonl, or folder of test-*.parquet",
            "github.com/mathllm/MATH-V, or hub: MathLLMs/MathVision",
        )
    },
    images=("mathvision",),
    images_source="images of the same place, or inside the parquet files",
    read_questions=read_questions,
    pictures_in="questions",
    count=3040,
    needs="math",
)
