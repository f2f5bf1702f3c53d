"""Texts that a tree search extends sentence by sentence, and the choice of those that it keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from reverse.decoding.asks import Ask, Outcome, Score
from reverse.errors import RequestError
from reverse.modes.mode import score_likelihood
from reverse.modes.shared.confidence import compute_confidence

__all__ = ["Chain", "Scorer", "keep_chains", "score_sentences"]

Scorer = Literal["confidence", "likelihood", "value"] | Callable[[Outcome], float]


@dataclass(frozen=True, eq=False)
class Chain:
    """A text that grows sentence by sentence, and the score of each sentence."""

    outcome: Outcome | None
    scores: tuple[float, ...] = ()

    def extend(self, outcome: Outcome, score: float) -> Chain:
        """Return the chain with a further sentence."""
        return Chain(outcome, (*self.scores, score))

    @property
    def last(self) -> Outcome:
        assert self.outcome is not None
        return self.outcome

    @property
    def has_ended(self) -> bool:
        """Whether the text is complete: a sentence end or the limit of a step does not end it."""
        return self.last.result.finish_reason not in ("stop", "length")

    @property
    def is_dead(self) -> bool:
        """Whether the last step added no token, so that the chain cannot be extended."""
        return not self.has_ended and not self.last.result.ids

    @property
    def mean(self) -> float:
        """The mean score of its sentences."""
        return sum(self.scores) / len(self.scores)


def keep_chains(chains: Sequence[Chain], most: int, tau: float, random: Random) -> list[Chain]:
    """Choose the chains to extend next, at most `most`.

    With `tau` 0 they are the best by their last score; otherwise they are drawn without replacement with
    weights softmax(score / tau).
    """
    if tau == 0:
        return sorted(chains, key=lambda chain: -chain.scores[-1])[:most]
    # The largest of score / tau + Gumbel noise are such draws.
    noise = [-math.log(-math.log(random.random() or 5e-324)) for _ in chains]
    keys = [chain.scores[-1] / tau + each for chain, each in zip(chains, noise, strict=True)]
    order = sorted(range(len(chains)), key=lambda i: -keys[i])
    return [chains[i] for i in order[:most]]


def score_sentences(
    scorer: Scorer, outcomes: Sequence[Outcome]
) -> Generator[list[Ask], list[Any], list[float]]:
    """Return the score of each new sentence. Raises RequestError for a score that is no number."""
    if callable(scorer):
        return [_check_score(scorer(outcome)) for outcome in outcomes]
    if scorer == "value":
        return (yield [Score(outcome.node, "value") for outcome in outcomes])
    if scorer == "likelihood":
        return (yield from score_likelihood(outcomes))
    if any(phrase.p_un is not None for outcome in outcomes for phrase in outcome.result.phrases):
        return [compute_confidence(outcome.result, "mean") for outcome in outcomes]
    return (yield from score_likelihood(outcomes, default=-math.inf))


def _check_score(score: Any) -> float:
    try:
        number = float(score)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise RequestError(f"a scorer must return a finite number, got {score!r:.80}")
    return number
