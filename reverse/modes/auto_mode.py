"""Resample first; sample more answers only where the first one is doubtful."""

from __future__ import annotations

from dataclasses import dataclass, field

from reverse.decoding.asks import Mode, Sampling
from reverse.errors import RequestError
from reverse.grading import AnswerFormat
from reverse.modes.mode import (
    TEXT,
    Asks,
    Budget,
    Drafts,
    ModeRequest,
    ask_for_answer,
    ask_for_samples,
    score_answers,
)
from reverse.modes.shared.confidence import find_first_equal
from reverse.modes.shared.judging import find_vote_winner
from reverse.modes.shared.mode_settings import check_settings

__all__ = ["Auto"]


@dataclass(frozen=True)
class Auto:
    """One answer; if its confidence is below the gate, more samples within the budget, and a weighted vote.

    Args:
        budget: what one request may cost; its `max_tokens_total` decides how many samples are made.
        gate: the confidence of the first answer that is enough.
        n: the most answers. batch: samples that are asked for at once.
        inner: the mode that makes each answer; None: resample.
        confidence: a kind of `compute_confidence`; None: by phrases if there are any, else by likelihood.
    """

    name = "auto"
    budget: Budget = field(default_factory=lambda: Budget(max_tokens_total=1024))
    gate: float = 0.7
    n: int = 8
    batch: int = 2
    inner: str | Mode | None = None
    confidence: str | None = None
    temperature: float = 0.9
    top_k: int = 50
    top_p: float = 0.95
    answer_format: AnswerFormat = TEXT

    def __post_init__(self) -> None:
        check_settings(self)
        if self.gate is None:
            raise RequestError("auto needs a gate, the confidence that is enough, got None: try gate=0.7")

    def run(self, request: ModeRequest) -> Asks:
        drafts = Drafts(self.answer_format, self.budget)
        (first,) = yield [ask_for_answer(request.conversation, self.inner, role="first")]
        (confidence,) = yield from score_answers([first], self.confidence)
        outcomes, made = [first], [drafts.add("first", first, confidence)]
        how, round = Sampling(self.temperature, self.top_k, self.top_p), 0
        while confidence < self.gate and len(made) < self.n and not drafts.is_spent:
            wanted = drafts.calls_left(min(self.batch, self.n - len(made)))
            round += 1
            more = yield ask_for_samples(request.conversation, self.inner, wanted, how, round=round)
            scores = yield from score_answers(more, self.confidence)
            outcomes += more
            made += [
                drafts.add("sample", outcome, score) for outcome, score in zip(more, scores, strict=True)
            ]
        chosen = find_first_equal(outcomes, find_vote_winner(made, weighted=True))
        return drafts.finish(outcomes[chosen], made[chosen])
