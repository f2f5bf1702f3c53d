"""Answers on disk: JSON lines that can be killed at any moment, continued and divided among processes.

`reverse.evaluation.reading.answers` reads them back. A row holds what the published code writes (question_id,
prompt, image_id, text, generation_history, answer_id, model_id, successful_correction, metadata) and
`resolved`, `finish_reason`, `phrases` (text, start, end, p_un, status), `attempts` (what was taken back),
`usage` (tokens), `grade` (of graded benchmarks: verdict, reason, extracted answer), `answer` and `drafts` (of
modes), `config` (hash of everything that decides the answer) and, last, `timing`: the only key that differs
between two runs of the same configuration. Probabilities have four significant digits: another batch changes
the sixth digit in float32.

Crash safety. `NAME.run.json` (configuration, question and picture ids, versions) is written first,
atomically. Rows are appended to `NAME.jsonl`, flushed one by one and synced every 16 rows: a killed process
loses no row, a power cut at most 16. A restart cuts off a torn last line, refuses another configuration, and
asks only unanswered questions. Each of several processes writes a shard (`NAME.shard-0001-of-0004.jsonl`).
The one that finds all questions answered writes, under the lock of the folder, `NAME.jsonl` anew in the order
of the questions, atomically, and then removes the shards: so a shard keeps its rows until the joined file has
them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from io import BufferedRandom
from pathlib import Path
from typing import Any

from reverse.errors import DataError
from reverse.evaluation.reading.answers import end_of_last_line, read_kept_rows, read_run, run_path
from reverse.files.atomic_write import atomic_write, json_bytes, sync_folder, write_json
from reverse.files.file_lock import output_lock
from reverse.grading import grade

__all__ = [
    "AnswersFile",
    "hash_config",
    "lock_folder",
    "make_answer_row",
    "merge_shards",
    "remove_timing",
]

FORMAT = 1
SYNC_EVERY = 16  # rows


def hash_config(config: Mapping[str, Any]) -> str:
    """Hash a configuration: 16 hexadecimal digits of the SHA-256 of its sorted JSON."""
    data = json.dumps(config, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(data.encode()).hexdigest()[:16]


def make_answer_row(
    question: Any, result: Any, *, benchmark: str, model_id: str, config: str
) -> dict[str, Any]:
    """Write a `Result` as a row. `question` has id, image, prompt and metadata; `config` is the hash."""
    identity = hashlib.sha256(f"{config} {question.id}".encode()).hexdigest()[:22]
    return {
        "question_id": question.id,
        "prompt": question.prompt,
        "image_id": question.image,
        "text": result.text,
        "generation_history": [entry.phrase for entry in result.trace],
        "answer_id": identity,
        "model_id": model_id,
        "successful_correction": result.resolved,
        "metadata": {"benchmark": benchmark, **question.metadata},
        "resolved": result.resolved,
        "finish_reason": result.finish_reason,
        "phrases": _write_phrases(result.phrases),
        "attempts": [
            {
                "kind": a.kind, "phrase": a.phrase, "p_un": _round_p(a.p_un), "at": a.at,
                "rewound_to": a.rewound_to, "temperature": round(a.temperature, 6), "level": a.level,
                "tokens": a.tokens,
            }
            for a in result.trace
        ],
        "usage": {
            "kept": result.usage.kept, "discarded": result.usage.discarded, "unused": result.usage.unused,
        },
        **_grade(question, result),
        **_write_drafts(result),
        "config": config,
        "timing": {
            "seconds": round(result.usage.seconds, 4),
            "forwards": result.usage.forwards,
            "attempts": [round(a.seconds, 4) for a in result.trace],
            **({"drafts": [round(d.seconds, 4) for d in result.drafts]} if result.drafts else {}),
        },
    }  # fmt: skip


def _grade(question: Any, result: Any) -> dict[str, Any]:
    """Return the verdict on an answer to a question with an answer key, as `grade` does."""
    key = getattr(question, "key", None)
    return {} if key is None else {"grade": asdict(grade(result.text, key))}


def _write_phrases(phrases: Sequence[Any]) -> list[dict[str, Any]]:
    return [
        {"text": p.text, "start": p.start, "end": p.end, "p_un": _round_p(p.p_un), "status": p.status}
        for p in phrases
    ]


def _write_drafts(result: Any) -> dict[str, Any]:
    """Return `answer` and `drafts` of a mode's result; an empty mapping for a single answer."""
    if not result.drafts:
        return {}
    drafts = [
        {
            "role": d.role, "text": d.text, "answer": d.answer, "confidence": _round_confidence(d.confidence),
            "tokens": d.tokens, "accepted": d.accepted, "malformed": d.malformed,
            "phrases": _write_phrases(d.phrases),
        }
        for d in result.drafts
    ]  # fmt: skip
    return {"answer": result.answer, "drafts": drafts}


