"""VCR (https://arxiv.org/abs/1811.10830), validation, question to answer: four options.

Questions name people and things by number ("person1"). Their boxes are not drawn into the picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reverse.evaluation.benchmarks.benchmark import PublishedFile, QuestionRow
from reverse.evaluation.benchmarks.graded.graded_benchmark import make_graded, make_question
from reverse.evaluation.benchmarks.published_rows import read_published

__all__ = ["VCR"]


def read_questions(files: Mapping[str, Path]) -> Iterator[QuestionRow]:
    """Read rows with the fields annot_id, img_fn, objects, question, answer_choices (words and lists of
    numbers), answer_label.
    """
    for row in read_published(files["questions"]):
        objects = row.entry.texts("objects")
        words, choices = row.entry.row.get("question"), row.entry.row.get("answer_choices")
        if not isinstance(words, list) or not isinstance(choices, list):
            raise row.entry.wrong(
                "question", words, "a list of words, and 'answer_choices' a list of such lists"
            )
        fields = {"answer_choices": [_write_words(each, objects) for each in choices]}
        if "answer_label" in row.entry.row:
            fields["answer_label"] = row.entry.row["answer_label"]
        yield make_question(
            "vcr", row, id=row.entry.id("annot_id"), question=_write_words(words, objects),
            pictures=[row.entry.text("img_fn")], fields=fields,
        )  # fmt: skip


def _write_words(words: Any, objects: Sequence[str]) -> str:
    """Return a sentence with "person1" in place of the number of an object."""
    said = []
    for word in words if isinstance(words, list) else [words]:
        if isinstance(word, list):
            named = [
                f"{objects[i]}{i + 1}" if isinstance(i, int) and 0 <= i < len(objects) else str(i)
                for i in word
            ]
            said.append(" and ".join(named))
        else:
            said.append(str(word))
    return re.sub(r"\s+([?.!,;:']|n't\b)", r"\1", " ".join(said))


VCR = make_graded(
    "vcr",
    "VCR",
    files={"questions": PublishedFile(("vcr/val.jsonl",), "questions and answers", "visualcommonsense.com")},
    images=("vcr/vcr1images",),
    images_source="vcr1images.zip of the same place",
    read_questions=read_questions,
    count=26534,
)
