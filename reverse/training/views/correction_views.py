"""Views of corrections: a first answer, which is input only, and the verified one that it is to become.

What is asked is written by the modes themselves (`reverse.modes`), so training and test time never differ.
"""

from __future__ import annotations

from typing import Any

from reverse.data.drafts.draft_choices import find_critique
from reverse.data.drafts.draft_record import DraftRecord, RecordedDraft
from reverse.decoding.asks import Conversation
from reverse.modes import Refine, Reflect, SelfCorrect
from reverse.training.views.view_rows import (
    Pair,
    ViewRows,
    ViewSettings,
    ViewTurn,
    find_pairs,
    is_verified,
    mode_of,
    write_draft,
    write_thinking,
)

__all__ = ["view_refine", "view_reflect", "view_self_correct"]


def view_refine(record: DraftRecord, settings: ViewSettings) -> ViewRows:
    """Make rows of the question with an earlier answer, as `Refine` asks it, and the verified answer."""
    rows = ViewRows(record, "refine", settings)
    mode = mode_of(settings, Refine)
    for pair in find_pairs(rows, "refine"):
        asked = mode.ask_about(Conversation(None, record.question), pair.first.text)
        rows.add(pair.kind, ViewTurn(str(asked.prompt), write_draft(pair.target, tagged=settings.tagged)))
    return rows


def view_self_correct(record: DraftRecord, settings: ViewSettings) -> ViewRows:
    """Two turns: the first answer, then the check that `SelfCorrect` asks for.

    The first answer has its tags, all `</CN>`, as the model writes it before it is asked to check it.
    """
    rows = ViewRows(record, "self_correct", settings)
    mode = mode_of(settings, SelfCorrect)
    for pair in find_pairs(rows, "refine"):
        rows.add(
            pair.kind,
            ViewTurn(record.question, write_draft(pair.first, tagged=settings.tagged).strip(), "none"),
            ViewTurn(mode.instruction, write_draft(pair.target, tagged=settings.tagged)),
        )
    return rows


def view_reflect(record: DraftRecord, settings: ViewSettings) -> ViewRows:
    """One turn in the grammar of `Reflect`: think, answer, reflection, think, answer.

    A wrong first half is input only. A verified one is trained too, so that the model learns the grammar.
    The reflection is that of a teacher if the record has one, else it names the first wrong part.
    """
    rows = ViewRows(record, "reflect", settings)
    mode = mode_of(settings, Reflect)
    asked: Any = mode.ask(Conversation(None, record.question))
    for pair in find_pairs(rows, "reflect"):
        answers = [draft.answer for draft in pair]
        if None in answers:
            rows.leave_out("no extracted answer")
            continue
        is_trained = is_verified(pair.first)
        first, second = (write_thinking(write_draft(each, tagged=settings.tagged)) for each in pair)
        reflection = find_critique(record, pair.target) or write_reflection(pair)
        head, tail = mode.write_turn((first, str(answers[0])), reflection, (second, str(answers[1])))
        rows.add(pair.kind, ViewTurn(str(asked.prompt), head + tail, given=0 if is_trained else len(head)))
    return rows


def write_reflection(pair: Pair) -> str:
    """Write what the model says about its first answer: it names the first wrong part if that is known."""
    wrong = find_wrong_part(pair.first)
    if wrong is not None:
        return f'"{wrong}" is wrong.'
    return "The answer is right." if pair.first.verdict == "right" else "The answer is wrong."


def find_wrong_part(draft: RecordedDraft) -> str | None:
    """Return the text of the first wrong segment of a draft."""
    for segment in draft.segments:
        if segment.verdict == "wrong":
            return draft.text[segment.start : segment.end].strip() or None
    return None
