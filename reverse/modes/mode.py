"""One answer, which the modes `plain` and `resample` share."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from reverse.decoding.asks import Ask, Conversation, Generate, Outcome, PolicyFactory
from reverse.decoding.scheduling.tasks import ModeRequest

__all__ = ["ModeRequest", "answer_once"]


def answer_once(
    request: ModeRequest, policy: PolicyFactory | None
) -> Generator[list[Ask], list[Any], Outcome]:
    """Ask for one answer, and again if that to an open-ended question is blank (arXiv 2504.13169 §4)."""
    source, config = request.conversation, request.config
    if not config.open_ended or not isinstance(source, Conversation):
        (outcome,) = yield [Generate(source, final=True, policy=policy)]
        return outcome
    (first,) = yield [Generate(source, final="unless_blank", policy=policy)]
    if first.text.strip():
        return first
    question = source.with_instruction(config.false_premise)
    (second,) = yield [Generate(question, final=True, policy=policy)]
    return second
