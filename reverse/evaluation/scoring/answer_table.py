"""Check answers against the questions of a benchmark, and make the table that every scorer returns.

    refuse_incomplete("CHAIR", asked, answers)
    table = make_table("chair", answers, {"wrong": wrong, "mentions": mentions})

A table has the columns of its benchmark and those that every score has: empty and unresolved answers, length
and costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from reverse.errors import DataError
from reverse.evaluation.reading.answers import BenchmarkAnswer, find_unanswered, read_run
from reverse.evaluation.reading.file_lookup import are_same, clear_path
from reverse.evaluation.stats.scored_tables import Metric, Table, ratio
from reverse.files.cell_values import describe, file_name, read_number, shorten

__all__ = [
    "allowed_missing",
    "list_names",
    "make_cost_metrics",
    "make_table",
    "pictures_of",
    "refuse_incomplete",
    "refuse_other_picture",
    "refuse_repeated",
    "refuse_unfinished_run",
]

SHOWN = 5  # names in an error


def allowed_missing(answers: Sequence[BenchmarkAnswer], partial: bool) -> float:
    """Return how many questions may lack an answer: any number if `partial`, else as many as rows were
    skipped.
    """
    return float("inf") if partial else len(getattr(answers, "skipped", ()))


def refuse_unfinished_run(path: str | Path, answers: Sequence[BenchmarkAnswer]) -> None:
    """Refuse a run that is not finished: NAME.run.json beside NAME.jsonl lists what it asks.

    Raises DataError naming what is missing.
    """
    run = read_run(path)
    missing = find_unanswered(run, {answer.question_id for answer in answers})
    if run is not None and len(missing) > allowed_missing(answers, False):
        raise DataError(
            f"{path} is of a run that is not finished, {len(missing)} of {len(run['questions']['ids'])} "
            f"questions have no answer: {list_names(missing)}; start `reverse eval` again, or give --partial "
            "to score the others"
        )


def list_names(names: Iterable[Any]) -> str:
    """List the first few names, for an error."""
    all_names = [shorten(str(name)) for name in names]
    return ", ".join(all_names[:SHOWN]) + (f", … ({len(all_names)} in all)" if len(all_names) > SHOWN else "")


def refuse_incomplete(
    title: str, asked: Iterable[str], answers: Sequence[BenchmarkAnswer], partial: bool = False
) -> None:
    """Raise DataError for answers to unknown questions and, unless `partial`, for questions without an
    answer.

    Raises DataError if no id is known (another benchmark), or some are unknown or missing.
    """
    wanted = dict.fromkeys(asked)
    given = {answer.question_id for answer in answers}
    unknown = [name for name in given if name not in wanted]
    if len(unknown) == len(given):
        raise DataError(
            f"these are not answers to {title}: none of their questions is in the truth "
            f"({list_names(sorted(unknown))}): name the truth that they were asked from"
        )
    if unknown:
        raise DataError(
            f"{len(unknown)} answered questions are not in the truth of {title}: "
            f"{list_names(sorted(unknown))}"
        )
    missing = [name for name in wanted if name not in given]
    if len(missing) > allowed_missing(answers, partial):
        raise DataError(
            f"{len(missing)} of {len(wanted)} questions of {title} have no answer: {list_names(missing)}; "
            "start `reverse eval` again to answer them, or give --partial to score the others"
        )


def refuse_repeated(answers: Sequence[BenchmarkAnswer]) -> None:
    """Raise DataError for a question that is answered twice, even with another prompt."""
    seen: dict[str, int] = {}
    for answer in answers:
        if answer.question_id in seen:
            raise DataError(
                f"line {answer.line}: question {shorten(answer.question_id)!r} is answered in line "
                f"{seen[answer.question_id]} already, with another prompt: keep the answers of one run"
            )
        seen[answer.question_id] = answer.line


def refuse_other_picture(answer: BenchmarkAnswer, image: Any) -> None:
    """Raise DataError for an answer about another picture than its question's, if both are file names.

    A list of another benchmark, or in another order, has the same ids.
    """
    asked = clear_path(str(image or ""))
    given, known = PurePosixPath(answer.path or answer.image), PurePosixPath(asked)
    if given.suffix and known.suffix and given.stem != known.stem:
        raise DataError(
            f"line {answer.line}: question {shorten(answer.question_id)!r} is about "
            f"{shorten(file_name(asked))}, its answer about {shorten(answer.image)}: are these "
            "answers to another list of questions?"
        )


# Cost columns of every table, if each row has the values.
_COSTS: Mapping[str, Sequence[Sequence[tuple[str, str]]]] = {  # column: sums of (object, key) to try in turn
    "kept_tokens": [[("usage", "kept")]],
    "made_tokens": [[("usage", "kept"), ("usage", "discarded")]],
    "seconds": [[("timing", "seconds")], [("usage", "seconds")]],
}


def _costs(answers: Sequence[BenchmarkAnswer]) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Return the cost columns for which every row has numbers, and the reasons why others are left out."""
    columns: dict[str, list[float]] = {}
    left_out: dict[str, str] = {}
    for name, ways in _COSTS.items():
        column: list[float] = []
        for answer in answers:
            found = next((parts for way in ways if (parts := _parts(answer.row, way)) is not None), None)
            if found is None:  # an answers file of another program: no costs
                break
            numbers = [read_number(each) for each in found]
            if any(number is None for number in numbers):
                told = next(describe(each, 30) for each in found if read_number(each) is None)
                left_out[name] = f"line {answer.line} has {told}, which is not a number"
                break
            column.append(sum(number for number in numbers if number is not None))
        else:
            columns[name] = column
    return columns, left_out


