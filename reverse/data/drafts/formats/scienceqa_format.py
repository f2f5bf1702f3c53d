"""ScienceQA's problems, and the JSON lines that TSST makes of them.

`scienceqa`: an object of problems by id, `{"1": {"question", "choices", "answer", "hint", "image", …}}`; the
picture is `train/1/image.png`. `tsst-scienceqa`: lines of `{"id", "question", "hint", "answer_choices",
"answer_label", "answer_str", "img_path", "caption", "format_solution"}`, the label counted from 1. Solutions
become rationales.
"""

from __future__ import annotations

from reverse.data.drafts.draft_record import DraftRecord
from reverse.data.drafts.item_files import FileLayout
from reverse.data.drafts.published_format import ExportTexts, Item, PublishedFormat, PublishedItem, Values
from reverse.data.drafts.question_parts import (
    ask,
    check_index,
    find_gold,
    find_rationale,
    make_rationale,
    plain_question,
    right_index,
)
from reverse.files.json_scanning import ItemShape

__all__ = ["FORMATS"]


def _parse(item: PublishedItem) -> Values:
    choices = item.texts("choices")
    index = check_index(item.value.get("answer"), choices, "answer")
    image = item.value.get("image")
    folder = f"{item.value['split']}/{item.key}" if item.value.get("split") else str(item.key)
    return _make_values(item, choices, index, "solution") | {
        "id": item.key,
        "images": [item.picture(f"{folder}/{item.text('image')}")] if image else [],
    }


def _say(record: DraftRecord, texts: ExportTexts) -> Item:
    folder, _, name = (record.images[0] if record.images else "").rpartition("/")
    said: Item = {
        "question": plain_question(record),
        "choices": list(record.gold.choices) if record.gold is not None else [],
        "answer": right_index(record.gold),
        "hint": _find_hint(record),
        "image": name or None,
        "solution": find_rationale(record),
    }
    return said | ({"split": folder.partition("/")[0]} if "/" in folder else {})


def _parse_lines(item: PublishedItem) -> Values:
    choices = item.texts("answer_choices")
    index = check_index(item.value.get("answer_label"), choices, "answer_label", first=1)
    return _make_values(item, choices, index, "format_solution") | {
        "id": item.plain("id"),
        "images": item.pictures("img_path"),
    }


def _say_lines(record: DraftRecord, texts: ExportTexts) -> Item:
    index = right_index(record.gold)
    choices = list(record.gold.choices) if record.gold is not None else []
    return {
        "id": record.id,
        "question": plain_question(record),
        "hint": _find_hint(record),
        "answer_choices": choices,
        "answer_str": "" if index is None else choices[index],
        "answer_label": None if index is None else index + 1,
        "img_path": record.images[0] if record.images else None,
        "format_solution": find_rationale(record),
    }


def _make_values(item: PublishedItem, choices: list[str], index: int | None, solution: str) -> Values:
    asked = {
        "question": item.text("question"),
        "context": item.text("hint") if item.value.get("hint") else "",
        "choices": choices,
    }
    written = item.text(solution) if item.value.get(solution) else ""
    return {
        "question": ask(**asked),  # type: ignore[arg-type]
        "gold": None if index is None else find_gold("scienceqa", {"choices": choices, "answer": index}),
        "drafts": [make_rationale(written)] if written else [],
        "source": {"asked": asked},
    }


def _find_hint(record: DraftRecord) -> str:
    asked = record.source.get("asked")
    return str(asked.get("context", "")) if isinstance(asked, dict) else ""


FORMATS = (
    PublishedFormat("scienceqa", "problems of ScienceQA", _parse, _say, layout=FileLayout("map")),
    PublishedFormat(
        "tsst-scienceqa", "problems of ScienceQA as TSST reads them", _parse_lines, _say_lines,
        layout=FileLayout(shape=ItemShape("answer_choices")),
    ),
)  # fmt: skip
