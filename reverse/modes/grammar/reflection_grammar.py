"""The grammar of a reflection: think, answer, reflection, think, answer (SRPO, arXiv 2506.01713 §3)."""

from __future__ import annotations

import re

__all__ = ["CONTINUATION", "SCHEMAS", "follows_grammar", "read_last_answer", "write_reflection_turn"]

_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL | re.IGNORECASE)
CONTINUATION = "\n<reflection>"  # written behind the first answer where a gate asks for a reflection
_HALF = ("<think>", "</think>", "<answer>", "</answer>", "<reflection>", "</reflection>")
_PARTS = {"tarta": (*_HALF, "<think>", "</think>"), "taranswer": _HALF}  # what stands before the last answer
SCHEMAS = tuple(_PARTS)


def follows_grammar(text: str, schema: str) -> bool:
    """Whether a turn has the tags of the grammar, in their order, and a last answer."""
    tags = re.findall(r"</?(?:think|answer|reflection)>", text.lower())
    wanted = [*_PARTS[schema], "<answer>", "</answer>"]
    further = wanted[4:]  # each further reflection
    return (
        tags[: len(wanted)] == wanted
        and len(tags[len(wanted) :]) % len(further) == 0
        and tags[len(wanted) :] == further * (len(tags[len(wanted) :]) // len(further))
    )


def read_last_answer(text: str) -> str:
    """Return the content of the last answer tag, or the whole text."""
    answers = _ANSWER.findall(text)
    return answers[-1].strip() if answers else text


def write_reflection_turn(
    schema: str, first: tuple[str, str], reflection: str, second: tuple[str, str]
) -> tuple[str, str]:
    """Write a turn in the grammar, in two halves: up to the end of the first answer, and the rest.

    Args:
        first, second: reasoning and answer each. Without a second think the reasoning that leads to the
            second answer stands in the reflection.
    """
    (think, answer), (again, final) = first, second
    head = f"<think>{think.strip()}</think>\n<answer>{answer.strip()}</answer>"
    if schema == "tarta":
        middle = f"{reflection.strip()}</reflection>\n<think>{again.strip()}</think>"
    else:
        middle = f"{reflection.strip()} {again.strip()}</reflection>"
    return head, f"{CONTINUATION}{middle}\n<answer>{final.strip()}</answer>"
