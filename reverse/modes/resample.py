"""Mode `resample`: check every phrase and decode suspect ones again."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from reverse.decoding.asks import Ask, Outcome, PolicyFactory
from reverse.errors import RequestTypeError
from reverse.modes.mode import ModeRequest, answer_once

__all__ = ["Resample"]


@dataclass(frozen=True)
class Resample:
    """One answer by retrospective resampling, or by your own `policy` (see docs/engine.md)."""

    name = "resample"
    policy: PolicyFactory | None = None  # None: the policy that the configuration names

    def __post_init__(self) -> None:
        if self.policy is not None and not callable(self.policy):
            raise RequestTypeError(
                f"policy must be a class or a function that makes a policy, got {self.policy!r:.80}"
            )

    def run(self, request: ModeRequest) -> Generator[list[Ask], list[Any], Outcome]:
        return answer_once(request, self.policy)
