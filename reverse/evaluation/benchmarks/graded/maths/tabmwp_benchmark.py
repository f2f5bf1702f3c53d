"""TabMWP (https://arxiv.org/abs/2209.14610): word problems about tables, which are shown as pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from reverse.evaluation.benchmarks.benchmark import PublishedFile, QuestionRow
from reverse.evaluation.benchmarks.graded.graded_benchmark import make_graded, make_question
from reverse.evaluation.benchmarks.published_rows import read_published

__all__ = ["TABMWP"]


def read_questions(files: Mapping[str, Path]) -> Iterator[QuestionRow]:
    """Read problems_test.json: question, choices, answer, unit, ques_type, ans_type by id; the table is
    ID.png.
    """
    for row in read_published(files["questions"]):
        yield make_question(
            "tabmwp", row, id=row.name, question=row.entry.text("question"), pictures=[f"{row.name}.png"],
            group=row.entry.row.get("ques_type"),
        )  # fmt: skip


TABMWP = make_graded(
    "tabmwp",
    "TabMWP",
    files={
        "questions": PublishedFile(
            ("tabmwp/problems_test.json",),
            "questions and answers",
            "github.com/lupantech/PromptPG, data/tabmwp",
        )
    },
    images=("tabmwp/tables",),
    images_source="tables of the same folder",
    read_questions=read_questions,
    count=7686,
)
