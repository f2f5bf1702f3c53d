"""The reader of answers files, for continuing a run, scoring, statistics and reports.

    for number, row in read_rows("answers.jsonl"): ...           # any file of JSON lines, whoever wrote it
    answers = read_answers("answers.jsonl")                      # to be scored: bad rows are left out and
    told answers[0].text, answers[0].question_id, answers.skipped run = read_run_answers("out/chair.jsonl",
    benchmark="chair")  # of `reverse eval`: also lists missing answers run.rows[0]["text"], run.missing,
    run.is_torn

A row is a JSON object with at least `question_id` and `text`. `image_id`, `prompt`, `metadata`, `usage`,
`timing`, `phrases` and `successful_correction` are used if they are there. What `reverse eval` writes into a
row, and how, is described in `reverse.evaluation.runs.answers_files`.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from reverse.errors import DataError, MissingFileError
from reverse.evaluation.reading.file_lookup import clear_path
from reverse.evaluation.reading.markup import LONGEST
from reverse.files.cell_values import describe, file_name, read_id, shorten
from reverse.files.text_reading import MAX_DEPTH, is_deeper, read_json, replace_surrogates

__all__ = [
    "BenchmarkAnswer",
    "BenchmarkAnswers",
    "RunAnswers",
    "benchmark_of",
    "end_of_last_line",
    "find_unanswered",
    "leave_out_longer",
    "read_answers",
    "read_kept_rows",
    "read_rows",
    "read_run",
    "read_run_answers",
    "read_settings",
    "run_path",
]

SHOWN = 3  # ids in an error
MOST_SKIPPED = 0.1  # share of the rows that may be unusable; one row always may
GIVE_UP = 10_000  # unusable rows after which a file that has fewer usable ones is read no further


# ---------------------------------------------------------------------- lines
class _Line(NamedTuple):
    number: int
    span: slice  # its bytes, without a byte-order mark before them
    row: Any
    problem: str  # why it holds no value; "" if it does
    is_damaged: bool  # it is not JSON, rather than JSON that Python does not take
    is_torn: bool  # it is the last one and has no end


def _read_lines(data: bytes) -> Iterator[_Line]:
    """Yield every line that is not blank."""
    start = 0
    for number, line in enumerate(data.split(b"\n"), 1):
        span = slice(start, min(start + len(line) + 1, len(data)))
        start = span.stop
        if number == 1 and line.startswith(BOM_UTF8):
            line, span = line[len(BOM_UTF8) :], slice(len(BOM_UTF8), span.stop)
        if not line.strip():
            continue
        row, problem, damaged = None, "", False
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            problem, damaged = str(error) or type(error).__name__, True
        except ValueError as error:  # a whole number that is too long
            problem = str(error)
        yield _Line(number, span, row, problem, damaged, span.stop == len(data) and not data.endswith(b"\n"))


def _existing(path: Path) -> bytes:
    if not path.is_file():
        raise MissingFileError(
            f"there is no answers file {path}: name a file that `reverse eval` has written"
        )
    return path.read_bytes()


def end_of_last_line(data: bytes) -> int:
    """Return the offset of the end of the last complete line."""
    return data.rfind(b"\n") + 1


def read_rows(path: str | Path, skipped: list[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, row) of any file of JSON lines, from any program.

    With a list `skipped`, a line with unusable values is left out and its reason added to the list: a whole
    number of more than 4,300 digits, values nested too deeply, a value that is not an object. Without it,
    such a line is an error. A line that is not JSON at all is damage and always an error, and a torn end is
    named as such.

    Raises MissingFileError, and DataError naming the line.
    """
    for line in _read_lines(_existing(Path(path))):
        problem = line.problem
        if problem and (skipped is None or line.is_damaged):
            torn = (
                f"the last line ({line.number}) is torn, the run was cut there: start it again, it goes on "
                "behind the last whole line"
            )
            remedy = torn if line.is_torn else "mend or remove it, or give another file"
            raise DataError(f"{path}, line {line.number} is not JSON ({problem}): {remedy}")
        if not problem and not isinstance(line.row, dict):
            problem = f"not a JSON object but {describe(line.row)}: is it an answers file?"
            if skipped is None:
                raise DataError(f"{path}, line {line.number} is {problem}")
        long_enough = line.span.stop - line.span.start > 2 * MAX_DEPTH
        if skipped is not None and not problem and long_enough and is_deeper(line.row, MAX_DEPTH):
            problem = f"nested more than {MAX_DEPTH} deep"
        if problem and skipped is not None:
            skipped.append(f"line {line.number} is {problem}")
        else:
            yield line.number, line.row


