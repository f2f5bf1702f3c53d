"""Answers files as they are read: by going on, scoring, statistics and reports alike.

    for number, row in rows_of("answers.jsonl"): ...          # any file of JSON lines, whoever wrote it
    answers = read_answers("out/chair.jsonl", benchmark="chair")
    answers.rows[0]["text"], answers.missing, answers.torn

What a row holds, and how it is written, is told in `reverse.evaluation.runs.answers_files`.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from reverse.errors import DataError, MissingFileError
from reverse.files.cell_values import describe, read_id
from reverse.files.text_reading import MAX_DEPTH, is_deeper, read_json

__all__ = [
    "Answers",
    "benchmark_of",
    "kept_rows",
    "read_answers",
    "read_run",
    "read_settings",
    "rows_of",
    "run_path",
    "sound_rows",
    "unanswered",
    "whole",
]

SHOWN = 3  # ids in an error


@dataclass(frozen=True)
class Answers:
    """An answers file as it was read."""

    path: Path
    rows: list[dict[str, Any]]
    run: dict[str, Any] | None  # None: no .run.json beside it
    torn: bool = False  # the last line was cut off, and left out
    missing: list[Any] = field(default_factory=list)  # ids that were to be asked and have no row

    @property
    def benchmark(self) -> str | None:
        """By the run's record, else by the rows, else not known."""
        if self.run is not None:
            return self.run["config"].get("benchmark")
        return next((name for row in self.rows if (name := benchmark_of(row))), None)

    def problems(self) -> list[str]:
        """What a reader should be told before figures are made of it."""
        told = []
        if self.torn:
            told.append(f"{self.path}: the last line was torn and is left out")
        if self.missing:
            shown = ", ".join(map(str, self.missing[:SHOWN]))
            told.append(f"{self.path}: {len(self.missing)} questions have no answer (first: {shown})")
        return told


def read_answers(
    path: str | Path,
    *,
    benchmark: str | None = None,
    ids: Sequence[Any] | None = None,
    complete: bool = False,
) -> Answers:
    """Read an answers file, of this library or of the published code (question_id and text are enough).

    Args:
        benchmark: refuse a file of another one, as far as it says what it is.
        ids: of the questions; refuse answers to others, and list in `missing` those without an answer. By
            default those of the .run.json beside it.
        complete: refuse a file with missing answers or a torn end.

    Raises FileNotFoundError; ValueError naming the line, for damage, duplicate ids, another benchmark.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"there is no answers file {path}: `reverse eval` writes one")
    data = path.read_bytes()
    end = whole(data)
    rows: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for number, _, row in kept_rows(path, data[:end]):
        if "text" not in row:
            raise DataError(f"{path}, line {number}: no text, only {', '.join(row)}: is it an answers file?")
        name = str(row["question_id"])
        if name in seen:
            raise DataError(
                f"{path}: question {name!r} is answered in line {seen[name]} and again in line {number}: "
                "keep one of them"
            )
        seen[name] = number
        rows.append(row)
    run = read_run(path)
    if ids is None and run is not None:
        ids = run["questions"]["ids"]
    answers = Answers(path, rows, run, end < len(data), [i for i in ids or () if str(i) not in seen])
    _same_benchmark(answers, benchmark, ids)
    if complete and answers.problems():
        raise DataError(f"{'; '.join(answers.problems())}: the same `reverse eval` command goes on")
    return answers


def _same_benchmark(answers: Answers, benchmark: str | None, ids: Sequence[Any] | None) -> None:
    found = answers.benchmark
    if benchmark is not None and found is not None and found != benchmark:
        raise DataError(f"{answers.path} holds answers to {found}, not to {benchmark}: name another file")
    if ids is None or answers.run is not None:
        return
    known = {str(i) for i in ids}
    strange = [row["question_id"] for row in answers.rows if str(row["question_id"]) not in known]
    if strange:
        shown = ", ".join(repr(i) for i in strange[:SHOWN])
        raise DataError(
            f"{answers.path}: {len(strange)} of {len(answers.rows)} answers are to no question of "
            f"{benchmark or 'this benchmark'} (first: {shown}): is it a file of another benchmark?"
        )


def benchmark_of(row: Mapping[str, Any]) -> str | None:
    """The benchmark that a row says it answers, None where it does not."""
    metadata = row.get("metadata")
    return metadata.get("benchmark") if isinstance(metadata, dict) else None


def whole(data: bytes) -> int:
    """Where the last whole line ends."""
    return data.rfind(b"\n") + 1


def rows_of(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, row) of any file of JSON lines, whoever wrote it.

    Raises FileNotFoundError; ValueError naming the line that is no JSON object, and a torn end as such.
    """
    for line in _existing_lines(Path(path)):
        if line.why:
            raise _damaged(Path(path), line)
        if not isinstance(line.row, dict):
            raise DataError(
                f"{path}, line {line.number} is no JSON object but {describe(line.row)}: is it an answers "
                "file?"
            )
        yield line.number, line.row


