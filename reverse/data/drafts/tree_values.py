"""Values of the steps of an answer from the verdicts of all answers to its question (TSST).

The answers of a question form a tree: answers that begin alike share the nodes of what they share. With m
the steps to the nearest right end below a node (if there is none, what its nearest ancestor has) and r = 0
if a right end can be reached, else 1:

    value(root) = 0
    value(node) = max(v + (1 - v)(1 - 2r) / (m + 1), 0) with v the value of the node above

If a question has a single answer, and it is right with K steps, its step k has the value k/K.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from reverse.data.drafts.draft_choices import find_chains
from reverse.data.drafts.draft_record import DraftRecord, RecordedDraft

__all__ = ["PrefixValue", "find_prefix_values", "find_step_ends", "find_tree_values"]

_NUMBER = re.compile(r"[ \t]*(?:[Ss]tep )?\d{1,3}")
MOST_STEPS = 200  # of an answer; what follows belongs to the last one
_SENTENCE = re.compile(r"[.!?](?=\s+[^\s]|\s*\n)|\n+")


@dataclass(frozen=True)
class PrefixValue:
    """The beginning of an answer, and its value."""

    text: str
    value: float


def find_step_ends(draft: RecordedDraft) -> list[int]:
    """Return the ends of the steps of a draft: of its "step" segments, or else of its sentences and lines.

    Text after the last step is one more step. There are at most `MOST_STEPS`.
    """
    text = draft.text
    steps = sorted({segment.end for segment in draft.segments if segment.kind == "step"})
    ends = steps or [each.end() for each in _SENTENCE.finditer(text) if not _is_number(text, each.start())]
    kept: list[int] = []
    length = 0  # of the text up to the last end
    for end in ends:
        if len(kept) == MOST_STEPS - 1:
            break
        if text[length:end].strip():
            kept.append(end)
            length = end
    if text[length:].strip():
        kept.append(len(text))
    return kept


def _is_number(text: str, at: int) -> bool:
    """Return whether the line holds only a number before `at`: a full stop there does not end a sentence."""
    begin = max(text.rfind("\n", max(at - 16, 0), at) + 1, at - 16, 0)
    return _NUMBER.fullmatch(text, begin, at) is not None


def find_prefix_values(record: DraftRecord) -> list[PrefixValue]:
    """Return the beginnings of answers with their values, each beginning once.

    Taken from drafts with the role "prefix" if there are any, else from the values of segments, else from the
    tree of the answers.
    """
    known = [
        PrefixValue(draft.text, draft.value)
        for draft in record.drafts
        if draft.role == "prefix" and draft.value is not None
    ]
    known = known or [
        PrefixValue(draft.text[: segment.end].rstrip(), segment.value)
        for draft in record.drafts
        for segment in draft.segments
        if segment.value is not None
    ]
    return list({each.text: each for each in known}.values()) if known else find_tree_values(record)


def find_tree_values(record: DraftRecord) -> list[PrefixValue]:
    """Return the nodes of the tree of all answers with known verdicts, in the order of the answers.

    The result is empty if no answer is right, because nothing is known of the steps then.
    """
    above: dict[str, str] = {}  # node -> the node above; a node is the text so far
    ends: set[str] = set()
    for draft in find_chains(record):
        before = ""
        for end in find_step_ends(draft):
            text = draft.text[:end].strip()
            if text and text != before:
                above.setdefault(text, before)
                before = text
        if draft.verdict == "right" and before:
            ends.add(before)
    if not ends:
        return []
    left = _count_steps_left(above, ends)
    values = {"": 0.0}
    inherited = {"": left.get("", 0)}
    for node in above:  # a node stands behind the one above it
        v = values[above[node]]
        m = inherited[node] = left.get(node, inherited[above[node]])
        sign = 1 if node in left else -1
        values[node] = max(v + (1 - v) * sign / (m + 1), 0.0)
    return [PrefixValue(node, values[node]) for node in above]


def _count_steps_left(above: dict[str, str], ends: set[str]) -> dict[str, int]:
    """Count the steps from each node to the nearest right end at or below it, if there is one."""
    left = dict.fromkeys(ends, 0)
    for node in reversed(list(above)):  # a node stands before those below it
        if node in left:
            parent = above[node]
            left[parent] = min(left.get(parent, left[node] + 1), left[node] + 1)
    return left
