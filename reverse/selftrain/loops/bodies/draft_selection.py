"""Select drafts of a pool for a view: functions that return records with only the drafts that the view needs.

    records = SELECTIONS["newest right"](read_drafts("pool.jsonl"))

Each function takes one record and returns a record, or None if it has nothing for the view.
"""

from __future__ import annotations

from collections.abc import Callable

from reverse.data.drafts.draft_choices import find_corrections
from reverse.data.drafts.draft_record import DraftLink, DraftRecord
from reverse.training.views.view_rows import SAMPLES, is_verified

__all__ = ["SELECTIONS", "Selection"]

Selection = Callable[[DraftRecord], DraftRecord | None]


def keep_all(record: DraftRecord) -> DraftRecord | None:
    """Return the record unchanged."""
    return record


def keep_unlinked(record: DraftRecord) -> DraftRecord | None:
    """Return the record without links, so that a view draws pairs itself."""
    return record.model_copy(update={"links": ()})


def keep_linked(record: DraftRecord) -> DraftRecord | None:
    """Return the record if it has links."""
    return record if record.links else None


def keep_newest_right(record: DraftRecord) -> DraftRecord | None:
    """Keep the newest verified answer, as a rationale (R3V: self-CoT)."""
    return _keep_one(record, [i for i in _samples(record) if is_verified(record.drafts[i])][-1:])


def keep_best_right(record: DraftRecord) -> DraftRecord | None:
    """Keep the most confident verified chain of the newest iteration that has one (TSST: D+)."""
    right = [i for i in _samples(record) if is_verified(record.drafts[i])]
    if not right:
        return None
    newest = max(record.drafts[i].iteration for i in right)
    right = [i for i in right if record.drafts[i].iteration == newest]
    return _keep_one(record, [max(right, key=lambda i: (record.drafts[i].confidence or 0.0, -i))])


def keep_short_answer(record: DraftRecord) -> DraftRecord | None:
    """Keep only the right answer, as a rationale (R3V: the short answers of the data set)."""
    assert record.gold is not None
    first = record.gold.answers[0]
    draft = {"text": f"Answer: {first}", "role": "rationale", "verdict": "right", "judged_by": "truth"}
    return DraftRecord.model_validate({**dict(record), "drafts": [draft], "links": []})


def link_corrections(record: DraftRecord) -> DraftRecord | None:
    """Link the newest answers with the corrections that follow them (LLaVA-SCo)."""
    pairs = find_corrections(record.model_copy(update={"links": ()}))
    places = {id(draft): i for i, draft in enumerate(record.drafts)}
    links = tuple(
        DraftLink(kind="refine", drafts=(places[id(first)], places[id(second)])) for first, second in pairs
    )
    return record.model_copy(update={"links": links}) if links else None


def link_reflections(record: DraftRecord) -> DraftRecord | None:
    """Link answers as "reflect" with the corrections that follow them or a reflection on them."""
    linked = link_corrections(record)
    if linked is None:
        return None
    links = tuple(DraftLink(kind="reflect", drafts=link.drafts) for link in linked.links)
    return linked.model_copy(update={"links": links})


def _samples(record: DraftRecord) -> list[int]:
    return [i for i, draft in enumerate(record.drafts) if draft.role in SAMPLES and draft.text.strip()]


def _keep_one(record: DraftRecord, places: list[int]) -> DraftRecord | None:
    if not places:
        return None
    draft = record.drafts[places[0]].model_copy(update={"role": "rationale", "parent": None})
    return record.model_copy(update={"drafts": (draft,), "links": ()})


SELECTIONS: dict[str, Selection] = {
    "all": keep_all,
    "linked": keep_linked,
    "unlinked": keep_unlinked,
    "newest right": keep_newest_right,
    "best right": keep_best_right,
    "short answer": keep_short_answer,
    "corrections": link_corrections,
    "reflections": link_reflections,
}
