"""Beam search over sentences (TSST)."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

from reverse.decoding.asks import Ask, Generate, Mode, Outcome, Release, Sampling
from reverse.decoding.config import check_whole_number
from reverse.errors import RequestError
from reverse.grading import AnswerFormat
from reverse.modes.confidence import compute_confidence
from reverse.modes.mode import TEXT, Asks, Budget, Drafts, ModeRequest, find_inner_policy, score_answers
from reverse.modes.select import find_vote_winner, pick_by_model

__all__ = ["Tree"]

Scorer = Literal["confidence", "likelihood"] | Callable[[Outcome], float]


@dataclass(frozen=True, eq=False)
class _Chain:
    """A text that grows sentence by sentence, and the score of each sentence."""

    outcome: Outcome | None
    scores: tuple[float, ...] = ()

    def extend(self, outcome: Outcome, score: float) -> _Chain:
        """The chain with a further sentence."""
        return _Chain(outcome, (*self.scores, score))

    @property
    def last(self) -> Outcome:
        assert self.outcome is not None
        return self.outcome

    @property
    def is_finished(self) -> bool:
        """Whether the text has ended; a sentence end or the limit of a step ends it not."""
        return self.last.result.finish_reason not in ("stop", "length")

    @property
    def grew(self) -> bool:
        """Whether the last step added a token."""
        return bool(self.last.result.ids)

    @property
    def mean(self) -> float:
        return sum(self.scores) / len(self.scores)


@dataclass(frozen=True)
class Tree:
    """Extend the `beams` best texts by `branch` samples of the next sentence, until enough chains have ended.

    Args:
        beams: texts that are kept after each round. branch: samples of the next sentence for each of them.
        depth: rounds. finished: chains that are enough. step_tokens: the most tokens of a sentence.
        scorer: `"confidence"` is the mean of 1 - p(`</UN>`) over the phrases of the new sentence,
            `"likelihood"` the mean log-probability of its tokens; or a function of an outcome.
        tau: texts are kept by sampling without replacement with weights softmax(score / tau); 0 keeps the
            best.
        pick: which finished chain is the answer: the `"top"` one by its mean score, or as `Select` picks by
            `"vote"`, `"weighted"` or `"select"`.
        inner: the mode whose policy decodes; None: resample.
        temperature, top_k, top_p: of the samples. seed: of what is kept.

    Source: TSST; sentence ends are found in the text, not by the id of a token.
    """

    name = "tree"
    beams: int = 3
    branch: int = 4
    depth: int = 16
    finished: int = 4
    step_tokens: int = 64
    scorer: Scorer = "confidence"
    tau: float = 0.0
    pick: Literal["top", "vote", "weighted", "select"] = "weighted"
    inner: str | Mode | None = None
    temperature: float = 0.9
    top_k: int = 50
    top_p: float = 0.95
    seed: int = 0
    answer_format: AnswerFormat = TEXT
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        for name in ("beams", "branch", "depth", "finished", "step_tokens"):
            check_whole_number(name, getattr(self, name), 1)
        if self.scorer not in ("confidence", "likelihood") and not callable(self.scorer):
            raise RequestError(
                f"scorer must be 'confidence', 'likelihood' or a function, got {self.scorer!r:.80}"
            )
        if self.pick not in ("top", "vote", "weighted", "select"):
            raise RequestError(f"pick must be 'top', 'vote', 'weighted' or 'select', got {self.pick!r:.80}")
        if not 0 <= self.tau < math.inf:
            raise RequestError(f"tau must be a number of at least 0, got {self.tau!r:.80}")

    def run(self, request: ModeRequest) -> Asks:
        policy = find_inner_policy(self.inner)
        how = Sampling(self.temperature, self.top_k, self.top_p, self.step_tokens)
        drafts, random = Drafts(self.answer_format, self.budget), Random(self.seed)
        ended: list[_Chain] = []
        beam: list[_Chain] = []
        asks: list[Ask] = [
            Generate(request.conversation, self.beams * self.branch, "sentence", how, policy=policy)
        ]
        parents = [_Chain(None)] * (self.beams * self.branch)
        for _ in range(self.depth):
            outcomes: list[Outcome] = yield asks
            scores = yield from self._score(outcomes)
            for outcome in outcomes:
                drafts.count(outcome)
            grown = [
                chain.extend(outcome, score)
                for chain, outcome, score in zip(parents, outcomes, scores, strict=True)
            ]
            ended += [chain for chain in grown if chain.is_finished]
            alive = [chain for chain in grown if not chain.is_finished and chain.grew]
            kept = self._keep(alive, random)
            dropped = [chain for chain in alive if chain not in kept]
            beam = kept or beam
            if not kept or len(ended) >= self.finished or drafts.is_spent:
                break
            asks = [
                Generate(chain.last.node.continue_assistant(), self.branch, "sentence", how, policy=policy)
                for chain in kept
            ]
            parents = [chain for chain in kept for _ in range(self.branch)]
            if dropped:
                yield [Release(chain.last.node) for chain in dropped]
        return (yield from self._pick(request, ended or beam or grown, drafts))

    def _score(self, outcomes: Sequence[Outcome]) -> Generator[list[Ask], list[Any], list[float]]:
        """The score of each new sentence."""
        if callable(self.scorer):
            return [float(self.scorer(outcome)) for outcome in outcomes]
        if self.scorer == "likelihood":
            return (yield from score_answers(outcomes, "likelihood"))
        return [compute_confidence(outcome.result, "mean") for outcome in outcomes]

    def _keep(self, chains: Sequence[_Chain], random: Random) -> list[_Chain]:
        """The chains that the next round extends: the best, or drawn by their scores."""
        if self.tau == 0:
            return sorted(chains, key=lambda chain: -chain.scores[-1])[: self.beams]
        # The largest of score / tau + Gumbel noise: sampling without replacement by softmax(score / tau).
        noise = [-math.log(-math.log(random.random() or 5e-324)) for _ in chains]
        keys = [chain.scores[-1] / self.tau + each for chain, each in zip(chains, noise, strict=True)]
        order = sorted(range(len(chains)), key=lambda i: -keys[i])
        return [chains[i] for i in order[: self.beams]]

    def _pick(self, request: ModeRequest, chains: Sequence[_Chain], drafts: Drafts) -> Asks:
        made = [drafts.add("chain", chain.last, chain.mean, is_counted=True) for chain in chains]
        if self.pick == "top":
            chosen = max(range(len(made)), key=lambda i: (made[i].confidence, -i))
        elif self.pick == "select" and not drafts.is_spent:
            chosen = yield from pick_by_model(
                request.conversation, made, self.answer_format, drafts, seed=self.seed
            )
        else:
            chosen = find_vote_winner(made, weighted=self.pick != "vote")
        return drafts.finish(chains[chosen].last, made[chosen])
