"""Show the model its own answer in a fresh conversation and ask it to mend it (R3V)."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Literal

from reverse.decoding.asks import Ask, Conversation, Mode, Node, Outcome
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
    question_of,
    replace_question,
    score_answers,
    turn_of,
)

__all__ = ["Refine"]


@dataclass(frozen=True)
class Refine:
    """Answer, then show the model the question and its last answer, and ask for a better one, `rounds` times.

    Each round is a fresh conversation; the picture is not encoded again.

    Args:
        rounds: answers after the first, 1 to 3.
        inner: the mode that makes each answer; None: resample.
        accept: the round that is returned: the `"last"`, or the one with the highest `"confidence"`.
        stop_when_same: stop when two rounds give the same answer.
        gate: refine only if the confidence of the first answer is below this; None: always.
        confidence: as of `compute_confidence`; None: by phrases where there are any, else by likelihood.
        instruction: the question of a round, with {question} and {answer}.

    Source: R3V (arXiv 2411.00855) §3.2; trained there, but never run by the published code.
    """

    name = "refine"
    rounds: int = 1
    inner: str | Mode | None = None
    accept: Literal["last", "confidence"] = "last"
    stop_when_same: bool = True
    gate: float | None = None
    confidence: str | None = None
    instruction: str = (
        "{question}\nA previous answer: {answer}\n"
        "Decide whether the previous answer is right. If it is not, mend it. Give the full answer."
    )
    answer_format: AnswerFormat = TEXT
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        check_whole_number("rounds", self.rounds, 1)
        if self.rounds > 3:
            raise RequestError(f"rounds must be at most 3, got {self.rounds}")
        if self.accept not in ("last", "confidence"):
            raise RequestError(f"accept must be 'last' or 'confidence', got {self.accept!r:.80}")
        if not all(place in self.instruction for place in ("{question}", "{answer}")):
            raise RequestError(
                "instruction must name {question} and {answer}, got " + repr(self.instruction[:80])
            )
        check_gate(self.gate)
        check_confidence(self.confidence)

    def run(self, request: ModeRequest) -> Asks:
        source = request.conversation
        if isinstance(source, Node):
            raise RequestError(
                "refine asks in a fresh conversation, so it cannot go on from an answer: use self_correct"
            )
        drafts = Drafts(self.answer_format, self.budget)
        (first,) = yield [ask_for_answer(source, self.inner)]
        outcomes, made = [first], [(yield from self._add_draft("first", first, drafts))]
        if self.gate is not None and made[0].confidence >= self.gate:
            return drafts.finish(first, made[0])
        for _ in range(self.rounds):
            if drafts.is_spent:
                break
            (outcome,) = yield [ask_for_answer(self.ask_about(source, made[-1].text), self.inner)]
            outcomes.append(outcome)
            made.append((yield from self._add_draft("refinement", outcome, drafts)))
            if self.stop_when_same and made[-1].answer is not None and made[-1].answer == made[-2].answer:
                break
        chosen = choose_answer(made, self.accept)
        return drafts.finish(outcomes[chosen], made[chosen])

    def _add_draft(
        self, role: str, outcome: Outcome, drafts: Drafts
    ) -> Generator[list[Ask], list[Any], Draft]:
        (confidence,) = yield from score_answers([outcome], self.confidence)
        return drafts.add(role, outcome, confidence, malformed=not turn_of(outcome).text.strip())

    def ask_about(self, source: Conversation, answer: str) -> Conversation:
        """The conversation of a round: the question with the answer before it, and the same pictures."""
        asked = self.instruction.replace("{question}", question_of(source)).replace(
            "{answer}", answer.strip()
        )
        return replace_question(source, asked)
