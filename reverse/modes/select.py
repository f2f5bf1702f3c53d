"""Sample several answers after one prefill and keep one of them (R3V; best of n; votes)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from reverse.decoding.asks import Ask, Conversation, Mode, Node, Outcome, Sampling, Score
from reverse.decoding.mode_names import JUDGE_NAMES
from reverse.errors import RequestError
from reverse.grading import AnswerFormat
from reverse.modes.mode import (
    TEXT,
    Asks,
    Budget,
    Drafts,
    ModeRequest,
    ask_for_samples,
    score_answers,
)
from reverse.modes.shared.confidence import find_first_equal
from reverse.modes.shared.judging import PICK, find_most_confident, find_vote_winner, pick_by_model
from reverse.modes.shared.mode_settings import check_choice, check_settings

__all__ = ["Judge", "Select"]

Judge = Literal["best", "vote", "weighted", "self", "value"]


@dataclass(frozen=True)
class Select:
    """One of `n` answers that share a prefill.

    Args:
        n: how many answers.
        judge: `"best"` keeps the most confident one; `"vote"` the answer that most samples give, ties by
        confidence;
            `"weighted"` weighs votes by confidence; `"self"` shows the distinct answers to the model, which
            gives the final one (in groups of `group`, until one is left). If it names none of them, the vote
            decides. `"value"` keeps the one that the model's value head finds best.
        inner: the mode that makes each answer; None: resample.
        confidence: a kind of `compute_confidence`; None: by phrases if there are any, else by likelihood.
        temperature, top_k, top_p: of the samples.
        greedy_first: the first sample takes the most probable tokens.
        group: candidates that the model is shown at once. permutations: orders they are shown in; the
        orders vote.
        seed: of the order of candidates.
        instruction: the question of `"self"`, with {question} and {candidates}.

    Source: R3V (arXiv 2411.00855) §3.3.
    """

    name = "select"
    n: int = 8
    judge: Judge = "best"
    inner: str | Mode | None = None
    confidence: str | None = None
    temperature: float = 0.9
    top_k: int = 50
    top_p: float = 0.95
    greedy_first: bool = False
    group: int = 3
    permutations: int = 1
    seed: int = 0
    instruction: str = PICK
    answer_format: AnswerFormat = TEXT
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        check_settings(self)
        check_choice("judge", self.judge, JUDGE_NAMES)
        if not all(place in self.instruction for place in ("{question}", "{candidates}")):
            raise RequestError(
                "instruction must name {question} and {candidates}, got " + repr(self.instruction[:80])
            )

    def run(self, request: ModeRequest) -> Asks:
        drafts = Drafts(self.answer_format, self.budget)
        outcomes: list[Outcome] = yield self._ask_for_samples(request.conversation, drafts)
        scores = yield from score_answers(outcomes, self.confidence)
        made = [drafts.add("sample", outcome, score) for outcome, score in zip(outcomes, scores, strict=True)]
        if self.judge == "best":
            chosen = find_most_confident(made)
        elif self.judge == "value":
            values = yield [Score(outcome.node, "value") for outcome in outcomes]
            chosen = max(range(len(made)), key=lambda i: (values[i], -i))
        elif self.judge == "self" and not drafts.is_spent:
            chosen = yield from pick_by_model(
                request.conversation, made, drafts,
                group=self.group, permutations=self.permutations, seed=self.seed,
                instruction=self.instruction,
            )  # fmt: skip
        else:
            chosen = find_vote_winner(made, weighted=self.judge == "weighted")
        chosen = find_first_equal(outcomes, chosen)
        return drafts.finish(outcomes[chosen], made[chosen])

    def _ask_for_samples(self, source: Conversation | Node, drafts: Drafts) -> list[Ask]:
        n = drafts.calls_left(self.n)
        how = Sampling(self.temperature, self.top_k, self.top_p)
        if not self.greedy_first:
            return ask_for_samples(source, self.inner, n, how)
        first = ask_for_samples(source, self.inner, 1, Sampling(temperature=0.0))
        return first if n == 1 else [*first, *ask_for_samples(source, self.inner, n - 1, how)]
