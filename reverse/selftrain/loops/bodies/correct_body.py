"""Stage "correct": answers with the corrections or reflections that they become, re-verified.

    OUT/pairs.jsonl     records with a first answer, and a verified correction that follows it

Corrections come with the records (`by: records`, such as refined answers that were imported, or the truth of
the reasoning world), from the loop's own model (`model`: they stand in the pool already), or from a teacher:
a checkpoint, or `endpoint`. A first answer that is right is kept as well as a wrong one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reverse.data.drafts.draft_choices import find_corrections
from reverse.data.drafts.draft_files import DraftIndex, read_drafts, write_drafts
from reverse.data.drafts.draft_record import DraftRecord, RecordedDraft
from reverse.errors import DataError
from reverse.grading import grade
from reverse.selftrain.loops.stage import Stage, StageBody, StageContext
from reverse.training.views.view_rows import SAMPLES

__all__ = ["CORRECT"]

FIRST, CORRECTED = "first.jsonl", "corrected.jsonl"  # what a teacher reads and writes


def ask_teacher(context: StageContext) -> None:
    """Have a teacher correct the answers, or reflect on them; nothing to do if there is none."""
    if "teacher" not in context.outside or (context.out / CORRECTED).exists():
        return
    from reverse.selftrain.curation.curation_pass import CurationTask, run_pass
    from reverse.selftrain.curation.sent_pictures import SentPictures
    from reverse.selftrain.curation.tasks.correction_task import CorrectionTask
    from reverse.selftrain.curation.tasks.reflection_task import ReflectionTask
    from reverse.selftrain.curation.teacher import TeacherSampling
    from reverse.selftrain.curation.teacher_opening import TeacherSource, open_teacher

    settings = context.settings
    write_drafts(context.out / FIRST, _list_firsts(context))
    task: CurationTask = CorrectionTask(schema=None)
    if settings["task"] == "reflect":
        task = ReflectionTask(second_thinking=settings["second_thinking"])
    source = TeacherSource(cache=context.out / "replies.jsonl", model=context.outside["teacher"])
    sampling = TeacherSampling(max_tokens=settings["max_new_tokens"], seed=context.seed)

    async def ask() -> None:
        async with open_teacher(source, SentPictures(Path(context.outside["images"])), sampling) as teacher:
            await run_pass(
                task, context.out / FIRST, context.out / CORRECTED, teacher, progress=context.progress
            )

    asyncio.run(ask())


def _list_firsts(context: StageContext) -> Iterator[DraftRecord]:
    """The newest answer of each record, alone."""
    for record in read_drafts(context.inputs["answers"] / context.settings["file"]):
        firsts = [draft for draft in record.drafts if draft.role in SAMPLES and draft.text.strip()]
        if firsts:
            kept = firsts[-1].model_copy(update={"role": "first", "parent": None})
            yield record.model_copy(update={"drafts": (kept,), "links": ()})


def write_pairs(context: StageContext) -> dict[str, Any]:
    """Write the pairs; returns how many there are of which kind."""
    settings = context.settings
    counts: Counter[str] = Counter()
    if "teacher" in context.outside:
        found = read_drafts(context.out / CORRECTED)
    elif settings["by"] == "records":
        found = _join_known(context)
    else:
        found = read_drafts(context.inputs["answers"] / settings["file"])
    write_drafts(context.out / "pairs.jsonl", _verify(found, settings["pairs"], counts))
    if not any(name.endswith("right") for name in counts):
        found_kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.items()) or "none at all"
        raise DataError(
            f"stage {context.name}: no answer has a correction that is right ({found_kinds}): see "
            "`corrections` of the recipe"
        )
    for name in (FIRST, f"{FIRST}.manifest.json"):
        (context.out / name).unlink(missing_ok=True)
    return {"pairs": dict(sorted(counts.items()))}


def _join_known(context: StageContext) -> Iterator[DraftRecord]:
    """Each first answer with the correction that its question came with."""
    known = DraftIndex(context.inputs["questions"] / "train.jsonl")
    try:
        for record in _list_firsts(context):
            corrections = [draft for draft in known[record.id].drafts if draft.role == "correction"]
            if corrections:
                second = corrections[-1].model_copy(update={"parent": 0})
                yield record.model_copy(update={"drafts": (*record.drafts, second)})
    finally:
        known.close()


def _verify(records: Iterator[DraftRecord], pairs: str, counts: Counter[str]) -> Iterator[DraftRecord]:
    """Records with a correction whose verdict is known.

    "published" takes every correction of a right answer as right, as LLaVA-SCo's generator does.
    """
    for record in records:
        assert record.gold is not None
        drafts = [_judge(draft, record, pairs) for draft in record.drafts]
        judged = record.model_copy(update={"drafts": tuple(drafts), "links": ()})
        kinds = [f"{first.verdict} to {second.verdict}" for first, second in find_corrections(judged)]
        if pairs == "published":
            kinds = [kind for kind in kinds if kind.startswith("right")]
        counts.update(kinds)
        if kinds:
            yield judged


def _judge(draft: RecordedDraft, record: DraftRecord, pairs: str) -> RecordedDraft:
    if draft.role not in ("correction", "refinement"):
        return draft
    assert record.gold is not None
    found = grade(draft.text, record.gold.key())
    changes = {"verdict": found.verdict, "judged_by": "grading", "answer": found.extracted}
    if pairs == "published":
        changes |= {"verdict": "right", "judged_by": "assumed"}
    return draft.model_copy(update=changes)


def check_teacher(stage: Stage, processes: int) -> None:
    """Check that a teacher can be asked: its address and the client, or its checkpoint."""
    if "teacher" not in stage.outside:
        return
    from reverse.endpoints.client import check_installed
    from reverse.models.checkpoints.loading import find_checkpoint
    from reverse.selftrain.curation.teacher_opening import TeacherSource

    source = TeacherSource(cache=Path("replies.jsonl"), model=stage.outside["teacher"])
    if source.find_endpoints():
        check_installed()
    else:
        find_checkpoint(source.model)


CORRECT = StageBody(write_pairs, ask_teacher, check=check_teacher)
