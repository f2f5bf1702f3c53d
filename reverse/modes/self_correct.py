"""Answer, then check the answer in a further turn (LLaVA-SCo)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from reverse.decoding.asks import Conversation, Generate, Mode, Node, Outcome, Sampling
from reverse.errors import RequestError
from reverse.grading import AnswerFormat
from reverse.modes.grammar.answer_stages import STAGES, put_in_place, read_conclusion
from reverse.modes.mode import (
    TEXT,
    Asks,
    Budget,
    Drafts,
    ModeRequest,
    count_tokens_left,
    find_inner_policy,
    score_answers,
)
from reverse.modes.shared.mode_settings import check_single_inner
from reverse.modes.shared.rounds import Accept, add_round, answer_in_rounds, check_rounds

__all__ = ["SelfCorrect"]


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
            that the model picks (`"judge"`, by `Select`). With stages it is always the last.
        stop_when_same: stop when two rounds give the same answer, or the same stage.
        gate: check only if the confidence of the first answer is below this; None: always.
        confidence: a kind of `compute_confidence`; None: by phrases if there are any, else by likelihood.
        instruction: question of the further turns.

    Source: LLaVA-SCo (CVPR 2025 workshop); the published script makes no second turn.
    """

    name = "self_correct"
    rounds: int = 1
    inner: str | Mode | None = None
    schema: Literal["cot4"] | None = None
    position: Literal["end", "stage"] = "end"
    accept: Accept = "last"
    stop_when_same: bool = True
    gate: float | None = None
    confidence: str | None = None
    instruction: str = "Check your answer against the picture and the question. Then give your final answer."
    answer_format: AnswerFormat = TEXT
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        check_rounds(self, least=0)
        if self.schema not in (None, "cot4"):
            raise RequestError(f"schema must be 'cot4' or None, got {self.schema!r:.80}")
        if self.position not in ("end", "stage") or (self.position == "stage" and self.schema is None):
            raise RequestError(
                f"position must be 'end', or 'stage' with schema='cot4', got {self.position!r:.80}"
            )
        if self.position == "stage":
            check_single_inner(self)
            if self.accept != "last":
                raise RequestError(
                    f"position='stage' keeps the last version of each stage, got accept={self.accept!r}: "
                    "leave accept out"
                )

    def run(self, request: ModeRequest) -> Asks:
        if self.position == "stage":
            return (yield from self._correct_stages(request))
        read = read_conclusion if self.schema else None
        return (
            yield from answer_in_rounds(
                self, request, "correction", lambda outcome, _: outcome.node.user(self.instruction), read
            )
        )

    def _correct_stages(self, request: ModeRequest) -> Asks:
        """Write a stage, let the model check it, replace it by the result, and go on to the next stage."""
        drafts, policy = Drafts(self.answer_format, self.budget), find_inner_policy(self.inner)
        node: Conversation | Node = request.conversation
        outcome: Outcome | None = None
        for stage in STAGES:
            left = count_tokens_left(request, node)
            if outcome is not None and (left == 0 or drafts.is_spent):
                break
            role, until, how = f"stage {stage.lower()}", (f"</{stage}>",), Sampling(max_new_tokens=left)
            (outcome,) = yield [Generate(node, until=until, sampling=how, policy=policy, role=role)]
            (confidence,) = yield from score_answers([outcome], self.confidence)
            drafts.add(role, outcome, confidence, text=outcome.result.text)
            if outcome.result.finish_reason != "stop":  # the text ended inside a stage: nothing to go on from
                break
            asks_again = self.gate is None or confidence < self.gate
            for number in range(1, self.rounds + 1 if asks_again else 1):
                if drafts.is_spent:
                    break
                asked = outcome.node.user(f"{self.instruction} Repeat only the part <{stage}>, corrected.")
                (again,) = yield [
                    Generate(asked, until=until, sampling=how, policy=policy, role=role, round=number)
                ]
                (confidence,) = yield from score_answers([again], self.confidence)
                is_whole = again.result.finish_reason == "stop" and f"<{stage}>" in again.result.text
                drafts.add(role, again, confidence, text=again.result.text, malformed=not is_whole)
                if is_whole:
                    is_same = again.result.text.strip() == outcome.result.text.strip()
                    outcome = Outcome(again.result, put_in_place(outcome, again))
                    if is_same and self.stop_when_same:
                        break
            node = outcome.node.continue_assistant()
        assert outcome is not None
        draft = yield from add_round(self, drafts, "first", outcome, read_conclusion, is_counted=True)
        return drafts.finish(outcome, draft)
