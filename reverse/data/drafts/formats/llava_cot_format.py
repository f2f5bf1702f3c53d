"""LLaVA-CoT-100k and what LLaVA-SCo makes of it.

    llava-cot   {"id", "image", "conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}]}
    sco-pairs   {"question", "original_answer", "refined_answer", "image_path"}, what the generator writes
    sco         conversations of two turns: the answer, a question for a second one, and that one

Answers have the stages `<SUMMARY>`, `<CAPTION>`, `<REASONING>` and `<CONCLUSION>`. The first answers count as
right, judged by "published"; the refined ones were never verified, so they are unknown. An empty refined
answer marks a failed request: such a record has the first answer only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from reverse.data.drafts.draft_choices import find_corrections, find_right_drafts
from reverse.data.drafts.draft_record import DraftRecord
from reverse.data.drafts.item_files import FileLayout
from reverse.data.drafts.published_format import ExportTexts, Item, PublishedFormat, PublishedItem, Values
from reverse.data.drafts.tagged_parts import find_last_part
from reverse.files.json_scanning import ItemShape

__all__ = ["FORMATS"]

_IMAGE = re.compile(r"^(?:<image>\n?)+")


def _make_draft(text: str, **more: Any) -> Values:
    found = find_last_part(text, "CONCLUSION")
    answer = {} if found is None else {"answer": found.strip()}
    return {"text": text, "role": "first"} | answer | more


def _parse(item: PublishedItem) -> Values:
    asked, told = item.turns("conversations", "from", "value", ("human", "gpt"))
    first = _make_draft(told, role="rationale", verdict="right", judged_by="published")
    values: Values = {
        "question": _IMAGE.sub("", asked),
        "images": item.pictures("image"),
        "drafts": [first],
    }
    return values | ({"id": item.plain("id")} if item.value.get("id") is not None else {})


def _parse_turns(item: PublishedItem) -> Values:
    if len(item.objects("conversations")) < 4:
        return _parse(item)
    roles = ("human", "gpt", "human", "gpt")
    *_, instruction, told = item.turns("conversations", "from", "value", roles)
    values = _parse(item)
    values["drafts"][0]["role"] = "first"
    values["drafts"].append(_make_draft(told, role="correction", parent=0))
    return values | {"source": {"instruction": instruction}}


def _parse_pair(item: PublishedItem) -> Values:
    first = _make_draft(item.text("original_answer"), verdict="right", judged_by="published")
    drafts = [first]
    if item.text("refined_answer").strip():
        drafts.append(_make_draft(item.text("refined_answer"), role="correction", parent=0))
    return {
        "question": item.text("question"),
        "images": item.pictures("image_path"),
        "drafts": drafts,
    }


def _say(record: DraftRecord, texts: ExportTexts) -> Item:
    return _wrap(record, texts, [draft.text for draft in record.drafts[:1]])


def _say_turns(record: DraftRecord, texts: ExportTexts) -> Item:
    return _wrap(record, texts, [draft.text for draft in record.drafts[:2]])


def _make(record: DraftRecord, texts: ExportTexts) -> Iterator[Item]:
    for draft in find_right_drafts(record)[-1:]:
        yield _wrap(record, texts, [draft.text])


def _make_turns(record: DraftRecord, texts: ExportTexts) -> Iterator[Item]:
    """Make a conversation from each right correction, whether or not the first answer is right."""
    for first, second in find_corrections(record):
        if second.verdict == "right":
            yield _wrap(record, texts, [first.text, second.text])


def _wrap(record: DraftRecord, texts: ExportTexts, answers: list[str]) -> Item:
    asked = [("<image>\n" if record.images else "") + record.question]
    own = record.source if record.source.get("format") == "sco" else {}
    asked.append(own.get("instruction", texts.self_correct))
    turns = [
        turn
        for question, answer in zip(asked, answers, strict=False)
        for turn in ({"from": "human", "value": question}, {"from": "gpt", "value": answer})
    ]
    image: Item = {"image": record.images[0]} if record.images else {}
    return {"id": record.id} | image | {"conversations": turns}


def _say_pair(record: DraftRecord, texts: ExportTexts) -> Item:
    written = [draft.text for draft in record.drafts[:2]] + ["", ""]
    return _pair_of(record, written[0], written[1])


def _make_pairs(record: DraftRecord, texts: ExportTexts) -> Iterator[Item]:
    for first, second in find_corrections(record):
        yield _pair_of(record, first.text, second.text)


def _pair_of(record: DraftRecord, first: str, second: str) -> Item:
    return {
        "question": record.question,
        "original_answer": first,
        "refined_answer": second,
        "image_path": record.images[0] if record.images else "",
    }


FORMATS = (
    PublishedFormat("llava-cot", "LLaVA-CoT-100k", _parse, _say, _make),
    PublishedFormat("sco", "the two turns that LLaVA-SCo trains on", _parse_turns, _say_turns, _make_turns),
    PublishedFormat(
        "sco-pairs", "what the generator of LLaVA-SCo writes", _parse_pair, _say_pair, _make_pairs,
        FileLayout(shape=ItemShape("original_answer", frozenset({"question"}))),
    ),
)  # fmt: skip
