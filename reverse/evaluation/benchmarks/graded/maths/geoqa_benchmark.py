"""GeoQA (https://arxiv.org/abs/2105.14517): geometry problems in Chinese, with four options.

The published list of test questions is a pickle, which is never opened, because a pickle may run any program.
All questions whose files lie in the folder are asked: leave only the files of the split that is wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reverse.evaluation.benchmarks.benchmark import PublishedFile, QuestionRow
from reverse.evaluation.benchmarks.graded.graded_benchmark import make_graded, make_question
from reverse.evaluation.benchmarks.published_rows import read_published

__all__ = ["GEOQA"]


def read_questions(files: Mapping[str, Path]) -> Iterator[QuestionRow]:
    """Read json/ID.json: subject (the question), choices, label (index of the right one); image/ID.png."""
    for row in read_published(files["questions"], "*.json"):
        fields: dict[str, Any] = {
            name: row.entry.row[name] for name in ("choices", "label") if name in row.entry.row
        }
        yield make_question(
            "geoqa", row, id=row.name, question=row.entry.text("subject"), pictures=[f"{row.name}.png"],
            fields=fields,
        )  # fmt: skip


GEOQA = make_graded(
    "geoqa",
    "GeoQA",
    files={
        "questions": PublishedFile(
            ("geoqa/GeoQA3/json", "GeoQA3/json"),
            "folder of questions, one a file",
            "github.com/chen-judge/GeoQA",
        )
    },
    images=("geoqa/GeoQA3/image", "GeoQA3/image"),
    images_source="image of the same archive",
    read_questions=read_questions,
)
