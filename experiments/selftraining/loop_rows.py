"""Rows of graded answers: what each system trains on, by the views of the library.

Those of R3V and STaR also use the pool and the selections of its loops.

pools = make_rows(partial(pooled_rows, kinds=("own", "refine"), keeps_steps=False), jobs, source).pools
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from experiments.reasoning.reasoning_recipe import REFLECTION
from experiments.reasoning.reasoning_rows import PLACES, Chunk, RowSource, encode_pictures
from reverse.data.drafts.draft_record import DraftRecord, RecordedDraft
from reverse.data.scenes.reasoning import (
    ReasoningPicture,
    ReasoningQuestion,
    annotate,
    make_reasoning_questions,
    make_verified_draft,
    write_rationale,
)
from reverse.data.scenes.reasoning.reasoning_pictures import make_picture_rng
from reverse.modes import Reflect
from reverse.selftrain.loops.bodies.draft_selection import SELECTIONS
from reverse.selftrain.loops.bodies.pool_body import link_newest
from reverse.training.views.correction_views import view_refine, view_reflect, view_self_correct
from reverse.training.views.selection_view import view_select
from reverse.training.views.solving_views import view_cot
from reverse.training.views.view_rows import ViewRows, ViewSettings

__all__ = ["KINDS", "PooledPicture", "make_pool_record", "pooled_rows"]

Texts = tuple[tuple[str, ...], ...]  # samples of one question in each iteration


@dataclass(frozen=True)
class PooledPicture:
    """A picture, and what was sampled for its first questions in all iterations so far."""

    index: int
    texts: tuple[Texts, ...]


@dataclass(frozen=True)
class _Kind:
    """A kind of rows: what of a record it keeps, and the view of that."""

    keep: Callable[[DraftRecord], DraftRecord | None]
    view: Callable[[DraftRecord, ViewSettings], ViewRows]
    settings: ViewSettings


def _keep_roles(*roles: str, only_right: bool = False) -> Callable[[DraftRecord], DraftRecord]:
    """Keep drafts with these roles, samples of the newest iteration only, and no links."""

    def keep(record: DraftRecord) -> DraftRecord:
        newest = max((draft.iteration or 0 for draft in record.drafts), default=0)
        kept = [
            draft
            for draft in record.drafts
            if draft.role in roles
            and (draft.role != "sample" or draft.iteration == newest)
            and not (only_right and draft.verdict != "right")
        ]
        return record.model_copy(update={"drafts": tuple(kept), "links": ()})

    return keep


_PAIRS = _keep_roles("sample", "correction")
KINDS: dict[str, _Kind] = {
    "own": _Kind(SELECTIONS["newest right"], view_cot, ViewSettings()),
    "refine": _Kind(SELECTIONS["linked"], view_refine, ViewSettings(right_share=0.0)),
    "select": _Kind(SELECTIONS["unlinked"], view_select, ViewSettings(per_question=2)),
    "annotated": _Kind(_keep_roles("rationale"), view_cot, ViewSettings()),
    "corrected": _Kind(_PAIRS, view_self_correct, ViewSettings(right_share=0.3)),
    "kept": _Kind(
        _keep_roles("sample", "correction", only_right=True),
        view_self_correct,
        ViewSettings(right_share=1.0),
    ),
    "reflected": _Kind(
        _PAIRS, view_reflect, ViewSettings(mode=Reflect(instruction=REFLECTION), right_share=0.3)
    ),
}


def pooled_rows(
    source: RowSource, jobs: Sequence[PooledPicture], *, kinds: Sequence[str], verify: str, tagged: bool
) -> Chunk:
    """Rows of some kinds about sampled answers.

    Args:
        verify: "answer": a sample is right if its final answer is; "steps": and all its steps.
        tagged: rows have the three tokens around phrases. Rows of "own" and "annotated" do not train the
            closing tags; all others train them as `</CN>`.
    """
    by_index = {job.index: job for job in jobs}

    def view(picture: ReasoningPicture) -> Iterator[tuple[str, dict[str, Any]]]:
        rng = make_picture_rng(picture, 32)
        for question, texts in zip(
            make_reasoning_questions(picture), by_index[picture.index].texts, strict=False
        ):
            record = make_pool_record(picture, question, texts, verify=verify)
            for kind in kinds:
                own = record
                if kind == "annotated":
                    said = annotate(picture, question, rng).text
                    own = _with_drafts(record, [make_verified_draft(question, said, role="rationale")])
                kept = KINDS[kind].keep(own)
                if kept is not None:
                    settings = replace(KINDS[kind].settings, tagged=tagged)
                    yield from ((kind, row) for row in KINDS[kind].view(kept, settings).rows)

    return encode_pictures(source, [source.picture(job.index) for job in jobs], view)


def make_pool_record(
    picture: ReasoningPicture, question: ReasoningQuestion, texts: Texts, *, verify: str
) -> DraftRecord:
    """The samples of all iterations, graded and linked as in the pool of a loop, and the true correction."""
    known: dict[str, RecordedDraft] = {}  # texts are often equal

    def grade(text: str, iteration: int) -> RecordedDraft:
        if text not in known:
            made = make_verified_draft(question, text, role="sample")
            segments = tuple(each for each in made.segments if each.verdict != "unknown")
            if verify == "answer" and made.verdict == "right":
                segments = tuple(each.model_copy(update={"verdict": "right"}) for each in segments)
            known[text] = made.model_copy(update={"segments": segments})
        return known[text].model_copy(update={"iteration": iteration})

    drafts = [grade(text, number) for number, each in enumerate(texts, 1) for text in each if text]
    true = make_verified_draft(question, write_rationale(question, picture.truth), role="correction")
    record = DraftRecord(id=question.id, question=question.text, images=(PLACES,), gold=question.gold)
    return link_newest(_with_drafts(record, [*drafts, true]))


def _with_drafts(record: DraftRecord, drafts: Sequence[RecordedDraft]) -> DraftRecord:
    return record.model_copy(update={"drafts": tuple(drafts)})
