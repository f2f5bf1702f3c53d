"""Stage "pool": verified drafts of all iterations so far, one record per question.

    OUT/pool.jsonl      drafts of earlier iterations, then the new ones; links of the newest wrong and right

Verdicts come from grading. With steps that can be checked a right answer is verified only if its steps
are right too; else the segments of drafts are left out, and the answer alone counts (as published).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from reverse.data.drafts.draft_files import DraftIndex, read_drafts, write_drafts
from reverse.data.drafts.draft_record import DraftLink, DraftRecord, RecordedDraft
from reverse.selftrain.loops.stage import StageBody, StageContext
from reverse.training.views.view_rows import SAMPLES, is_verified

__all__ = ["POOL", "link_newest"]


def grow_pool(context: StageContext) -> dict[str, Any]:
    """Add the drafts of a run to the previous pool; return counts of the pool."""
    settings = context.settings
    before = context.inputs["pool"] / "pool.jsonl" if "pool" in context.inputs else None
    source = before or context.inputs["questions"] / "train.jsonl"
    counts: Counter[str] = Counter()
    new = DraftIndex(context.inputs["samples"] / f"{settings['run']}.drafts.jsonl")
    try:
        write_drafts(context.out / "pool.jsonl", _count(_grow(source, new, settings), counts))
    finally:
        new.close()
    return {"pool": dict(sorted(counts.items()))}


def _grow(source: Any, new: DraftIndex, settings: Any) -> Iterator[DraftRecord]:
    for record in read_drafts(source):
        drafts = record.drafts
        if record.id in new:
            made = [draft for draft in new[record.id].drafts if draft.role in settings["roles"]]
            drafts = (*drafts, *(_adopt(draft, settings, len(drafts), made) for draft in made))
        yield link_newest(record.model_copy(update={"drafts": drafts}))


def _adopt(draft: RecordedDraft, settings: Any, offset: int, made: Sequence[RecordedDraft]) -> RecordedDraft:
    """Return a draft for the pool, without values that depend on the clock."""
    parent = None
    if settings["chains"] and draft.role == "correction":
        parent = offset + next(i for i, each in enumerate(made) if each is draft) - 1
    changes: dict[str, Any] = {"iteration": settings["iteration"], "seconds": None, "parent": parent}
    if not settings["verifies_steps"]:
        changes["segments"] = ()
    elif any(segment.verdict == "unknown" for segment in draft.segments):
        changes["segments"] = tuple(each for each in draft.segments if each.verdict != "unknown")
    return draft.model_copy(update=changes)


def link_newest(record: DraftRecord) -> DraftRecord:
    """Return the record with one "refine" link from the newest wrong answer to the newest verified right one.

    Source: R3V (arXiv 2411.00855) §3.2. Without both of them the record has no link.
    """
    places = {draft.text.strip(): i for i, draft in enumerate(record.drafts) if draft.role in SAMPLES}
    whole = [i for text, i in sorted(places.items(), key=lambda each: each[1]) if text]
    wrong = [i for i in whole if record.drafts[i].verdict == "wrong"]
    right = [i for i in whole if is_verified(record.drafts[i])]
    links = (DraftLink(kind="refine", drafts=(wrong[-1], right[-1])),) if wrong and right else ()
    return record.model_copy(update={"links": links})


def _count(records: Iterator[DraftRecord], counts: Counter[str]) -> Iterator[DraftRecord]:
    for record in records:
        counts["questions"] += 1
        verdicts = [draft.verdict for draft in record.drafts if draft.role in SAMPLES]
        counts.update(verdicts)
        counts["verified"] += sum(is_verified(draft) for draft in record.drafts if draft.role in SAMPLES)
        counts["solved"] += "right" in verdicts
        counts["linked"] += bool(record.links)
        yield record


POOL = StageBody(grow_pool)
