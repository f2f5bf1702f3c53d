"""OlympiadBench (https://arxiv.org/abs/2402.14008): open English questions with pictures.

Either of the two files is enough.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from reverse.evaluation.benchmarks.benchmark import PublishedFile, QuestionRow
from reverse.evaluation.benchmarks.graded.graded_benchmark import make_graded, make_question
from reverse.evaluation.benchmarks.published_rows import read_published

__all__ = ["OLYMPIADBENCH"]


_PICTURE = re.compile(r"<img_(\d+)>")


def read_questions(files: Mapping[str, Path]) -> Iterator[QuestionRow]:
    """Read rows with the fields id, context, question with marks <img_N> (N.jpg), final_answer, answer_type,
    error, unit.
    """
    for subject, path in files.items():
        for row in read_published(path):
            context = row.entry.row.get("context") or ""
            text = f"{context}\n{row.entry.text('question')}"
            numbers = list(dict.fromkeys(_PICTURE.findall(text)))
            yield make_question(
                "olympiadbench", row, id=f"{subject}-{row.entry.id('id')}", question=text,
                pictures=[f"{number}.jpg" for number in numbers], group=subject,
            )  # fmt: skip


OLYMPIADBENCH = make_graded(
    "olympiadbench",
    "OlympiadBench",
    files={
        subject: PublishedFile(
            (f"olympiadbench/data/OE_MM_{subject}_en_COMP.json",),
            f"questions and answers, {subject}",
            "github.com/OpenBMB/OlympiadBench, Data",
        )
        for subject in ("maths", "physics")
    },
    images=("olympiadbench/images",),
    images_source="images of the same archive",
    read_questions=read_questions,
    alternatives=(("maths",), ("physics",)),
    needs="math",
)
