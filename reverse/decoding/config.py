"""The settings of retrospective resampling: one flat dataclass, one main dial.

ResamplingConfig(threshold=0.003)         # p(</UN>) above this sends the decoder back
ResamplingConfig.paper()                  # the algorithm as published (arXiv 2504.13169, §3.3, Alg. 1)
ResamplingConfig.released()               # what the published code does
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, Literal

__all__ = ["FALSE_PREMISE", "ResamplingConfig"]

FALSE_PREMISE = (
    "If the question assumes something that the picture does not show, say what is missing "
    "or mistaken instead of answering."
)


@dataclass(frozen=True)
class ResamplingConfig:
    """How suspicious to be, how often to try again, and what to do when nothing helps."""

    threshold: float | None = (
        None  # p(</UN>) above which a phrase is rejected, in (0, 1]; None: the checkpoint's own
    )
    local_attempts: int = 10  # K: failures at one place before going back further (paper §4)
    max_attempts: int = 50  # N: rejections in one answer; 0 checks and never corrects (paper §4)
    max_seconds: float | None = None  # an answer may take before it is no longer corrected; None: no limit
    max_extra_tokens: int | None = None  # an answer may take back before it is no longer corrected
    temperature_step: float = 0.1  # ΔT added after each rejection (§4; Algorithm 1 says 0.05)
    temperature_rise: float = 0.5  # the most that rejections may add to the caller's temperature T0
    hints: int = 5  # how many rejected phrases the prompt names; 0 turns query rewriting off
    candidates: int = 1  # continuations sampled side by side after a rejection
    check: Literal["closing", "every_token"] = "closing"  # p at the closing tag, or the phrase's highest
    score: Literal["softmax", "pair"] = "softmax"  # p(</UN>), or p(</UN>) / (p(</UN>) + p(</CN>))
    commit: Literal["phrase", "sentence", "answer"] = "sentence"  # how far back a rewind may ever go
    on_exhausted: Literal["best", "drop", "verified_prefix"] = "best"  # what a suspect phrase becomes
    sentence_checkpoints: bool = True  # a rewind may stop at a sentence end; False: only after </CN>
    escalation_resets: bool = True  # T ← T0 + ΔT after going back a sentence; False: T stays where it was
    top_k: int = 0  # keep the k most probable tokens when sampling; 0: all
    top_p: float = 1.0  # keep the smallest set of tokens with this probability when sampling
    yes_no: bool = False  # the question wants yes or no: the default threshold is 0.5 (paper §5)
    open_ended: bool = (
        False  # ask once more, with `false_premise`, when the answer comes out blank (paper §4)
    )
    false_premise: str = FALSE_PREMISE  # the instruction of that second question
    seed: int = 0  # of the noise, keyed by (seed, position, attempt)

    def __post_init__(self) -> None:
        t = self.threshold
        if t is not None and not (_number(t) and 0 < t <= 1):
            raise ValueError(
                f"threshold must lie in (0, 1], got {t}: it is a probability of </UN>, try 0.003"
            )
        for name, low in _LEAST.items():
            value = getattr(self, name)
            if name in _NONE_IS_NO_LIMIT and value is None:
                continue
            if not _whole(value) or (low is not None and value < low):
                least = "" if low is None else f" of at least {low}"
                raise ValueError(f"{name} must be a whole number{least}, got {value!r}{_MENDS.get(name, '')}")
        for name in ("temperature_step", "temperature_rise", "max_seconds"):
            value = getattr(self, name)
            if name in _NONE_IS_NO_LIMIT and value is None:
                continue
            if not (_number(value) and math.isfinite(value) and value >= 0):
                raise ValueError(
                    f"{name} must be a finite number of at least 0, got {value!r}{_MENDS.get(name, '')}"
                )
        if not (_number(self.top_p) and 0 < self.top_p <= 1):
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p!r}: 1.0 keeps every token")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("sentence_checkpoints", "escalation_resets", "yes_no", "open_ended"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.score == "pair" and self.check != "closing":
            raise ValueError("score='pair' compares the two closing tags, so it needs check='closing'")

    @classmethod
    def paper(cls, **changes: Any) -> ResamplingConfig:
        """The published algorithm (arXiv 2504.13169 §3.3, §4, Algorithm 1).

        A rewind stops after a `</CN>` or at the start only; p(`</UN>`) is read at every token of a phrase
        (Algorithm 1, line 14); every rejected phrase is hinted; an escalation goes to the last sentence end
        and may go on to the start; the output is returned with `resolved=False` when N is used up.
        """
        base = cls(
            check="every_token", commit="answer", sentence_checkpoints=False, hints=50, on_exhausted="best"
        )
        return replace(base, **changes)

    @classmethod
    def released(cls, **changes: Any) -> ResamplingConfig:
        """The outcomes of the published code (its state of January 2026).

        Reproduced, defects among them: ΔT is 0.05 whatever the command line says; only the closing position
        is read; a rewind stops after a `</CN>` or at the start only; after ten failures the answer is cut at
        a sentence end once and the temperature stays raised; a place with nothing further back is tried
        until N is used up; then the verified prefix alone is returned, which may be empty.
        Not reproduced: the false-premise sentence inside every LLaVA hint, "format error" and whole cut
        sentences among the hints, full-stop tokens missed after a tag, `</UN>` without `<SPAN>` taken for
        clean text, sampling at T0 = 1.0 unasked, and the text clean-up that alters punctuation.
        """
        base = cls(
            temperature_step=0.05,
            commit="sentence",
            sentence_checkpoints=False,
            escalation_resets=False,
            on_exhausted="verified_prefix",
        )
        return replace(base, **changes)

    def with_changes(self, changes: dict[str, Any]) -> ResamplingConfig:
        """A copy with `changes`; unknown names raise TypeError with the list of known ones."""
        known = [f.name for f in fields(self)]
        unknown = sorted(set(changes) - set(known))
        if unknown:
            raise TypeError(f"unknown setting {', '.join(unknown)}: ResamplingConfig has {', '.join(known)}")
        return replace(self, **changes)


def _whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


_LEAST: dict[str, int | None] = {
    "local_attempts": 1,
    "max_attempts": 0,
    "max_extra_tokens": 0,
    "hints": 0,
    "candidates": 1,
    "top_k": 0,
    "seed": None,
}
_NONE_IS_NO_LIMIT = ("max_seconds", "max_extra_tokens")
_MENDS = {
    "max_attempts": ": 0 checks and never corrects, 50 is the paper's",
    "max_seconds": ": leave it out for no limit",
    "max_extra_tokens": ": leave it out for no limit",
    "candidates": ": 1 tries one continuation after the other",
    "hints": ": 0 turns query rewriting off",
    "top_k": ": 0 keeps every token",
}
_CHOICES = {
    "check": ("closing", "every_token"),
    "score": ("softmax", "pair"),
    "commit": ("phrase", "sentence", "answer"),
    "on_exhausted": ("best", "drop", "verified_prefix"),
}
