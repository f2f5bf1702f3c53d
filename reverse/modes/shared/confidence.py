"""The confidence of an answer, from the p(`</UN>`) of its phrases. All modes use these functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from reverse.decoding.asks import Outcome
from reverse.decoding.result import Result
from reverse.errors import RequestError

__all__ = ["CONFIDENCES", "compute_confidence", "equalize_scores"]

CONFIDENCES = ("min", "product", "mean")
_ROUNDING = 0.01  # relative difference of one text's scores that were computed in half precision


def compute_confidence(result: Result, kind: str = "min") -> float:
    """Return a number in [0, 1]: the minimum, product or mean of 1 - p(`</UN>`) of the phrases.

    It is 0 for an answer without phrases. Raises RequestError for an unknown `kind`.
    """
    values = [1.0 - phrase.p_un for phrase in result.phrases if phrase.p_un is not None]
    if kind not in CONFIDENCES:
        raise RequestError(f"confidence must be one of {', '.join(CONFIDENCES)}, got {kind!r}")
    if not values:
        return 0.0
    if kind == "min":
        return min(values)
    return math.prod(values) if kind == "product" else sum(values) / len(values)


def equalize_scores(outcomes: Sequence[Outcome], scores: Sequence[float]) -> list[float]:
    """Give answers with the same ids the score of the first one, if theirs differ by rounding only.

    Rounding depends on the answers that are decoded in the same batch. The choice between equal answers must
    not, so that a run that was stopped ends like one that was not.
    """
    known: dict[tuple[int, ...], float] = {}
    found = []
    for outcome, score in zip(outcomes, scores, strict=True):
        first = known.setdefault(outcome.node.ids, score)
        found.append(first if math.isclose(score, first, rel_tol=_ROUNDING, abs_tol=1e-6) else score)
    return found
