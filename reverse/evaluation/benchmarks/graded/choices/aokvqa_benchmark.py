"""A-OKVQA (https://arxiv.org/abs/2206.01718), validation, multiple choice: questions that need knowledge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from reverse.evaluation.benchmarks.benchmark import PublishedFile, QuestionRow
from reverse.evaluation.benchmarks.graded.graded_benchmark import make_graded, make_question
from reverse.evaluation.benchmarks.published_rows import read_published

__all__ = ["AOKVQA"]


def read_questions(files: Mapping[str, Path]) -> Iterator[QuestionRow]:
    """Read aokvqa_v1p0_val.json: question_id, image_id, question, choices, correct_choice_idx."""
    for row in read_published(files["questions"]):
        image = row.entry.id("image_id")
        yield make_question(
            "aokvqa", row, id=row.entry.id("question_id"), question=row.entry.text("question"),
            pictures=[f"{image:>012}.jpg"],
        )  # fmt: skip


AOKVQA = make_graded(
    "aokvqa",
    "A-OKVQA",
    files={
        "questions": PublishedFile(
            ("aokvqa/aokvqa_v1p0_val.json",), "questions and answers", "github.com/allenai/aokvqa"
        )
    },
    images=("aokvqa/val2017", "coco/val2017", "../coco/val2017"),
    images_source="COCO val2017, cocodataset.org",
    read_questions=read_questions,
    count=1145,
)
