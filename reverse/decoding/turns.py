"""A turn of the assistant that was decoded in several parts, read as one answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from reverse.decoding.asks import Node
from reverse.decoding.result import Phrase, Result, Usage
from reverse.decoding.text.answer_text import read_answer

__all__ = ["read_turn"]


def read_turn(node: Node) -> Result:
    """Return the whole turn that `node` ends as one result.

    Its text is decoded from all ids of the turn, text that was inserted by `continue_assistant` included.
    Phrases keep the p of the part that they were decoded in, positions in the trace count from the turn's
    start, and usage is the sum of the parts. A turn in one part is that part's result. Raises ValueError
    for a node without an answer.
    """
    parts = node.parts
    if not parts:
        raise ValueError("the node ends no answer: take the node of an outcome")
    if len(parts) == 1 and node.turn_length == len(_without_end(parts[0], node)):
        return parts[0]
    assert node.writer is not None, "this node has no tokenizer"
    ids = list(node.ids[len(node.ids) - node.turn_length :])
    read = read_answer(node.writer.decode, ids, node.writer.tags)
    judged = [phrase for part in parts for phrase in part.phrases]
    phrases = []
    for phrase in read.phrases:
        # A phrase that no part closed, because it was inserted or cut, has no p.
        same = next((i for i, each in enumerate(judged) if each.text == phrase.text), None)
        found = None if same is None else judged[same]
        judged = judged if same is None else judged[same + 1 :]
        status: Literal["accepted", "unresolved"] = found.status if found is not None else "accepted"
        phrases.append(Phrase(phrase.text, phrase.start, phrase.end, found.p_un if found else None, status))
    trace, at = [], 0
    for part in parts:
        trace += [replace(each, at=each.at + at, rewound_to=each.rewound_to + at) for each in part.trace]
        at += len(part.ids)
    resolved = [part.resolved for part in parts if part.resolved is not None]
    usage = [part.usage for part in parts]
    return Result(
        text=read.text,
        tagged=read.tagged,
        phrases=tuple(phrases),
        resolved=all(resolved) if resolved else None,
        finish_reason=parts[-1].finish_reason,
        trace=tuple(trace),
        usage=Usage(
            sum(each.kept for each in usage),
            sum(each.discarded for each in usage),
            sum(each.forwards for each in usage),
            sum(each.seconds for each in usage),
            sum(each.unused for each in usage),
        ),
        ids=(*ids, *parts[-1].ids[len(_without_end(parts[-1], node)) :]),
    )


def _without_end(part: Result, node: Node) -> tuple[int, ...]:
    """The ids of the last part that the node holds: an EOS at its end is left out."""
    has_end = bool(part.ids) and (
        not node.ids or node.ids[-1] != part.ids[-1] or node.turn_length < len(part.ids)
    )
    return part.ids[:-1] if has_end else part.ids
