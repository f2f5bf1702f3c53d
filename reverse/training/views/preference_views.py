"""View of preferences: rows for DPO in the conversational shape that TRL reads.

    view_preferences(record)
    # [{"id", "prompt": [user], "chosen": [assistant], "rejected": [assistant], "images": ["1.png"]}]

A turn is `{"role", "content": [{"type": "image"}, {"type": "text", "text"}]}`. `images` are paths below the
folder of pictures.
"""

from __future__ import annotations

from typing import Any

from reverse.data.drafts.draft_links import find_preference
from reverse.data.drafts.draft_record import DraftLink, DraftRecord, RecordedDraft, tag_segments

__all__ = ["make_prompt", "make_turn", "view_preferences"]


def view_preferences(
    record: DraftRecord, *, linked: bool = True, with_right_steps: bool = False, tagged: bool = False
) -> list[dict[str, Any]]:
    """Make a row for each "prefer" link; without such links, for the newest right and wrong draft.

    Args:
        linked: take links only.
        with_right_steps: the better draft must be right in all its steps, not only in its answer.
        tagged: write the three tokens around the phrases of both drafts, all closed by `</CN>`, so that what
        is learned is to choose other words and not another mark.
    """
    links = [link for link in record.links if link.kind == "prefer"]
    if not links and not linked:
        found = find_preference(record, with_right_steps=with_right_steps)
        links = [found] if found is not None else []
    rows: list[dict[str, Any]] = []
    for link in links:
        better, worse = (record.drafts[i] for i in link.drafts[:2])
        if _is_usable(better, worse) and (better.steps_are_right() or not with_right_steps):
            rows.append(_make_row(record, link, len(rows), tagged))
    return rows


def _is_usable(better: RecordedDraft, worse: RecordedDraft) -> bool:
    return bool(better.text.strip() and worse.text.strip()) and better.text != worse.text


def _make_row(record: DraftRecord, link: DraftLink, number: int, tagged: bool) -> dict[str, Any]:
    chosen, rejected = (
        tag_segments(draft.text, draft.segments, all_confident=True) if tagged else draft.text
        for draft in (record.drafts[i] for i in link.drafts[:2])
    )
    return {
        "id": f"{record.id}#prefer-{number}",
        "prompt": make_prompt(record),
        "chosen": [make_turn("assistant", chosen)],
        "rejected": [make_turn("assistant", rejected)],
        "images": list(record.images),
    }


def make_prompt(record: DraftRecord, system: str = "") -> list[dict[str, Any]]:
    """Make the conversation that asks a question: its pictures come first, in their order."""
    turns = [make_turn("system", system)] if system else []
    return [*turns, make_turn("user", record.question, pictures=len(record.images))]


def make_turn(role: str, text: str, pictures: int = 0) -> dict[str, Any]:
    """Make a turn of a conversation."""
    parts: list[dict[str, str]] = [{"type": "image"} for _ in range(pictures)]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}
