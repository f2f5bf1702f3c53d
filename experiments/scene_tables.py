"""Answers about scenes as scored tables, so that they are compared and reported like any benchmark.

table = scene_table(describe_scenes(model, loaded, out, "on", Decoding()))
compare(scene_table(on), scene_table(twin), METRICS)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reverse.evaluation.stats.scored_tables import Table, ratio

__all__ = ["METRICS", "scene_table"]

COLUMNS = ("wrong", "mentions", "named", "objects", "words", "empty", "unresolved", "kept", "generated")
METRICS = (
    ratio("chair_i", "wrong", "mentions", "low", title="CHAIRi"),
    ratio("chair_s", "hall", "answers", "low", title="CHAIRs"),
    ratio("coverage", "named", "objects", "high", title="coverage"),
    ratio("words", "words", "answers", "neither", unit="words", title="words"),
    ratio("empty", "empty", "answers", "low", title="empty answers"),
    ratio("unresolved", "unresolved", "answers", "low", title="unresolved answers"),
    ratio("tokens", "generated", "answers", "low", unit="tokens", title="tokens generated"),
)


def scene_table(rows: Sequence[Mapping[str, Any]], notes: Mapping[str, Any] | None = None) -> Table:
    """One row a scene of those that `reverse.evaluation.runs.scene_captions.count_caption` makes."""
    columns = {name: np.array([row[name] for row in rows], dtype=float) for name in COLUMNS}
    columns["hall"] = (columns["wrong"] > 0).astype(float)
    columns["answers"] = np.ones(len(rows))
    ids = [str(row["id"]) for row in rows]
    return Table("scenes", ids, columns, keys=ids, notes=dict(notes or {}))
