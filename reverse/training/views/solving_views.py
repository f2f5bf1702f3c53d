"""Views of single answers: say it (`cot`), judge it (`judge`, `reflect_judge`), or both (`tagged_steps`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reverse.data.drafts.draft_record import DraftRecord, RecordedDraft, tag_segments
from reverse.decoding.asks import Conversation
from reverse.modes import Reflect
from reverse.tokens.spans import SPAN
from reverse.training.views.view_rows import (
    SAMPLES,
    ViewRows,
    ViewSettings,
    ViewTurn,
    is_verified,
    list_drafts,
    mode_of,
    write_draft,
    write_thinking,
)

__all__ = ["view_cot", "view_judge", "view_reflect_judge", "view_tagged_steps"]

NO_WRONG_PHRASE = "wrong answer without a wrong phrase"


def view_cot(record: DraftRecord, settings: ViewSettings) -> ViewRows:
    """Answers as they stand, closing tags not trained: the model learns to solve, and nothing about truth.

    The drafts are rationales (`roles` says otherwise), right or wrong; with `verified` only right ones.
    """
    rows = ViewRows(record, "cot", settings)
    roles = settings.roles or ("rationale",)
    drafts = list_drafts(record, roles)
    if not drafts:
        rows.leave_out(f"no draft with a role of {', '.join(roles)}")
    for draft in drafts:
        if settings.verified and not is_verified(draft):
            rows.leave_out("not verified")
            continue
        text = write_draft(draft, tagged=settings.tagged)
        rows.add("solve", ViewTurn(record.question, text, "content"))
    return rows


def view_tagged_steps(record: DraftRecord, settings: ViewSettings) -> ViewRows:
    """Make rows of a model's own answers, cut after their first wrong phrase, which closes with `</UN>`."""
    rows = ViewRows(record, "tagged_steps", settings)
    roles = settings.roles or SAMPLES
    drafts = list_drafts(record, roles)
    if not drafts:
        rows.leave_out(f"no draft with a role of {', '.join(roles)}")
    for draft in drafts:
        phrases = [segment for segment in draft.segments if segment.kind == "phrase"]
        verdicts = [phrase.verdict for phrase in phrases]
        wrong = verdicts.index("wrong") if "wrong" in verdicts else None
        if not phrases:
            rows.leave_out("no phrase")
        elif "unknown" in verdicts[:wrong]:
            rows.leave_out("phrase without a verdict")
        elif wrong is not None:
            kept = tuple(phrases[: wrong + 1])
            text = tag_segments(draft.text[: kept[-1].end], kept)
            rows.add("cut at a wrong phrase", ViewTurn(record.question, text))
        elif draft.verdict == "wrong":
            rows.leave_out(NO_WRONG_PHRASE)
        else:
            rows.add("all right", ViewTurn(record.question, write_draft(draft, tagged=True)))
    return rows


def view_judge(record: DraftRecord, settings: ViewSettings) -> ViewRows:
    """Make rows of a model's own complete answers, of which only the closing tags are trained.

    Training feeds `</CN>` for every tag and takes the true one as the label (`targets` "closing").
    """
    rows = ViewRows(record, "judge", settings)
    for draft in _list_judged(rows):
        text = tag_segments(draft.text, draft.segments)
        rows.add("judge", ViewTurn(record.question, text, "closing"))
    return rows


def view_reflect_judge(record: DraftRecord, settings: ViewSettings) -> ViewRows:
    """The rows of `view_judge` as the first half of a turn of `Reflect`, where its gate reads the tags."""
    rows = ViewRows(record, "reflect_judge", settings)
    mode = mode_of(settings, Reflect)
    asked: Any = mode.ask(Conversation(None, record.question))
    for draft in _list_judged(rows):
        if draft.answer is None:
            rows.leave_out("no extracted answer")
            continue
        thought = write_thinking(tag_segments(draft.text, draft.segments))
        if SPAN not in thought:
            rows.leave_out("no phrase before the answer")
            continue
        head, _ = mode.write_turn((thought, draft.answer), "", ("", draft.answer))
        rows.add("judge", ViewTurn(str(asked.prompt), head, "closing"))
    return rows


def _list_judged(rows: ViewRows) -> Iterator[RecordedDraft]:
    """The drafts whose phrases can all be labelled; the others are counted."""
    roles = rows.settings.roles or SAMPLES
    drafts = list_drafts(rows.record, roles)
    if not drafts:
        rows.leave_out(f"no draft with a role of {', '.join(roles)}")
    for draft in drafts:
        reason = _why_unjudged(draft)
        if reason is None:
            yield draft
        else:
            rows.leave_out(reason)


def _why_unjudged(draft: RecordedDraft) -> str | None:
    """Return why the phrases of a draft cannot all be labelled, or None."""
    verdicts = [segment.verdict for segment in draft.segments if segment.kind == "phrase"]
    if not verdicts:
        return "no phrase"
    if "unknown" in verdicts:
        return "phrase without a verdict"
    if draft.verdict == "wrong" and "wrong" not in verdicts:
        return NO_WRONG_PHRASE
    return None
