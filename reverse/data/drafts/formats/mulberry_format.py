"""Mulberry-260K: `{"messages": [user, assistant], "images": […]}`, a message being `{"role", "content"}`.

The answer has headings, `### Image Description:`, `### Rationales:`, `### Step 1: …` and
`### The final answer is: …`. The set keeps paths whose answer is
right, so the answer counts as right, judged by "published".
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from reverse.data.drafts.draft_choices import find_right_drafts
from reverse.data.drafts.draft_record import DraftRecord
from reverse.data.drafts.item_files import FileLayout
from reverse.data.drafts.published_format import ExportTexts, Item, PublishedFormat, PublishedItem, Values
from reverse.data.drafts.question_parts import guess_gold
from reverse.files.json_scanning import ItemShape

__all__ = ["FORMATS"]

_ANSWER = "### The final answer is:"
_IMAGE = re.compile(r"^(?:<image>\n?)+")


def _parse(item: PublishedItem) -> Values:
    asked, told = item.turns("messages", "role", "content", ("user", "assistant"))
    answer = _find_answer(told)
    draft: Values = {"text": told, "role": "rationale", "verdict": "right"}
    draft |= {"judged_by": "published"} | ({"answer": answer} if answer else {})
    return {
        "question": _IMAGE.sub("", asked),
        "images": item.pictures("images"),
        "gold": guess_gold(answer),
        "drafts": [draft],
    }


def _find_answer(text: str) -> str:
    """Return the text after the last final-answer heading, on its line or the next; "" if there is none."""
    at = text.rfind(_ANSWER)
    lines = text[at + len(_ANSWER) :].strip().splitlines() if at >= 0 else []
    return lines[0].strip() if lines else ""


def _say(record: DraftRecord, texts: ExportTexts) -> Item:
    return _wrap(record, record.drafts[0].text if record.drafts else "")


def _make(record: DraftRecord, texts: ExportTexts) -> Iterator[Item]:
    for draft in find_right_drafts(record)[-1:]:
        yield _wrap(record, draft.text)


def _wrap(record: DraftRecord, told: str) -> Item:
    asked = "<image>\n" * len(record.images) + record.question
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
    return {"messages": turns, "images": list(record.images)}


FORMATS = (
    PublishedFormat(
        "mulberry", "Mulberry-260K", _parse, _say, _make,
        FileLayout(shape=ItemShape("messages", frozenset({"messages", "images"}))),
    ),
)  # fmt: skip
