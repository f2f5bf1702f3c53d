"""MME (https://arxiv.org/abs/2306.13394): accuracy, accuracy+ and score of each task, and their totals.

A picture has two questions; accuracy+ counts pictures whose both answers are right; a task's score is
(accuracy + accuracy+) × 100. The hallucination subset is existence, count, position and color (at most 800);
perception has ten tasks, cognition four. Read as published (the first four characters) and strictly.

Differences from the published tool, each tested: the two questions of a picture are found by its name, not as
neighbouring lines; an empty answer is "other" (wrong), where the tool stops with an error; tabs and newlines
in an answer change nothing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from reverse.errors import DataError, MissingFileError
from reverse.evaluation.benchmarks import mme_files
from reverse.evaluation.benchmarks.mme_files import COGNITION, HALLUCINATION, PERCEPTION
from reverse.evaluation.scoring.scored_rows import (
    Answer,
    allowed_missing,
    listed,
    make_table,
    same_image,
)
from reverse.evaluation.scoring.yes_no_scoring import both_readings, by_group, read_mme, unanswered_metrics
from reverse.evaluation.stats.scored_tables import Metric, Table, ratio, total

__all__ = ["COGNITION", "HALLUCINATION", "PERCEPTION", "score"]

_REQUEST = re.compile(
    r"(?:please answer yes or no|answer the question using a single word or phrase)\b\.?", re.IGNORECASE
)


def score(
    answers: Sequence[Answer], truth: str | Path, partial: bool = False, benchmark: str = "mme"
) -> tuple[Table, list[Metric]]:
    """One row an answer; parts are the tasks. Tasks without any answer are left out and named in the notes.

    Raises FileNotFoundError without the questions, ValueError for answers that match none, for a question
    of an answered task without an answer, and for a picture that has not two questions.
    """
    labels = _labels(truth)
    tasks, pictures, wanted, unknown = [], [], [], []
    given: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for answer in answers:
        task, picture, question = _asked(answer)
        label = labels.get((task, picture), {}).get(question)
        if label is None:
            unknown.append(answer.question_id)
            continue
        same_image(answer, PurePosixPath(answer.question_id.partition("#")[0]).name)
        if question in given[(task, picture)]:
            raise DataError(f"line {answer.line}: {question[:80]!r} about {task}/{picture} is answered twice")
        given[(task, picture)].add(question)
        tasks.append(task)
        pictures.append(f"{task}/{picture}")
        wanted.append(label)
    if unknown:
        what = (
            "none of them is a question of MME: name the truth that they were asked from"
            if len(unknown) == len(answers)
            else "is it the same MME?"
        )
        raise DataError(f"{len(unknown)} answers match no question under {truth}: {listed(unknown)}; {what}")
    _complete(labels, given, allowed_missing(answers, partial))
    columns, differ = both_readings([answer.text for answer in answers], wanted, "yes", read_mme)
    for prefix in ("", "strict_"):
        columns |= _pairs(prefix, columns[f"{prefix}right"], pictures)
    present = [task for task in dict.fromkeys((*PERCEPTION, *COGNITION, *tasks)) if task in tasks]
    columns |= by_group(columns, tasks, present)
    answered = set(present)
    left_out = [task for task in dict.fromkeys(task for task, _ in labels) if task not in answered]
    table = make_table(
        benchmark, answers, columns, clusters=pictures, parts=tasks,
        notes={"readings_differ": differ, "tasks_left_out": left_out},
    )  # fmt: skip
    metrics = _metrics("", present)
    if differ:
        metrics += _metrics("strict_", present)
        metrics += unanswered_metrics(columns)
    return table, metrics


def _pairs(prefix: str, right: np.ndarray, pictures: Sequence[str]) -> dict[str, np.ndarray]:
    """A picture counts once, in the row of its first answer: `pairs`, and `both` where both are right."""
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for row, picture in enumerate(pictures):
        rows[picture].append(row)
    pairs, both = np.zeros(len(right)), np.zeros(len(right))
    for first, *rest in rows.values():
        pairs[first] = 1
        both[first] = float(len(rest) == 1 and right[first] == right[rest[0]] == 1)
    return {f"{prefix}pairs": pairs, f"{prefix}both": both}


def _score_of(name: str, prefix: str, tasks: Sequence[str], title: str) -> Metric:
    """The sum of the tasks' scores."""
    pairs = [
        (f"{prefix}{part}@{task}", f"{prefix}{whole}@{task}")
        for task in tasks
        for part, whole in (("right", "asked"), ("both", "pairs"))
    ]
    return total(name, pairs, "high", 100.0, unit="", title=title)


