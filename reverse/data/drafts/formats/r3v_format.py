"""R3V (MM-Self-Improve): conversations that are trained on, results of sampling, and pairs for DPO.

    r3v            {"image", "conversations": [{"from": "user", "value"}, {"from": "assistant", "value"}]}
    r3v-messages   {"messages": [{"role", "content"}, …], "images": […]}, the shape of the Qwen2-VL repository
    r3v-results    {"index", "answer", "question", "prediction", "correct"}, or a conversation with these
    r3v-tabmwp     an object of {"answer", "output", "prediction_norm", "true_false", …} by id
    r3v-dpo        {"image", "prompt", "chosen", "rejected"}

A question followed by "Model's prediction:" asks to refine it, one followed by "Model's prediction 1:" and so
on asks to select. The published sets keep only targets with a right answer. So a target counts as right, with
`judged_by` "published": its last answer is right, and nothing is known of its steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from reverse.data.drafts.draft_choices import answer_of, find_right_drafts
from reverse.data.drafts.draft_record import DraftLink, DraftRecord, RecordedDraft
from reverse.data.drafts.item_files import FileLayout
from reverse.data.drafts.published_format import ExportTexts, Item, PublishedFormat, PublishedItem, Values
from reverse.data.drafts.question_parts import guess_gold, say_gold
from reverse.errors import DataError
from reverse.files.cell_values import describe
from reverse.files.json_scanning import ItemShape
from reverse.grading.final_answer import find_final_answer

__all__ = ["FORMATS"]

# The marks of the three data sets, and those of the Qwen2-VL repository, which misspells one of them.
_ONE = re.compile(r"\n(Model's (?:prediction|Prediction|Predicion):[\n ])")
_MANY = re.compile(r"\n(Model's [Pp]rediction) (\d{1,4}):\n")
_MARK = "Model's prediction"
_IMAGE = re.compile(r"^(?:<image>\n?)+")
Wrap = Callable[[DraftRecord, str, str], Item]


def _parse(item: PublishedItem) -> Values:
    asked, told = item.turns("conversations", "from", "value", ("user", "assistant"))
    name = {"id": item.value["id"]} if isinstance(item.value.get("id"), str) and item.value["id"] else {}
    return _read_task(asked, told) | {"images": item.pictures("image")} | name


def _parse_messages(item: PublishedItem) -> Values:
    asked, told = item.turns("messages", "role", "content", ("user", "assistant"))
    return _read_task(_IMAGE.sub("", asked), told) | {"images": item.pictures("images")}


def _read_task(asked: str, told: str) -> Values:
    """Return the question, the drafts and the link of one conversation."""
    right = {"verdict": "right", "judged_by": "published"}
    numbers = [int(number) for _, number in _MANY.findall(asked)]
    if len(numbers) >= 2 and numbers == list(range(1, len(numbers) + 1)):
        question, mark, *rest = _MANY.split(asked)
        candidates = rest[1::3]
        candidates[-1], instruction = _split_instruction(candidates[-1])
        answer = find_final_answer(told)[0]
        drafts: list[Values] = [{"text": text} | _compare(text, answer) for text in candidates]
        drafts.append({"text": told, "role": "judge", "answer": answer[:1000]} | right)
        link = {"kind": "select", "drafts": list(range(len(candidates)))}
        return _make_task(question, drafts, link, mark, instruction)
    parts = _ONE.split(asked, maxsplit=1)
    if len(parts) == 3:
        question, mark, rest_of_it = parts
        first, instruction = _split_instruction(rest_of_it)
        drafts = [
            {"text": first, "role": "first", "verdict": "wrong", "judged_by": "published"},
            {"text": told, "role": "refinement", "parent": 0} | right,
        ]
        return _make_task(question, drafts, {"kind": "refine", "drafts": [0, 1]}, mark, instruction)
    values: Values = {"question": asked, "drafts": [{"text": told, "role": "rationale"} | right]}
    if "\n" not in told.strip() and not find_final_answer(told)[1]:
        values["gold"] = guess_gold(told)  # a question with its short answer
    return values


def _split_instruction(text: str) -> tuple[str, str]:
    """Split a turn into the last draft that it shows and the line after it, line breaks between them
    included.
    """
    shown, _, instruction = text.rpartition("\n")
    draft = shown.rstrip("\n")
    return draft, "\n" * (len(shown) - len(draft)) + instruction


def _make_task(question: str, drafts: list[Values], link: Values, mark: str, instruction: str) -> Values:
    source = {"mark": mark, "instruction": instruction}
    return {"question": question, "drafts": drafts, "links": [link], "source": source}


def _compare(text: str, right: str) -> Values:
    """Set the verdict of a candidate: right if it gives the target's answer, otherwise unknown."""
    answer = find_final_answer(text)[0]
    same = answer.strip().lower() == right.strip().lower() != ""
    return {"answer": answer[:1000]} | ({"verdict": "right", "judged_by": "published"} if same else {})