def _parts(row: Mapping[str, Any], way: Sequence[tuple[str, str]]) -> list[Any] | None:
    """Return the values under some keys; None if one is missing."""
    inner = [(row.get(outer), key) for outer, key in way]
    if not all(isinstance(each, dict) and key in each for each, key in inner):
        return None
    return [each[key] for each, key in inner if isinstance(each, dict)]


def make_table(
    benchmark: str,
    answers: Sequence[BenchmarkAnswer],
    columns: Mapping[str, Sequence[float] | np.ndarray],
    *,
    clusters: Sequence[str] | None = None,
    parts: Sequence[str] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Table:
    """Make a table of the given columns and of those that every score has; clusters are images."""
    every: dict[str, Any] = dict(columns)
    every["answers"] = np.ones(len(answers))
    every["empty"] = [float(not answer.text.strip()) for answer in answers]
    every["text_words"] = [float(len(answer.text.split())) for answer in answers]
    resolved = [answer.row.get("successful_correction") for answer in answers]
    if all(value is not None for value in resolved):
        every["unresolved"] = [float(value is False) for value in resolved]
    phrases = [answer.row.get("phrases") for answer in answers]
    if all(isinstance(value, list) for value in phrases):
        every["phrases"] = [float(len(value)) for value in phrases]  # type: ignore[arg-type]
    costs, left_out = _costs(answers)
    every |= costs
    skipped = list(getattr(answers, "skipped", ()))
    told = {"skipped_rows": len(skipped), "skipped": skipped[:SHOWN]} if skipped else {}
    keys = [answer.question_id for answer in answers]
    if len(set(keys)) < len(keys):  # MME as published: both questions of a picture have its id
        keys = [f"{answer.question_id} {answer.prompt}" for answer in answers]
    return Table(
        benchmark,
        list(clusters) if clusters is not None else pictures_of(answers),
        {name: np.asarray(column, dtype=float) for name, column in every.items()},
        list(parts) if parts is not None else None,
        keys,
        dict(notes or {}) | told | ({"left_out": left_out} if left_out else {}),
    )


def pictures_of(answers: Sequence[BenchmarkAnswer]) -> list[str]:
    """Return the picture of each answer: its file name, with folders if two pictures share the name."""
    paths: dict[str, str] = {}
    shared: set[str] = set()
    for answer in answers:
        before = paths.setdefault(answer.image, answer.path)
        if not are_same(before, answer.path):
            shared.add(answer.image)
    return [(a.path if a.image in shared else a.image) or a.question_id for a in answers]


def make_cost_metrics(table: Table) -> list[Metric]:
    """Make the metrics that every score has: empty and unresolved answers, length and costs."""
    made = [
        ratio("empty", "empty", "answers", "low", title="empty answers"),
        ratio("unresolved", "unresolved", "answers", "low", title="unresolved answers"),
        ratio("text_words", "text_words", "answers", "neither", unit="words", title="words an answer"),
        ratio("phrases", "phrases", "answers", "neither", unit="", title="phrases an answer"),
        ratio("tokens", "kept_tokens", "answers", "neither", unit="tokens", title="tokens kept an answer"),
        ratio("tokens_made", "made_tokens", "kept_tokens", "low", unit="", title="tokens made / kept"),
        ratio("seconds", "seconds", "answers", "low", unit="s", title="seconds an answer"),
    ]
    return [metric for metric in made if metric.form["ratio"][0] in table.columns]
