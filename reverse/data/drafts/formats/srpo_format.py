"""SRPO: questions, answers that were judged, cold-start conversations and prompts for GRPO.

    srpo-questions   {"query", "image", "answer"}
    srpo-answers     {"query", "image", "standard_answer", "cot", "answer"}
    srpo-sft         {"messages": [system, user, assistant], "images": […]}: think, answer, reflection, answer
    srpo-sft-tarta   the same, with a second thinking before the last answer
    srpo-rl          {"message": turns as JSON text, "answer"}
    srpo-verl        {"problem", "answer", "images"}

Errors of the published code: `images` of the cold start hold a picture's name twice (read as one); `answer`
holds a negative number without its sign, or several letters in place of one (such a draft is unknown, not
wrong). An export writes these errors again unchanged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from reverse.data.drafts.draft_choices import answer_of, find_corrections, find_critique
from reverse.data.drafts.draft_record import DraftRecord, RecordedDraft, Verdict
from reverse.data.drafts.item_files import FileLayout
from reverse.data.drafts.published_format import ExportTexts, Item, PublishedFormat, PublishedItem, Values
from reverse.data.drafts.question_parts import guess_gold, say_gold
from reverse.data.drafts.tagged_parts import find_first_part, read_part
from reverse.errors import DataError
from reverse.files.cell_values import describe
from reverse.files.json_scanning import ItemShape

__all__ = ["FORMATS", "think_and_answer"]

_IMAGE = re.compile(r"^(?:<image>\n?)+")
# Parts of a turn, the tags they may stand in, and whether they must be there.
_PARTS = (
    ("think", ("think",), True),
    ("answer", ("answer",), True),
    ("critique", ("reflection", "reflect"), False),
    ("again", ("think",), False),
    ("last", ("answer",), True),
)
_STYLES: tuple[dict[str, Any], ...] = (
    {"ensure_ascii": False},
    {},
    {"ensure_ascii": False, "separators": (",", ":")},
    {"separators": (",", ":")},
)
_STYLE = "message_style"  # key of an opened item: how its JSON text is written


def _parse_question(item: PublishedItem) -> Values:
    return {
        "question": item.text("query"),
        "images": item.pictures("image"),
        "gold": guess_gold(item.plain("answer")),
    }


def _say_question(record: DraftRecord, texts: ExportTexts) -> Item:
    image = record.images[0] if record.images else ""
    return {"query": record.question, "image": image, "answer": say_gold(record)}


def _parse_answer(item: PublishedItem) -> Values:
    answer, standard = item.plain("answer"), item.plain("standard_answer")
    draft = {
        "text": _write_text(item.text("cot"), answer),
        "role": "first",
        "answer": answer,
        "verdict": _compare(answer, standard),
        "judged_by": "published",
    }
    return {
        "question": item.text("query"),
        "images": item.pictures("image"),
        "gold": guess_gold(standard),
        "drafts": [draft],
    }


def _compare(answer: str, standard: str) -> Verdict:
    """Compare texts as published; the verdict is unknown if the published code has cut the answer."""
    said, right = answer.strip().lower(), standard.strip().lower()
    if said == right:
        return "right"
    lost_sign = right.startswith("-") and said == right[1:]
    letters = re.fullmatch("[a-d]", right) is not None and re.fullmatch("[a-d]{2,}|", said) is not None
    return "unknown" if lost_sign or letters or not said else "wrong"


def _say_answer(record: DraftRecord, texts: ExportTexts) -> Item:
    return next(_make_answers(record, texts), {})


def _make_answers(record: DraftRecord, texts: ExportTexts) -> Iterator[Item]:
    for draft in record.drafts:
        if draft.role in ("first", "sample", "chain", "rationale"):
            image = record.images[0] if record.images else ""
            yield {
                "query": record.question,
                "image": image,
                "standard_answer": say_gold(record),
                "cot": _thought_of(draft),
                "answer": answer_of(draft),
            }


def _write_text(thought: str, answer: str) -> str:
    """Return the text of a draft: its reasoning, and its answer on a line of its own."""
    return f"{thought}\nAnswer: {answer}" if thought else f"Answer: {answer}"


def _thought_of(draft: RecordedDraft) -> str:
    """Return the reasoning of a draft: the text in its tag, before the line of its answer, or all of it."""
    tagged = find_first_part(draft.text, "think")
    if tagged is not None:
        return tagged
    line = f"Answer: {draft.answer}"
    if draft.text == line:
        return ""
    return draft.text.removesuffix("\n" + line)


def think_and_answer(draft: RecordedDraft, *, with_thought: bool = True) -> str:
    """Write a draft as `<think>…</think>` and `<answer>…</answer>`, or as the answer alone if it has no
    reasoning.
    """
    answer, thought = f"<answer>{answer_of(draft)}</answer>", _thought_of(draft)
    return f"<think>{thought}</think>\n{answer}" if with_thought and thought else answer


def _parse_sft(item: PublishedItem) -> Values:
    names = item.objects("messages")
    has_system = bool(names) and names[0].get("role") == "system"
    roles = ("system", "user", "assistant") if has_system else ("user", "assistant")
    *system, asked, told = item.turns("messages", "role", "content", roles)
    parts = _read_turn(told)
    if parts is None:
        raise DataError(
            "the answer must be <think>, <answer>, <reflection>, <answer> or <think>, <answer>, got "
            + describe(told)
        )
    found = find_first_part(asked, "question")
    values: Values = {
        "question": _IMAGE.sub("", asked) if found is None else found,
        "images": [_read_once(name) for name in item.pictures("images")],
        "drafts": _make_drafts(parts),
        "source": {"system": system[0]} if system else {},
    }
    if len(parts) > 2:
        return values | {
            "gold": guess_gold(parts["last"].strip()),
            "links": [{"kind": "reflect", "drafts": [0, 2]}],
        }
    return values


def _read_once(name: str) -> str:
    """The picture whose name the published code writes twice: "a.pnga.png" is a.png."""
    half = name[: len(name) // 2]
    return half if half * 2 == name and "." in half else name


def _read_turn(told: str) -> dict[str, str] | None:
    """Split a turn into its parts: think and answer, and if it reflects also critique, again (may be "") and
    last.
    """
    parts: dict[str, str] = {}
    at = 0
    for name, tags, is_needed in _PARTS:
        found = next((part for tag in tags if (part := read_part(told, at, tag)) is not None), None)
        if found is not None:
            parts[name], at = found
        elif is_needed:
            return None
        elif name == "critique":
            break  # an answer without reflection
        else:
            parts[name] = ""
    return None if told[at:].strip() else parts


def _make_drafts(parts: dict[str, str]) -> list[Values]:
    answer = parts["answer"].strip()
    first: Values = {"text": _write_text(parts["think"], answer), "role": "first", "answer": answer}
    if len(parts) == 2:
        return [first | {"verdict": "right", "judged_by": "published"}]
    first |= {"verdict": _compare(answer, parts["last"]), "judged_by": "published"}
    final = parts["last"].strip()
    last: Values = {"text": _write_text(parts["again"], final), "role": "correction", "parent": 1}
    return [
        first,
        {"text": parts["critique"], "role": "reflection", "parent": 0},
        last | {"answer": final, "verdict": "right", "judged_by": "published"},
    ]


def _say_sft(record: DraftRecord, texts: ExportTexts) -> Item:
    drafts = record.drafts
    told = think_and_answer(drafts[0]) if drafts else ""
    if len(drafts) > 2:
        told += f"\n<reflection>{drafts[1].text}</reflection>\n{think_and_answer(drafts[2])}"
    return _wrap_sft(record, texts, told)


def _make_sft(record: DraftRecord, texts: ExportTexts) -> Iterator[Item]:
    yield from _reflections(record, texts, with_thought=False)


def _make_tarta(record: DraftRecord, texts: ExportTexts) -> Iterator[Item]:
    yield from _reflections(record, texts, with_thought=True)


def _reflections(record: DraftRecord, texts: ExportTexts, *, with_thought: bool) -> Iterator[Item]:
    """Make an item for each right correction that follows a reflection."""
    for first, last in find_corrections(record):
        critique = find_critique(record, last)
        if critique and last.verdict == "right":
            second = think_and_answer(last, with_thought=with_thought)
            told = f"{think_and_answer(first)}\n<reflection>{critique}</reflection>\n{second}"
            yield _wrap_sft(record, texts, told)


def _wrap_sft(record: DraftRecord, texts: ExportTexts, told: str) -> Item:
    is_own = str(record.source.get("format", "")).startswith("srpo-sft")
    system = record.source.get("system") if is_own else texts.reflect
    turns = [{"role": "system", "content": system}] if system is not None else []
    asked = "<image>\n" * len(record.images) + f"<question>{record.question}</question>"
    turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
    return {"messages": turns, "images": list(record.images)}


def _open_message(item: Item) -> Item:
    """Open the JSON text of `message`, if it can be closed again as it is written."""
    text = item.get("message")
    if not isinstance(text, str) or _STYLE in item:
        return dict(item)
    try:
        turns = json.loads(text)
    except (ValueError, RecursionError):
        return dict(item)
    if isinstance(turns, list):
        for style, options in enumerate(_STYLES):
            if json.dumps(turns, **options) == text:
                return {key: turns if key == "message" else value for key, value in item.items()} | (
                    {_STYLE: style} if style else {}
                )
    return dict(item)


def _close_message(item: Item) -> Item:
    style = item.get(_STYLE, 0)
    if not isinstance(item.get("message"), list):
        return item
    options = _STYLES[style] if isinstance(style, int) and 0 <= style < len(_STYLES) else _STYLES[0]
    closed = {key: value for key, value in item.items() if key != _STYLE}
    return closed | {"message": json.dumps(item["message"], **options)}


def _parse_rl(item: PublishedItem) -> Values:
    gold = guess_gold(item.plain("answer"))
    message = item.value.get("message")
    if isinstance(message, str):  # the published loader takes such a text as the question
        return {"question": message, "gold": gold}
    asked, system = "", None
    images: list[str] = []
    for turn in item.objects("message"):
        if turn.get("role") == "system" and isinstance(turn.get("content"), str):
            system = turn["content"]
        elif turn.get("role") == "user" and not asked:
            asked, images = _read_parts(item, turn.get("content"))
    if not asked.strip():
        raise DataError("'message' has no turn of the user with a text")
    source = {} if system is None else {"system": system}
    return {"question": asked, "images": images, "gold": gold, "source": source}


def _read_parts(item: PublishedItem, content: Any) -> tuple[str, list[str]]:
    if isinstance(content, str):
        return _IMAGE.sub("", content), []
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise DataError(f"the content of a turn must be a text or a list of parts, got {describe(content)}")
    texts = [part["text"] for part in content if isinstance(part.get("text"), str)]
    images = [item.picture(part["image"]) for part in content if part.get("type") == "image"]
    return "\n".join(texts), images


def _say_rl(record: DraftRecord, texts: ExportTexts) -> Item:
    system = record.source.get("system")
    content: list[Item] = [{"type": "image", "image": name} for name in record.images]
    content.append({"type": "text", "text": record.question})
    turns: list[Item] = [{"role": "system", "content": system}] if system is not None else []
    return {"message": [*turns, {"role": "user", "content": content}], "answer": say_gold(record)}


def _make_rl(record: DraftRecord, texts: ExportTexts) -> Iterator[Item]:
    if record.gold is not None:
        system = {"role": "system", "content": texts.reflect}
        said = _say_rl(record.model_copy(update={"source": {}}), texts)
        yield _close_message(said | {"message": [system, *said["message"]]})


def _parse_verl(item: PublishedItem) -> Values:
    return {
        "question": _IMAGE.sub("", item.text("problem")),
        "images": item.pictures("images"),
        "gold": guess_gold(item.plain("answer")),
    }


def _say_verl(record: DraftRecord, texts: ExportTexts) -> Item:
    asked = "<image>" * len(record.images) + record.question
    return {"problem": asked, "answer": say_gold(record), "images": list(record.images)}


def _make_verl(record: DraftRecord, texts: ExportTexts) -> Iterator[Item]:
    if record.gold is not None:
        yield _say_verl(record, texts)


_QUERIES = FileLayout(shape=ItemShape("query", frozenset({"query"})))
_MESSAGES = FileLayout(shape=ItemShape("messages", frozenset({"messages", "images"})))
FORMATS = (
    PublishedFormat(
        "srpo-questions", "questions that SRPO curates", _parse_question, _say_question, None, _QUERIES
    ),
    PublishedFormat(
        "srpo-answers", "answers of SRPO's policy, judged", _parse_answer, _say_answer, _make_answers,
        _QUERIES,
    ),
    PublishedFormat(
        "srpo-sft", "SRPO's cold start, as published", _parse_sft, _say_sft, _make_sft, _MESSAGES
    ),
    PublishedFormat(
        "srpo-sft-tarta", "SRPO's cold start with a second thinking", _parse_sft, _say_sft, _make_tarta,
        _MESSAGES,
    ),
    PublishedFormat(
        "srpo-rl", "SRPO's prompts for GRPO (OpenRLHF)", _parse_rl, _say_rl, _make_rl,
        FileLayout(shape=ItemShape("message", frozenset({"message", "answer"}))),
        _open_message, _close_message,
    ),
    PublishedFormat(
        "srpo-verl", "SRPO's prompts for GRPO (verl)", _parse_verl, _say_verl, _make_verl,
        FileLayout(shape=ItemShape("problem", frozenset({"problem", "images"}))),
    ),
)  # fmt: skip
