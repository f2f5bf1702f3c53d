"""Remove reasoning, code fences, JSON and markup from an answer, in linear time.

    extract_plain_text("<think>Is it? No.</think> **Yes**")        # "Yes"
    extract_plain_text('{"reason": "not a cat", "answer": "yes"}')  # "yes"

Reasoning stands between tags such as <think> and </think>. The text holds the closing tag alone if the
model's template opens it, and the opening tag alone if the length limit ends it.
"""

from __future__ import annotations

import json
import re
from typing import Any

from reverse.grading.final_answer import remove_between_tags

__all__ = ["LONGEST", "extract_plain_text", "remove_reasoning"]

LONGEST = 100_000  # characters of one answer or reply that are read
_REASONING = re.compile(r"[<\[◁](/?)(?:think|thinking|thought|reasoning|reflection)[>\]▷]", re.IGNORECASE)
_ANSWER = re.compile(r"<(/?)answer>", re.IGNORECASE)
_FENCE = re.compile(r"^[ \t]*```[a-z]*[ \t]*$", re.IGNORECASE | re.MULTILINE)
_TAG = re.compile(r"<[/a-z][^<>]*>", re.IGNORECASE)
_EMPHASIS = re.compile(r"[*`#~]+|(?<!\w)_+|_+(?!\w)")
_VERDICTS = (
    "answer",
    "final_answer",
    "final answer",
    "prediction",
    "verdict",
    "response",
    "output",
    "result",
)


def remove_reasoning(text: str) -> str:
    """Return the text without the parts between reasoning tags, which may be nested."""
    return remove_between_tags(text, _REASONING)


def extract_plain_text(text: str) -> str:
    """Return the text of an answer, of its <answer> or of its JSON verdict, without reasoning and markup.

    A verdict is the value of "answer" and the like, or the only value of a JSON object; true and false are
    yes and no. A JSON object without a verdict gives "".
    """
    said = _FENCE.sub("", _last_answer(remove_reasoning(text))).strip()
    if said[:1] in ("{", "["):
        found = _verdict(said)
        if found is not None:
            said = found
    return _EMPHASIS.sub("", _TAG.sub(" ", said)).strip()


def _last_answer(text: str) -> str:
    """Return the content of the last <answer>, closed or not; the text itself if there is none."""
    tags = list(_ANSWER.finditer(text))
    opened = [i for i, tag in enumerate(tags) if not tag[1]]
    if not opened:
        return text
    start, after = tags[opened[-1]], tags[opened[-1] + 1 :]
    return text[start.end() : after[0].start() if after else len(text)]


def _verdict(text: str) -> str | None:
    """Return the verdict of a text that is JSON; None if it is not JSON."""
    try:
        value = json.loads(text[:LONGEST])
        for _ in range(2):  # a list of one object
            if isinstance(value, list) and len(value) == 1:
                value = value[0]
        if isinstance(value, list):
            return ""
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        named = [each for key in _VERDICTS for name, each in value.items() if name.strip().lower() == key]
        if not named and len(value) == 1:
            named = list(value.values())
        value = named[0] if named else ""
    return _word(value)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else ""
