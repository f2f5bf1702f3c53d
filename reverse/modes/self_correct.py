"""Answer, then check the answer in a further turn (LLaVA-SCo)."""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Literal

from reverse.decoding.asks import Ask, Conversation, Generate, Mode, Node, Outcome
from reverse.decoding.config import check_whole_number
from reverse.decoding.result import Draft
from reverse.errors import RequestError
from reverse.grading import AnswerFormat
from reverse.modes.mode import (
    TEXT,
    Asks,
    Budget,
    Drafts,
    ModeRequest,
    ask_for_answer,
    check_confidence,
    check_gate,
    choose_answer,
    find_inner_policy,
    score_answers,
    turn_of,
)
from reverse.modes.select import pick_by_model

__all__ = ["STAGES", "SelfCorrect"]

STAGES = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")  # tags of LLaVA-CoT and LLaVA-SCo checkpoints


@dataclass(frozen=True)
class SelfCorrect:
    """Answer, then up to `rounds` times ask the model to check its answer and to answer again.

    The second turn continues the KV cache of the first; the picture is not encoded again.

    Args:
        rounds: turns that check, 0 to 3.
        inner: the mode that makes each answer; None: resample.
        schema: `"cot4"` expects the four stages SUMMARY, CAPTION, REASONING and CONCLUSION in tags and
            takes the answer from the last; None takes the whole text.
        position: `"end"` checks the whole answer; `"stage"` checks and replaces each stage before the next
            one is written (needs a schema).
        accept: the round that is returned: the `"last"`, the one with the highest `"confidence"`, or the one
            that the model picks (`"judge"`, by `Select`).
        stop_when_same: stop when two rounds give the same answer.
        gate: check only if the confidence of the first answer is below this; None: always.
        confidence: as of `compute_confidence`; None: by phrases where there are any, else by likelihood.
        instruction: what the model is asked in the further turns.

    Source: LLaVA-SCo (CVPR 2025 workshop); the published script makes no second turn.
    """

    name = "self_correct"
    rounds: int = 1
    inner: str | Mode | None = None
    schema: Literal["cot4"] | None = None
    position: Literal["end", "stage"] = "end"
    accept: Literal["last", "confidence", "judge"] = "last"
    stop_when_same: bool = True
    gate: float | None = None
    confidence: str | None = None
    instruction: str = "Check your answer against the picture and the question. Then give your final answer."
    answer_format: AnswerFormat = TEXT
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        check_whole_number("rounds", self.rounds, 0)
        if self.rounds > 3:
            raise RequestError(f"rounds must be at most 3, got {self.rounds}")
        if self.schema not in (None, "cot4"):
            raise RequestError(f"schema must be 'cot4' or None, got {self.schema!r:.80}")
        if self.position not in ("end", "stage") or (self.position == "stage" and self.schema is None):
            raise RequestError(
                f"position must be 'end', or 'stage' with schema='cot4', got {self.position!r:.80}"
            )
        if self.accept not in ("last", "confidence", "judge"):
            raise RequestError(f"accept must be 'last', 'confidence' or 'judge', got {self.accept!r:.80}")
        check_gate(self.gate)
        check_confidence(self.confidence)

    def run(self, request: ModeRequest) -> Asks:
        drafts = Drafts(self.answer_format, self.budget)
        if self.position == "stage":
            return (yield from self._correct_stages(request.conversation, drafts))
        (first,) = yield [
            ask_for_answer(request.conversation, self.inner, final=self.rounds == 0 and self.schema is None)
        ]
        outcomes, made = [first], [(yield from self._draft("first", first, drafts))]
        if self.gate is not None and made[0].confidence >= self.gate:
            return drafts.finish(first, made[0])
        for number in range(1, self.rounds + 1):
            if drafts.is_spent:
                break
            is_last = number == self.rounds and self.accept == "last" and self.schema is None
            (outcome,) = yield [
                ask_for_answer(outcomes[-1].node.user(self.instruction), self.inner, final=is_last)
            ]
            outcomes.append(outcome)
            made.append((yield from self._draft("correction", outcome, drafts)))
            if self.stop_when_same and made[-1].answer is not None and made[-1].answer == made[-2].answer:
                break
        if self.accept == "judge" and len(outcomes) > 1 and not drafts.is_spent:
            chosen = yield from pick_by_model(request.conversation, made, self.answer_format, drafts)
        else:
            chosen = choose_answer(made, "last" if self.accept == "last" else "confidence")
        return drafts.finish(outcomes[chosen], made[chosen])

    def _draft(self, role: str, outcome: Outcome, drafts: Drafts) -> Generator[list[Ask], list[Any], Draft]:
        (confidence,) = yield from score_answers([outcome], self.confidence)
        text = turn_of(outcome).text
        conclusion = read_stage(text, "CONCLUSION") if self.schema else text
        return drafts.add(role, outcome, confidence, text=conclusion or text, malformed=not conclusion)

    def _correct_stages(self, source: Conversation | Node, drafts: Drafts) -> Asks:
        """Write a stage, have it checked, put what came of it in its place, and go on with the next stage."""
        policy = find_inner_policy(self.inner)
        node: Conversation | Node = source
        outcome: Outcome | None = None
        for stage in STAGES:
            end = f"</{stage}>"
            (outcome,) = yield [Generate(node, until=(end,), policy=policy)]
            (confidence,) = yield from score_answers([outcome], self.confidence)
            drafts.add(f"stage {stage.lower()}", outcome, confidence, text=outcome.result.text)
            before = outcome.node
            asks_again = self.gate is None or confidence < self.gate
            if outcome.result.finish_reason != "stop":  # the text ended inside a stage: nothing to go on from
                break
            for _ in range(self.rounds if asks_again else 0):
                if drafts.is_spent:
                    break
                ask = f"{self.instruction} Repeat only the part <{stage}>, corrected."
                (again,) = yield [Generate(before.user(ask), until=(end,), policy=policy)]
                drafts.count(again)
                if again.result.finish_reason == "stop" and f"<{stage}>" in again.result.text:
                    outcome = Outcome(again.result, _put_in_place(outcome, again))
            node = outcome.node.continue_assistant()
        assert outcome is not None
        (confidence,) = yield from score_answers([outcome], self.confidence)
        whole = turn_of(outcome).text
        conclusion = read_stage(whole, "CONCLUSION")
        draft = drafts.add(
            "first", outcome, confidence, text=conclusion or whole, malformed=conclusion is None
        )
        return drafts.finish(outcome, draft)


def _put_in_place(first: Outcome, again: Outcome) -> Node:
    """The node after a stage that was written again: the text before the stage, then the new ids."""
    base = first.node.base
    assert base is not None
    return base.add_answer(again.node.ids[len(again.node.ids) - again.node.turn_length :], again.result)


def read_stage(text: str, stage: str) -> str | None:
    """What stands in the last pair of tags of a stage, closed or not; None without the opening tag."""
    found = re.findall(rf"<{stage}>(.*?)(?:</{stage}>|$)", text, flags=re.DOTALL)
    return found[-1].strip() if found else None