def remove_timing(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a row that is the same in every run of a configuration."""
    return {key: value for key, value in row.items() if key != "timing"}


class AnswersFile:
    """Writes the answers of one benchmark.

    Args:
        path: NAME.jsonl, in a folder that exists.
        run: content of NAME.run.json: at least "config", and "questions" with the list "ids".
        rank, world: which of how many processes this is.

    `done` holds the ids (as text) that any process has answered. Raises DataError if the file was made with
    another configuration (naming what differs) or is damaged, or if another process writes to it.
    """

    def __init__(self, path: str | Path, run: Mapping[str, Any], rank: int = 0, world: int = 1):
        self.path = Path(path)
        self.own = self.path if world == 1 else _shard_path(self.path, rank, world)
        self.config = hash_config(run["config"])
        self._file: BufferedRandom | None = None
        self._unsynced = 0
        self._lock = ExitStack()
        with lock_folder(self.path.parent):
            _write_run(self.path, run, self.config)
            self._lock.enter_context(output_lock(self.own, reentrant=False))
            try:
                self._file = self.own.open("a+b")
                self._file.truncate(end_of_last_line(self.own.read_bytes()))
                self.done = set(_find_lines(self.path, self.config))
                for shard in _find_shards(self.path):
                    self.done |= set(_find_lines(shard, self.config))
            except BaseException:
                self._release()
                raise

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row. It is not lost if this process is killed afterwards."""
        assert self._file is not None, "the file is closed"
        self._file.write(json_bytes(row) + b"\n")
        self._file.flush()
        self.done.add(str(row["question_id"]))
        self._unsynced += 1
        if self._unsynced >= SYNC_EVERY:
            self._sync()

    def _sync(self) -> None:
        assert self._file is not None
        os.fsync(self._file.fileno())
        self._unsynced = 0

    def close(self) -> None:
        if self._file is not None:
            self._sync()
        self._release()

    def _release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lock.close()

    def __enter__(self) -> AnswersFile:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def merge_shards(path: str | Path, ids: Sequence[Any], config: str) -> bool:
    """Join the shards and order the answers as `ids` if all answers exist; return whether they do.

    Answers to other questions (of an earlier run with a higher limit) stay, behind the others.
    """
    path = Path(path)
    with lock_folder(path.parent):
        shards = _find_shards(path)
        lines: dict[str, bytes] = {}
        for file in (path, *shards):
            if file.exists():
                data = file.read_bytes()
                found = _find_lines(file, config)
                lines = {name: data[span] for name, span in found.items()} | lines
        wanted = [str(i) for i in ids]
        if any(name not in lines for name in wanted):
            return False
        order = list(dict.fromkeys([*wanted, *lines]))
        if shards or list(lines) != order:
            with atomic_write(path) as stream:
                stream.writelines(lines[name] for name in order)
        for shard in shards:
            shard.unlink()
        sync_folder(path.parent)
    return True


def _round_p(p: float | None) -> float | None:
    return None if p is None else float(f"{p:.4g}")


def _round_confidence(confidence: float) -> float:
    """Round a confidence to four digits of itself or of its distance to 1, so that nearly sure drafts keep
    their order.
    """
    if confidence < 0.5:
        return float(f"{confidence:.4g}")
    return round(1 - float(f"{1 - confidence:.4g}"), 12)


def _find_lines(path: Path, config: str) -> dict[str, slice]:
    """Return the bytes of each id's line. Raises DataError for rows of another configuration."""
    if not path.exists():
        return {}
    found: dict[str, slice] = {}
    data = path.read_bytes()
    for number, span, row in read_kept_rows(path, data[: end_of_last_line(data)]):
        name = str(row["question_id"])
        if row.get("config") != config:
            raise DataError(
                f"{path}, line {number} was made with the configuration {row.get('config')!r}, not "
                f"{config!r}: give another folder with --out"
            )
        if name in found:
            raise DataError(f"{path}: question {name!r} is answered twice: keep one of the lines")
        found[name] = span
    return found


def _write_run(path: Path, run: Mapping[str, Any], config: str) -> None:
    """Write the run's record. Raises DataError if the file holds answers of another run."""
    before = read_run(path)
    if before is None:
        if path.exists() and path.stat().st_size:
            raise DataError(
                f"{path} exists without {run_path(path).name}, which says how it was made: give another "
                "folder with --out"
            )
        write_json(run_path(path), {"format": FORMAT, "config_hash": config, **run})
        return
    if hash_config(before["config"]) != config:
        changed = _describe_changes(before["config"], run["config"])
        raise DataError(
            f"{path} holds answers made with other settings ({changed}): "
            "give another folder with --out, or the settings it was made with"
        )
    merged = {"format": FORMAT, "config_hash": config, **run}
    for name in ("versions", "batching"):
        several = [*before.get(name, []), *run.get(name, [])]
        merged[name] = [value for i, value in enumerate(several) if value not in several[:i]]
    asked = {str(i) for i in run["questions"]["ids"]}
    if any(str(i) not in asked for i in before["questions"]["ids"]):  # a lower limit: all stay in the record
        merged["questions"] = before["questions"]
        merged["images"] = before.get("images")
    if merged != before:
        write_json(run_path(path), merged)


def _describe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name}: {before.get(name)!r} there, {now.get(name)!r} now" for name in names[:5])


def _shard_path(path: Path, rank: int, world: int) -> Path:
    return path.with_name(f"{path.stem}.shard-{rank:04d}-of-{world:04d}.jsonl")


def _find_shards(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}.shard-*-of-*.jsonl"))


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; other processes wait for it."""
    with output_lock(folder, wait=-1):
        yield
