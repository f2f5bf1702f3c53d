"""Measure the effects of a mode: answers before and after, kinds of errors, costs, p(`</UN>`) as a detector.

    change = transitions(plain, select)        # change.net, change.right_to_wrong, … with intervals
    cost(select).tokens_per_right

All functions take draft records, return numbers with intervals, and have no other effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reverse.data.drafts.draft_record import DraftRecord, RecordedDraft
from reverse.errors import DataError
from reverse.evaluation.detector.detection import auroc
from reverse.evaluation.modes.question_means import (
    cluster_names,
    estimate_mean,
    estimate_quotient,
    final_draft,
    is_right,
    pair_records,
)
from reverse.evaluation.stats.bootstrap import DEFAULT_BOOTSTRAP, BootstrapSettings
from reverse.evaluation.stats.intervals import Interval, estimate_interval
from reverse.evaluation.stats.scored_tables import Metric, Table
from reverse.files.cell_values import shorten

__all__ = [
    "Correction",
    "ModeCost",
    "Transitions",
    "answer_auroc",
    "corrections_by_error",
    "cost",
    "first_answers",
    "step_auroc",
    "transitions",
]

OTHER = "other"  # kind of an error that no segment tells
DETECTION_BOOTSTRAP = BootstrapSettings(method="percentile", rounds=1000)


@dataclass(frozen=True)
class Transitions:
    """Shares of all questions, before and after a mode. `net` is after - before."""

    questions: int
    before: Interval
    after: Interval
    wrong_to_right: Interval
    right_to_wrong: Interval
    net: Interval


@dataclass(frozen=True)
class ModeCost:
    """Generated tokens (discarded ones included) and seconds, a question and a right answer."""

    tokens: Interval
    seconds: Interval
    tokens_per_right: Interval
    seconds_per_right: Interval


@dataclass(frozen=True)
class Correction:
    """Questions that were wrong by one kind of error, and the share of them that is right after the mode."""

    questions: int
    corrected: Interval


def first_answers(records: Sequence[DraftRecord]) -> list[DraftRecord]:
    """Return the records with only their first draft: the answer of a mode before its further drafts."""
    return [
        record.model_copy(update={"drafts": record.drafts[:1], "links": (), "cost": None})
        for record in records
    ]


def transitions(
    before: Sequence[DraftRecord],
    after: Sequence[DraftRecord],
    settings: BootstrapSettings = DEFAULT_BOOTSTRAP,
) -> Transitions:
    """Measure how answers change from one run to another over the same questions; intervals are paired.

    Raises DataError if the runs do not answer the same questions.
    """
    first, second = pair_records(before, after)
    was, now = (np.array([is_right(each) for each in run], dtype=float) for run in (first, second))

    def estimate(values: np.ndarray) -> Interval:
        return estimate_mean(first, values, settings)

    return Transitions(
        questions=len(first),
        before=estimate(was),
        after=estimate(now),
        wrong_to_right=estimate((1 - was) * now),
        right_to_wrong=estimate(was * (1 - now)),
        net=estimate(now - was),
    )


def cost(records: Sequence[DraftRecord], settings: BootstrapSettings = DEFAULT_BOOTSTRAP) -> ModeCost:
    """Measure the cost of a run. Raises DataError for a record without its cost."""
    for record in records:
        if record.cost is None:
            raise DataError(
                f"record {shorten(record.id)!r} does not say what its answer cost: name drafts that "
                "`reverse eval` has written"
            )
    tokens = [record.cost.tokens for record in records if record.cost is not None]
    seconds = [record.cost.seconds for record in records if record.cost is not None]
    right = [is_right(record) for record in records]
    return ModeCost(
        estimate_mean(records, tokens, settings),
        estimate_mean(records, seconds, settings),
        estimate_quotient(records, tokens, right, settings),
        estimate_quotient(records, seconds, right, settings),
    )


def corrections_by_error(
    before: Sequence[DraftRecord],
    after: Sequence[DraftRecord],
    settings: BootstrapSettings = DEFAULT_BOOTSTRAP,
) -> dict[str, Correction]:
    """Measure which kinds of errors a mode corrects, the most frequent first.

    The kind of a wrong answer is that of the first wrong segment of the draft before; "other" if no segment
    says it.
    """
    first, second = pair_records(before, after)
    by_kind: dict[str, list[int]] = {}
    for place, record in enumerate(first):
        if not is_right(record):
            by_kind.setdefault(_error_kind(final_draft(record)), []).append(place)
    found = {}
    for kind, places in sorted(by_kind.items(), key=lambda each: (-len(each[1]), each[0])):
        chosen = [second[place] for place in places]
        share = estimate_mean(
            [first[place] for place in places], [is_right(each) for each in chosen], settings
        )
        found[kind] = Correction(len(places), share)
    return found


def _error_kind(draft: RecordedDraft) -> str:
    kinds = (segment.error for segment in draft.segments if segment.verdict == "wrong" and segment.error)
    return next(kinds, OTHER)


# ---------------------------------------------------------------------- p(</UN>) as a detector
def step_auroc(
    records: Sequence[DraftRecord], settings: BootstrapSettings = DETECTION_BOOTSTRAP
) -> Interval | None:
    """Compute the AUROC of p(`</UN>`) over segments that are right or wrong; None without both kinds."""
    rows = [
        (segment.p_un, segment.verdict, cluster)
        for record, cluster in zip(records, cluster_names(records), strict=True)
        for draft in record.drafts
        for segment in draft.segments
        if segment.p_un is not None and segment.verdict != "unknown"
    ]
    return _estimate_auroc(rows, settings)


def answer_auroc(
    records: Sequence[DraftRecord], settings: BootstrapSettings = DETECTION_BOOTSTRAP
) -> Interval | None:
    """Compute the AUROC of a draft's highest p(`</UN>`) over drafts that are right or wrong; None without
    both.
    """
    rows = []
    for record, cluster in zip(records, cluster_names(records), strict=True):
        for draft in record.drafts:
            found = [segment.p_un for segment in draft.segments if segment.p_un is not None]
            if found and draft.verdict != "unknown":
                rows.append((max(found), draft.verdict, cluster))
    return _estimate_auroc(rows, settings)


def _estimate_auroc(rows: Sequence[tuple[float, str, str]], settings: BootstrapSettings) -> Interval | None:
    if len({verdict for _, verdict, _ in rows}) < 2:
        return None
    columns = {
        "p": np.array([p for p, _, _ in rows]),
        "wrong": np.array([float(verdict == "wrong") for _, verdict, _ in rows]),
    }
    metric = Metric("auroc", "high", rows=lambda sums: float(auroc(sums["p"], sums["wrong"])))
    return estimate_interval(Table("drafts", [cluster for _, _, cluster in rows], columns), metric, settings)
