"""VCR's annotations: lines of `{"img_fn", "objects", "question", "answer_choices", "answer_label", …}`.

Questions, answers and rationales are lists of words; `[2, 0]` among them names the objects 2 and 0 of the
picture. They are written out as "person3 and person1", as the paper counts. The right rationale becomes a
draft. The test set has no labels.
"""

from __future__ import annotations

import re
from typing import Any

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
from reverse.files.cell_values import describe
from reverse.files.json_scanning import ItemShape

__all__ = ["FORMATS", "write_words"]

_ENDINGS = r"(?:s|t|re|ve|ll|d|m)\b"
# Spaces before marks, behind a bracket, and around an apostrophe with its ending.
_BEFORE = re.compile(rf" (?=[.,?!;:)])|(?<=\() | (?=' ?{_ENDINGS})|(?<=') (?={_ENDINGS})")


def write_words(words: Any, objects: list[str]) -> str:
    """Join words and lists of object numbers to a sentence.

    >>> write_words([[1], "'", "s", "smile", "is", "wide", "."], ["car", "person"])
    "person2's smile is wide."

    Raises DataError for another shape, and for an object that the picture does not have.
    """
    if not isinstance(words, list):
        raise DataError(f"a sentence must be a list of words, got {describe(words)}")
    written = []
    for word in words:
        if isinstance(word, list):
            written.append(" and ".join(_name_object(number, objects) for number in word))
        elif isinstance(word, str):
            written.append(word)
        else:
            raise DataError(f"a word must be a text or a list of object numbers, got {describe(word)}")
    return _BEFORE.sub("", " ".join(written))


def _name_object(number: Any, objects: list[str]) -> str:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(objects):
        raise DataError(f"a word names object {describe(number)}, but there are {len(objects)} objects")
    return f"{objects[number]}{number + 1}"


def _parse(item: PublishedItem) -> Values:
    objects = item.texts("objects")
    choices = [write_words(words, objects) for words in _lists(item, "answer_choices")]
    asked = {"question": write_words(item.value.get("question"), objects), "choices": choices}
    index = check_index(item.value.get("answer_label"), choices, "answer_label")
    drafts = []
    if item.value.get("rationale_label") is not None:
        rationales = _lists(item, "rationale_choices")
        right = check_index(item.value["rationale_label"], ["?"] * len(rationales), "rationale_label")
        drafts.append(make_rationale(write_words(rationales[right or 0], objects)))
    return {
        "id": item.text("annot_id"),
        "question": ask(**asked),  # type: ignore[arg-type]
        "images": [item.picture(item.text("img_fn"))],
        "gold": None
        if index is None
        else find_gold("vcr", {"answer_choices": choices, "answer_label": index}),
        "drafts": drafts,
        "source": {"asked": asked},
    }


def _lists(item: PublishedItem, key: str) -> list[Any]:
    value = item.value.get(key)
    if not isinstance(value, list) or not value:
        raise DataError(f"{key!r} must be a list of sentences, got {describe(value)}")
    return value


def _say(record: DraftRecord, texts: ExportTexts) -> Item:
    said: Item = {
        "objects": [],
        "img_fn": record.images[0] if record.images else "",
        "question": plain_question(record).split(),
    }
    if record.gold is not None:
        said["answer_choices"] = [choice.split() for choice in record.gold.choices]
        said["answer_label"] = right_index(record.gold)
    return said | {"annot_id": record.id}


FORMATS = (
    PublishedFormat(
        "vcr", "annotations of VCR", _parse, _say,
        layout=FileLayout(shape=ItemShape("annot_id", frozenset({"movie", "objects"}))),
    ),
)  # fmt: skip
