"""Sample several answers behind one prefill and keep one of them."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal

from reverse.decoding.asks import Ask, Generate, Mode, Outcome, Run, Sampling, Score, policy_of, resolve_mode
from reverse.decoding.config import check_whole
from reverse.errors import RequestError
from reverse.modes.confidence import CONFIDENCES, confidence_of
from reverse.modes.mode import ModeRequest

__all__ = ["Select"]


@dataclass(frozen=True)
class Select:
    """The best of `n` answers (`judge="best"`: the one with the highest confidence; of equals the first).

    Args: `confidence` as of `confidence_of`, or `"likelihood"`, the mean log-probability of an answer's
    tokens; `greedy_first`: the first of them takes the most probable tokens. Source: R3V, select; best of n.
    """

    name = "select"
    n: int = 8
    judge: Literal["best"] = "best"
    inner: str | Mode | None = None  # what makes each answer; None: resample
    confidence: str = "min"
    temperature: float = 0.9
    top_k: int = 50
    top_p: float = 0.95
    greedy_first: bool = False

    def __post_init__(self) -> None:
        check_whole("n", self.n, 1, ": 2 is the least that has a choice")
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
            scores = [confidence_of(outcome.result, self.confidence) for outcome in outcomes]
        return outcomes[max(range(len(outcomes)), key=lambda i: (scores[i], -i))]

    def _ask_for_answers(self, request: ModeRequest) -> list[Ask]:
        source = request.conversation
        inner = None if self.inner is None else resolve_mode(self.inner)
        if inner is not None and not hasattr(inner, "policy"):  # it asks for more than one answer
            return [Run(inner) for _ in range(self.n)]
        policy = None if inner is None else policy_of(inner)
        warm = Sampling(self.temperature, self.top_k, self.top_p)
        if not self.greedy_first:
            return [Generate(source, self.n, sampling=warm, policy=policy)]
        asks: list[Ask] = [Generate(source, sampling=Sampling(temperature=0.0), policy=policy)]
        return asks if self.n == 1 else [*asks, Generate(source, self.n - 1, sampling=warm, policy=policy)]
