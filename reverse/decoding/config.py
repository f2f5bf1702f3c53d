"""The settings of retrospective resampling: one flat dataclass with one main setting, `threshold`.

ResamplingConfig(threshold=0.003)         # p(</UN>) above this sends the decoder back
ResamplingConfig.paper()                  # the algorithm as published (arXiv 2504.13169, §3.3, Alg. 1)
ResamplingConfig.for_rationales()         # for reasoning in steps: fewer and bolder attempts
ResamplingConfig.released()               # the algorithm of the published code (January 2026)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from inspect import signature
from numbers import Integral, Real
from operator import index
from typing import Any, Literal

from reverse.errors import RequestError, RequestTypeError

__all__ = ["FALSE_PREMISE", "ResamplingConfig", "check_seed", "check_whole_number", "resolve_config"]

FALSE_PREMISE = (
    "If the question assumes something that the picture does not show, say what is missing "
    "or mistaken instead of answering."
)


@dataclass(frozen=True)
class ResamplingConfig:
    """Settings of resampling: the threshold, the limits of attempts, and what follows them."""

    threshold: float | None = None  # rejects phrases with a p(</UN>) above it, in (0, 1]; None: checkpoint's
    local_attempts: int = 10  # K: failures at one place before going back further (paper §4)
    max_attempts: int = 50  # N: rejections in one answer; 0 checks and never corrects (paper §4)
    max_seconds: float | None = None  # after which an answer is no longer corrected; None: no limit
    max_extra_tokens: int | None = None  # discarded tokens after which an answer is no longer corrected
    temperature_step: float = 0.1  # ΔT added after each rejection (§4; Algorithm 1 says 0.05)
    temperature_rise: float = 0.5  # most that rejections add to the caller's temperature T0
    hints: int = 5  # number of rejected phrases that the prompt names; 0: no hints
    candidates: int = 1  # continuations sampled side by side after a rejection
    check: Literal["closing", "every_token"] = "closing"  # p at the closing tag, or the phrase's highest
    score: Literal["softmax", "pair"] = "softmax"  # p(</UN>), or p(</UN>) / (p(</UN>) + p(</CN>))
    commit: Literal["phrase", "sentence", "answer"] = "sentence"  # how far back a rewind may go
    on_exhausted: Literal["best", "drop"] = "best"  # what becomes of a phrase that stays suspect
    policy: Literal["resample", "paper", "released"] = "resample"  # the algorithm, see docs/decoding.md
    top_k: int = 0  # keep the k most probable tokens when sampling; 0: all
    top_p: float = 1.0  # keep the smallest set of tokens with this probability when sampling
    yes_no: bool = False  # the question asks for yes or no: the default threshold is 0.5 (paper §5)
    open_ended: bool = False  # ask again, with `false_premise`, if the answer is blank (paper §4)
    false_premise: str = FALSE_PREMISE  # instruction of the second question
    seed: int = 0  # random seed

    def __post_init__(self) -> None:
        if self.threshold is not None:
            self._number(
                "threshold",
                "lie in (0, 1]",
                lambda t: 0 < t <= 1,
                ": it is a probability of </UN>, try 0.003",
            )
        for name in ("temperature_step", "temperature_rise"):
            self._number(name, "be a finite number of at least 0", lambda t: math.isfinite(t) and t >= 0)
        self._number("top_p", "lie in (0, 1]", lambda p: 0 < p <= 1, ": 1.0 keeps every token")
        if self.max_seconds is not None:
            self._number(
                "max_seconds",
                "be a finite number of at least 0",
                lambda t: math.isfinite(t) and t >= 0,
                _REMEDIES["max_seconds"],
            )
        for name, low in _MINIMA.items():
            value = getattr(self, name)
            if name != "max_extra_tokens" or value is not None:
                object.__setattr__(self, name, check_whole_number(name, value, low, _REMEDIES.get(name, "")))
        object.__setattr__(self, "seed", check_seed(self.seed))
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise RequestError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if not isinstance(self.false_premise, str) or not self.false_premise.strip():
            raise RequestError(
                f"false_premise must be a text that says something, got {self.false_premise!r:.80}: leave it "
                "out for the library's own"
            )
        for name in ("yes_no", "open_ended"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.score == "pair" and self.check != "closing":
            raise RequestError("score='pair' compares the two closing tags, so it needs check='closing'")

    def _number(self, name: str, must: str, good: Callable[[float], bool], remedy: str = "") -> None:
        value = getattr(self, name)
        if not isinstance(value, Real) or isinstance(value, bool):
            raise RequestError(f"{name} must {must}, got {value!r} ({type(value).__name__}){remedy}")
        if not good(float(value)):
            raise RequestError(f"{name} must {must}, got {value}{remedy}")
        object.__setattr__(self, name, float(value))  # a float32 of numpy would round in comparisons

    @classmethod
    def paper(cls, **changes: Any) -> ResamplingConfig:
        """The published algorithm (arXiv 2504.13169 §3.3, §4, Algorithm 1).

        A rewind stops after a `</CN>` or at the start only; p(`</UN>`) is read at every token of a phrase
        (Algorithm 1, line 14); every rejected phrase is hinted; an escalation goes to the last sentence end
        and may go on to the start; the output is returned with `resolved=False` when N is used up.
        """
        base = cls(policy="paper", check="every_token", commit="answer", hints=50, on_exhausted="best")
        return base.with_changes(changes)

    @classmethod
    def for_rationales(cls, **changes: Any) -> ResamplingConfig:
        """Settings for step-wise rationales that are decoded greedily: one phrase a step, short, few words.

        A model that prefers a wrong count says it again at the low temperatures that suit captions (0.1 to
        0.5), and each time costs a step. So a rejected step is drawn at temperature 1 at once, up to 8 times,
        and an answer has at most 12 rejections. Hints are left out, because they make rationales worse.
        `python -m experiments.rationale_resampling` shows what each setting costs.
        """
        base = cls(hints=0, temperature_step=1.0, temperature_rise=1.0, local_attempts=8, max_attempts=12)
        return base.with_changes(changes)

    @classmethod
    def released(cls, **changes: Any) -> ResamplingConfig:
        """The published code's algorithm (its state of January 2026), which differs from the paper.

        R1  After ten failures the answer is cut at its last sentence end and T stays raised. Once a phrase
            is accepted there, T restarts at T0, and the next ten failures cut at the same sentence end.
        R2  N counts calls of generate(), so each successful correction costs one. A 50th call that is also
        the 10th local failure still cuts the answer.
        R3  After a tag that is never closed it goes back to the last accepted text, so good phrases of that
        call are decoded again.
        R4  A sampled `</UN>` with p <= threshold is accepted.
        R5  When N is used up, only the verified text is returned, which may be empty; with `open_ended`, as
        in
            all the published scripts, the unfinished last sentence is cut off.
        R6  Reaching the length limit inside a phrase is a format error and is retried. `max_new_tokens`
        limits one call, so an answer may hold up to N times as many.
        R7  Malformed tags are format errors: tags are not masked.
        R8  A retry that ends the text without a phrase is repeated at T0.
        R9  Only the token "." ends a sentence, inside "3.5" and inside phrases too.

        ΔT is 0.05 whatever the published command line says, and p is read at the closing tag only.
        Intentionally left out: the false-premise sentence inside every LLaVA hint, a fixed sentence in place
        of a second blank answer, sampling at T0 = 1.0 by default, and the text clean-up that alters
        punctuation.
        """
        base = cls(policy="released", temperature_step=0.05, commit="sentence")
        return base.with_changes(changes)

    def with_changes(self, changes: dict[str, Any], arguments: Sequence[str] = ()) -> ResamplingConfig:
        """Return a copy with `changes`. `arguments` are other names that the caller accepts.

        Raises RequestTypeError with the nearest known name for an unknown one.
        """
        known = [f.name for f in fields(self)]
        unknown = sorted(set(changes) - set(known))
        if unknown:
            raise RequestTypeError(
                f"unknown setting {', '.join(unknown):.200}: {_suggest_name(unknown[0], known, arguments)}"
            )
        return replace(self, **changes)


def resolve_config(config: Any, settings: dict[str, Any], arguments: Sequence[str] = ()) -> ResamplingConfig:
    """Return `config` with `settings` changed; `arguments` are other names that the caller accepts.

    Raises RequestError.
    """
    if config is not None and not isinstance(config, ResamplingConfig):
        raise RequestTypeError(
            f"config must be a ResamplingConfig, got {type(config).__name__}: give its fields by name, "
            "threshold=0.003, or make one, ResamplingConfig(threshold=0.003)"
        )
    return (config or ResamplingConfig()).with_changes(settings, arguments)


def _suggest_name(name: str, known: Sequence[str], arguments: Sequence[str]) -> str:
    """Return a remedy for a name that is not a setting."""
    from transformers import GenerationConfig, GenerationMixin

    options = {*vars(GenerationConfig()), *signature(GenerationMixin.generate).parameters}
    if name in options:
        call = f"model.generate(custom_generate=reverse.retrospective(processor), {name}=...)"
        ours = f"generation={{{name!r}: ...}}, or " if "generation" in arguments else ""
        return f"it is an option of model.generate(), use {ours}{call}"
    near = get_close_matches(name, [*known, *arguments], n=1)
    if near:
        return f"did you mean {near[0]}?"
    return f"ResamplingConfig has {', '.join(known)}"


def check_whole_number(name: str, value: Any, low: int, remedy: str = "") -> int:
    """Return `value` as an int. Raises RequestError unless it is a whole number of at least `low`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < low:
        raise RequestError(f"{name} must be a whole number of at least {low}, got {value!r}{remedy}")
    return int(value)


