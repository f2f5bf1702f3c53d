"""Add claims to a file of `benchmarks/results` without losing those of other measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reverse.files.atomic_write import write_json
from reverse.files.file_lock import output_lock
from reverse.files.json_values import replace_non_finite
from reverse.files.text_reading import read_json

__all__ = ["add_claims"]


def add_claims(
    path: Path, name: str | Sequence[str], claims: Mapping[str, Any], parts: Mapping[str, Any]
) -> None:
    """Add or replace claims about one model, and the parts that they come from.

    Args:
        path: JSON with "claims" by model and "parts"; made if it is not there.
        name: of the model, or its name and that of a split.
        claims: by name.
        parts: whole measurements by name.
    """
    with output_lock(path, wait=-1):
        results = read_json(path) if path.is_file() else {}
        place = results.setdefault("claims", {})
        for each in [name] if isinstance(name, str) else name:
            place = place.setdefault(each, {})
        place.update(claims)
        results.setdefault("parts", {}).update(parts)
        write_json(path, replace_non_finite(results))