def read_kept_rows(path: Path, data: bytes) -> Iterator[tuple[int, slice, dict[str, Any]]]:
    """Yield (line number, its bytes, row) of the content of a file that a run continues.

    Raises DataError for a line that is damaged or has no id.
    """
    for number, span, row, problem, *_ in _read_lines(data):
        if problem:
            raise DataError(
                f"{path}, line {number} is damaged ({problem}): remove that line, and its question is asked "
                "again"
            )
        if not isinstance(row, dict) or "question_id" not in row:
            raise DataError(f"{path}, line {number} is not an answer: it has no question_id")
        if read_id(row["question_id"]) is None:
            raise DataError(
                f"{path}, line {number} is not an answer: its question_id is "
                f"{describe(row['question_id'], 30)}, which is not an id: remove that line, and its "
                "question is asked again"
            )
        yield number, span, row


# ---------------------------------------------------------------------- answers that are scored
@dataclass(frozen=True)
class BenchmarkAnswer:
    """One row. `image` is the file name without folders, or the id as text; `path` keeps the folders."""

    question_id: str
    image: str
    prompt: str
    text: str
    metadata: Mapping[str, Any]
    row: Mapping[str, Any]
    line: int
    path: str = ""


class BenchmarkAnswers(list[BenchmarkAnswer]):
    """The answers of a file, in order; `skipped` holds the reason for each row that cannot be used."""

    skipped: Sequence[str] = ()


def read_answers(path: str | Path) -> BenchmarkAnswers:
    """Read the usable rows of an answers file in their order; `skipped` says why each other row is left out.

    A row cannot be used if it is not a JSON object, if its id or text is not a valid id or text, or if its
    text is longer than `LONGEST`. At most a tenth of the rows, or one row, may be unusable. A file with more
    than `GIVE_UP` of them, if they are more than half of the rows so far, is read no further.

    Raises MissingFileError; DataError for an empty file, a line that is not JSON, a question that is answered
    twice, and if too many rows cannot be used.
    """
    answers = BenchmarkAnswers()
    skipped: list[str] = []
    seen: dict[tuple[str, str], int] = {}
    for number, row in read_rows(path, skipped):
        answer = _parse_answer(row, number)
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
        raise DataError(f"{path} holds no answers: name a file of `reverse eval`, with one answer per line")
    _refuse_too_many_skipped(f"{path}: ", answers, skipped)
    answers.skipped = tuple(skipped)
    return answers


def leave_out_longer(answers: Sequence[BenchmarkAnswer], most: int) -> BenchmarkAnswers:
    """Return the answers of at most `most` characters; the others count as rows that cannot be used.

    Raises DataError if too many, or all, are longer.
    """
    kept = BenchmarkAnswers(answer for answer in answers if len(answer.text) <= most)
    skipped = [
        f"line {answer.line}: the answer has {len(answer.text):,} characters, at most {most:,} are read word "
        "by word"
        for answer in answers
        if len(answer.text) > most
    ]
    kept.skipped = (*getattr(answers, "skipped", ()), *skipped)
    if skipped:
        _refuse_too_many_skipped("", kept, kept.skipped)
    return kept


def _refuse_too_many_skipped(where: str, answers: Sequence[BenchmarkAnswer], skipped: Sequence[str]) -> None:
    if not answers or len(skipped) > max(1, MOST_SKIPPED * (len(answers) + len(skipped))):
        raise DataError(
            f"{where}{len(skipped)} of {len(answers) + len(skipped)} rows cannot be used: "
            f"{'; '.join(skipped[:2])}: is it an answers file?"
        )


def _parse_answer(row: dict[str, Any], number: int) -> BenchmarkAnswer | str:
    """Return the answer of a row, or the reason why it has none."""
    for name in ("question_id", "text"):
        if name not in row:
            return f"line {number} has no {name!r}"
    identity, text = read_id(row["question_id"]), row["text"]
    if identity is None:
        return f"line {number} has the id {describe(row['question_id'], 30)}, which is none"
    if not isinstance(text, str):
        return f"line {number}: the answer must be text, got {describe(text, 40)}"
    if len(text) > LONGEST:
        return f"line {number}: the answer has {len(text):,} characters, at most {LONGEST:,} are read"
    metadata = row.get("metadata")
    image = row.get("image_id", row.get("image", ""))
    named = "" if image in ("", None) else read_id(image)
    if named is None:
        return f"line {number} has the picture {describe(image, 30)}, which is none"
    path = clear_path(named)
    prompt = replace_surrogates(str(row.get("prompt", "")))
    known = metadata if isinstance(metadata, dict) else {}
    return BenchmarkAnswer(
        identity, file_name(path), prompt, replace_surrogates(text), known, row, number, path
    )


