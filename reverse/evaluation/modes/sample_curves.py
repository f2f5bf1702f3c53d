"""Accuracy of N samples, for every N, from one set of M samples per question.

    oracle_at(records, 8)            # is one of 8 samples right?
    vote_at(records, 8)              # does the majority of 8 samples answer right?

A figure at N is the mean over the subsets of N of the M samples, and so an unbiased estimate of what N
samples give, for N up to M. `oracle` and `best` are computed exactly. `vote` and `weighted` average all
subsets where there are at most `MOST_SUBSETS`, else over that many random ones (seeded), so the mean stays
unbiased. At N = M there is one subset: the run's own samples. Ties are broken as `reverse.modes.select` does.

Samples are the drafts with the role "sample". An answer that cannot be graded is not right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np

from reverse.data.drafts.draft_record import DraftRecord, RecordedDraft
from reverse.errors import DataError, RequestError
from reverse.evaluation.modes.question_means import estimate_mean, is_right
from reverse.evaluation.stats.bootstrap import DEFAULT_BOOTSTRAP, BootstrapSettings
from reverse.evaluation.stats.intervals import Interval
from reverse.files.cell_values import shorten

__all__ = [
    "RULES",
    "best_at",
    "count_samples",
    "find_winners",
    "oracle_at",
    "samples_of",
    "select_at",
    "usual_sizes",
    "values_at",
    "values_at_tokens",
    "vote_at",
    "weighted_vote_at",
]

RULES = ("oracle", "best", "vote", "weighted")
MOST_SUBSETS = 512
LARGEST = 32  # N
_DIGITS = 9  # votes that differ by less are equal: sums of confidences depend on the order of addition


def samples_of(record: DraftRecord) -> list[RecordedDraft]:
    """Return the drafts that are samples, in the order in which they were made."""
    return [draft for draft in record.drafts if draft.role == "sample"]


def count_samples(records: Sequence[DraftRecord]) -> int:
    """Return the smallest number of samples of any record; 0 without records."""
    return min((len(samples_of(record)) for record in records), default=0)


def usual_sizes(most: int) -> list[int]:
    """Return 1, 2, 3, 4, 8, 16, 32 up to `most`, and `most` itself."""
    return sorted({n for n in (1, 2, 3, 4, 8, 16, LARGEST, most) if 1 <= n <= most})


def oracle_at(
    records: Sequence[DraftRecord], n: int, settings: BootstrapSettings = DEFAULT_BOOTSTRAP
) -> Interval:
    """Compute the share of questions for which one of n samples is right."""
    return estimate_mean(records, values_at(records, "oracle", n), settings)


def vote_at(
    records: Sequence[DraftRecord], n: int, settings: BootstrapSettings = DEFAULT_BOOTSTRAP
) -> Interval:
    """Compute the accuracy of the most frequent answer of n samples; ties go to the most confident."""
    return estimate_mean(records, values_at(records, "vote", n, settings.seed), settings)


def weighted_vote_at(
    records: Sequence[DraftRecord], n: int, settings: BootstrapSettings = DEFAULT_BOOTSTRAP
) -> Interval:
    """Compute the accuracy of the answer of n samples that has the highest sum of confidences."""
    return estimate_mean(records, values_at(records, "weighted", n, settings.seed), settings)


def best_at(
    records: Sequence[DraftRecord], n: int, settings: BootstrapSettings = DEFAULT_BOOTSTRAP
) -> Interval:
    """Compute the accuracy of the most confident of n samples."""
    return estimate_mean(records, values_at(records, "best", n), settings)


def select_at(
    records: Sequence[DraftRecord],
    judge: str,
    ns: Iterable[int] | None = None,
    settings: BootstrapSettings = DEFAULT_BOOTSTRAP,
) -> dict[int, Interval]:
    """Compute the accuracy of mode `select` with n samples, by n.

    A judge of `RULES` is computed from the samples. The choice of `judge="self"`, the model itself, is known
    only for the samples that it was shown: its curve is the accuracy of the run, at its own n.
    """
    most = count_samples(records)
    if judge == "self":
        return {most: estimate_mean(records, [is_right(record) for record in records], settings)}
    sizes = usual_sizes(most) if ns is None else ns
    return {n: estimate_mean(records, values_at(records, judge, n, settings.seed), settings) for n in sizes}


def values_at(
    records: Sequence[DraftRecord], rule: str, n: int, seed: int = 0, most_subsets: int = MOST_SUBSETS
) -> np.ndarray:
    """Compute for each record the probability that a rule is right with n of its samples, shape (records,).

    Raises DataError for a record with fewer samples; RequestError for an unknown rule.
    """
    if rule not in RULES:
        raise RequestError(f"rule must be one of {', '.join(RULES)}, got {rule!r:.80}")
    if n < 1:
        raise RequestError(f"n must be at least 1, got {n}: it is a number of samples")
    values = np.empty(len(records))
    for place, record in enumerate(records):
        samples = samples_of(record)
        if len(samples) < n:
            raise DataError(
                f"record {shorten(record.id)!r} has {len(samples)} samples, {n} are asked for: choose a "
                "smaller n, or run `--mode select` with a larger --n"
            )
        right = np.array([draft.verdict == "right" for draft in samples])
        if rule == "oracle":
            values[place] = 1 - comb(int((~right).sum()), n) / comb(len(samples), n)
        elif rule == "best":
            values[place] = _chance_of_best(samples, n) @ right
        else:
            subsets = _subsets(len(samples), n, seed, most_subsets)
            winners = find_winners(samples, subsets, weighted=rule == "weighted")
            values[place] = right[winners].mean()
    return values


def values_at_tokens(records: Sequence[DraftRecord], rule: str, tokens: float, seed: int = 0) -> np.ndarray:
    """Do the same with as many samples as `tokens` generated tokens per question allow, shape (records,).

    Between two sizes the values are interpolated: a share of the questions gets one sample more. Less than
    one sample counts as one. Raises DataError if the tokens pay for more samples than every record has, or if
    samples do not say how many tokens they have.
    """
    spent = [draft.tokens for record in records for draft in samples_of(record)]
    if not spent or any(each is None for each in spent) or not any(spent):
        raise DataError("the samples do not say what they cost: name drafts that `reverse eval` has written")
    size = max(1.0, tokens * len(spent) / sum(each or 0 for each in spent))
    if size > count_samples(records):
        raise DataError(
            f"{tokens:.1f} tokens pay for {size:.2f} samples, the records have {count_samples(records)}: run "
            "`--mode select` with a larger --n"
        )
    fewer, rest = int(size), size - int(size)
    values = values_at(records, rule, fewer, seed)
    return values + rest * (values_at(records, rule, fewer + 1, seed) - values) if rest else values


def _chance_of_best(samples: Sequence[RecordedDraft], n: int) -> np.ndarray:
    """Compute the probability of each sample to be the most confident of n, shape (samples,)."""
    count = len(samples)
    order = sorted(range(count), key=lambda i: (-(samples[i].confidence or 0.0), i))
    chances = np.zeros(count)
    for rank, i in enumerate(order):
        chances[i] = comb(count - 1 - rank, n - 1) / comb(count, n)
    return chances


@lru_cache(maxsize=256)
def _subsets(count: int, n: int, seed: int, most: int) -> np.ndarray:
    """Return subsets of n of `count` samples as a mask (subsets, count): all, or `most` random ones."""
    if comb(count, n) <= most:
        places = np.array(list(combinations(range(count), n)))
    else:
        rng = np.random.default_rng((seed, count, n))
        places = np.argsort(rng.random((most, count)), axis=1)[:, :n]
    mask = np.zeros((len(places), count), dtype=bool)
    np.put_along_axis(mask, places, True, axis=1)
    return mask


def find_winners(samples: Sequence[RecordedDraft], subsets: np.ndarray, *, weighted: bool) -> np.ndarray:
    """Find the index of the sample that a vote keeps in each subset.

    Args:
        subsets: mask of shape (subsets, samples).
        weighted: weigh votes by confidence.

    The same as `reverse.modes.select.find_vote_winner` of each subset, for all of them at once.
    """
    confidence = np.array([draft.confidence or 0.0 for draft in samples])
    said = list(dict.fromkeys(draft.answer for draft in samples if draft.answer is not None))
    gives = np.array([[draft.answer == answer for answer in said] for draft in samples], dtype=bool)
    gives = gives.reshape(len(samples), len(said))
    wins = np.full(len(subsets), -1)
    if said:
        weight = confidence[:, None] * gives if weighted else gives.astype(float)
        votes = np.round(subsets @ weight, _DIGITS)
        present = subsets.astype(float) @ gives > 0
        surest, first = np.full(votes.shape, -1.0), np.full(votes.shape, len(samples))
        for k in range(len(said)):
            members = np.flatnonzero(gives[:, k])
            there = subsets[:, members]
            surest[:, k] = np.where(there, confidence[members], -1.0).max(axis=1)
            first[:, k] = np.where(there, members, len(samples)).min(axis=1)
        leads = present.copy()
        for key in (votes, surest, -first):
            highest = np.where(leads, key, -np.inf).max(axis=1, keepdims=True)
            leads &= key == highest
        wins = np.where(present.any(axis=1), leads.argmax(axis=1), -1)
    allowed = subsets if not said else subsets & np.where((wins < 0)[:, None], True, gives.T[wins])
    return np.where(allowed, confidence, -1.0).argmax(axis=1)
