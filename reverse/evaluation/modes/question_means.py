"""Means over the questions of draft records (correctness, costs), with intervals.

    values = np.array([is_right(record) for record in records])
    estimate_mean(records, values)                              # Interval(point, low, high, …)

Intervals come from a bootstrap over pictures, with all questions about a picture together; a question without
a picture stands for itself. Two modes are compared on the same questions: `pair_records` puts their records
in the same order, so that the mean of a difference of values is paired. Equal seeds draw the same questions
for all intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from reverse.data.drafts.draft_record import DraftRecord, RecordedDraft
from reverse.errors import DataError
from reverse.evaluation.stats.bootstrap import DEFAULT_BOOTSTRAP, BootstrapSettings
from reverse.evaluation.stats.intervals import Interval, estimate_interval
from reverse.evaluation.stats.scored_tables import Metric, Sums, Table
from reverse.files.cell_values import shorten

__all__ = [
    "cluster_names",
    "estimate_mean",
    "estimate_quotient",
    "estimate_sums",
    "final_draft",
    "is_right",
    "pair_records",
]

Records = Sequence[DraftRecord]
SHOWN = 3  # ids in an error


def final_draft(record: DraftRecord) -> RecordedDraft:
    """Return the draft whose answer was returned: the last accepted one, or the last one if none is accepted.

    Raises DataError for a record without drafts.
    """
    if not record.drafts:
        raise DataError(f"record {shorten(record.id)!r} has no drafts: leave it out, or answer its question")
    return next((draft for draft in reversed(record.drafts) if draft.accepted), record.drafts[-1])


def is_right(record: DraftRecord) -> bool:
    """Whether the answer that was returned is right. An answer that cannot be graded is not."""
    return final_draft(record).verdict == "right"


def cluster_names(records: Records) -> list[str]:
    """Return the name of each record's cluster for intervals: its first picture, else its id."""
    return [record.images[0] if record.images else f"id {record.id}" for record in records]


def pair_records(first: Records, second: Records) -> tuple[list[DraftRecord], list[DraftRecord]]:
    """Return both lists in the order of the first.

    Raises DataError if they do not hold the same questions.
    """
    places: list[dict[str, DraftRecord]] = []
    for records in (first, second):
        by_id = {record.id: record for record in records}
        if len(by_id) < len(records):
            raise DataError("an id stands in several records of a run: keep one record per question")
        places.append(by_id)
    ours, theirs = places
    missing = [f"{name!r} (second run)" for name in ours if name not in theirs]
    missing += [f"{name!r} (first run)" for name in theirs if name not in ours]
    if missing:
        raise DataError(
            f"{len(missing)} questions are answered in only one of the runs, missing are "
            f"{', '.join(map(shorten, missing[:SHOWN]))}: compare runs over the same questions"
        )
    return list(first), [theirs[record.id] for record in first]


def estimate_mean(
    records: Records, values: ArrayLike, settings: BootstrapSettings = DEFAULT_BOOTSTRAP
) -> Interval:
    """Estimate the mean of one value per record."""
    return estimate_quotient(records, values, np.ones(len(records)), settings)


def estimate_quotient(
    records: Records,
    part: ArrayLike,
    whole: ArrayLike,
    settings: BootstrapSettings = DEFAULT_BOOTSTRAP,
) -> Interval:
    """Estimate sum(part) / sum(whole), such as tokens per right answer; not finite if `whole` sums to 0."""

    def divide(sums: Sums) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(sums["part"].sum(axis=-1) / sums["whole"].sum(axis=-1))

    return estimate_sums(records, {"part": part, "whole": whole}, divide, settings)


def estimate_sums(
    records: Records,
    columns: Mapping[str, ArrayLike],
    of: Callable[[Sums], np.ndarray],
    settings: BootstrapSettings = DEFAULT_BOOTSTRAP,
) -> Interval:
    """Estimate a function of column sums, as `Metric.of`; each column has one value per record."""
    if not records:
        raise DataError("there are no records: name a file of drafts that holds some")
    table = Table(
        "drafts", cluster_names(records), {n: np.asarray(c, dtype=float) for n, c in columns.items()}
    )
    return estimate_interval(table, Metric("figure", "neither", of), settings)
