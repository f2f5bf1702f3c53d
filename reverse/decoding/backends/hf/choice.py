"""The next token of every sequence that decodes: p(`</UN>`), tag mask, processors, temperature, noise.

Sequences with different sampling parameters are chosen for in groups of equal ones; each row is chosen for as
it would be alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from reverse.decoding.backends.base import RunningSegment, SegmentParams, not_finite
from reverse.decoding.sampling import choose, mask_tags, uniform
from reverse.decoding.verifier import NO_TAGS, Verifier

__all__ = ["Choice", "Chooser", "choose_tokens"]


@dataclass(slots=True, eq=False)
class Chooser:
    """A sequence that chooses its next token: its segment so far, and the caller's logits processors."""

    segment: RunningSegment
    processors: Any = None
    shown: Sequence[int] = ()  # ids that processors are shown: padding and all tokens


@dataclass(slots=True)
class Choice:
    """A chosen token, p(`</UN>`) at its step and its log-probability, both from raw logits; or an error."""

    token: int
    p: float
    log_probability: float
    error: Exception | None = None


def choose_tokens(logits: torch.Tensor, choosers: Sequence[Chooser]) -> list[Choice]:
    """Choose for each row of `logits` (rows, vocabulary); `choosers` are changed in nothing.

    Raises torch.OutOfMemoryError; whatever else goes wrong with one row is the error of that row alone.
    """
    groups: dict[Any, list[int]] = {}
    for i, chooser in enumerate(choosers):
        params = chooser.segment.params
        key = (params.tags, params.score, params.masks_tags, params.top_k, params.top_p)
        groups.setdefault(key, []).append(i)
    if len(groups) == 1:
        return _choose_alike(logits, choosers)
    found: dict[int, Choice] = {}
    for rows in groups.values():
        found.update(zip(rows, _choose_alike(logits[rows], [choosers[i] for i in rows]), strict=True))
    return [found[i] for i in range(len(choosers))]


def _choose_alike(logits: torch.Tensor, choosers: Sequence[Chooser]) -> list[Choice]:
    """Choose for rows whose parameters differ in no more than seed, path, position, attempt, temperature."""
    params = choosers[0].segment.params
    raw = logits.float()
    ps = Verifier(params.tags, params.score).p(raw)
    scores = raw
    if params.masks_tags and params.tags != NO_TAGS:
        scores = mask_tags(raw, [chooser.segment.is_inside for chooser in choosers], params.tags)
    scores, errors = _process(scores, choosers)
    tokens = choose(
        scores,
        [chooser.segment.params.temperature for chooser in choosers],
        [_noise(chooser.segment.params, len(chooser.segment.ids)) for chooser in choosers],
        params.top_k,
        params.top_p,
    )
    surprise = raw.gather(1, tokens[:, None]).squeeze(1) - raw.logsumexp(dim=-1)
    numbers = torch.stack((ps, surprise)).tolist()
    choices = [Choice(*each) for each in zip(tokens.tolist(), *numbers, errors, strict=True)]
    for choice, chooser in zip(choices, choosers, strict=True):
        if choice.p != choice.p:
            choice.error = not_finite(chooser.segment.params.position + len(chooser.segment.ids))
    return choices


def _noise(params: SegmentParams, index: int) -> float:
    if params.temperature <= 0:
        return 0.0
    return uniform(params.seed, params.position + index, params.attempt, params.path)


def _process(
    scores: torch.Tensor, choosers: Sequence[Chooser]
) -> tuple[torch.Tensor, list[Exception | None]]:
    """Scores after the caller's processors, and the error of each row whose processors failed."""
    errors: list[Exception | None] = [None] * len(choosers)
    if all(chooser.processors is None for chooser in choosers):
        return scores, errors
    rows = list(scores.split(1))
    for i, chooser in enumerate(choosers):  # sequences have different lengths, so each is shown alone
        if chooser.processors is None:
            continue
        shown = torch.tensor([list(chooser.shown)], device=scores.device)
        try:
            processed = chooser.processors(shown, rows[i])
            if bool((torch.isnan(processed) | torch.isposinf(processed)).any()):
                names = _names_of(chooser.processors)
                raise ValueError(f"{names} made scores that are NaN or inf: give finite ones, or -inf to ban")
            rows[i] = processed
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            errors[i] = error
    return torch.cat(rows), errors


def _names_of(processors: Any) -> str:
    each = processors if isinstance(processors, list) else [processors]
    return ", ".join(getattr(one, "__name__", type(one).__name__) for one in each)
