"""A-OKVQA's question files: a list of `{"split", "image_id", "question_id", "question", "choices", …}`.

Pictures are those of COCO 2017, `train2017/000000299207.jpg`. Rationales become drafts. The test set has no
answers.
"""

from __future__ import annotations

from reverse.data.drafts.draft_record import DraftRecord
from reverse.data.drafts.item_files import FileLayout
from reverse.data.drafts.published_format import ExportTexts, Item, PublishedFormat, PublishedItem, Values
from reverse.data.drafts.question_parts import (
    ask,
    check_index,
    find_gold,
    make_rationale,
    plain_question,
    right_index,
)
from reverse.errors import DataError
from reverse.files.json_scanning import ItemShape

__all__ = ["FORMATS"]


def _parse(item: PublishedItem) -> Values:
    choices = item.texts("choices")
    asked = {"question": item.text("question"), "choices": choices}
    index = check_index(item.value.get("correct_choice_idx"), choices, "correct_choice_idx")
    number = item.value.get("image_id")
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 10**12:
        raise DataError(f"'image_id' must be the number of a COCO picture, got {number!r:.40}")
    split = item.value.get("split", "train")
    rationales = item.texts("rationales") if "rationales" in item.value else []
    return {
        "id": item.text("question_id"),
        "question": ask(**asked),  # type: ignore[arg-type]
        "images": [item.picture(f"{split}2017/{number:012d}.jpg")],
        "gold": None
        if index is None
        else find_gold("aokvqa", {"choices": choices, "correct_choice_idx": index}),
        "drafts": [make_rationale(text) for text in rationales],
        "source": {"asked": asked},
    }


def _say(record: DraftRecord, texts: ExportTexts) -> Item:
    folder, _, name = (record.images[0] if record.images else "").rpartition("/")
    number = name.removesuffix(".jpg")
    said: Item = {
        "split": folder.removesuffix("2017"),
        "image_id": int(number) if number.isdecimal() and len(number) <= 12 else 0,
        "question_id": record.id,
        "question": plain_question(record),
    }
    if record.gold is not None:
        said |= {"choices": list(record.gold.choices), "correct_choice_idx": right_index(record.gold)}
    rationales = [draft.text for draft in record.drafts if draft.role == "rationale"]
    return said | ({"rationales": rationales} if rationales else {})


FORMATS = (
    PublishedFormat(
        "aokvqa", "questions of A-OKVQA", _parse, _say,
        layout=FileLayout(shape=ItemShape("question_id", frozenset({"split", "image_id"}))),
    ),
)  # fmt: skip
