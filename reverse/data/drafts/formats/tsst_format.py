"""TSST: files that its beam search and direct evaluation write, and training files of policy and value model.

    tsst-beam     {"data_id", "question", "answer_choices", "answer_label" (from 1), "answer_str",
                   "result": [{"value": text, "score", "correct"}], "image_path"}
    tsst-direct   the same with "response" and "verify_result" in place of "result"
    tsst-policy   {"id", "image", "conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}]}
    tsst-value    the same with the beginning of an answer and its "value"

A `result` may be one object (the best chain alone), and the text of a chain may be null where the search
found nothing; both are read, and exported unchanged. A line that a second run appended gets the id of the
first with "#2" appended.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from reverse.data.drafts.draft_choices import find_right_drafts
from reverse.data.drafts.draft_record import DraftRecord, RecordedDraft
from reverse.data.drafts.item_files import FileLayout
from reverse.data.drafts.published_format import ExportTexts, Item, PublishedFormat, PublishedItem, Values
from reverse.data.drafts.question_parts import (
    ask,
    check_index,
    find_gold,
    guess_gold,
    plain_question,
    right_index,
    say_gold,
)
from reverse.data.drafts.tree_values import find_prefix_values
from reverse.errors import DataError
from reverse.files.cell_values import describe, read_number
from reverse.files.json_scanning import ItemShape

__all__ = ["FORMATS"]

_IMAGE = re.compile(r"^(?:<image>\n?)+")


def _parse_question(item: PublishedItem) -> Values:
    choices = item.texts("answer_choices") if item.value.get("answer_choices") else []
    index = check_index(item.value.get("answer_label"), choices, "answer_label", first=1) if choices else None
    asked = {"question": item.text("question"), "choices": choices}
    if index is not None:
        gold: Values | None = find_gold("scienceqa", {"choices": choices, "answer": index})
    else:
        gold = guess_gold(item.text("answer_str")) if item.value.get("answer_str") else None
    return {
        "id": item.plain("data_id"),
        "question": ask(**asked),  # type: ignore[arg-type]
        "images": item.pictures("image_path"),
        "gold": gold,
        "source": {"asked": asked},
    }


def _say_question(record: DraftRecord) -> Item:
    index = right_index(record.gold)
    choices = list(record.gold.choices) if record.gold is not None else []
    return {
        "data_id": record.id,
        "question": plain_question(record),
        "answer_choices": choices,
        "answer_label": None if index is None else index + 1,
        "answer_str": say_gold(record) if index is None else choices[index],
    }


def _read_verdict(value: Any, key: str) -> Values:
    if value is None:
        return {}
    if not isinstance(value, bool):
        raise DataError(f"{key!r} must be true, false or null, got {describe(value)}")
    return {"verdict": "right" if value else "wrong", "judged_by": "published"}


def _parse_beam(item: PublishedItem) -> Values:
    result = item.value.get("result")
    chains = [result] if isinstance(result, dict) else item.objects("result")
    return _parse_question(item) | {"drafts": [_read_chain(chain) for chain in chains]}


def _read_chain(chain: dict[str, Any]) -> Values:
    text = chain.get("value")
    if text is not None and not isinstance(text, str):
        raise DataError(f"the 'value' of a chain must be a text or null, got {describe(text)}")
    score = read_number(chain.get("score"))
    if score is None and chain.get("score") is not None:
        raise DataError(f"the 'score' of a chain must be a number, got {describe(chain['score'])}")
    return {"text": text or "", "role": "chain", "value": score} | _read_verdict(
        chain.get("correct"), "correct"
    )


def _say_beam(record: DraftRecord, texts: ExportTexts) -> Item:
    chains = [_say_chain(draft) for draft in record.drafts if draft.role in ("chain", "sample", "first")]
    return _say_question(record) | {
        "result": chains,
        "image_path": record.images[0] if record.images else None,
    }


def _say_chain(draft: RecordedDraft) -> Item:
    said: Item = {"value": draft.text, "score": draft.value}
    return said | ({} if draft.verdict == "unknown" else {"correct": draft.verdict == "right"})


def _parse_direct(item: PublishedItem) -> Values:
    verdict = _read_verdict(item.value.get("verify_result"), "verify_result")
    return _parse_question(item) | {"drafts": [{"text": item.text("response"), "role": "first"} | verdict]}


def _say_direct(record: DraftRecord, texts: ExportTexts) -> Item:
    draft = record.drafts[0] if record.drafts else None
    known = {"right": True, "wrong": False}
    return _say_question(record) | {
        "response": draft.text if draft is not None else "",
        "verify_result": known.get(draft.verdict) if draft is not None else None,
        "image_path": record.images[0] if record.images else None,
    }


def _parse_policy(item: PublishedItem) -> Values:
    return _parse_turns(item, {"role": "chain", "verdict": "right", "judged_by": "published"})


def _parse_value(item: PublishedItem) -> Values:
    value = read_number(item.value.get("value"))
    if value is None:
        raise DataError(f"'value' must be a number, got {describe(item.value.get('value'))}")
    return _parse_turns(item, {"role": "prefix", "value": value})


def _parse_turns(item: PublishedItem, draft: Values) -> Values:
    asked, told = item.turns("conversations", "from", "value", ("human", "gpt"))
    return {
        "id": item.plain("id"),
        "question": _IMAGE.sub("", asked),
        "images": item.pictures("image"),
        "drafts": [{"text": told} | draft],
    }


def _say_policy(record: DraftRecord, texts: ExportTexts) -> Item:
    return _wrap(record, record.id, record.drafts[0].text if record.drafts else "")


def _say_value(record: DraftRecord, texts: ExportTexts) -> Item:
    said = _say_policy(record, texts)
    return said | {"value": record.drafts[0].value if record.drafts else None}


def _make_policy(record: DraftRecord, texts: ExportTexts) -> Iterator[Item]:
    """Make an item of the right chain with the highest score; of equal ones, the first."""
    right = find_right_drafts(record)
    if right:
        best = max(right, key=lambda draft: float("-inf") if draft.value is None else draft.value)
        yield _wrap(record, record.id, best.text)


def _make_values(record: DraftRecord, texts: ExportTexts) -> Iterator[Item]:
    """Make one item for each node of the tree; none if no chain is right."""
    for number, node in enumerate(find_prefix_values(record)):
        yield _wrap(record, f"{record.id}/{number}", node.text) | {"value": node.value}


def _wrap(record: DraftRecord, name: str, told: str) -> Item:
    asked = ("<image>\n" if record.images else "") + record.question
    image: Item = {"image": record.images[0]} if record.images else {}
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": told}]
    return {"id": name} | image | {"conversations": turns}


_LINES = FileLayout(shape=ItemShape("data_id", frozenset({"data_id"})))
FORMATS = (
    PublishedFormat("tsst-beam", "chains of TSST's beam search", _parse_beam, _say_beam, None, _LINES),
    PublishedFormat("tsst-direct", "direct answers of TSST", _parse_direct, _say_direct, None, _LINES),
    PublishedFormat("tsst-policy", "what TSST's policy trains on", _parse_policy, _say_policy, _make_policy),
    PublishedFormat(
        "tsst-value", "what TSST's value model trains on", _parse_value, _say_value, _make_values
    ),
)
