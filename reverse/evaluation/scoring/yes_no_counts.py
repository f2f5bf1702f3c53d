"""Counts and metrics of yes/no questions, in the published reading and in the strict one beside it.

    columns, differ = count_both_readings(texts, labels, "yes", read_pope)
    metrics = make_quartet("")

If the two readings disagree on any answer, every figure is reported in both, the strict one as `strict_…`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from reverse.evaluation.reading.yes_no import Reading, read_strictly
from reverse.evaluation.stats.scored_tables import Metric, f1, ratio

__all__ = ["count_both_readings", "make_quartet", "make_unanswered_metrics", "split_by_group"]


def _count_confusion(
    readings: Sequence[Reading], labels: Sequence[str], positive: str, prefix: str = ""
) -> dict[str, np.ndarray]:
    """Return 0/1 columns hit, false_alarm, miss, right, said (positive), none (neither yes nor no), unread.

    An answer that is neither, or unread, is wrong: a miss if the label is positive.
    """
    said = np.array(readings, dtype=object)
    label = np.array(labels, dtype=object)
    columns = {
        "hit": (said == positive) & (label == positive),
        "false_alarm": (said == positive) & (label != positive),
        "miss": (said != positive) & (label == positive),
        "right": said == label,
        "said": said == positive,
        "none": np.isin(said, ["other", "empty"]),
        "unread": said == "unread",
    }
    return {prefix + name: column.astype(float) for name, column in columns.items()}


def make_quartet(prefix: str, suffix: str = "", title: str = "") -> list[Metric]:
    """Make accuracy, precision, recall and F1 from the columns `prefix…suffix`, and name them so too."""

    def column(name: str) -> str:
        return f"{prefix}{name}{suffix}"

    return [
        ratio(column("accuracy"), column("right"), column("asked"), "high", title=f"{title}accuracy"),
        ratio(column("precision"), column("hit"), column("said"), "high", title=f"{title}precision"),
        ratio(column("recall"), column("hit"), column("positive"), "high", title=f"{title}recall"),
        f1(column("f1"), column("hit"), column("false_alarm"), column("miss"), title=f"{title}F1"),
    ]


def split_by_group(
    columns: Mapping[str, np.ndarray], groups: Sequence[str], wanted: Iterable[str]
) -> dict[str, np.ndarray]:
    """Repeat the columns for each group as `name@group`, with zeros in the rows of other groups."""
    of = np.array(groups, dtype=object)
    return {f"{name}@{group}": column * (of == group) for group in wanted for name, column in columns.items()}


def count_both_readings(
    texts: Sequence[str], labels: Sequence[str], positive: str, published: Callable[[str], Reading]
) -> tuple[dict[str, np.ndarray], int]:
    """Return columns of the published and the strict reading (`strict_…`), and how many answers they differ
    in.
    """
    first, second = [published(text) for text in texts], [read_strictly(text) for text in texts]
    asked = {
        "asked": np.ones(len(texts)),
        "positive": (np.array(labels, dtype=object) == positive).astype(float),
    }
    columns = _count_confusion(first, labels, positive) | asked
    columns |= _count_confusion(second, labels, positive, "strict_")
    columns |= {f"strict_{name}": column for name, column in asked.items()}
    # "other" and "empty" are scored alike, so they are not different.
    return columns, sum(
        a != b and not {a, b} <= {"other", "empty"} for a, b in zip(first, second, strict=True)
    )


def make_unanswered_metrics(columns: Mapping[str, np.ndarray]) -> list[Metric]:
    """Make metrics of answers that the strict reading took for neither yes nor no, or could not read."""
    made = [ratio("no_answer", "strict_none", "answers", "low", title="neither yes nor no (strict)")]
    if columns["strict_unread"].any():
        title = "not read: no English, or too long (strict)"
        made.append(ratio("not_read", "strict_unread", "answers", "low", title=title))
    return made
