"""Choose drafts of a record for a purpose: what is right, what corrects what, what a draft answers."""

from __future__ import annotations

from reverse.data.drafts.draft_record import DraftRecord, RecordedDraft
from reverse.grading.final_answer import find_final_answer

__all__ = [
    "answer_of",
    "find_chains",
    "find_corrections",
    "find_critique",
    "find_right_drafts",
]

PARTS = ("judge", "reflection", "prefix")  # roles of drafts that are not whole answers to the question


def find_right_drafts(record: DraftRecord) -> list[RecordedDraft]:
    """Return the drafts that answer the whole question and are right, in their order."""
    return [draft for draft in record.drafts if draft.verdict == "right" and draft.role not in PARTS]


def find_chains(record: DraftRecord) -> list[RecordedDraft]:
    """Return the whole answers with a known verdict, in their order; human-written rationales count too."""
    return [draft for draft in record.drafts if draft.verdict != "unknown" and draft.role not in PARTS]


def answer_of(draft: RecordedDraft) -> str:
    """Return the final answer of a draft."""
    return draft.answer if draft.answer is not None else find_final_answer(draft.text)[0]


def find_corrections(record: DraftRecord) -> list[tuple[RecordedDraft, RecordedDraft]]:
    """Return pairs of an answer and its correction, from "refine" links and from the parents of corrections.

    A reflection may stand between the two.
    """
    pairs = [link.drafts[:2] for link in record.links if link.kind == "refine"]
    for after, draft in enumerate(record.drafts):
        first = draft.parent
        if first is not None and record.drafts[first].role == "reflection":
            first = record.drafts[first].parent
        if first is not None and draft.role in ("correction", "refinement"):
            pairs.append((first, after))
    return [(record.drafts[first], record.drafts[after]) for first, after in dict.fromkeys(pairs)]


def find_critique(record: DraftRecord, correction: RecordedDraft) -> str:
    """Return the text of the reflection before a correction; "" if there is none."""
    before = None if correction.parent is None else record.drafts[correction.parent]
    return before.text if before is not None and before.role == "reflection" else ""
