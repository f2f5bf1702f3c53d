"""ChartQA (https://arxiv.org/abs/2203.10244): questions about charts, of people and of a program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from reverse.evaluation.benchmarks.benchmark import PublishedFile, QuestionRow
from reverse.evaluation.benchmarks.graded.graded_benchmark import make_graded, make_question
from reverse.evaluation.benchmarks.published_rows import read_published

__all__ = ["CHARTQA"]


def read_questions(files: Mapping[str, Path]) -> Iterator[QuestionRow]:
    """test_human.json and test_augmented.json: imgname, query, label."""
    for part, path in files.items():
        for row in read_published(path):
            yield make_question(
                "chartqa", row, id=f"{part}-{row.number}", question=row.entry.text("query"),
                pictures=[row.entry.text("imgname")], group=part,
            )  # fmt: skip


CHARTQA = make_graded(
    "chartqa",
    "ChartQA",
    files={
        part: PublishedFile(
            (f"chartqa/test/test_{part}.json", f"ChartQA Dataset/test/test_{part}.json"),
            "questions and answers",
            "github.com/vis-nlp/ChartQA, ChartQA Dataset",
        )
        for part in ("human", "augmented")
    },
    images=("chartqa/test/png", "ChartQA Dataset/test/png"),
    images_source="png of the same folder",
    read_questions=read_questions,
    count=2500,
)
