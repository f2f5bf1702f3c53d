"""Answers and their scores as the per-sample rows that lmms-eval logs, so that its tools can read them.

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

from reverse.evaluation.reading.answers import read_rows
from reverse.evaluation.reports.run_folder import RunFolder
from reverse.evaluation.stats.scored_tables import Metric, Table
from reverse.files.atomic_write import atomic_write, json_bytes
from reverse.files.cell_values import read_id
from reverse.files.json_values import replace_non_finite

__all__ = ["export_lmms_eval"]


def export_lmms_eval(run: RunFolder, out: Path) -> list[Path]:
    """Write one file for each scored table of the run whose answers are in it.

    The answers are those of the file with the same name, else of the only file that answers the table's
    questions. If several do, it is not known which one was scored, and none is written.
    """
    written = []
    for scored in run.scored:
        fitting = {
            answers.name: rows
            for answers in run.answers
            if (rows := _read_matching_rows(answers.path, scored.table)) is not None
        }
        if scored.name in fitting:
            rows = fitting[scored.name]
        elif len(fitting) == 1:
            (rows,) = fitting.values()
        else:
            continue
        name = f"{run.name}_{scored.name}_samples_{scored.table.benchmark}.jsonl"
        path = out / re.sub(r"[^A-Za-z0-9._-]+", "_", name)
        with atomic_write(path) as stream:
            for sample in _make_samples(rows, scored.table, scored.metrics):
                stream.write(json_bytes(replace_non_finite(sample)) + b"\n")
        written.append(path)
    return written


def _make_samples(
    rows: Sequence[Mapping[str, Any]], table: Table, metrics: Sequence[Metric]
) -> list[dict[str, Any]]:
    """Make rows of lmms-eval in the table's order; metrics that are not defined for a sample are left out."""
    columns = {name: np.asarray(column, dtype=float)[:, None] for name, column in table.columns.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        values = {m.name: np.asarray(m.of(columns)) for m in metrics if m.of is not None}
    samples = []
    for i, row in enumerate(rows):
        given = row.get("metadata")
        metadata: Mapping[str, Any] = given if isinstance(given, dict) else {}
        doc = {
            "question_id": row.get("question_id", row.get("id")),
            "image_id": row.get("image_id", row.get("id")),
            "question": row.get("prompt", ""),
            **metadata,
        }
        sample = {
            "doc_id": i,
            "doc": doc,
            "target": str(metadata.get("label", metadata.get("answer", ""))),
            "arguments": [row.get("prompt", ""), {}],
            "resps": [[row["text"]]],
            "filtered_resps": [row["text"]],
            "doc_hash": hashlib.sha256(json_bytes(doc, indent=2)).hexdigest(),
        }
        sample |= {name: float(v[i]) for name, v in values.items() if v.shape and np.isfinite(v[i])}
        samples.append(sample)
    return samples


def _read_matching_rows(path: Path, table: Table) -> list[dict[str, Any]] | None:
    """Read the file's rows in the table's order; None if they do not match the table."""
    by_key: dict[str, dict[str, Any]] = {}
    for _, row in read_rows(path, []):
        identity = read_id(row.get("question_id", row.get("id")))
        if identity is not None and isinstance(row.get("text"), str):
            by_key[identity] = row
    if not table.keys or any(key not in by_key for key in table.keys):
        return None
    return [by_key[key] for key in table.keys]
