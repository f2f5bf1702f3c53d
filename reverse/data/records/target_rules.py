"""The training targets of a record: which ids of an answer are trained, and their weight in the loss.

An answer may carry `"targets"`: `"all"` (the default), `"content"` (all but closing tags), `"closing"`
(closing tags alone) or `"none"` (input only), and `"given"`, the number of its first characters that are
input only. A record may carry `"weight"`, which multiplies the loss of its targets.

    >>> answer = {"from": "gpt", "value": "<SPAN>two cups</UN>", "targets": "closing"}
    >>> record = {"conversations": [{"from": "human", "value": "Q?"}, answer], "weight": 4}
    >>> list(find_target_problems(record))
    []
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from reverse.files.cell_values import describe
from reverse.tokens.spans import CN, UN

__all__ = [
    "LARGEST_WEIGHT",
    "TARGETS",
    "TargetProblem",
    "Targets",
    "find_target_problems",
    "weight_of_record",
]

Targets = Literal["all", "content", "closing", "none"]
TARGETS: tuple[Targets, ...] = ("all", "content", "closing", "none")
LARGEST_WEIGHT = 1000.0  # a record that weighs more drowns all others of its step


class TargetProblem(NamedTuple):
    """Why a record's targets cannot be trained: the turn, the text it is about, and a message."""

    turn: int
    text: str
    message: str


def find_target_problems(record: Mapping[str, Any]) -> Iterator[TargetProblem]:
    """Yield what is wrong with `targets` and `given` of the answers and `weight` of a record."""
    turns = record["conversations"]
    if "weight" in record and not _is_weight(record["weight"]):
        shown = describe(record["weight"], 80)
        message = (
            f'"weight" is {shown}: it must be a number above 0 and at most {LARGEST_WEIGHT:g}, which '
            "multiplies the loss of the record's targets"
        )
        yield TargetProblem(0, f"weight: {shown}", message)
    if not any("targets" in turn or "given" in turn for turn in turns):
        return
    for i, turn in enumerate(turns):
        yield from _find_problems_of_turn(i, turn)
    if all(turn.get("targets") == "none" for turn in turns[1::2]):
        message = 'all answers have "targets": "none", so the record teaches nothing: leave it out'
        yield TargetProblem(0, turns[1]["value"], message)


def _find_problems_of_turn(i: int, turn: Mapping[str, Any]) -> Iterator[TargetProblem]:
    k, value = i // 2, turn["value"]
    targets, given = turn.get("targets"), turn.get("given")
    if i % 2 == 0:
        for key, found in (("targets", targets), ("given", given)):
            if found is not None:
                message = (
                    f'turn {k} has "{key}" on its question: questions are never trained, write it on gpt'
                )
                yield TargetProblem(k, value, message)
        return
    if targets is not None and targets not in TARGETS:
        shown = describe(targets, 80)
        message = f'turn {k} has "targets" {shown}: it must be one of {", ".join(TARGETS)}'
        yield TargetProblem(k, f"targets: {shown}", message)
    if given is not None and (type(given) is not int or not 0 <= given < len(value.rstrip() or " ")):
        shown = describe(given, 80)
        message = (
            f'turn {k} has "given" {shown}: it must be the number of first characters that are input only, '
            f"from 0 to below {len(value.rstrip())}, the length of the answer"
        )
        yield TargetProblem(k, f"given: {shown}", message)
    elif targets == "closing":
        rest = value[given or 0 :]
        if CN not in rest and UN not in rest:
            message = (
                f'turn {k} has "targets": "closing" and no closing tag to train: write <SPAN>…</CN> or '
                "<SPAN>…</UN> around its phrases"
            )
            yield TargetProblem(k, value, message)


def weight_of_record(record: Mapping[str, Any]) -> float:
    """Return the weight of a record's targets in the loss; 1 by default."""
    return float(record.get("weight") or 1.0)


def _is_weight(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= LARGEST_WEIGHT