def _say(record: DraftRecord, texts: ExportTexts) -> Item:
    return _first_task(record, texts, _wrap_conversation)


def _say_messages(record: DraftRecord, texts: ExportTexts) -> Item:
    return _first_task(record, texts, _wrap_messages)


def _first_task(record: DraftRecord, texts: ExportTexts, wrap: Wrap) -> Item:
    """Return the item of an imported conversation: that of its link, or of the first draft."""
    for item in _tasks(record, texts, wrap, record.links):
        return item
    return wrap(record, record.question, record.drafts[0].text if record.drafts else "")


def _make(record: DraftRecord, texts: ExportTexts) -> Iterator[Item]:
    yield from _all_tasks(record, texts, _wrap_conversation)


def _make_messages(record: DraftRecord, texts: ExportTexts) -> Iterator[Item]:
    yield from _all_tasks(record, texts, _wrap_messages)


def _all_tasks(record: DraftRecord, texts: ExportTexts, wrap: Wrap) -> Iterator[Item]:
    """Solve with the newest right draft; refine and select by the links whose target is right.

    A record of the other shape of conversation gives the one item that it was.
    """
    if _own(record):
        yield _first_task(record, texts, wrap)
        return
    right = find_right_drafts(record)
    if right:
        yield wrap(record, record.question, right[-1].text)
    links = tuple(link for link in record.links if _has_right_target(record, link))
    yield from _tasks(record, texts, wrap, links)


def _own(record: DraftRecord) -> dict[str, Any]:
    """Return what an import of conversations has kept in `source`."""
    return record.source if record.source.get("format") in ("r3v", "r3v-messages") else {}


def _has_right_target(record: DraftRecord, link: DraftLink) -> bool:
    if link.kind == "refine":
        return record.drafts[link.drafts[-1]].verdict == "right"
    return any(record.drafts[i].verdict == "right" for i in link.drafts)


def _tasks(
    record: DraftRecord, texts: ExportTexts, wrap: Wrap, links: tuple[DraftLink, ...]
) -> Iterator[Item]:
    for link in links:
        shown = [record.drafts[i] for i in link.drafts]
        if link.kind == "refine":
            instruction = _own(record).get("instruction", texts.refine)
            mark = _own(record).get("mark", _MARK + ":\n")
            asked = f"{record.question}\n{mark}{shown[0].text}\n{instruction}"
            yield wrap(record, asked, shown[-1].text)
        elif link.kind == "select":
            instruction = _own(record).get("instruction", texts.select)
            mark = _own(record).get("mark", _MARK)
            listed = "".join(f"\n{mark} {i}:\n{each.text}" for i, each in enumerate(shown, 1))
            told = next((draft.text for draft in record.drafts if draft.role == "judge"), None)
            yield wrap(
                record, f"{record.question}{listed}\n{instruction}", told or _right_answer(record, shown)
            )


def _right_answer(record: DraftRecord, shown: list[RecordedDraft]) -> str:
    right = [answer_of(draft) for draft in shown if draft.verdict == "right"]
    return right[0] if right else say_gold(record)


def _wrap_conversation(record: DraftRecord, asked: str, told: str) -> Item:
    item: Item = {"image": record.images[0]} if record.images else {}
    turns = [{"from": "user", "value": asked}, {"from": "assistant", "value": told}]
    return item | {"conversations": turns}


def _wrap_messages(record: DraftRecord, asked: str, told: str) -> Item:
    turns = [{"role": "user", "content": "<image>" * len(record.images) + asked}]
    return {
        "messages": [*turns, {"role": "assistant", "content": told}],
        "images": list(record.images),
    }


