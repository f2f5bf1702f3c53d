"""Make values fit for JSON."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["replace_non_finite"]


def replace_non_finite(value: Any) -> Any:
    """Return the value with None in place of every NaN and infinity, which JSON cannot hold."""
    if isinstance(value, dict):
        return {name: replace_non_finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_non_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
