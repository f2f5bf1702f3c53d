"""Find the final answer of a text: after "Answer:", in a tag, in a box, or at its end."""

from __future__ import annotations

import re

from reverse.grading.answer_key import LONGEST

__all__ = ["find_final_answer", "remove_between_tags"]

# Tags in which published checkpoints give their answer: SRPO, LLaVA-CoT and LLaVA-SCo.
_TAGS = ("answer", "conclusion")
_REASONING = re.compile(
    r"<(/?)(?:think|thinking|thought|reasoning|reflection|summary|caption)>", re.IGNORECASE
)
_MARKER = re.compile(
    r"""(?:^|(?<=[\s*_(]))(?:
        (?:the\s+)?(?:final|correct|right|best)\s+(?:answer|option|choice)(?:\s+is|\s*[:=])
        |(?:the|my)\s+answer(?:\s+to\s+the\s+question)?(?:\s+is|\s+must\s+be|\s+would\s+be|\s*[:=])
        |answer(?:\s+is|\s*[:=])
        |答案(?:是|为|[:：])
    )\s*[:：]?""",
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
_EMPHASIS = re.compile(r"\*\*|__|`")


def find_final_answer(text: str) -> tuple[str, bool]:
    r"""Return the part of a text that gives its final answer, and whether a marker introduces it.

    Reasoning in tags is left out. Looked for in this order: the last `<answer>` or `<CONCLUSION>`; the last
    `\boxed{…}`; the text behind the last marker ("Answer:", "the answer is", "答案是"), up to the end of its
    line or sentence. Without any of these it is the whole text, False.

    >>> find_final_answer("Step 1: 4 - 3 = 1. Answer: 1")
    ('1', True)
    """
    text = text[:LONGEST]
    tagged = _last_tag(text)
    body, marked = (tagged, True) if tagged is not None else (_remove_reasoning(text), False)
    boxed = _last_box(body)
    if boxed is not None:
        return boxed.strip(), True
    body = _EMPHASIS.sub("", body)
    last = None
    for last in _MARKER.finditer(body):  # noqa: B007
        pass
    if last is not None:
        behind = body[last.end() :].strip()
        if behind:
            return _first_statement(behind), True
    return body.strip(), marked


def _last_tag(text: str) -> str | None:
    """Return the content of the last answer tag, closed or not."""
    lower = text.lower()
    starts = [(lower.rfind(f"<{name}>"), name) for name in _TAGS]
    start, name = max(starts)
    if start < 0:
        return None
    start += len(name) + 2
    end = lower.find(f"</{name}>", start)
    return text[start : end if end >= 0 else len(text)].strip()


def remove_between_tags(text: str, tags: re.Pattern[str]) -> str:
    """Return the text without the parts between tags, which may be nested, in linear time.

    Group 1 of the pattern is "/" for a closing tag. A closing tag without an opening one removes all text
    before it, because the chat template has opened it. A tag that stays open removes all text after it.
    """
    kept: list[str] = []
    depth = at = 0
    for tag in tags.finditer(text):
        if not tag[1]:
            if depth == 0:
                kept.append(text[at : tag.start()])
            depth += 1
        elif depth == 0:
            kept.clear()
        else:
            depth -= 1
        at = tag.end()
    return "".join(kept) + ("" if depth else text[at:])


def _remove_reasoning(text: str) -> str:
    """Return the text outside of reasoning tags; all of it if nothing stands outside."""
    outside = remove_between_tags(text, _REASONING)
    return outside if outside.strip() else _REASONING.sub(" ", text)


def _last_box(text: str) -> str | None:
    r"""Return the content of the last `\boxed{…}` whose braces close."""
    for command in (r"\boxed{", r"\fbox{"):
        start = text.rfind(command)
        if start >= 0:
            depth, begin = 1, start + len(command)
            for i in range(begin, len(text)):
                depth += {"{": 1, "}": -1}.get(text[i], 0)
                if depth == 0:
                    return text[begin:i]
    return None


def _first_statement(text: str) -> str:
    """Return the first line of a text, up to the end of its first sentence."""
    line = text.split("\n", 1)[0].strip()
    end = re.search(r"(?<=[^\d.][.!?。])\s|(?<=\d[.!?。])\s+(?=[A-Z])", line)
    return (line[: end.start()] if end else line).strip()
