"""Stage "questions": copy the questions and warm-up rationales of a loop into its folder.

    OUT/train.jsonl test.jsonl     draft records without drafts, or with those of the roles that are kept
    OUT/warmup.jsonl               records with one rationale each, if there is a warm-up

So a loop does not change when its sources do, and goes on where they are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from reverse.data.drafts.draft_files import read_drafts, write_drafts
from reverse.data.drafts.draft_record import DraftRecord
from reverse.errors import DataError
from reverse.grading.latex_answers import require_math_verify
from reverse.selftrain.loops.stage import StageBody, StageContext
from reverse.training.views.view_rows import is_verified

__all__ = ["QUESTIONS"]


def copy_questions(context: StageContext) -> dict[str, Any]:
    """Write the question files; return the number of records of each."""
    settings = context.settings
    counts = {}
    seen: set[str] = set()
    for name in ("train", "test"):
        source = context.outside[name]
        limit, roles = settings[f"{name}_limit"], settings["keep_roles"] if name == "train" else ()
        records = islice(_read_questions(source, seen, name, roles), limit)
        counts[name] = write_drafts(context.out / f"{name}.jsonl", records)
        if not counts[name]:
            raise DataError(f"{source} holds no questions: name a draft file with some")
    if "warmup" in context.outside:
        found = islice(_read_rationales(context.outside["warmup"], settings), settings["warmup_count"])
        counts["warmup"] = write_drafts(context.out / "warmup.jsonl", found)
        if not counts["warmup"]:
            raise DataError(
                f"{context.outside['warmup']} holds no draft with the role {settings['warmup_role']!r}"
                f"{' that is right' if settings['warmup_verified'] else ''}: set questions.warmup_role, or "
                "questions.warmup=none to begin without"
            )
    return {"records": counts}


def _read_questions(
    source: str | Path, seen: set[str], name: str, roles: Sequence[str]
) -> Iterator[DraftRecord]:
    """Read questions with a right answer that can be compared here, and a picture.

    Each occurs once, and never both in training and test.
    """
    for record in read_drafts(source):
        if record.gold is None or not record.images:
            lacks = "right answer" if record.gold is None else "picture"
            raise DataError(
                f"{source}: record {record.id!r:.80} has no {lacks}: a loop verifies answers to questions "
                "about pictures, leave it out"
            )
        if record.gold.kind == "latex":
            require_math_verify()
        if record.id in seen:
            raise DataError(
                f"{source}: the id {record.id!r:.80} stands twice, or in questions.train and "
                "questions.test: figures would be of questions that were trained on"
            )
        seen.add(record.id)
        kept = tuple(
            draft.model_copy(update={"parent": None, "seconds": None})
            for draft in record.drafts
            if draft.role in roles
        )
        yield record.model_copy(update={"drafts": kept, "links": (), "cost": None})


def _read_rationales(source: str | Path, settings: Any) -> Iterator[DraftRecord]:
    """Read records with their first rationale, as the role "rationale"."""
    for record in read_drafts(source):
        for draft in record.drafts:
            if draft.role != settings["warmup_role"] or not draft.text.strip():
                continue
            if settings["warmup_verified"] and not is_verified(draft):
                continue
            changes = {"role": "rationale", "parent": None, "seconds": None}
            yield record.model_copy(
                update={"drafts": (draft.model_copy(update=changes),), "links": (), "cost": None}
            )
            break


QUESTIONS = StageBody(copy_questions)
