"""Mode `plain`: decode as `model.generate()` would, and only record p(`</UN>`)."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from reverse.decoding.asks import Ask, Outcome, PolicyFactory
from reverse.decoding.policies.plain_policy import KeepPhrasesPolicy, PlainPolicy
from reverse.modes.mode import ModeRequest, answer_once
from reverse.modes.shared.mode_settings import check_settings

__all__ = ["Plain"]


@dataclass(frozen=True)
class Plain:
    """One answer, unchecked.

    Args: `keep_phrases`: where the model would close a phrase with `</UN>`, `</CN>` is written, and the
    answer goes on. A tagged model tends to end its answer after `</UN>`, so this is the answer to compare
    corrected ones with. False: the ids are those of `model.generate()`.
    """

    name = "plain"
    keep_phrases: bool = False

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def policy(self) -> PolicyFactory:
        """The policy that decodes."""
        return KeepPhrasesPolicy if self.keep_phrases else PlainPolicy

    def run(self, request: ModeRequest) -> Generator[list[Ask], list[Any], Outcome]:
        return answer_once(request, self.policy)
