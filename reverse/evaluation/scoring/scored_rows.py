"""Answers as scoring reads them, the truth files that stand beside them, and the columns every score has.

    answers = read_answers("answers.jsonl")
    answers[0].text, answers[0].question_id, answers[0].image

A row is a JSON object with at least `question_id` and `text`; `image_id`, `prompt`, `metadata`, `usage`,
`timing`, `phrases` and `successful_correction` are used where they are there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from reverse.errors import DataError
from reverse.evaluation.benchmarks.picture_lookup import are_same, clear_path
from reverse.evaluation.reading.markup import LONGEST
from reverse.evaluation.runs.answers_reading import read_run, sound_rows, unanswered
from reverse.evaluation.stats.scored_tables import Metric, Table, ratio
from reverse.files.cell_values import describe, file_name, read_id, read_number, shorten
from reverse.files.text_reading import replace_surrogates

__all__ = [
    "Answer",
    "Answers",
    "all_answered",
    "allowed_missing",
    "cost_metrics",
    "leave_out_longer",
    "listed",
    "locate",
    "make_table",
    "of_a_whole_run",
    "once",
    "pictures_of",
    "read_answers",
    "same_image",
]

SHOWN = 5  # names in an error
MOST_SKIPPED = 0.1  # share of the rows that may be unusable, one row always
GIVE_UP = 10_000  # unusable rows after which a file that has fewer usable ones is read no further


@dataclass(frozen=True)
class Answer:
    """One row. `image` is the file name without folders, or the id as text; `path` with its folders."""

    question_id: str
    image: str
    prompt: str
    text: str
    metadata: Mapping[str, Any]
    row: Mapping[str, Any]
    line: int
    path: str = ""


class Answers(list[Answer]):
    """The answers of a file, in order; `skipped` says of each row that could not be used why."""

    skipped: Sequence[str] = ()


def read_answers(path: str | Path) -> Answers:
    """All rows of an answers file, in order, without those that cannot be used, which are counted and told.

    A row cannot be used that is no JSON object, whose id or text can be none, or whose text is longer than
    `LONGEST`. At most a tenth of the rows, or one, may be such. A file where more than `GIVE_UP` are, and
    more than half of those so far, is read no further and refused.

    Raises FileNotFoundError; ValueError for an empty file, a line that is no JSON (a torn last line is named
    as such), a question that is answered twice, and where too many rows, or all, cannot be used.
    """
    answers = Answers()
    skipped: list[str] = []
    seen: dict[tuple[str, str], int] = {}
    for number, row in sound_rows(path, skipped):
        answer = _answer(row, number)
        if isinstance(answer, str):
            skipped.append(answer)
            if len(skipped) > max(GIVE_UP, len(answers)):
                break
            continue
        key = answer.question_id, answer.prompt
        if key in seen:
            raise DataError(
                f"{path}, line {number}: question {shorten(answer.question_id)!r} is answered in line "
                f"{seen[key]} already: one run a file"
            )
        seen[key] = number
        answers.append(answer)
    if not answers and not skipped:
        raise DataError(f"{path} holds no answers: `reverse eval` writes one a line")
    _refuse_too_many_skipped(f"{path}: ", answers, skipped)
    answers.skipped = tuple(skipped)
    return answers


def leave_out_longer(answers: Sequence[Answer], most: int, why: str) -> Answers:
    """The answers of at most `most` characters; the others count as rows that cannot be used.

    Raises ValueError where too many, or all, are longer.
    """
    kept = Answers(answer for answer in answers if len(answer.text) <= most)
    skipped = [
        f"line {answer.line}: the answer has {len(answer.text):,} characters, at most {most:,} are read {why}"
        for answer in answers
        if len(answer.text) > most
    ]
    kept.skipped = (*getattr(answers, "skipped", ()), *skipped)
    if skipped:
        _refuse_too_many_skipped("", kept, kept.skipped)
    return kept


def _refuse_too_many_skipped(where: str, answers: Sequence[Answer], skipped: Sequence[str]) -> None:
    if not answers or len(skipped) > max(1, MOST_SKIPPED * (len(answers) + len(skipped))):
        raise DataError(
            f"{where}{len(skipped)} of {len(answers) + len(skipped)} rows cannot be used: "
            f"{'; '.join(skipped[:2])}: is it an answers file?"
        )


def _answer(row: dict[str, Any], number: int) -> Answer | str:
    """The answer of a row, or why it is none."""
    for name in ("question_id", "text"):
        if name not in row:
            return f"line {number} has no {name!r}"
    identity = read_id(row["question_id"])
    if identity is None:
        return f"line {number} has the id {describe(row['question_id'], 30)}, which is none"
    if not isinstance(row["text"], str):
        return f"line {number}: the answer must be text, got {describe(row['text'], 40)}"
    if len(row["text"]) > LONGEST:
        return f"line {number}: the answer has {len(row['text']):,} characters, at most {LONGEST:,} are read"
    metadata = row.get("metadata")
    image = row.get("image_id", row.get("image", ""))
    named = "" if image in ("", None) else read_id(image)
    if named is None:
        return f"line {number} has the picture {describe(image, 30)}, which is none"
    path = clear_path(named)
    return Answer(
        identity,
        file_name(path),
        replace_surrogates(str(row.get("prompt", ""))),
        replace_surrogates(row["text"]),
        metadata if isinstance(metadata, dict) else {},
        row,
        number,
        path,
    )


def allowed_missing(answers: Sequence[Answer], partial: bool) -> float:
    """How many questions may be without an answer: as many as rows were skipped, or any where `partial`."""
    return float("inf") if partial else len(getattr(answers, "skipped", ()))


def of_a_whole_run(path: str | Path, answers: Sequence[Answer]) -> None:
    """Refuse a run that is not finished: NAME.run.json beside NAME.jsonl lists what it asks.

    Raises ValueError naming what is missing.
    """
    run = read_run(path)
    missing = unanswered(run, {answer.question_id for answer in answers})
    if run is not None and len(missing) > allowed_missing(answers, False):
        raise DataError(
            f"{path} is of a run that is not finished, {len(missing)} of "
            f"{len(run['questions']['ids'])} questions have no "
            f"answer: {listed(missing)}; start `reverse eval` again, or give --partial to score the others"
        )


def locate(truth: str | Path, places: Sequence[str], names: Sequence[str]) -> list[Path]:
    """Files under `truth` whose names match, in the first place that has any; or itself, if a file."""
    root = Path(truth)
    if root.is_file():
        return [root] if any(PurePosixPath(root.name).match(name) for name in names) else []
    for place in places:
        folder = root / place
        if folder.is_dir():
            found = sorted({path for name in names for path in folder.glob(name) if path.is_file()})
            if found:
                return found
    return []


def listed(names: Iterable[Any]) -> str:
    """The first few of some names, for an error."""
    all_names = [shorten(str(name)) for name in names]
    return ", ".join(all_names[:SHOWN]) + (f", … ({len(all_names)} in all)" if len(all_names) > SHOWN else "")


def all_answered(what: str, asked: Iterable[str], answers: Sequence[Answer], partial: bool = False) -> None:
    """Refuse answers to questions that nobody asked, and, unless `partial`, questions without an answer.

    Raises ValueError: another benchmark (no id is known), unknown ids, missing ones.
    """
    wanted = dict.fromkeys(asked)
    given = {answer.question_id for answer in answers}
    unknown = [name for name in given if name not in wanted]
    if len(unknown) == len(given):
        raise DataError(
            f"these are no answers to {what}: none of their questions is in the truth "
            f"({listed(sorted(unknown))}): name the truth that they were asked from"
        )
    if unknown:
        raise DataError(
            f"{len(unknown)} answered questions are not in the truth of {what}: {listed(sorted(unknown))}"
        )
    missing = [name for name in wanted if name not in given]
    if len(missing) > allowed_missing(answers, partial):
        raise DataError(
            f"{len(missing)} of {len(wanted)} questions of {what} have no answer: {listed(missing)}; start "
            "`reverse eval` again to answer them, or give --partial to score the others"
        )


def once(answers: Sequence[Answer]) -> None:
    """Refuse a question that is answered twice, with another prompt too. Raises ValueError."""
    seen: dict[str, int] = {}
    for answer in answers:
        if answer.question_id in seen:
            raise DataError(
                f"line {answer.line}: question {shorten(answer.question_id)!r} is answered in line "
                f"{seen[answer.question_id]} already, with another prompt: keep the answers of one run"
            )
        seen[answer.question_id] = answer.line


def same_image(answer: Answer, image: Any) -> None:
    """Refuse an answer about another picture than its question's, as far as both are file names.

    Raises ValueError: a list of another benchmark, or of another order, has the same ids.
    """
    asked = clear_path(str(image or ""))
    given, known = PurePosixPath(answer.path or answer.image), PurePosixPath(asked)
    if given.suffix and known.suffix and given.stem != known.stem:
        raise DataError(
            f"line {answer.line}: question {shorten(answer.question_id)!r} is about "
            f"{shorten(file_name(asked))}, its answer about {shorten(answer.image)}: are these "
            "answers to another list of questions?"
        )


# What every table has beside its own columns, only where each row tells it.
_COSTS: Mapping[str, Sequence[Sequence[tuple[str, str]]]] = {  # column: sums of (object, key) to try in turn
    "kept_tokens": [[("usage", "kept")]],
    "made_tokens": [[("usage", "kept"), ("usage", "discarded")]],
    "seconds": [[("timing", "seconds")], [("usage", "seconds")]],
}


def _costs(answers: Sequence[Answer]) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Columns that every row has numbers for, and why others are left out although most rows have them."""
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
                left_out[name] = f"line {answer.line} has {told}, which is no number"
                break
            column.append(sum(number for number in numbers if number is not None))
        else:
            columns[name] = column
    return columns, left_out


def _parts(row: Mapping[str, Any], way: Sequence[tuple[str, str]]) -> list[Any] | None:
    """The values under some keys; None where one is not there."""
    inner = [(row.get(outer), key) for outer, key in way]
    if not all(isinstance(each, dict) and key in each for each, key in inner):
        return None
    return [each[key] for each, key in inner if isinstance(each, dict)]


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


def pictures_of(answers: Sequence[Answer]) -> list[str]:
    """The picture of each answer: its file name, with folders where two pictures share it."""
    paths: dict[str, str] = {}
    shared: set[str] = set()
    for answer in answers:
        before = paths.setdefault(answer.image, answer.path)
        if not are_same(before, answer.path):
            shared.add(answer.image)
    return [(a.path if a.image in shared else a.image) or a.question_id for a in answers]


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
