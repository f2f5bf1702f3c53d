"""TabMWP's problem files: an object by id, `{"17": {"question", "choices", "answer", "unit", …}}`.

The table of problem 17 is drawn in `tables/17.png`. Its `solution` becomes a rationale.
"""

from __future__ import annotations

from reverse.data.drafts.draft_record import DraftRecord
from reverse.data.drafts.item_files import FileLayout
from reverse.data.drafts.published_format import ExportTexts, Item, PublishedFormat, PublishedItem, Values
from reverse.data.drafts.question_parts import (
    ask,
    find_gold,
    find_rationale,
    make_rationale,
    plain_question,
    say_gold,
)

__all__ = ["FORMATS"]


def _parse(item: PublishedItem) -> Values:
    choices = item.texts("choices") if item.value.get("choices") else []
    asked = {
        "question": item.text("question"),
        "unit": item.text("unit") if item.value.get("unit") else "",
        "choices": choices,
    }
    row = {key: item.value.get(key) for key in ("unit", "ans_type")}
    solution = item.text("solution") if item.value.get("solution") else ""
    return {
        "id": item.key,
        "question": ask(**asked),  # type: ignore[arg-type]
        "images": [item.picture(f"tables/{item.key}.png")],
        "gold": find_gold("tabmwp", row | {"answer": item.plain("answer"), "choices": choices}),
        "drafts": [make_rationale(solution)] if solution else [],
        "source": {"asked": asked},
    }


def _say(record: DraftRecord, texts: ExportTexts) -> Item:
    gold = record.gold
    return {
        "question": plain_question(record),
        "choices": list(gold.choices) if gold is not None and gold.choices else None,
        "answer": say_gold(record),
        "unit": gold.unit if gold is not None and gold.unit else None,
        "solution": find_rationale(record),
    }


FORMATS = (PublishedFormat("tabmwp", "problems of TabMWP", _parse, _say, layout=FileLayout("map")),)