def _totals(prefix: str) -> list[tuple[tuple[str, ...], Metric]]:
    title = "strict: " if prefix else ""
    groups = (
        ("score_hallucination", HALLUCINATION, "hallucination score (of 800)"),
        ("score_perception", PERCEPTION, "perception score (of 2000)"),
        ("score_cognition", COGNITION, "cognition score (of 800)"),
        ("score_full", (*PERCEPTION, *COGNITION), "full score (of 2800)"),
    )
    return [(tasks, _score_of(prefix + name, prefix, tasks, title + what)) for name, tasks, what in groups]


def _of_task(prefix: str, task: str) -> list[Metric]:
    title = f"{'strict: ' if prefix else ''}{task} "

    def share(name: str, part: str, whole: str, shown: str) -> Metric:
        columns = (f"{prefix}{part}@{task}", f"{prefix}{whole}@{task}")
        return ratio(f"{prefix}{name}@{task}", *columns, "high", title=title + shown)

    return [
        _score_of(f"{prefix}score@{task}", prefix, (task,), f"{title}score (of 200)"),
        share("acc", "right", "asked", "acc"),
        share("acc_plus", "both", "pairs", "acc+"),
    ]


def _metrics(prefix: str, present: Sequence[str]) -> list[Metric]:
    """Totals of the groups whose tasks are all there, then each task."""
    made = [metric for tasks, metric in _totals(prefix) if set(tasks) <= set(present)]
    for task in present:
        made += _of_task(prefix, task)
    return made


# ---------------------------------------------------------------------- questions
def _labels(truth: str | Path) -> dict[tuple[str, str], dict[str, str]]:
    """(task, picture): {question: label}, from JSON lines, parquet files or the released folders."""
    found: defaultdict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for task, picture, question, label in _rows(truth):
        label = label.strip().lower()
        if label not in ("yes", "no"):
            raise DataError(
                f"MME under {truth}: the answer to {question[:80]!r} must be yes or no, got {label[:40]!r}"
            )
        found[(task, picture)][_plain(question)] = label
    odd = [f"{task}/{picture}" for (task, picture), both in found.items() if len(both) != 2]
    if odd:
        raise DataError(f"MME under {truth}: pictures that have not two questions: {listed(odd)}")
    return found


def _rows(truth: str | Path) -> Iterator[tuple[str, str, str, str]]:
    """(task, picture, question, label) from the files that running reads."""
    found = mme_files.find_files(truth)
    if found is None:
        raise MissingFileError(
            f"no MME questions under {truth}: give mme.jsonl, the hub's parquet files or the released folder"
        )
    for row in mme_files.read_questions(*found):
        picture = PurePosixPath(str(row["id"]).partition("#")[0]).stem
        yield row["metadata"]["category"], picture, row["prompt"], row["metadata"]["label"]


def _asked(answer: Answer) -> tuple[str, str, str]:
    """Task, picture, question: `question_id` is "TASK/PICTURE.png", with "#1" or "#2" behind it or not."""
    before = PurePosixPath(answer.question_id.partition("#")[0])
    task = str(answer.metadata.get("category") or before.parent.name or before.parts[0])
    return task, before.stem, _plain(answer.prompt)


def _plain(question: str) -> str:
    """Without the requests for a short answer, which some programs take out or add."""
    return " ".join(_REQUEST.sub(" ", question).split())


def _complete(
    labels: dict[tuple[str, str], dict[str, str]], given: dict[tuple[str, str], set[str]], allowed: float
) -> None:
    tasks = {task for task, _ in given}
    missing = [
        f"{task}/{picture}: {question}"
        for (task, picture), both in labels.items()
        if task in tasks
        for question in both
        if question not in given.get((task, picture), ())
    ]
    if len(missing) > allowed:
        raise DataError(
            f"{len(missing)} questions of the answered MME tasks have no answer: {listed(missing)}; start "
            "`reverse eval` again to answer them, or give --partial to score the others"
        )
