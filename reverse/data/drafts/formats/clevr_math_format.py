"""CLEVR-Math's question files, and the list that R3V makes of them.

Published: `{"info", "questions": [{"image_filename", "split", "question", "answer", …}]}`. R3V: a list of
`{"filename", "question", "answer"}`.
"""

from __future__ import annotations

from reverse.data.drafts.draft_record import DraftRecord
from reverse.data.drafts.item_files import FileLayout
from reverse.data.drafts.published_format import ExportTexts, Item, PublishedFormat, PublishedItem, Values
from reverse.data.drafts.question_parts import find_gold, say_gold
from reverse.errors import DataError
from reverse.files.json_scanning import ItemShape

__all__ = ["FORMATS"]


def _parse(item: PublishedItem) -> Values:
    name = item.text("image_filename" if "image_filename" in item.value else "filename")
    split = item.value.get("split")
    picture = f"{split}/{name}" if isinstance(split, str) and split else name
    return {
        "question": item.text("question"),
        "images": [item.picture(picture)],
        "gold": find_gold("clevr-math", {"label": _whole_number(item)}),
        "source": {"name": "image_filename" if "image_filename" in item.value else "filename"},
    }


def _whole_number(item: PublishedItem) -> str:
    answer = item.plain("answer")
    if not answer.strip().lstrip("-").isdigit():
        raise DataError(f"'answer' must be a whole number, got {answer!r:.40}")
    return answer


def _say(record: DraftRecord, texts: ExportTexts) -> Item:
    split, _, name = (record.images[0] if record.images else "").rpartition("/")
    answer = say_gold(record)
    said: Item = {"split": split} if split else {}
    said[str(record.source.get("name", "image_filename"))] = name
    number = answer.strip()
    return said | {
        "question": record.question,
        "answer": int(number) if number.lstrip("-").isdecimal() and len(number) < 20 else answer,
    }


FORMATS = (
    PublishedFormat(
        "clevr-math", "questions of CLEVR-Math", _parse, _say,
        layout=FileLayout("member", "questions", ItemShape("question", frozenset({"filename", "split"}))),
    ),
)  # fmt: skip