def sound_rows(path: str | Path, skipped: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """As `rows_of`, but a line whose values cannot be used is left out, and told in `skipped`.

    Such are whole numbers of more than 4,300 digits, values nested too deeply, and what is no object. A line
    that is no JSON at all is damage: the file was cut or mixed up, and ValueError is raised as by `rows_of`.
    """
    for line in _existing_lines(Path(path)):
        why = ""
        if line.why:
            if line.is_damaged:
                raise _damaged(Path(path), line)
            why = line.why
        elif not isinstance(line.row, dict):
            why = f"no JSON object but {describe(line.row)}: is it an answers file?"
        elif line.span.stop - line.span.start > 2 * MAX_DEPTH and is_deeper(line.row, MAX_DEPTH):
            why = f"nested more than {MAX_DEPTH} deep"
        if why:
            skipped.append(f"line {line.number} is {why}")
        else:
            yield line.number, line.row


class _Line(NamedTuple):
    number: int
    span: slice  # where it lies, without a byte-order mark before it
    row: Any
    why: str  # it holds nothing; empty where it does
    is_damaged: bool  # no JSON, rather than JSON that Python does not take
    is_torn: bool  # the last one, without an end


def _existing_lines(path: Path) -> Iterator[_Line]:
    if not path.is_file():
        raise MissingFileError(f"no answers file {path}: `reverse eval` writes one")
    return _lines(path.read_bytes())


def _damaged(path: Path, line: _Line) -> ValueError:
    if line.is_torn:
        return DataError(
            f"{path}, line {line.number} is no JSON ({line.why}): the last line ({line.number}) is torn, the "
            "run was cut there: start it again, it goes on behind the last whole line"
        )
    return DataError(
        f"{path}, line {line.number} is no JSON ({line.why}): mend or remove it, or give another file"
    )


def _lines(data: bytes) -> Iterator[_Line]:
    """Every line that is not blank."""
    start = 0
    for number, line in enumerate(data.split(b"\n"), 1):
        span = slice(start, min(start + len(line) + 1, len(data)))
        start = span.stop
        if number == 1 and line.startswith(BOM_UTF8):
            line, span = line[len(BOM_UTF8) :], slice(len(BOM_UTF8), span.stop)
        if not line.strip():
            continue
        row, why, damaged = None, "", False
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            why, damaged = str(error) or type(error).__name__, True
        except ValueError as error:  # a whole number that is too long
            why = str(error)
        yield _Line(number, span, row, why, damaged, span.stop == len(data) and not data.endswith(b"\n"))


def kept_rows(path: Path, data: bytes) -> Iterator[tuple[int, slice, dict[str, Any]]]:
    """(line number, where it lies, row) of a file that a run goes on with."""
    for number, span, row, why, *_ in _lines(data):
        if why:
            raise DataError(
                f"{path}, line {number} is damaged ({why}): remove that line, and its question is asked again"
            )
        if not isinstance(row, dict) or "question_id" not in row:
            raise DataError(f"{path}, line {number} is no answer: it has no question_id")
        if read_id(row["question_id"]) is None:
            raise DataError(
                f"{path}, line {number} is no answer: its question_id is {describe(row['question_id'], 30)}, "
                "which is no id: remove that line, and its question is asked again"
            )
        yield number, span, row


def run_path(path: Path) -> Path:
    return path.with_suffix(".run.json")


def read_run(path: str | Path) -> dict[str, Any] | None:
    """The .run.json beside an answers file, None without one. Raises ValueError where it is none of ours."""
    file = run_path(Path(path))
    if not file.is_file():
        return None
    try:
        run = read_json(file)
        list(run["questions"]["ids"]), dict(run.setdefault("config", {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file} is no record of a run ({type(error).__name__}: {error}): remove it to read the answers "
            "alone"
        ) from error
    return run


def unanswered(run: Mapping[str, Any] | None, answered: Container[str]) -> list[Any]:
    """Ids of the questions of a run (as `read_run` gives it) that are not among those answered."""
    ids = [] if run is None else run["questions"]["ids"]
    return [i for i in ids if (read_id(i) or str(i)) not in answered]


def read_settings(path: str | Path) -> dict[str, Any] | None:
    """What the answers of `reverse.evaluation.scenes_runner` in `path` were made with, written beside them in
    .settings.json; None without it. Raises ValueError where it is damaged."""
    file = Path(path).with_suffix(".settings.json")
    if not file.is_file():
        return None
    try:
        return dict(read_json(file))
    except (ValueError, TypeError) as error:
        raise DataError(f"{file} is damaged ({error}): give another folder with --out") from None
