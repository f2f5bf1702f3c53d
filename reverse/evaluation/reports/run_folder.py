"""The contents of a run's folder: scored files, answers and plots.

Read are a folder and the folders right below it: scored files (JSON, `reverse score … --save`), answers
(JSON lines), plots (SVG, else PNG of the same name). A file that cannot be read is listed, never skipped
silently.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reverse.errors import DataError
from reverse.evaluation.reading.answers import read_rows
from reverse.evaluation.scoring.judge import refuse_without_verdicts
from reverse.evaluation.stats.bootstrap import BootstrapSettings
from reverse.evaluation.stats.intervals import Interval, OverSeeds, estimate_intervals, estimate_over_seeds
from reverse.evaluation.stats.scored_tables import Metric, Table, load_scored
from reverse.files.cell_values import read_number

__all__ = ["AnswersSummary", "RunFolder", "ScoredFile", "SeedGroup", "read_run_folder"]

LARGEST_PLOT = 8_000_000  # bytes
SHOWN = 3  # reasons in a line
_NOT_SCORED = ("detector.json", "calibration.json", "compare.json", "config.json")


@dataclass(frozen=True)
class AnswersSummary:
    """Counts of an answers file, and a few rows as examples."""

    path: Path
    name: str  # below the run's folder, without the ending
    rows: int
    tokens: float | None  # generated per answer
    seconds: float | None  # per answer
    unresolved: float | None  # share
    empty: float  # share
    examples: list[Mapping[str, Any]]
    skipped: list[str]  # rows and values that could not be used, counted and named


@dataclass(frozen=True)
class ScoredFile:
    """A scored file with the intervals of its metrics."""

    name: str  # below the run's folder, without the ending
    table: Table
    metrics: list[Metric]
    figures: dict[str, Interval]


@dataclass(frozen=True)
class SeedGroup:
    """Several decodings of the same questions, taken together."""

    name: str
    metrics: list[Metric]
    figures: dict[str, OverSeeds]


@dataclass(frozen=True)
class RunFolder:
    """The contents of one folder; `unread` lists unreadable files with reasons."""

    name: str
    scored: list[ScoredFile] = field(default_factory=list)
    answers: list[AnswersSummary] = field(default_factory=list)
    seeds: list[SeedGroup] = field(default_factory=list)
    plots: list[Path] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def read_run_folder(folder: Path, name: str, examples: int, settings: BootstrapSettings) -> RunFolder:
    """Read a folder; at most `examples` rows are kept of each answers file. Raises DataError without one."""
    if not folder.is_dir():
        raise DataError(f"{str(folder)!r} is not a folder: name one that `reverse eval --out` or score wrote")
    run = RunFolder(name)
    files = sorted(_list_files(folder))
    for path in files:
        below = path.relative_to(folder)
        stem = below.with_suffix("").as_posix()
        try:
            if path.name.endswith(".drafts.jsonl"):
                continue  # made from the answers beside it
            if path.suffix == ".jsonl":
                found = _summarize_answers(path, stem, examples)
                if found is not None:
                    run.answers.append(found)
                    run.unread.extend(f"{below}: {each}" for each in found.skipped)
            elif path.suffix == ".json" and _is_scored(path):
                table, metrics = load_scored(path)
                refuse_without_verdicts(table)
                figures = estimate_intervals(table, metrics, settings)
                run.scored.append(ScoredFile(stem, table, metrics, figures))
            elif path.suffix == ".svg" or (path.suffix == ".png" and path.with_suffix(".svg") not in files):
                if path.stat().st_size <= LARGEST_PLOT:
                    run.plots.append(path)
                else:
                    run.unread.append(f"{below}: {path.stat().st_size:,} bytes")
        except (ValueError, OSError, OverflowError, RecursionError) as error:
            run.unread.append(f"{below}: {error}")
    _add_seed_groups(run, settings)
    return run


def _list_files(folder: Path) -> Iterator[Path]:
    """Return the files of a folder and of the folders directly below it."""
    for path in folder.iterdir():
        if path.is_file():
            yield path
        elif path.is_dir() and not path.is_symlink():
            yield from (below for below in path.iterdir() if below.is_file())


def _is_scored(path: Path) -> bool:
    if path.name in _NOT_SCORED or path.name.endswith((".run.json", ".settings.json")):
        return False
    with path.open("rb") as stream:
        return b'"reverse-scored' in stream.read(200)


def _add_seed_groups(run: RunFolder, settings: BootstrapSettings) -> None:
    """Group scored files NAME, NAME.seed1, NAME.seed2 …: they are decodings of the same questions."""
    groups: dict[tuple[str, str], list[ScoredFile]] = {}
    for each in run.scored:
        groups.setdefault((re.sub(r"\.seed\d+$", "", each.name), each.table.benchmark), []).append(each)
    for (stem, _), found in groups.items():
        if len(found) < 2:
            continue
        name = f"{stem}, {len(found)} seeds"
        shared = set.intersection(*({m.name for m in each.metrics} for each in found))
        metrics = [m for m in found[0].metrics if m.name in shared]
        tables = [each.table for each in found]
        try:
            figures = {m.name: estimate_over_seeds(tables, m, settings) for m in metrics}
        except ValueError as error:
            run.unread.append(f"{name}: {error}")
        else:
            run.seeds.append(SeedGroup(name, metrics, figures))


def _summarize_answers(path: Path, name: str, examples: int) -> AnswersSummary | None:
    """Return counts and a few rows of an answers file, from one pass; None for JSON lines of another kind."""
    count = empty = 0
    odd: list[str] = []
    sums: dict[str, list[float]] = {"tokens": [], "seconds": [], "unresolved": []}
    no_numbers: dict[str, list[int]] = {cost: [] for cost in sums}
    corrected: list[Mapping[str, Any]] = []
    others: list[Mapping[str, Any]] = []
    for number, row in read_rows(path, odd):
        if not isinstance(row.get("text"), str):
            if not count and "question_id" not in row:
                return None
            odd.append(f"line {number} has no text")
            continue
        count += 1
        empty += not row["text"].strip()
        for cost, values in _find_costs(row).items():
            if any(value is None for value in values):
                continue
            numbers = [each for value in values if (each := read_number(value)) is not None]
            if len(numbers) < len(values):
                no_numbers[cost].append(number)
            else:
                sums[cost].append(sum(numbers))
        kept = corrected if row.get("attempts") else others
        if len(kept) < examples:
            kept.append(row)
    if not count:
        return None
    mean = {
        cost: sum(each) / len(each) if each and len(each) + len(no_numbers[cost]) == count else None
        for cost, each in sums.items()
    }
    skipped = [f"{len(odd)} rows are left out: {'; '.join(odd[:SHOWN])}"] if odd else []
    skipped += [
        f"{len(lines)} rows have no number of {cost}, first line {lines[0]}"
        for cost, lines in no_numbers.items()
        if lines
    ]
    return AnswersSummary(
        path,
        name,
        count,
        **mean,
        empty=empty / count,
        examples=(corrected + others)[:examples],
        skipped=skipped,
    )


def _find_costs(row: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the values of a row that are summed to costs; None for a missing one."""
    usage, timing = (x if isinstance(x, dict) else {} for x in (row.get("usage"), row.get("timing")))
    if "unresolved" in row:
        value = row["unresolved"]
        unresolved = float(value) if isinstance(value, bool) else value
    else:
        resolved = row.get("successful_correction", row.get("resolved"))
        unresolved = None if resolved is None else float(resolved is False)
    return {
        "tokens": [row["generated"]] if "generated" in row else [usage.get("kept"), usage.get("discarded")],
        "seconds": [timing.get("seconds", usage.get("seconds"))],
        "unresolved": [unresolved],
    }
