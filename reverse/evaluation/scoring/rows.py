"""Answers as scoring reads them, the truth files that stand beside them, and the columns every score has.

    answers = read_answers("answers.jsonl")
    answers[0].text, answers[0].question_id, answers[0].image

A row is a JSON object with at least `question_id` and `text`; `image_id`, `prompt`, `metadata`, `usage`,
`timing`, `phrases` and `successful_correction` are used where they are there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from reverse.evaluation.reading import read_run, rows_of, unanswered
from reverse.evaluation.tables import Metric, Table, ratio

__all__ = [
    "Answer",
    "all_answered",
    "cost_metrics",
    "listed",
    "locate",
    "make_table",
    "of_a_whole_run",
    "once",
    "read_answers",
    "read_json",
    "read_rows",
    "same_image",
]

SHOWN = 5  # names in an error


@dataclass(frozen=True)
class Answer:
    """One row. `image` is the file name without folders, or the id as text."""

    question_id: str
    image: str
    prompt: str
    text: str
    metadata: Mapping[str, Any]
    row: Mapping[str, Any]
    line: int


def read_answers(path: str | Path) -> list[Answer]:
    """All rows of an answers file, in order.

    Raises FileNotFoundError; ValueError for an empty file, a line that is no JSON object (a torn last line is
    named as such), a row without `question_id` or `text`, and a question that is answered twice.
    """
    answers: list[Answer] = []
    seen: dict[tuple[str, str], int] = {}
    for number, row in rows_of(path):
        answer = _answer(path, row, number)
        key = answer.question_id, answer.prompt
        if key in seen:
            raise ValueError(
                f"{path}, line {number}: question {answer.question_id!r} is answered in line {seen[key]} "
                "already: one run a file"
            )
        seen[key] = number
        answers.append(answer)
    if not answers:
        raise ValueError(f"{path} holds no answers")
    return answers


def _answer(path: str | Path, row: dict[str, Any], number: int) -> Answer:
    for name in ("question_id", "text"):
        if name not in row:
            raise ValueError(f"{path}, line {number} has no {name!r}: is it an answers file?")
    if not isinstance(row["text"], str):
        raise ValueError(f"{path}, line {number}: the answer must be text, got {row['text']!r:.40}")
    metadata = row.get("metadata")
    image = row.get("image_id", row.get("image", ""))
    return Answer(
        str(row["question_id"]),
        PurePosixPath(str(image)).name,
        str(row.get("prompt", "")),
        row["text"],
        metadata if isinstance(metadata, dict) else {},
        row,
        number,
    )


def of_a_whole_run(path: str | Path, answers: Sequence[Answer]) -> None:
    """Refuse a run that is not finished: NAME.run.json beside NAME.jsonl lists what it asks.

    Raises ValueError naming what is missing.
    """
    run = read_run(path)
    missing = unanswered(run, {answer.question_id for answer in answers})
    if run is not None and missing:
        raise ValueError(
            f"{path} is of a run that is not finished, {len(missing)} of "
            f"{len(run['questions']['ids'])} questions have no "
            f"answer: {listed(missing)}; start `reverse eval` again, or give --partial to score the others"
        )


def read_json(path: Path) -> Any:
    """A JSON file, or JSON lines as a list. Raises ValueError naming the file and the line."""
    try:
        text = path.read_text(encoding="utf-8")
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            if "\n" not in text.strip():
                raise
        number = 0
        rows = []
        for number, line in enumerate(text.split("\n"), 1):  # noqa: B007  named in the error
            if line.strip():
                rows.append(json.loads(line))
        return rows
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): fetch it again") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}): fetch it again") from None


def read_rows(path: Path) -> list[Any]:
    """A JSON list, or JSON lines (one line too), as a list. Raises ValueError as `read_json`."""
    content = read_json(path)
    return content if isinstance(content, list) else [content]


def locate(truth: str | Path, places: Sequence[str], names: Sequence[str]) -> list[Path]:
    """Files under `truth` whose names match, in the first place that has any; or itself, if a file."""
    root = Path(truth)
    if root.is_file():
        return [root] if any(PurePosixPath(root.name).match(name) for name in names) else []
    for place in places:
        folder = root / place
        if folder.is_dir():
            found = sorted({path for name in names for path in folder.glob(name) if path.exists()})
            if found:
                return found
    return []


def listed(names: Iterable[Any]) -> str:
    """The first few of some names, for an error."""
    all_names = [str(name) for name in names]
    return ", ".join(all_names[:SHOWN]) + (f", … ({len(all_names)} in all)" if len(all_names) > SHOWN else "")


def all_answered(what: str, asked: Iterable[str], answers: Sequence[Answer], partial: bool = False) -> None:
    """Refuse answers to questions that nobody asked, and, unless `partial`, questions without an answer.

    Raises ValueError: another benchmark (no id is known), unknown ids, missing ones.
    """
    wanted = dict.fromkeys(asked)
    given = {answer.question_id for answer in answers}
    unknown = [name for name in given if name not in wanted]
    if len(unknown) == len(given):
        raise ValueError(
            f"these are no answers to {what}: none of their questions is in the truth "
            f"({listed(sorted(unknown))})"
        )
    if unknown:
        raise ValueError(
            f"{len(unknown)} answered questions are not in the truth of {what}: {listed(sorted(unknown))}"
        )
    missing = [name for name in wanted if name not in given]
    if missing and not partial:
        raise ValueError(
            f"{len(missing)} of {len(wanted)} questions of {what} have no answer: {listed(missing)}; start "
            "`reverse eval` again to answer them, or give --partial to score the others"
        )


def once(answers: Sequence[Answer]) -> None:
    """Refuse a question that is answered twice, with another prompt too. Raises ValueError."""
    seen: dict[str, int] = {}
    for answer in answers:
        if answer.question_id in seen:
            raise ValueError(
                f"line {answer.line}: question {answer.question_id!r} is answered in line "
                f"{seen[answer.question_id]} already, with another prompt: keep the answers of one run"
            )
        seen[answer.question_id] = answer.line


def same_image(answer: Answer, image: Any) -> None:
    """Refuse an answer about another picture than its question's, as far as both are file names.

    Raises ValueError: a list of another benchmark, or of another order, has the same ids.
    """
    asked = PurePosixPath(str(image or "")).name
    given, known = PurePosixPath(answer.image), PurePosixPath(asked)
    if given.suffix and known.suffix and given.stem != known.stem:
        raise ValueError(
            f"line {answer.line}: question {answer.question_id!r} is about {asked}, its answer about "
            f"{answer.image}: are these answers to another list of questions?"
        )


# What every table has beside its own columns, only where each row tells it.
_COSTS: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "kept_tokens": lambda row: float(row["usage"]["kept"]),
    "made_tokens": lambda row: float(row["usage"]["kept"] + row["usage"]["discarded"]),
    "seconds": lambda row: float((row["timing"] if "timing" in row else row["usage"])["seconds"]),
}


def make_table(
    benchmark: str,
    answers: Sequence[Answer],
    columns: Mapping[str, Sequence[float] | np.ndarray],
    *,
    clusters: Sequence[str] | None = None,
    parts: Sequence[str] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Table:
    """A table of the columns given and of those every score has; clusters are images."""
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
    for name, of in _COSTS.items():
        try:
            every[name] = [of(answer.row) for answer in answers]
        except (KeyError, TypeError, ValueError):
            continue  # an answers file of another program: no costs
    keys = [answer.question_id for answer in answers]
    if len(set(keys)) < len(keys):  # MME as published: both questions of a picture have its id
        keys = [f"{answer.question_id} {answer.prompt}" for answer in answers]
    return Table(
        benchmark,
        list(clusters) if clusters is not None else [a.image or a.question_id for a in answers],
        {name: np.asarray(column, dtype=float) for name, column in every.items()},
        list(parts) if parts is not None else None,
        keys,
        dict(notes or {}),
    )


def cost_metrics(table: Table) -> list[Metric]:
    """Empty and unresolved answers, length and costs: what stands beside every score."""
    made = [
        ratio("empty", "empty", "answers", "low", title="empty answers"),
        ratio("unresolved", "unresolved", "answers", "low", title="unresolved answers"),
        ratio("text_words", "text_words", "answers", "neither", unit="words", title="words an answer"),
        ratio("phrases", "phrases", "answers", "neither", unit="", title="phrases an answer"),
        ratio("tokens", "kept_tokens", "answers", "neither", unit="tokens", title="tokens kept an answer"),
        ratio("tokens_made", "made_tokens", "kept_tokens", "low", unit="", title="tokens made / kept"),
        ratio("seconds", "seconds", "answers", "low", unit="s", title="seconds an answer"),
    ]
    wants = ("empty", "unresolved", "text_words", "phrases", "kept_tokens", "made_tokens", "seconds")
    return [metric for metric, column in zip(made, wants, strict=True) if column in table.columns]
