"""Beam search over sentences (TSST)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from reverse.decoding.asks import Ask, Generate, Mode, Outcome, Release, Sampling
from reverse.errors import RequestError
from reverse.grading import AnswerFormat
from reverse.modes.mode import (
    TEXT,
    Asks,
    Budget,
    Drafts,
    ModeRequest,
    count_tokens_left,
    find_inner_policy,
)
from reverse.modes.shared.chains import Chain, Scorer, keep_chains, score_sentences
from reverse.modes.shared.confidence import find_first_equal
from reverse.modes.shared.judging import find_most_confident, find_vote_winner, pick_by_model
from reverse.modes.shared.mode_settings import MOST_SAMPLES, check_choice, check_settings, check_single_inner

__all__ = ["Tree"]


@dataclass(frozen=True)
class Tree:
    """Extend the `beams` best texts by `branch` samples of the next sentence, until enough chains have ended.

    Args:
        beams: texts that are kept after each round. branch: samples of the next sentence for each of them.
        depth: rounds. finished: chains that are enough. step_tokens: the most tokens of a sentence.
        scorer: `"confidence"` is the mean of 1 - p(`</UN>`) over the phrases of the new sentence, or the
            likelihood where no new sentence has phrases; `"likelihood"` the length-normalised probability of
            the new sentence; `"value"` the value of the text by the model's value head; or a function of an
            outcome.
        tau: texts are kept by sampling without replacement with weights softmax(score / tau); 0 keeps the
            best.
        pick: which finished chain is the answer: the `"top"` one by its mean score, or as `Select` picks by
            `"vote"`, `"weighted"` or `"select"`.
        inner: the mode whose policy decodes; None: resample.
        temperature, top_k, top_p: of the samples. seed: of the choice of kept texts.

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
        check_settings(self)
        check_single_inner(self)
        if self.beams * self.branch > MOST_SAMPLES:
            raise RequestError(
                f"beams times branch must be at most {MOST_SAMPLES}, got {self.beams * self.branch}"
            )
        if self.scorer not in ("confidence", "likelihood", "value") and not callable(self.scorer):
            raise RequestError(
                f"scorer must be 'confidence', 'likelihood', 'value' or a function, got {self.scorer!r:.80}"
            )
        check_choice("pick", self.pick, ("top", "vote", "weighted", "select"))

    def run(self, request: ModeRequest) -> Asks:
        drafts, random = Drafts(self.answer_format, self.budget), Random(self.seed)
        ended: list[Chain] = []
        open_chains: list[Chain] = []  # unfinished, and never extended
        extended: list[Chain] = []
        asks, parents = self._extend(request, drafts, [Chain(None)], 0)
        for number in range(1, self.depth + 1):
            outcomes: list[Outcome] = yield asks
            scores = yield from score_sentences(self.scorer, outcomes)
            for outcome in outcomes:
                drafts.count(outcome)
            pairs = zip(parents, outcomes, scores, strict=True)
            grown = [parent.extend(outcome, score) for parent, outcome, score in pairs]
            ended += [chain for chain in grown if chain.has_ended or self._is_full(request, chain)]
            alive = [chain for chain in grown if not chain.is_dead and chain not in ended]
            # If every branch died, the best of what was left before is extended.
            kept = keep_chains(alive or open_chains, self.beams, self.tau, random)
            dropped = [chain for chain in alive if chain not in kept]
            open_chains = [chain for chain in (*open_chains, *dropped) if chain not in kept]
            if len(ended) >= self.finished or drafts.is_spent or not kept or number == self.depth:
                break
            extended += kept
            if dropped:
                yield [Release(chain.last.node) for chain in dropped]
            asks, parents = self._extend(request, drafts, kept, number)
        return (yield from self._pick(request, ended or kept or extended or grown, drafts))

    def _extend(
        self, request: ModeRequest, drafts: Drafts, chains: Sequence[Chain], round: int
    ) -> tuple[list[Ask], list[Chain]]:
        """Ask for the next sentences of chains; also return the parent of each outcome."""
        asks: list[Ask] = []
        parents: list[Chain] = []
        calls = drafts.calls_left(self.beams * self.branch)
        for chain in chains:
            n = min(calls, self.branch if round else calls)
            if n == 0:
                break
            calls -= n
            parents += [chain] * n
            source = chain.last.node.continue_assistant() if round else request.conversation
            left = count_tokens_left(request, source)
            most = self.step_tokens if left is None else min(self.step_tokens, left)
            how = Sampling(self.temperature, self.top_k, self.top_p, most)
            policy = find_inner_policy(self.inner)
            asks.append(Generate(source, n, "sentence", how, policy=policy, role="chain", round=round))
        return asks, parents

    def _is_full(self, request: ModeRequest, chain: Chain) -> bool:
        """Whether the text is as long as an answer may be."""
        return count_tokens_left(request, chain.last.node) == 0

    def _pick(self, request: ModeRequest, chains: Sequence[Chain], drafts: Drafts) -> Asks:
        made = [drafts.add("chain", chain.last, chain.mean, is_counted=True) for chain in chains]
        if self.pick == "top":
            chosen = find_most_confident(made)
        elif self.pick == "select" and not drafts.is_spent:
            chosen = yield from pick_by_model(request.conversation, made, drafts, seed=self.seed)
        else:
            chosen = find_vote_winner(made, weighted=self.pick != "vote")
        chosen = find_first_equal([chain.last for chain in chains], chosen)
        return drafts.finish(chains[chosen].last, made[chosen])
