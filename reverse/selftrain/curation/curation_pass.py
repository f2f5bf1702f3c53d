"""Run a curation task over a draft file, with a bounded number of records at a time. It can be stopped and
resumed.

    manifest = asyncio.run(run_pass(task, source, out, teacher))

On disk: `OUT` with the records for which the task succeeded, in their order; `OUT.failures.jsonl` with the
others and why; `OUT.manifest.json`; while it runs, `OUT.part` (`reverse.files.resumable_parts`); and the
cache of the teacher's replies. The same command continues a killed pass, and retries the failures of a
finished one; known replies come from the cache.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from reverse.data.drafts.draft_files import draft_line, read_drafts
from reverse.data.drafts.draft_record import DraftRecord
from reverse.endpoints.repeated_asking import SilenceWatch
from reverse.errors import RequestError
from reverse.files.atomic_write import sha256
from reverse.files.resumable_parts import PartFile
from reverse.progress import ProgressCallback
from reverse.selftrain.curation.teacher import Teacher

__all__ = ["CurationTask", "RecordOutcome", "fail", "open_pass", "process_records", "run_pass"]

FORMAT = 1  # of the output; a part of another format is not continued


@dataclass(frozen=True)
class RecordOutcome:
    """The outcome of a task for a record: a value to write or a failure, and its cost."""

    value: Mapping[str, Any] | None
    counts: Counter[str]
    failure: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, record: DraftRecord, counts: Counter[str]) -> RecordOutcome:
        """Return the outcome that writes a record."""
        return cls(json.loads(draft_line(record)), counts)


class CurationTask(Protocol):
    """The protocol of a task, which makes a value from one record.

    Its fields are settings and part of a run's plan.
    """

    @property
    def name(self) -> str:
        """The name of the command."""

    async def process(self, record: DraftRecord, teacher: Teacher) -> RecordOutcome:
        """Ask the teacher about one record."""


def fail(record: DraftRecord, reason: str, counts: Counter[str], detail: str) -> RecordOutcome:
    """Return the outcome of a failure: its reason in one word, and a detail."""
    counts[f"failed.{reason}"] += 1
    return RecordOutcome(None, counts, {"id": record.id, "reason": reason, "detail": detail[:1000]})


async def process_records(
    records: Iterable[DraftRecord], task: CurationTask, teacher: Teacher, window: int, watch: SilenceWatch
) -> AsyncIterator[RecordOutcome]:
    """Yield the outcome of each record, in order; at most `window` records are under way.

    Raises ServerGone when the teacher has stopped answering.
    """
    source = iter(records)
    running: deque[asyncio.Task[RecordOutcome]] = deque()
    try:
        while True:
            while len(running) < window and (record := next(source, None)) is not None:
                running.append(asyncio.ensure_future(task.process(record, teacher)))
            if not running:
                return
            made = await running.popleft()
            detail = made.failure["detail"] if made.failure is not None else ""
            watch.add(made.counts["failed.unreachable"], made.counts["replies"], detail)
            yield made
    finally:
        for pending in running:
            pending.cancel()
        await asyncio.gather(*running, return_exceptions=True)


@contextmanager
def open_pass(
    source: Path, out: Path, plan: Mapping[str, Any], limit: int | None = None
) -> Iterator[PartFile]:
    """Yield the part of a pass from a draft file to another one.

    Raises RequestError if they are one file, and what `PartFile` raises.
    """
    if source.resolve() == out.resolve():
        raise RequestError(f"{out} is the input: name another file to write")
    whole = {"format": FORMAT, **plan, "limit": limit, "input": source.name, "input_sha256": sha256(source)}
    with PartFile(out, whole, retries_failures=True) as part:
        yield part


def make_plan(task: CurationTask, teacher: Teacher) -> dict[str, Any]:
    """Return what determines the result of a task: its settings, the teacher, and how it is asked."""
    settings = json.loads(json.dumps(asdict(task)))  # type: ignore[call-overload]
    return {
        "command": f"curate {task.name}",
        "settings": settings,
        "model": teacher.name,
        "sampling": asdict(teacher.sampling),
        **teacher.origin,
        "judge": None if teacher.judge is None else {"model": teacher.judge.name, **teacher.judge.origin},
        "pictures": "described"
        if teacher.pictures.descriptions is not None
        else teacher.pictures.url or "sent",
    }


async def run_pass(
    task: CurationTask,
    source: Path,
    out: Path,
    teacher: Teacher,
    *,
    window: int = 32,
    limit: int | None = None,
    progress: ProgressCallback = lambda done, total=None, note="": None,
    describe: Callable[[Mapping[str, float]], str] = lambda counts: describe_cost(counts),
) -> dict[str, Any]:
    """Run a task over a draft file; return the manifest, whose `counts` say what came of it and what it cost.

    `window` records are under way at a time.
    """
    with open_pass(source, out, make_plan(task, teacher), limit) as part:
        if part.manifest is not None:
            return part.manifest
        total = part.counts()
        records = islice(read_drafts(source), part.done, limit)
        watch = SilenceWatch(teacher.origin.get("address", teacher.name))
        async for made in process_records(records, task, teacher, window, watch):
            counts = Counter({key: count for key, count in made.counts.items() if key != "cached"})
            counts["records"] += 1
            part.write(
                [] if made.value is None else [made.value],
                counts,
                [] if made.failure is None else [made.failure],
            )
            total.update(made.counts)
            progress(part.done, None, describe(total))
        return part.finish()


def describe_cost(counts: Mapping[str, float], price_in: float = 0.0, price_out: float = 0.0) -> str:
    """Describe the cost: replies, tokens, failures and, with prices of a million tokens, money."""
    read, written = counts.get("tokens_in", 0), counts.get("tokens_out", 0)
    parts = [f"{counts.get('replies', 0):,} replies, {read:,} tokens in, {written:,} out"]
    if price_in or price_out:
        parts.append(f"{(read * price_in + written * price_out) / 1e6:.2f} money")
    failed = sum(count for key, count in counts.items() if key.startswith("failed."))
    if failed:
        parts.append(f"{failed:,} failed")
    return ", ".join(parts)
