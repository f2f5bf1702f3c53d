"""How sure the model is of a whole answer, from the p(`</UN>`) of its phrases: one function for all modes."""

from __future__ import annotations

import math

from reverse.decoding.result import Result
from reverse.errors import RequestError

__all__ = ["CONFIDENCES", "confidence_of"]

CONFIDENCES = ("min", "product", "mean")


def confidence_of(result: Result, kind: str = "min") -> float:
    """A number in [0, 1]: 1 - max p(`</UN>`) of the phrases, or the product or mean of 1 - p(`</UN>`).

    An answer without phrases says nothing of its confidence: 0, the least.
    Raises ValueError for an unknown `kind`.
    """
    sure = [1.0 - phrase.p_un for phrase in result.phrases if phrase.p_un is not None]
    if kind not in CONFIDENCES:
        raise RequestError(f"confidence must be one of {', '.join(CONFIDENCES)}, got {kind!r}")
    if not sure:
        return 0.0
    if kind == "min":
        return min(sure)
    return math.prod(sure) if kind == "product" else sum(sure) / len(sure)
