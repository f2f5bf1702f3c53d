"""Show the model its own answer in a new conversation and ask it to improve it (R3V)."""

from __future__ import annotations

from dataclasses import dataclass, field

from reverse.decoding.asks import Conversation, Mode, Node
from reverse.errors import RequestError
from reverse.grading import AnswerFormat
from reverse.modes.mode import TEXT, Asks, Budget, ModeRequest, question_of, replace_question
from reverse.modes.shared.rounds import Accept, answer_in_rounds, check_rounds

__all__ = ["Refine"]


@dataclass(frozen=True)
class Refine:
    """Answer, then show the model the question and its last answer, and ask for a better one, `rounds` times.

    Each round is a fresh conversation; the picture is not encoded again.

    Args:
        rounds: answers after the first, 1 to 3.
        inner: the mode that makes each answer; None: resample.
        accept: the round that is returned: the `"last"`, the one with the highest `"confidence"`, or the one
            that the model picks (`"judge"`).
        stop_when_same: stop when two rounds give the same answer.
        gate: refine only if the confidence of the first answer is below this; None: always.
        confidence: a kind of `compute_confidence`; None: by phrases if there are any, else by likelihood.
        instruction: the question of a round, with {question} and {answer}.

    Source: R3V (arXiv 2411.00855) §3.2; trained there, but never run by the published code.
    """

    name = "refine"
    rounds: int = 1
    inner: str | Mode | None = None
    accept: Accept = "last"
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
        check_rounds(self, least=1)
        if not all(place in self.instruction for place in ("{question}", "{answer}")):
            raise RequestError(
                "instruction must name {question} and {answer}, got " + repr(self.instruction[:80])
            )

    def run(self, request: ModeRequest) -> Asks:
        source = request.conversation
        if isinstance(source, Node):
            raise RequestError(
                "refine asks in a new conversation, so it cannot continue an answer: use self_correct"
            )
        return (
            yield from answer_in_rounds(
                self, request, "refinement", lambda _, draft: self.ask_about(source, draft.text)
            )
        )

    def ask_about(self, source: Conversation, answer: str) -> Conversation:
        """Return the conversation of a round: the question with the previous answer, and its pictures."""
        asked = self.instruction.replace("{question}", question_of(source)).replace(
            "{answer}", answer.strip()
        )
        return replace_question(source, asked)
