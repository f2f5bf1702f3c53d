"""Checks of the settings that modes share, by the name of the setting."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from numbers import Real
from typing import Any

from reverse.decoding.asks import resolve_mode
from reverse.decoding.config import check_seed, check_whole_number
from reverse.errors import RequestError, RequestTypeError
from reverse.grading import AnswerFormat
from reverse.modes.mode import Budget
from reverse.modes.shared.confidence import CONFIDENCES

__all__ = ["MOST_SAMPLES", "check_choice", "check_settings", "check_single_inner"]

MOST_SAMPLES = 4096  # answers or parts of answers that one request may ask for side by side
COUNTS = ("n", "batch", "group", "permutations", "beams", "branch", "depth", "finished", "step_tokens")
SWITCHES = ("stop_when_same", "greedy_first", "keep_phrases")


def check_settings(mode: Any) -> None:
    """Check all settings of a mode that have the names known here.

    Raises:
        RequestError: a value is out of its range. RequestTypeError: a value is of another type.
    """
    for each in fields(mode):
        value = getattr(mode, each.name)
        if each.name in COUNTS:
            _check_count(each.name, value)
        elif each.name in SWITCHES:
            _check_type(each.name, value, bool, "True or False")
        elif each.name in _CHECKS:
            _CHECKS[each.name](value)


def check_choice(name: str, value: Any, known: tuple[str, ...]) -> None:
    """Refuse what is not one of these names. Raises RequestError."""
    if value not in known:
        raise RequestError(f"{name} must be one of {', '.join(known)}, got {value!r:.80}")


def check_single_inner(mode: Any) -> None:
    """Refuse an inner mode that makes more than one answer, for modes that write answers part by part.

    Raises RequestError.
    """
    inner = None if mode.inner is None else resolve_mode(mode.inner)
    if inner is not None and not hasattr(inner, "policy"):
        outer = type(mode).__name__
        raise RequestError(
            f"{mode.name} writes an answer in parts, so its inner mode must be 'resample' or 'plain', got "
            f"{inner.name!r:.80}: nest them the other way round, {type(inner).__name__}(inner={outer}(...)), "
            "or leave inner out"
        )


def _check_count(name: str, value: Any) -> None:
    least, remedy = (2, "") if name == "group" else (1, "")
    if name == "n":
        remedy = ": 2 is the least that has a choice"
    if check_whole_number(name, value, least, remedy) > MOST_SAMPLES:
        raise RequestError(f"{name} must be at most {MOST_SAMPLES}, got {value}")


def _check_type(name: str, value: Any, kind: type, wanted: str) -> None:
    if not isinstance(value, kind):
        raise RequestTypeError(f"{name} must be {wanted}, got {value!r:.80}")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_inner(inner: Any) -> None:
    if inner is not None:
        resolve_mode(inner)


def _check_gate(gate: Any) -> None:
    if gate is not None and not (_is_number(gate) and 0 < gate <= 1):
        raise RequestError(
            f"gate must lie in (0, 1], got {gate!r:.80}: it is the confidence that is enough, try 0.7"
        )


def _check_confidence(kind: Any) -> None:
    if kind is not None:
        known = ", ".join((*CONFIDENCES, "likelihood"))
        if kind not in (*CONFIDENCES, "likelihood"):
            raise RequestError(f"confidence must be one of {known} or None, got {kind!r:.80}")


def _check_temperature(value: Any) -> None:
    if not (_is_number(value) and 0 <= value < math.inf):
        raise RequestError(f"temperature must be a finite number of at least 0, got {value!r:.80}: try 0.9")


def _check_top_p(value: Any) -> None:
    if not (_is_number(value) and 0 < value <= 1):
        raise RequestError(f"top_p must lie in (0, 1], got {value!r:.80}: 1.0 keeps every token")


def _check_tau(value: Any) -> None:
    if not (_is_number(value) and 0 <= value < math.inf):
        raise RequestError(f"tau must be a number of at least 0, got {value!r:.80}: 0 keeps the best")


_CHECKS: dict[str, Callable[[Any], object]] = {
    "inner": _check_inner,
    "gate": _check_gate,
    "confidence": _check_confidence,
    "temperature": _check_temperature,
    "top_k": lambda value: check_whole_number("top_k", value, 0, ": 0 keeps every token"),
    "top_p": _check_top_p,
    "tau": _check_tau,
    "seed": check_seed,
    "instruction": lambda value: _check_type("instruction", value, str, "a text"),
    "budget": lambda value: _check_type("budget", value, Budget, "a Budget, such as Budget(max_calls=8)"),
    "answer_format": lambda value: _check_type(
        "answer_format", value, AnswerFormat, 'an AnswerFormat, such as AnswerFormat("number")'
    ),
}
