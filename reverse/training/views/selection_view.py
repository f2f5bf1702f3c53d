"""View of a choice: distinct answers to one question, and the right one."""

from __future__ import annotations

from typing import Any

from reverse.data.drafts.draft_record import DraftRecord, RecordedDraft
from reverse.decoding.asks import Conversation
from reverse.modes import Select
from reverse.modes.shared.judging import show_candidates
from reverse.training.views.view_rows import (
    SAMPLES,
    ViewRows,
    ViewSettings,
    ViewTurn,
    is_verified,
    mode_of,
    write_draft,
)

__all__ = ["view_select"]

MOST_CANDIDATES = 4


def view_select(record: DraftRecord, settings: ViewSettings) -> ViewRows:
    """Make rows of two to four candidates with different answers, in an order drawn by the seed, as in
    `Select`.

    Exactly one is right; it is verified, and it is the answer. Links of the kind "select" say which drafts
    are shown, in their order.
    """
    rows = ViewRows(record, "select", settings)
    mode = mode_of(settings, Select)
    random = settings.random(record, rows.view)
    linked = [[record.drafts[i] for i in each.drafts] for each in record.links if each.kind == "select"]
    for candidates in linked:
        _add_row(rows, mode, candidates)
    if linked:
        return rows
    drafts = [draft for draft in record.drafts if draft.role in (settings.roles or SAMPLES)]
    drafts = [draft for draft in drafts if draft.answer is not None and draft.text.strip()]
    right = [draft for draft in drafts if is_verified(draft)]
    wrong = [draft for draft in drafts if draft.verdict == "wrong"]
    if not right or not wrong:
        rows.leave_out("no verified answer among the samples" if not right else "no wrong answer")
        return rows
    for _ in range(settings.per_question or 1):
        chosen = random.choice(right)
        others: dict[str, RecordedDraft] = {}
        for draft in random.sample(wrong, len(wrong)):
            if draft.answer != chosen.answer:
                others.setdefault(str(draft.answer), draft)
        shown = list(others.values())[: random.randint(1, MOST_CANDIDATES - 1)]
        candidates = [chosen, *shown]
        random.shuffle(candidates)
        _add_row(rows, mode, candidates)
    return rows


def _add_row(rows: ViewRows, mode: Select, candidates: list[RecordedDraft]) -> None:
    right = [draft for draft in candidates if is_verified(draft)]
    answers = {draft.answer for draft in candidates}
    if not 2 <= len(candidates) <= MOST_CANDIDATES or None in answers or len(answers) != len(candidates):
        rows.leave_out("candidates are not two to four different answers")
    elif len(right) != 1 or any(draft.verdict == "unknown" for draft in candidates):
        rows.leave_out("not exactly one candidate is right")
    else:
        source = Conversation(None, rows.record.question)
        asked: Any = show_candidates(source, [draft.text for draft in candidates], mode.instruction)
        answer = write_draft(right[0], tagged=rows.settings.tagged)
        rows.add(f"{len(candidates)} candidates", ViewTurn(str(asked.prompt), answer))
