"""Mode `plain`: decode as `model.generate()` would, and only read p."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from reverse.decoding.asks import Ask, Outcome, PolicyFactory
from reverse.decoding.policies.plain_policy import PlainPolicy
from reverse.modes.mode import ModeRequest, answer_once

__all__ = ["Plain"]


@dataclass(frozen=True)
class Plain:
    """One answer, unchecked."""

    name = "plain"
    policy: PolicyFactory = PlainPolicy

    def run(self, request: ModeRequest) -> Generator[list[Ask], list[Any], Outcome]:
        return answer_once(request, self.policy)
