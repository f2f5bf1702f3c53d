"""One page and one table out of folders of answers, scored files and plots.

    write_report([Path("runs/ours"), Path("runs/base")], Path("report"))
    # report/report.html (self-contained), report/report.md

Read in each folder and the folders right below it: scored files (JSON, `reverse score … --save`), answers
(JSON lines), plots (SVG, else PNG of the same name). What cannot be read is listed, never passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reverse.errors import DataError
from reverse.evaluation.reports.metric_titles import heading
from reverse.evaluation.runs.answers_reading import sound_rows
from reverse.evaluation.scoring.judge import refuse_without_verdicts
from reverse.evaluation.stats.bootstrap import check_rounds, make_generator
from reverse.evaluation.stats.intervals import (
    DEFAULT,
    Interval,
    Method,
    OverSeeds,
    check_method,
    intervals,
    over_seeds,
)
from reverse.evaluation.stats.scored_tables import Metric, Table, load
from reverse.files.atomic_write import atomic_write
from reverse.files.cell_values import read_number
from reverse.files.text_reading import replace_surrogates

__all__ = ["Answers", "Run", "collect", "markdown", "write_report"]

LARGEST = 8_000_000  # bytes of a plot that is put on the page
SHOWN = 3  # reasons in a line
SEED_COLUMNS = ("", "mean", "sd between seeds", "sd of decoding", "sd of items")
_NOT_SCORED = ("detector.json", "calibration.json", "compare.json", "config.json")


@dataclass(frozen=True)
class Answers:
    """What is shown and counted of an answers file."""

    path: Path
    rows: int
    tokens: float | None  # made, an answer
    seconds: float | None
    unresolved: float | None
    empty: float
    examples: tuple[Mapping[str, Any], ...]
    name: str = ""  # below the run's folder, without the ending
    skipped: tuple[str, ...] = ()  # rows and values that could not be used, counted and named


@dataclass(frozen=True)
class Run:
    """What one folder holds."""

    name: str
    folder: Path
    scored: list[tuple[str, Table, list[Metric], dict[str, Interval]]] = field(default_factory=list)
    answers: list[Answers] = field(default_factory=list)
    seeds: list[tuple[str, list[Metric], dict[str, OverSeeds]]] = field(default_factory=list)
    plots: list[Path] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def write_report(
    folders: Sequence[Path],
    out: Path,
    *,
    title: str = "Evaluation",
    examples: int = 6,
    images: Path | None = None,
    method: str = DEFAULT,
    rounds: int = 2000,
    seed: int = 0,
    lmms_eval: bool = False,
) -> list[Path]:
    """Write report.html and report.md into `out`, whole or not at all; returns the files.

    `images` is a folder in which the examples' pictures are looked for. With `lmms_eval` also a file of
    per-sample rows for each scored file that has its answers. Raises ValueError for a folder that is not
    there or where there is nothing to report.
    """
    from reverse.evaluation.reports.html_page import page

    check_method(method)
    check_rounds("rounds", rounds, "2000 is usual")
    make_generator(seed)  # refuses one that none can be made of
    if images is not None and not images.is_dir():
        raise DataError(f"there is no folder of pictures {images}: name one, or leave --images out")
    runs = [
        collect(folder, name, examples, method, rounds, seed)
        for folder, name in zip(folders, _names(folders), strict=True)
    ]
    if not any(run.scored or run.answers or run.plots for run in runs):
        unread = "; ".join(each for run in runs for each in run.unread[:1])
        raise DataError(
            f"nothing to report in {', '.join(map(str, folders))}: scored files, answers and plots are "
            "looked for there and one folder below" + (f", and not read is {unread}" if unread else "")
        )
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in (("report.html", page(title, runs, images)), ("report.md", markdown(title, runs))):
        with atomic_write(out / name) as stream:
            stream.write(replace_surrogates(text).encode("utf-8"))
        written.append(out / name)
    if lmms_eval:
        from reverse.evaluation.reports.lmms_export import export_lmms_eval

        for run in runs:
            written += export_lmms_eval(run, out)
    return written


def collect(
    folder: Path,
    name: str,
    examples: int = 6,
    method: str = DEFAULT,
    rounds: int = 2000,
    seed: int = 0,
) -> Run:
    """Read a folder. Raises ValueError where it is none."""
    if not folder.is_dir():
        raise DataError(f"{str(folder)!r} is no folder: name one that `reverse eval --out` or score wrote")
    run = Run(name, folder)
    files = sorted(path for path in _files(folder))
    for path in files:
        try:
            if path.suffix == ".jsonl":
                found = _answers(path, folder, examples)
                if found is not None:
                    run.answers.append(found)
                    run.unread.extend(f"{path.relative_to(folder)}: {each}" for each in found.skipped)
            elif path.suffix == ".json" and _is_scored(path):
                table, metrics = load(path)
                refuse_without_verdicts(table)
                checked: Method = "percentile" if method == "percentile" else "bca"
                figures = intervals(table, metrics, checked, rounds, seed=seed)
                run.scored.append((_name(path, folder), table, metrics, figures))
            elif path.suffix == ".svg" or (path.suffix == ".png" and path.with_suffix(".svg") not in files):
                if path.stat().st_size <= LARGEST:
                    run.plots.append(path)
                else:
                    run.unread.append(f"{path.relative_to(folder)}: {path.stat().st_size:,} bytes")
        except (ValueError, OSError, OverflowError, RecursionError) as error:
            run.unread.append(f"{path.relative_to(folder)}: {error}")
    _add_seeds(run, "percentile" if method == "percentile" else "bca", rounds, seed)
    return run


def _add_seeds(run: Run, method: Method, rounds: int, seed: int) -> None:
    """Scored files NAME, NAME.seed1, NAME.seed2 … are decodings of the same questions: taken together too."""
    groups: dict[tuple[str, str], list[tuple[Table, list[Metric]]]] = {}
    for stem, table, metrics, _ in run.scored:
        name = re.sub(r"\.seed\d+$", "", stem)
        groups.setdefault((name, table.benchmark), []).append((table, metrics))
    for (name, _), found in groups.items():
        if len(found) < 2:
            continue
        tables = [table for table, _ in found]
        metrics = [m for m in found[0][1] if all(m.name in {x.name for x in each} for _, each in found)]
        try:
            spread = {m.name: over_seeds(tables, m, method, rounds, seed=seed) for m in metrics}
        except ValueError as error:
            run.unread.append(f"{name}, {len(tables)} seeds: {error}")
            continue
        run.seeds.append((f"{name}, {len(tables)} seeds", metrics, spread))


def seed_rows(run: Run) -> Iterator[tuple[str, list[list[str]]]]:
    """Of each group of seeds (name, lines): metric, mean, standard deviations between, decoding, items."""
    for name, metrics, spread in run.seeds:
        lines = []
        for metric in metrics:
            each = spread[metric.name]
            scale, digits = (100, 2) if metric.unit == "%" else (1, 3)
            deviations = (each.between, each.sd_decoding, each.sd_items)
            lines.append(
                [
                    headed(metric),
                    shown(metric, each.mean),
                    *("–" if x != x else f"{x * scale:.{digits}f}" for x in deviations),
                ]
            )
        yield name, lines


def markdown(title: str, runs: Sequence[Run]) -> str:
    """One table a benchmark, a line a scored file: value (95 % interval)."""
    lines = [f"# {_cell(title)}", ""]
    for benchmark, columns, rows in tables_of(runs):
        lines += [f"## {_cell(benchmark)}", ""]
        lines.append("| | " + " | ".join(_cell(headed(metric)) for metric in columns) + " |")
        lines.append("|---" * (len(columns) + 1) + "|")
        for name, figures in rows:
            cells = [shown(metric, figures.get(metric.name)) for metric in columns]
            lines.append(f"| {_cell(name)} | " + " | ".join(cells) + " |")
        lines.append("")
    for run in runs:
        for name, rows_of_seeds in seed_rows(run):
            lines += [f"## {_cell(f'{run.name} {name}')}", "", "| " + " | ".join(SEED_COLUMNS) + " |"]
            lines.append("|---" * len(SEED_COLUMNS) + "|")
            lines += ["| " + " | ".join(map(_cell, each)) + " |" for each in rows_of_seeds]
            lines.append("")
    counted = [(run, answers) for run in runs for answers in run.answers]
    if counted:
        lines += [
            "## Answers",
            "",
            "| | answers | tokens | seconds | empty % | unresolved % |",
            "|---" * 6 + "|",
        ]
        lines += [
            f"| {_cell(f'{run.name} {answers.name}')} | " + " | ".join(costs(answers)) + " |"
            for run, answers in counted
        ]
        lines.append("")
    unread = [f"- {_cell(f'{run.name}: {each}')}" for run in runs for each in run.unread]
    if unread:
        lines += ["## Not read", "", *unread, ""]
    return "\n".join(lines)


def tables_of(
    runs: Sequence[Run],
) -> Iterator[tuple[str, list[Metric], list[tuple[str, dict[str, Interval]]]]]:
    """For each benchmark its metrics, in order of occurrence, and (name, figures) of every scored file."""
    benchmarks = dict.fromkeys(table.benchmark for run in runs for _, table, _, _ in run.scored)
    for benchmark in benchmarks:
        columns: dict[str, Metric] = {}
        rows = []
        for run in runs:
            for stem, table, metrics, figures in run.scored:
                if table.benchmark == benchmark:
                    columns |= {m.name: m for m in metrics if m.name not in columns}
                    rows.append((f"{run.name} {stem}", figures))
        yield benchmark, list(columns.values()), rows


def headed(metric: Metric) -> str:
    return heading(metric.title or metric.name, metric.unit, metric.better)


def shown(metric: Metric, found: Interval | None) -> str:
    """A figure with its interval, as text; alone where the rounds have no spread, which says nothing."""
    if found is None or found.point != found.point:
        return "–"
    scale, digits = (100, 1) if metric.unit == "%" else (1, 2)
    value = f"{found.point * scale:.{digits}f}"
    if found.low != found.low or found.low == found.high:
        return value
    return f"{value} ({found.low * scale:.{digits}f}–{found.high * scale:.{digits}f})"


def costs(answers: Answers) -> list[str]:
    """Answers, tokens, seconds, empty and unresolved ones, as text."""
    return [
        f"{answers.rows}",
        *("–" if x is None else f"{x:.2f}" for x in (answers.tokens, answers.seconds)),
        *("–" if x is None else f"{100 * x:.1f}" for x in (answers.empty, answers.unresolved)),
    ]


# ---------------------------------------------------------------------- reading
def _files(folder: Path) -> Iterator[Path]:
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


def _answers(path: Path, folder: Path, examples: int) -> Answers | None:
    """Counts of an answers file and a few rows, in one pass; None for JSON lines of another kind."""
    count = empty = 0
    odd: list[str] = []
    sums: dict[str, list[float]] = {"tokens": [], "seconds": [], "unresolved": []}
    no_numbers: dict[str, list[int]] = {name: [] for name in sums}
    corrected: list[Mapping[str, Any]] = []
    others: list[Mapping[str, Any]] = []
    for number, row in sound_rows(path, odd):
        if not isinstance(row.get("text"), str):
            if not count and "question_id" not in row:
                return None
            odd.append(f"line {number} has no text")
            continue
        count += 1
        empty += not row["text"].strip()
        usage, timing = (x if isinstance(x, dict) else {} for x in (row.get("usage"), row.get("timing")))
        for name, values in (
            (
                "tokens",
                [row["generated"]] if "generated" in row else [usage.get("kept"), usage.get("discarded")],
            ),
            ("seconds", [timing.get("seconds", usage.get("seconds"))]),
            ("unresolved", [_unresolved(row)]),
        ):
            if any(value is None for value in values):
                continue
            numbers = [read_number(value) for value in values]
            if any(each is None for each in numbers):
                no_numbers[name].append(number)
            else:
                sums[name].append(sum(each for each in numbers if each is not None))
        kept = corrected if row.get("attempts") else others
        if len(kept) < examples:
            kept.append(row)
    if not count:
        return None
    mean = {
        name: sum(each) / len(each) if each and len(each) + len(no_numbers[name]) == count else None
        for name, each in sums.items()
    }
    told = [f"{len(odd)} rows are left out: {'; '.join(odd[:SHOWN])}"] if odd else []
    told += [
        f"{len(lines)} rows have no number of {name}, first line {lines[0]}"
        for name, lines in no_numbers.items()
        if lines
    ]
    return Answers(
        path, count, mean["tokens"], mean["seconds"], mean["unresolved"], empty / count,
        tuple((corrected + others)[:examples]), _name(path, folder), tuple(told),
    )  # fmt: skip


def _unresolved(row: Mapping[str, Any]) -> Any:
    if "unresolved" in row:
        value = row["unresolved"]
        return float(value) if isinstance(value, bool) else value
    said = row.get("successful_correction", row.get("resolved"))
    return None if said is None else float(said is False)


def _name(path: Path, folder: Path) -> str:
    """Below the run's folder, without the ending."""
    return path.relative_to(folder).with_suffix("").as_posix()


def _names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, or the whole where two share it."""
    short = [folder.resolve().name for folder in folders]
    return [name if short.count(name) == 1 else str(path) for name, path in zip(short, folders, strict=True)]


def _cell(text: str) -> str:
    """Text that cannot end a cell, a line or begin markup."""
    flat = " ".join(str(text).split())
    for char in "\\`*_[]<>|#":
        flat = flat.replace(char, "\\" + char)
    return flat
