"""ScienceQA (https://arxiv.org/abs/2209.09513), test: the questions that have a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from reverse.errors import DataError
from reverse.evaluation.benchmarks.benchmark import PublishedFile, QuestionRow
from reverse.evaluation.benchmarks.graded.graded_benchmark import make_graded, make_question
from reverse.evaluation.benchmarks.published_rows import read_published
from reverse.files.entries import read_value

__all__ = ["SCIENCEQA"]


def read_questions(files: Mapping[str, Path]) -> Iterator[QuestionRow]:
    """Read problems.json (question, choices, answer: an index, hint, image, subject) and pid_splits.json."""
    splits = read_value(files["splits"])
    if not isinstance(splits, dict) or not isinstance(splits.get("test"), list):
        raise DataError(f"{files['splits']} has no list 'test': fetch the file again")
    wanted = {str(each) for each in splits["test"]}
    for row in read_published(files["questions"]):
        if row.name in wanted and row.entry.row.get("image"):
            hint = row.entry.row.get("hint") or ""
            yield make_question(
                "scienceqa", row, id=row.name, question=f"{hint}\n{row.entry.text('question')}",
                pictures=[f"{row.name}/{row.entry.text('image')}"], group=row.entry.row.get("subject"),
            )  # fmt: skip


SCIENCEQA = make_graded(
    "scienceqa",
    "ScienceQA",
    files={
        name: PublishedFile((f"scienceqa/{file}",), what, "github.com/lupantech/ScienceQA, data/scienceqa")
        for name, file, what in (
            ("questions", "problems.json", "questions and answers"),
            ("splits", "pid_splits.json", "ids of the splits"),
        )
    },
    images=("scienceqa/images/test",),
    images_source="test.zip of the same place",
    read_questions=read_questions,
    count=2017,
)
