"""The rows for DPO, GRPO and the value head as views that `view_files` writes."""

from __future__ import annotations

from collections.abc import Callable

from reverse.data.drafts.draft_record import DraftRecord
from reverse.training.views.grpo_views import view_prompts
from reverse.training.views.preference_views import view_preferences
from reverse.training.views.value_views import view_values
from reverse.training.views.view_rows import ViewRows, ViewSettings

__all__ = ["RL_VIEWS", "view_dpo", "view_grpo", "view_value"]


def view_dpo(record: DraftRecord, settings: ViewSettings) -> ViewRows:
    """Make pairs by "prefer" links, or else of the newest right and wrong draft; `verified` requires right
    steps.
    """
    rows = ViewRows(record, "dpo", settings)
    found = view_preferences(record, linked=False, with_right_steps=settings.verified, tagged=settings.tagged)
    return _fill(rows, found, "pair", "no right and wrong draft that can be compared")


def view_grpo(record: DraftRecord, settings: ViewSettings) -> ViewRows:
    """Make a row of the question with its answer key."""
    rows = ViewRows(record, "grpo", settings)
    return _fill(rows, view_prompts(record), "prompt", "the right answer is not known")


def view_value(record: DraftRecord, settings: ViewSettings) -> ViewRows:
    """Make rows of beginnings of answers with their values."""
    rows = ViewRows(record, "value", settings)
    return _fill(rows, view_values(record), "prefix", "no value, and no right draft that gives one")


RL_VIEWS: dict[str, Callable[[DraftRecord, ViewSettings], ViewRows]] = {
    "dpo": view_dpo,
    "grpo": view_grpo,
    "value": view_value,
}


def _fill(rows: ViewRows, found: list[dict[str, object]], kind: str, reason: str) -> ViewRows:
    """Add rows to `rows`, at most `per_question`.

    The checks of training records do not apply to these rows.
    """
    if not found:
        rows.leave_out(reason)
    for row in found:
        if rows.is_full:
            rows.leave_out("beyond the most rows of a question")
        else:
            rows.rows.append(row)
            rows.made[kind] += 1
    return rows
