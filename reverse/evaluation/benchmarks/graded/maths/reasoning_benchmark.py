"""The reasoning world (docs/reasoning.md): questions about drawn pictures, whose steps can be verified.

Questions are read from the draft records that `reverse data reasoning` writes, and asked as they stand there.
The steps of every draft are checked, so that the report of modes has p(`</UN>`) as a detector of wrong steps,
and the kinds of errors that a mode corrects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from reverse.data.drafts.draft_files import read_drafts
from reverse.data.scenes.reasoning import read_reasoning_question, verify_rationale
from reverse.errors import DataError
from reverse.evaluation.benchmarks.benchmark import PublishedFile, QuestionRow
from reverse.evaluation.benchmarks.graded.graded_benchmark import make_graded

__all__ = ["REASONING"]


def read_questions(files: Mapping[str, Path]) -> Iterator[QuestionRow]:
    """Read drafts.jsonl: id, question, images, gold, source.reasoning."""
    for record in read_drafts(files["questions"]):
        if record.gold is None or not record.images:
            raise DataError(
                f"{files['questions']}: record {record.id!r:.80} has no right answer or no picture: name the "
                "drafts that `reverse data reasoning` wrote"
            )
        question = read_reasoning_question(record)
        yield {
            "id": record.id,
            "image": record.images[0],
            "prompt": record.question,
            "metadata": {"group": f"{question.picture_kind} {question.kind}"},
            "key": record.gold.key(),
            "verify": partial(verify_rationale, question=question),
        }


REASONING = make_graded(
    "reasoning",
    "reasoning world",
    files={
        "questions": PublishedFile(
            ("drafts.jsonl", "reasoning/drafts.jsonl"), "questions and answers", "reverse data reasoning"
        )
    },
    images=("reasoning", "."),
    images_source="the same command",
    read_questions=read_questions,
    aliases=(),
)