def check_seed(seed: Any) -> int:
    """Return `seed` as an int.

    Raises RequestTypeError for another type, RequestError for more than 64 bits.
    """
    try:
        seed = index(seed)
    except TypeError:
        raise RequestTypeError(f"seed must be a whole number, got {seed!r}: try 0") from None
    if not -(2**63) <= seed < 2**63:
        raise RequestError(f"seed must lie between -2**63 and 2**63 - 1, got {seed}: try 0")
    return seed


_MINIMA = {
    "local_attempts": 1,
    "max_attempts": 0,
    "max_extra_tokens": 0,
    "hints": 0,
    "candidates": 1,
    "top_k": 0,
}
_REMEDIES = {
    "max_attempts": ": 0 checks and never corrects, 50 is the paper's",
    "max_seconds": ": leave it out for no limit",
    "max_extra_tokens": ": leave it out for no limit",
    "candidates": ": 1 tries one continuation after the other",
    "hints": ": 0 turns hints off",
    "top_k": ": 0 keeps every token",
}
_CHOICES = {
    "check": ("closing", "every_token"),
    "score": ("softmax", "pair"),
    "commit": ("phrase", "sentence", "answer"),
    "on_exhausted": ("best", "drop"),
    "policy": ("resample", "paper", "released"),
}
