"""The published instruct record: build it, check it, read files of it.

One record is `{"id", "image", "conversations": [{"from", "value", "A_type", "hint"}]}`; `A_type` and `hint`
stand on the answers ("gpt") only, and a record about no picture has no "image".

    >>> record = make_record("1", "images/1.png", "Describe this image.", "<SPAN>A dog</CN>.")
    >>> validate(record)
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reverse.errors import DataError, MissingFileError
from reverse.files.json_scanning import Broken, scan

ANSWER_TYPE = "general_answer"
IMAGE_TOKEN = "<image>"
# What the templates of Qwen2.5-VL write themselves; `<image>` stands for them in every prompt and record.
MODEL_PLACEHOLDERS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
NEGATIVE = "-neg"  # what the id of a record's negative ends with; the published set repeats the id
_HALF = re.compile(r"[\ud800-\udfff]")


def make_record(
    name: str,
    image: str | None,
    question: str,
    answer: str,
    answer_type: str = ANSWER_TYPE,
    hint: str | None = None,
) -> dict[str, Any]:
    """A record of one question and one answer; a question about a picture gets `<image>` before it."""
    asked = f"{IMAGE_TOKEN}\n{question}" if image is not None else question
    record: dict[str, Any] = {"id": name}
    if image is not None:
        record["image"] = image
    record["conversations"] = [
        {"from": "human", "value": asked},
        {"from": "gpt", "value": answer, "A_type": answer_type, "hint": hint},
    ]
    return record


def is_set(value: Any) -> bool:
    """Whether a key of a record or message says anything: null, false, "", empty lists and objects do not."""
    return (
        value is not None
        and value is not False
        and not (isinstance(value, (str, bytes, list, tuple, dict)) and not value)
    )


def half_pair(text: str) -> re.Match[str] | None:
    """The first half of a surrogate pair; JSON may hold it (an emoji cut through), no tokenizer takes it."""
    return None if text.isascii() else _HALF.search(text)


def whole_text(text: str) -> str:
    """The same, as long, with a replacement character for each half of a surrogate pair."""
    return _HALF.sub("\ufffd", text)


def validate(record: Any, where: str = "record") -> None:
    """Raise ValueError, saying where and what to mend, unless `record` has the published shape.

    LLaVA's own records lack `id`, `A_type` and `hint`; they pass, and so do further keys.
    """
    if not isinstance(record, dict):
        raise DataError(
            f"{where} must be an object, got {type(record).__name__}: see reverse.data.records.schema"
        )
    image = record.get("image")
    if image is not None and not _is_path(image):
        _check_pictures(image, "image", where)
    if record.get("images") is not None:
        _check_pictures(record["images"], "images", where)
    turns = record.get("conversations")
    if not isinstance(turns, list) or len(turns) < 2:
        other = next((key for key in _OTHER_SHAPES if is_set(record.get(key))), None)
        mend = f': it has "{other}", as other libraries write records; see docs/data.md' if other else ""
        raise DataError(
            f'{where}: "conversations" must list a question and an answer, got {shorten(turns)}{mend}'
        )
    if len(turns) % 2:
        mend = "leave one out"
        if isinstance(turns[0], dict) and turns[0].get("from") == "system":
            mend = "write the first, of the system, at the head of the first question"
        raise DataError(f"{where}: a question and an answer alternate, got {len(turns)} turns: {mend}")
    for i, turn in enumerate(turns):
        # The check of a good turn stands here, and says nothing: millions of turns pass it.
        if not (
            isinstance(turn, dict)
            and turn.get("from") == ("gpt" if i % 2 else "human")
            and isinstance(turn.get("value"), str)
            and isinstance(turn.get("A_type"), _TEXT_OR_NONE)
            and isinstance(turn.get("hint"), _TEXT_OR_NONE)
        ):
            _refuse_turn(turn, "gpt" if i % 2 else "human", f"{where}, turn {i}")


_TEXT_OR_NONE = (str, type(None))
_OTHER_SHAPES = ("messages", "conversation", "query", "instruction", "prompt", "question", "text")
LONGEST_PATH = 4096  # characters; Linux takes no longer one


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_PATH


def _check_pictures(value: Any, key: str, where: str) -> None:
    """`image` and `images` are a path or a list of paths; an empty list of `images` names none."""
    names = value if isinstance(value, list) else [value]
    if key == "images" and not names:
        return
    if not names or not all(_is_path(name) for name in names):
        raise DataError(
            f'{where}: "{key}" must be a relative path, got {shorten(value)}: leave it out for a text record'
        )


def _refuse_turn(turn: Any, speaker: str, where: str) -> None:
    if not isinstance(turn, dict) or turn.get("from") != speaker:
        raise DataError(
            f'{where} must be {{"from": "{speaker}", "value": …}}, got {shorten(turn)}: turns alternate'
        )
    if not isinstance(turn.get("value"), str):
        raise DataError(f'{where}: "value" must be a text, got {shorten(turn.get("value"))}')
    for key in ("A_type", "hint"):
        if not isinstance(turn.get(key), _TEXT_OR_NONE):
            raise DataError(f'{where}: "{key}" must be a text or null, got {shorten(turn[key])}')


def read_records(path: str | Path) -> Iterator[dict[str, Any]]:
    """The records of a JSON list or of JSONL, each checked, in the order of the file.

    The two are told apart by the first character, not by the name, and both are read piece by piece: a file
    of 2 GB never stands in memory. Raises FileNotFoundError, or ValueError saying which line or item.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"no such file: {path}: give a JSON list or JSONL of instruct records")
    with path.open("rb") as stream:
        for item in scan(stream):
            if isinstance(item, Broken):
                raise DataError(f"{path}, {item.where}: {item.reason}")
            validate(item.value, f"{path}, {item.where}")
            yield item.value


def shorten(value: Any) -> str:
    """A value as Python writes it, for a message: at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
