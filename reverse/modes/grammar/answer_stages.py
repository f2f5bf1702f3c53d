"""The stages of an answer, each in a tag of its own (LLaVA-CoT and LLaVA-SCo checkpoints)."""

from __future__ import annotations

import re

from reverse.decoding.asks import Node, Outcome

__all__ = ["STAGES", "put_in_place", "read_conclusion", "read_stage"]

STAGES = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")


def read_stage(text: str, stage: str) -> str | None:
    """Return the text in the last pair of tags of a stage, closed or not; None without the opening tag."""
    found = re.findall(rf"<{stage}>(.*?)(?:</{stage}>|$)", text, flags=re.DOTALL)
    return found[-1].strip() if found else None


def read_conclusion(text: str) -> str | None:
    """Return the text of the last stage."""
    return read_stage(text, "CONCLUSION")


def put_in_place(first: Outcome, again: Outcome) -> Node:
    """Return the node after a rewritten stage: the text before the stage, then the new ids."""
    base = first.node.base
    assert base is not None
    return base.add_answer(again.node.ids[len(again.node.ids) - again.node.turn_length :], again.result)
