"""CLEVR-Math (https://arxiv.org/abs/2208.05358): adding and taking away objects of a rendered scene."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from reverse.evaluation.benchmarks.benchmark import PublishedFile, QuestionRow
from reverse.evaluation.benchmarks.graded.graded_benchmark import make_graded, make_question
from reverse.evaluation.benchmarks.published_rows import read_published

__all__ = ["CLEVR_MATH"]


def read_questions(files: Mapping[str, Path]) -> Iterator[QuestionRow]:
    """Read clevr-math-test.json, `questions`: question, answer, image_filename, template_filename."""
    for row in read_published(files["questions"]):
        yield make_question(
            "clevr-math", row, id=row.number, question=row.entry.text("question"),
            pictures=[row.entry.text("image_filename")],
            group=Path(str(row.entry.row.get("template_filename", ""))).stem or None,
        )  # fmt: skip


CLEVR_MATH = make_graded(
    "clevr-math",
    "CLEVR-Math",
    files={
        "questions": PublishedFile(
            ("clevr-math/clevr-math-test.json",), "questions and answers", "hub: dali-does/clevr-math, data"
        )
    },
    images=("clevr-math/CLEVR_v1.0/images/test", "clevr-math/images"),
    images_source="clevr-math-test-images.zip of the same place",
    read_questions=read_questions,
)
