"""The common parts of graded benchmarks: the wording of a question, and scoring by `reverse.grading`.

    CHARTQA = make_graded("chartqa", "ChartQA", files={...}, images=(...), images_source="...",
                          read_questions=read_questions)

A file of such a benchmark says which published files there are and which of their fields hold question,
options and picture. The answer key is made by `reverse.grading.presets`, which also says where published
graders differ. A verdict is right, wrong or unknown; accuracy counts what is right among all answers, so an
answer that cannot be read gets no credit.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from reverse.errors import DataError, MissingFileError, RequestError
from reverse.evaluation.benchmarks.benchmark import (
    DEFAULT_SCORING,
    Benchmark,
    PublishedFile,
    QuestionRow,
    ScoringOptions,
    SeveralPictures,
    StoredPicture,
)
from reverse.evaluation.benchmarks.published_rows import PublishedRow
from reverse.evaluation.reading.answers import BenchmarkAnswer
from reverse.evaluation.scoring.answer_table import make_table, refuse_incomplete, refuse_other_picture
from reverse.evaluation.scoring.yes_no_counts import split_by_group
from reverse.evaluation.stats.scored_tables import Metric, Table, ratio
from reverse.files.cell_values import shorten
from reverse.grading import AnswerKey, answer_key, grade

__all__ = ["find_picture", "list_options", "make_graded", "make_question", "score_graded"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ALIAS = "graded"  # all graded benchmarks
MOST_GROUPS = 40  # that are shown; MMMU has 30 subjects
MOST_REASONS = 5  # in the notes of a score

_MARK = re.compile(r"<im(?:age|g)[ _]?(\d*)>")

ReadQuestions = Callable[[Mapping[str, Path]], Iterable[QuestionRow]]


def make_graded(
    name: str,
    title: str,
    *,
    files: Mapping[str, PublishedFile],
    images: tuple[str, ...],
    images_source: str,
    read_questions: ReadQuestions,
    aliases: tuple[str, ...] = (ALIAS,),
    **more: Any,
) -> Benchmark:
    """Make the record of a graded benchmark. `more` are further fields of `Benchmark`."""
    return Benchmark(
        name=name,
        title=title,
        kind="graded",
        files=files,
        images=images,
        images_source=images_source,
        read_questions=read_questions,
        score=partial(score_graded, name, title, files, read_questions),
        holds_truth=lambda truth, answers: _find_files(files, truth) is not None,
        in_all=False,
        aliases=aliases,
        **more,
    )


def make_question(
    preset: str,
    row: PublishedRow,
    *,
    id: Any,
    question: str,
    pictures: Sequence[str | StoredPicture],
    image: str | None = None,
    fields: Mapping[str, Any] | None = None,
    group: Any = None,
    shows_options: bool = True,
) -> QuestionRow:
    """Make the question of a row, with the answer key that the preset makes from the row.

    Args:
        pictures: names of files, or pictures that the published file holds; one or several.
        image: name of the picture, the same for all questions about it. None: the file's name, or the id.
        fields: what the preset reads in place of the row.
        group: what accuracies are reported by.
        shows_options: list the options below the question; False where its text lists them.

    Raises DataError naming the row and what it lacks.
    """
    where = row.entry.where
    given = row.entry.row if fields is None else fields
    if given.get("answer", "") is None:
        raise DataError(f"{where} has no answer: its split is published without, name the one with answers")
    try:
        key = answer_key(preset, given)
    except (DataError, RequestError) as error:
        raise DataError(f"{where}: {error}: mend the row, or fetch the file again") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:  # a value of another type
        raise DataError(
            f"{where}: a value is of another type than {preset} has ({shorten(str(error))}): "
            "fetch the file again"
        ) from error
    if not pictures:
        raise DataError(f"{where}: the question has no picture: fetch the file again")
    answers, choices = (tuple(map(_name_pictures, each)) for each in (key.answers, key.choices))
    key = replace(key, answers=answers, choices=choices)
    text = _name_pictures(question).strip()
    if key.kind == "choice" and shows_options:
        text = f"{text}\n{list_options(key.choices)}"
    first = pictures[0]
    made: QuestionRow = {
        "id": id,
        "image": image or (first if isinstance(first, str) else str(id)),
        "prompt": text,
        "metadata": {} if group is None else {"group": str(group)},
        "key": key,
        "request": _request(key),
    }
    if all(isinstance(each, str) for each in pictures):
        made["file"] = list(pictures) if len(pictures) > 1 else first
    else:
        made["source"] = _join_pictures(pictures)
    return made


def list_options(choices: Sequence[str]) -> str:
    """Return the options of a question, one per line, with their letters."""
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))


def find_picture(row: PublishedRow, column: str, field: str | None = None) -> str | StoredPicture:
    """Return the picture that the file holds in a column, else the file that the row names in a field."""
    return row.pictures[column] if column in row.pictures else row.entry.text(field or column)


def _name_pictures(text: str) -> str:
    """Return the text with "(picture 2)" in place of marks such as "<image 2>", and without "<image>"."""
    return _MARK.sub(lambda mark: f"(picture {mark[1]})" if mark[1] else "", text)


def _join_pictures(pictures: Sequence[Any]) -> StoredPicture:
    return pictures[0] if len(pictures) == 1 else SeveralPictures(tuple(pictures))


def _request(key: AnswerKey) -> str:
    """Return how a question asks for its answer. It asks for a letter, or for a number or word."""
    if key.kind == "choice":
        return "\nAnswer with the letter of the right option."
    unit = f" in {key.unit}" if key.unit else ""
    return f'\nEnd with "Answer:" and the final answer{unit}.'


# ---------------------------------------------------------------------- scoring
def score_graded(
    name: str,
    title: str,
    files: Mapping[str, PublishedFile],
    read_questions: ReadQuestions,
    answers: Sequence[BenchmarkAnswer],
    truth: str | Path,
    options: ScoringOptions = DEFAULT_SCORING,
) -> tuple[Table, list[Metric]]:
    """Score answers, one row each: right, wrong or unknown. Metrics are accuracy of all and of each group.

    Raises MissingFileError without the published files; DataError for answers to other questions.
    """
    found = _find_files(files, truth)
    if found is None:
        places = " or ".join(file.places[0] for file in files.values())
        raise MissingFileError(
            f"no {places} under {truth}: `reverse eval --where {name}` says where the files come from"
        )
    questions = {str(row["id"]): row for row in read_questions(found)}
    refuse_incomplete(title, questions, answers, options.partial)
    asked = [questions[answer.question_id] for answer in answers]
    verdicts, reasons = [], Counter[str]()
    for number, (question, answer) in enumerate(zip(asked, answers, strict=True), 1):
        refuse_other_picture(answer, question["image"])
        found_grade = grade(answer.text, question["key"])
        verdicts.append(found_grade.verdict)
        if found_grade.verdict == "unknown":
            reasons[found_grade.reason] += 1
        if options.progress is not None:
            options.progress(number, len(answers))
    columns = {
        verdict: np.array([float(each == verdict) for each in verdicts])
        for verdict in ("right", "wrong", "unknown")
    } | {"asked": np.ones(len(answers))}
    metrics = [
        ratio("accuracy", "right", "asked", "high", title="accuracy"),
        ratio("unknown", "unknown", "asked", "low", title="answers that cannot be graded"),
    ]
    groups = [str(question["metadata"].get("group", "")) for question in asked]
    present = sorted({group for group in groups if group})
    if 1 < len(present) <= MOST_GROUPS:
        columns |= split_by_group({each: columns[each] for each in ("right", "asked")}, groups, present)
        metrics += [
            ratio(f"accuracy@{group}", f"right@{group}", f"asked@{group}", "high", title=f"accuracy, {group}")
            for group in present
        ]
    notes = {"not_graded": dict(reasons.most_common(MOST_REASONS))} if reasons else {}
    clusters = [question["image"] for question in asked]
    return make_table(name, answers, columns, clusters=clusters, notes=notes), metrics


def _find_files(files: Mapping[str, PublishedFile], truth: str | Path) -> dict[str, Path] | None:
    """Return the published files under a root or in the benchmark's own folder; None if there are none."""
    for root in (Path(truth), Path(truth).absolute().parent):
        found = {name: path for name, file in files.items() if (path := file.find(root)) is not None}
        if found:
            return found
    return None
