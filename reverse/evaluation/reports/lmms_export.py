"""Answers and their scores as the per-sample rows that lmms-eval logs, so that its tools read ours.

    export_lmms_eval(run, Path("report"))             # report/RUN_samples_chair.jsonl

The shape is that of `--log_samples` (lmms-eval 0.3 to 0.7): doc_id, doc, target, arguments, resps,
filtered_resps, doc_hash, and every metric of the sample by its name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reverse.evaluation.detector.sweep import finite
from reverse.evaluation.reports.reporting import Run
from reverse.evaluation.runs.answers_reading import sound_rows
from reverse.evaluation.stats.scored_tables import Metric, Table
from reverse.files.atomic_write import atomic_write, json_bytes
from reverse.files.cell_values import read_id

__all__ = ["export_lmms_eval", "samples"]


def export_lmms_eval(run: Run, out: Path) -> list[Path]:
    """One file for each scored table of the run whose answers are there: the file of the same name, else the
    only one that answers its questions (of several nobody knows which was scored)."""
    written = []
    for stem, table, metrics, _ in run.scored:
        fitting = [
            (answers.name == stem, rows)
            for answers in run.answers
            if (rows := _matching(answers.path, table)) is not None
        ]
        named = [rows for same, rows in fitting if same]
        candidates = named or [rows for _, rows in fitting]
        if len(candidates) != 1:
            continue
        rows = candidates[0]
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", f"{run.name}_{stem}_samples_{table.benchmark}.jsonl")
        with atomic_write(out / name) as stream:
            for sample in samples(rows, table, metrics):
                stream.write(json_bytes(finite(sample)) + b"\n")
        written.append(out / name)
    return written


def samples(
    rows: Sequence[Mapping[str, Any]], table: Table, metrics: Sequence[Metric]
) -> list[dict[str, Any]]:
    """Rows of lmms-eval in the table's order; a metric that one sample does not define is left out of it."""
    columns = {name: np.asarray(column, dtype=float)[:, None] for name, column in table.columns.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        values = {m.name: np.asarray(m.of(columns)) for m in metrics if m.of is not None}
    found = []
    for i, row in enumerate(rows):
        given = row.get("metadata")
        metadata: Mapping[str, Any] = given if isinstance(given, dict) else {}
        doc = {
            "question_id": row.get("question_id", row.get("id")),
            "image_id": row.get("image_id", row.get("id")),
            "question": row.get("prompt", ""),
            **metadata,
        }
        text = json_bytes(doc, indent=2)
        sample = {
            "doc_id": i,
            "doc": doc,
            "target": str(metadata.get("label", metadata.get("answer", ""))),
            "arguments": [row.get("prompt", ""), {}],
            "resps": [[row["text"]]],
            "filtered_resps": [row["text"]],
            "doc_hash": hashlib.sha256(text).hexdigest(),
        }
        sample |= {name: float(v[i]) for name, v in values.items() if v.shape and np.isfinite(v[i])}
        found.append(sample)
    return found


def _matching(path: Path, table: Table) -> list[dict[str, Any]] | None:
    """The file's rows in the table's order; None where they are not those of the table."""
    by_key: dict[str, dict[str, Any]] = {}
    for _, row in sound_rows(path, []):
        identity = read_id(row.get("question_id", row.get("id")))
        if identity is not None and isinstance(row.get("text"), str):
            by_key[identity] = row
    if not table.keys or any(key not in by_key for key in table.keys):
        return None
    return [by_key[key] for key in table.keys]
