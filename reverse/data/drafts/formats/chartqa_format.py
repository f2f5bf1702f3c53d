"""ChartQA's question files: a JSON list of `{"imgname", "query", "label"}`."""

from __future__ import annotations

from reverse.data.drafts.draft_record import DraftRecord
from reverse.data.drafts.item_files import FileLayout
from reverse.data.drafts.published_format import ExportTexts, Item, PublishedFormat, PublishedItem, Values
from reverse.data.drafts.question_parts import find_gold, say_gold
from reverse.files.json_scanning import ItemShape

__all__ = ["FORMATS"]


def _parse(item: PublishedItem) -> Values:
    return {
        "question": item.text("query"),
        "images": item.pictures("imgname"),
        "gold": find_gold("chartqa", {"label": item.plain("label")}),
    }


def _say(record: DraftRecord, texts: ExportTexts) -> Item:
    image = record.images[0] if record.images else ""
    return {"imgname": image, "query": record.question, "label": say_gold(record)}


FORMATS = (
    PublishedFormat(
        "chartqa", "questions of ChartQA", _parse, _say,
        layout=FileLayout(shape=ItemShape("query", frozenset({"imgname", "query"}))),
    ),
)  # fmt: skip