# ---------------------------------------------------------------------- answers of a run
@dataclass(frozen=True)
class RunAnswers:
    """The answers that a run of `reverse eval` (or of the published code) has written so far."""

    path: Path
    rows: list[dict[str, Any]]
    run: dict[str, Any] | None  # None: no .run.json beside it
    is_torn: bool = False  # the last line was cut off, and is left out
    missing: list[Any] = field(default_factory=list)  # ids of questions without an answer

    @property
    def benchmark(self) -> str | None:
        """Return the benchmark that the run's record names, else the rows; None if neither does."""
        if self.run is not None:
            return self.run["config"].get("benchmark")
        return next((name for row in self.rows if (name := benchmark_of(row))), None)

    def list_problems(self) -> list[str]:
        """Return the problems of the answers that a reader of their figures should know."""
        told = []
        if self.is_torn:
            told.append(f"{self.path}: the last line was torn and is left out")
        if self.missing:
            first = ", ".join(map(str, self.missing[:SHOWN]))
            told.append(f"{self.path}: {len(self.missing)} questions have no answer (first: {first})")
        return told


def read_run_answers(
    path: str | Path,
    *,
    benchmark: str | None = None,
    ids: Sequence[Any] | None = None,
    complete: bool = False,
) -> RunAnswers:
    """Read the answers of a run. Files of the published code, with `question_id` and `text` alone, will do.

    Args:
        benchmark: refuse a file of another benchmark, as far as it says which one it answers.
        ids: ids of the questions, by default those of the .run.json beside the file. Answers to other
            questions are refused; questions without an answer are listed in `missing`.
        complete: refuse a file with missing answers or a torn end.

    Raises MissingFileError; DataError naming the line for damage, and for duplicate ids or another benchmark.
    """
    path = Path(path)
    data = _existing(path)
    end = end_of_last_line(data)
    rows: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for number, _, row in read_kept_rows(path, data[:end]):
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
    answers = RunAnswers(path, rows, run, end < len(data), [i for i in ids or () if str(i) not in seen])
    _refuse_another_benchmark(answers, benchmark, ids)
    if complete and answers.list_problems():
        raise DataError(
            f"{'; '.join(answers.list_problems())}: run the same `reverse eval` command again to continue"
        )
    return answers


def _refuse_another_benchmark(answers: RunAnswers, benchmark: str | None, ids: Sequence[Any] | None) -> None:
    found = answers.benchmark
    if benchmark is not None and found is not None and found != benchmark:
        raise DataError(f"{answers.path} holds answers to {found}, not to {benchmark}: name another file")
    if ids is None or answers.run is not None:
        return
    known = {str(i) for i in ids}
    strange = [row["question_id"] for row in answers.rows if str(row["question_id"]) not in known]
    if strange:
        raise DataError(
            f"{answers.path}: {len(strange)} of {len(answers.rows)} answers are to no question of "
            f"{benchmark or 'this benchmark'} (first: {', '.join(map(repr, strange[:SHOWN]))}): is it a file "
            "of another benchmark?"
        )


def benchmark_of(row: Mapping[str, Any]) -> str | None:
    """Return the benchmark that a row names; None if it names none."""
    metadata = row.get("metadata")
    return metadata.get("benchmark") if isinstance(metadata, dict) else None


def run_path(path: Path) -> Path:
    """Return the path of the run's record beside an answers file."""
    return path.with_suffix(".run.json")


def read_run(path: str | Path) -> dict[str, Any] | None:
    """Read the .run.json beside an answers file; None without one.

    Raises DataError if it is not one of ours.
    """
    file = run_path(Path(path))
    if not file.is_file():
        return None
    try:
        run = read_json(file)
        list(run["questions"]["ids"]), dict(run.setdefault("config", {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file} is not a record of a run ({type(error).__name__}: {error}): remove it to read the "
            "answers alone"
        ) from error
    return run


def find_unanswered(run: Mapping[str, Any] | None, answered: Container[str]) -> list[Any]:
    """Return the ids of the questions of a run (as `read_run` returns it) that are not answered."""
    ids = [] if run is None else run["questions"]["ids"]
    return [i for i in ids if (read_id(i) or str(i)) not in answered]


def read_settings(path: str | Path) -> dict[str, Any] | None:
    """Read the .settings.json beside answers of version 0.1's scenes measurement; None without it.

    Raises DataError if it is damaged.
    """
    file = Path(path).with_suffix(".settings.json")
    if not file.is_file():
        return None
    try:
        return dict(read_json(file))
    except (ValueError, TypeError) as error:
        raise DataError(f"{file} is damaged ({error}): give another folder with --out") from None
