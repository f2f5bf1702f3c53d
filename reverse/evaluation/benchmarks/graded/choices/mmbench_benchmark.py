"""MMBench (https://arxiv.org/abs/2307.06281), English development split: up to four options.

Every row is a question of its own. The circular evaluation, which counts a question only if all its shuffled
copies are right, is not computed; all copies are about one picture, so they are drawn together for intervals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from reverse.evaluation.benchmarks.benchmark import PublishedFile, QuestionRow
from reverse.evaluation.benchmarks.graded.graded_benchmark import find_picture, make_graded, make_question
from reverse.evaluation.benchmarks.published_rows import read_published

__all__ = ["MMBENCH"]


SHUFFLED = 1_000_000  # is added to the index of a question for each shuffled copy


def read_questions(files: Mapping[str, Path]) -> Iterator[QuestionRow]:
    """Read rows with the fields index, question, hint, A, B, C, D, answer, category, image (base64, or the
    index of a row).
    """
    for row in read_published(files["questions"]):
        index, hint = row.entry.text("index"), row.entry.row.get("hint") or ""
        yield make_question(
            "mmbench", row, id=index, question=f"{hint}\n{row.entry.text('question')}",
            pictures=[find_picture(row, "image")],
            image=str(int(index) % SHUFFLED) if index.isdecimal() else index,
            group=row.entry.row.get("category"),
        )  # fmt: skip


MMBENCH = make_graded(
    "mmbench",
    "MMBench",
    files={
        "questions": PublishedFile(
            ("mmbench/MMBench_DEV_EN.tsv", "mmbench/mmbench_dev_20230712.tsv"),
            "questions and answers, pictures inside",
            "github.com/open-compass/MMBench",
        )
    },
    images=("mmbench/images",),
    images_source="inside the TSV file",
    read_questions=read_questions,
    pictures_in="questions",
)
