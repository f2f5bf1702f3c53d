"""Mode `select`: sample several answers after one prefill and keep one of them."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal

from reverse.decoding.asks import (
    Ask,
    Generate,
    Mode,
    Outcome,
    Run,
    Sampling,
    Score,
    find_policy,
    resolve_mode,
)
from reverse.decoding.config import check_whole_number
from reverse.errors import RequestError
from reverse.modes.confidence import CONFIDENCES, compute_confidence
from reverse.modes.mode import ModeRequest

__all__ = ["Select"]


@dataclass(frozen=True)
class Select:
    """The answer with the highest confidence among `n`; of equal ones the first. Source: R3V, select.

    Args: `confidence` as of `compute_confidence`, or `"likelihood"`, the mean log-probability of an answer's
    tokens; `greedy_first`: the first answer is decoded greedily.
    """

    name = "select"
    n: int = 8
    judge: Literal["best"] = "best"
    inner: str | Mode | None = None  # mode of each answer; None: resample
    confidence: str = "min"
    temperature: float = 0.9
    top_k: int = 50
    top_p: float = 0.95
    greedy_first: bool = False

    def __post_init__(self) -> None:
        check_whole_number("n", self.n, 1, ": try 8")
        if self.judge != "best":
            raise RequestError(f"judge must be 'best', got {self.judge!r}")
        if self.confidence not in (*CONFIDENCES, "likelihood"):
            known = ", ".join((*CONFIDENCES, "likelihood"))
            raise RequestError(f"confidence must be one of {known}, got {self.confidence!r}")

    def run(self, request: ModeRequest) -> Generator[list[Ask], list[Any], Outcome]:
        outcomes: list[Outcome] = yield self._ask_for_answers(request)
        if self.confidence == "likelihood":
            scores = yield [Score(outcome.node, "likelihood") for outcome in outcomes]
        else:
            scores = [compute_confidence(outcome.result, self.confidence) for outcome in outcomes]
        return outcomes[max(range(len(outcomes)), key=lambda i: (scores[i], -i))]

    def _ask_for_answers(self, request: ModeRequest) -> list[Ask]:
        source = request.conversation
        inner = None if self.inner is None else resolve_mode(self.inner)
        if inner is not None and not hasattr(inner, "policy"):  # a mode with several asks
            return [Run(inner) for _ in range(self.n)]
        policy = None if inner is None else find_policy(inner)
        sampled = Sampling(self.temperature, self.top_k, self.top_p)
        if not self.greedy_first:
            return [Generate(source, self.n, sampling=sampled, policy=policy)]
        asks: list[Ask] = [Generate(source, sampling=Sampling(temperature=0.0), policy=policy)]
        return asks if self.n == 1 else [*asks, Generate(source, self.n - 1, sampling=sampled, policy=policy)]
