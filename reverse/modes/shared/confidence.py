"""The confidence of an answer, from the p(`</UN>`) of its phrases. All modes use these functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from reverse.decoding.asks import Outcome
from reverse.decoding.result import Result
from reverse.errors import RequestError

__all__ = ["CONFIDENCES", "compute_confidence", "find_first_equal"]

CONFIDENCES = ("min", "product", "mean")


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


def find_first_equal(outcomes: Sequence[Outcome], chosen: int) -> int:
    """Return the index of the first answer with the same ids as the chosen one, in the same conversation.

    Equal answers have equal scores but for rounding, which depends on the answers that are decoded in the
    same batch. So rounding does not decide which of them is returned, and a run that was stopped ends like
    one that was not.
    """
    wanted = outcomes[chosen].node.ids
    return next(i for i, outcome in enumerate(outcomes) if outcome.node.ids == wanted)