def _parse_result(item: PublishedItem) -> Values:
    values: Values = {
        "question": _find_question(item),
        "images": item.pictures("image") or item.pictures("images"),
        "gold": guess_gold(find_final_answer(item.plain("answer"))[0]),
        "drafts": [{"text": item.text("prediction")} | _read_verdict(item.value.get("correct"), "correct")],
    }
    return values | ({"id": item.plain("index")} if item.value.get("index") is not None else {})


def _find_question(item: PublishedItem) -> str:
    """Return the question without the predictions that the Qwen2-VL repository adds to it."""
    if "conversations" in item.value:
        return item.turns("conversations", "from", "value", ("user",))[0]
    if "messages" in item.value:
        return _IMAGE.sub("", item.turns("messages", "role", "content", ("user",))[0])
    return item.text("question")


def _read_verdict(value: object, key: str) -> Values:
    if value is None:
        return {}
    if not isinstance(value, bool):
        raise DataError(f"{key!r} must be true, false or null, got {describe(value)}")
    return {"verdict": "right" if value else "wrong", "judged_by": "published"}


def _say_result(record: DraftRecord, texts: ExportTexts) -> Item:
    return _result_of(record, record.drafts[0]) if record.drafts else {}


def _make_results(record: DraftRecord, texts: ExportTexts) -> Iterator[Item]:
    for draft in record.drafts:
        if draft.role in ("sample", "first", "chain", "rationale"):
            yield _result_of(record, draft)


def _result_of(record: DraftRecord, draft: RecordedDraft) -> Item:
    said: Item = {
        "index": record.id,
        "answer": say_gold(record),
        "question": record.question,
        "prediction": draft.text,
    }
    return said | ({} if draft.verdict == "unknown" else {"correct": draft.verdict == "right"})


def _parse_tabmwp(item: PublishedItem) -> Values:
    answer = item.plain("prediction_norm")
    draft = {"text": item.text("output"), "answer": answer} | _read_verdict(
        item.value.get("true_false"), "true_false"
    )
    gold = guess_gold(item.plain("answer"))
    return {"id": item.key, "question": "", "gold": gold, "drafts": [draft]}


def _say_tabmwp(record: DraftRecord, texts: ExportTexts) -> Item:
    if not record.drafts:
        return {}
    draft = record.drafts[0]
    said: Item = {
        "answer": say_gold(record),
        "output": draft.text,
        "prediction_norm": answer_of(draft),
    }
    return said | ({} if draft.verdict == "unknown" else {"true_false": draft.verdict == "right"})


def _parse_pair(item: PublishedItem) -> Values:
    judged = {"judged_by": "published"}
    return {
        "question": item.text("prompt"),
        "images": item.pictures("image"),
        "drafts": [
            {"text": item.text("chosen"), "verdict": "right"} | judged,
            {"text": item.text("rejected"), "verdict": "wrong"} | judged,
        ],
        "links": [{"kind": "prefer", "drafts": [0, 1]}],
    }


def _say_pair(record: DraftRecord, texts: ExportTexts) -> Item:
    return next(_make_pairs(record, texts), {})


def _make_pairs(record: DraftRecord, texts: ExportTexts) -> Iterator[Item]:
    for link in record.links:
        if link.kind == "prefer":
            better, worse = (record.drafts[i].text for i in link.drafts[:2])
            item: Item = {"image": record.images[0]} if record.images else {}
            yield item | {"prompt": record.question, "chosen": better, "rejected": worse}


_CHAT = FileLayout()
FORMATS = (
    PublishedFormat("r3v", "conversations that R3V trains on", _parse, _say, _make, _CHAT),
    PublishedFormat(
        "r3v-messages", "the same in the shape for Qwen2-VL", _parse_messages, _say_messages,
        _make_messages, FileLayout(shape=ItemShape("messages", frozenset({"messages", "images"}))),
    ),
    PublishedFormat(
        "r3v-results", "what R3V samples", _parse_result, _say_result, _make_results,
        FileLayout(shape=ItemShape("prediction", frozenset({"index", "answer"}))),
    ),
    PublishedFormat(
        "r3v-tabmwp", "what R3V samples of TabMWP, judged", _parse_tabmwp, _say_tabmwp,
        layout=FileLayout("map"),
    ),
    PublishedFormat(
        "r3v-dpo", "pairs for the DPO of R3V", _parse_pair, _say_pair, _make_pairs,
        FileLayout(shape=ItemShape("chosen", frozenset({"image", "prompt"}))),
    ),
)  # fmt: skip
