"""The report of several modes over the same questions, from their draft files.

    runs = [read_mode_run("out/chartqa.plain.drafts.jsonl"), read_mode_run("out/chartqa.select.drafts.jsonl")]
    report = make_report(runs)          # plain values, for JSON
    make_mode_tables(report)            # for a terminal

The first run is the baseline: changes of all others are paired with it by question. Every figure is
[point, low, high] with a 95 % interval; a figure that is not defined is None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from reverse.data.drafts.draft_files import read_drafts
from reverse.data.drafts.draft_record import DraftRecord
from reverse.errors import DataError
from reverse.evaluation.modes.mode_effects import (
    answer_auroc,
    corrections_by_error,
    cost,
    step_auroc,
    transitions,
)
from reverse.evaluation.modes.question_means import estimate_mean, is_right, pair_records
from reverse.evaluation.modes.sample_curves import (
    RULES,
    count_samples,
    samples_of,
    usual_sizes,
    values_at,
    values_at_tokens,
)
from reverse.evaluation.stats.bootstrap import DEFAULT_BOOTSTRAP, BootstrapSettings
from reverse.evaluation.stats.intervals import Interval

__all__ = ["FORMAT", "ModeRun", "make_report", "read_mode_run"]

FORMAT = "reverse-modes-1"
JUDGES = RULES[1:]  # what picks one of several samples
Figure = list[float] | None


@dataclass(frozen=True)
class ModeRun:
    """The draft records of one mode over a benchmark."""

    name: str
    records: tuple[DraftRecord, ...]


def read_mode_run(path: str | Path, name: str | None = None) -> ModeRun:
    """Read a file of drafts as `reverse eval` writes it. The name is that of its mode, else of the file.

    Raises MissingFileError; DataError for a damaged line, for records without verdicts and for no records.
    """
    records = tuple(read_drafts(path))
    if not records:
        raise DataError(f"{path} holds no records: name the drafts of a run that is complete")
    if all(draft.judged_by == "" for record in records for draft in record.drafts):
        raise DataError(
            f"{path}: no answer has a verdict, so there is nothing to compare: name the drafts of a graded "
            "benchmark (`reverse eval --where graded`)"
        )
    modes = {record.cost.mode for record in records if record.cost is not None}
    return ModeRun(name or (modes.pop() if len(modes) == 1 else Path(path).stem), records)


def make_report(
    runs: Sequence[ModeRun],
    settings: BootstrapSettings = DEFAULT_BOOTSTRAP,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Return accuracy, changes, costs, curves and detection of each run, as plain values.

    `progress(done, total)` is called after each run; one of 2,000 questions with 32 samples each takes half a
    minute.

    Raises DataError if the runs do not answer the same questions, or two have one name.
    """
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise DataError(f"two runs have one name ({', '.join(names)}): compare different modes or files")
    before, described = runs[0], []
    for number, run in enumerate(runs, 1):
        described.append(_describe_run(run, before, settings))
        if progress is not None:
            progress(number, len(runs))
    _compare_at_equal_tokens(runs, described, settings)
    for each in described:
        each["on_frontier"] = not any(_dominates(other, each) for other in described)
    return {
        "format": FORMAT,
        "before": before.name,
        "questions": len(before.records),
        "rounds": settings.rounds,
        "seed": settings.seed,
        "modes": described,
    }


def _describe_run(run: ModeRun, before: ModeRun, settings: BootstrapSettings) -> dict[str, Any]:
    records = run.records
    spent = cost(records, settings)
    found: dict[str, Any] = {
        "name": run.name,
        "accuracy": _figure(estimate_mean(records, [is_right(record) for record in records], settings)),
        "unknown": sum(draft.verdict == "unknown" for record in records for draft in record.drafts),
        "cost": {each.name: _figure(getattr(spent, each.name)) for each in fields(spent)},
        "auroc": {"steps": _figure(step_auroc(records)), "answers": _figure(answer_auroc(records))},
        "change": None,
        "errors": {},
        "curves": _describe_curves(records, settings),
        "over_vote": _compare_with_vote(records, settings),
    }
    if run is not before:
        change = transitions(before.records, records, settings)
        found["change"] = {
            name: _figure(getattr(change, name))
            for name in ("before", "after", "wrong_to_right", "right_to_wrong", "net")
        }
        found["errors"] = {
            kind: {"questions": each.questions, "corrected": _figure(each.corrected)}
            for kind, each in corrections_by_error(before.records, records, settings).items()
        }
    return found


def _describe_curves(records: Sequence[DraftRecord], settings: BootstrapSettings) -> dict[str, Any] | None:
    """Return accuracy and tokens at N samples; None unless every question has two samples or more."""
    most = count_samples(records)
    if most < 2:
        return None
    sizes = usual_sizes(most)
    values = {rule: {n: values_at(records, rule, n, settings.seed) for n in sizes} for rule in RULES}
    tokens = [np.mean([draft.tokens or 0 for draft in samples_of(record)]) for record in records]
    return {
        "sizes": sizes,
        "tokens": [float(n * np.mean(tokens)) for n in sizes],
        **{
            rule: [_figure(estimate_mean(records, each[n], settings)) for n in sizes]
            for rule, each in values.items()
        },
        **{
            f"{judge}_over_vote": [
                _figure(estimate_mean(records, values[judge][n] - values["vote"][n], settings)) for n in sizes
            ]
            for judge in JUDGES
            if judge != "vote"
        },
    }


def _compare_with_vote(records: Sequence[DraftRecord], settings: BootstrapSettings) -> Figure:
    """Return the accuracy of a run minus that of a vote of all its samples; None without samples."""
    most = count_samples(records)
    if most < 2:
        return None
    gain = np.array([is_right(record) for record in records]) - values_at(
        records, "vote", most, settings.seed
    )
    return _figure(estimate_mean(records, gain, settings))


def _compare_at_equal_tokens(
    runs: Sequence[ModeRun], described: Sequence[dict[str, Any]], settings: BootstrapSettings
) -> None:
    """Add accuracy minus that of a vote that costs as much, as `over_vote_at_equal_tokens`.

    The votes are over the samples of the run that has most of them. None if there is none, or if a mode costs
    more than all its samples.
    """
    votes = max(runs, key=lambda run: count_samples(run.records))
    for run, found in zip(runs, described, strict=True):
        found["over_vote_at_equal_tokens"] = None
        if count_samples(votes.records) < 2:
            continue
        records, samples = pair_records(run.records, votes.records)
        try:
            voted = values_at_tokens(samples, "vote", found["cost"]["tokens"][0], settings.seed)
        except DataError:  # it costs more than all samples, or nobody knows what they cost
            continue
        gain = np.array([is_right(record) for record in records]) - voted
        found["over_vote_at_equal_tokens"] = _figure(estimate_mean(records, gain, settings))


def _dominates(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether a mode is at least as accurate at no more tokens, and strictly better in one of the two."""
    gain = first["accuracy"][0] - second["accuracy"][0]
    saved = second["cost"]["tokens"][0] - first["cost"]["tokens"][0]
    return gain >= 0 and saved >= 0 and gain + saved > 0


def _figure(interval: Interval | None) -> Figure:
    """Return [point, low, high]; None for a figure that is not defined."""
    if interval is None or not np.isfinite(interval.point):
        return None
    return [float(each) for each in interval]
