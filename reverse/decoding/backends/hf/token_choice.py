"""Choose the next token of every decoding sequence: p(`</UN>`), tag mask, processors, temperature, noise.

Sequences with equal sampling parameters are handled together; every row gets the token that it would get
alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from reverse.decoding.backends.protocol import RunningSegment, SegmentParams, not_finite
from reverse.decoding.sampling import choose, mask_tags, merge_closing_tags, uniform
from reverse.decoding.verifier import NO_TAGS, Verifier
from reverse.errors import RequestError

__all__ = ["Choice", "choose_tokens"]


@dataclass(slots=True)
class Choice:
    """A chosen token, p(`</UN>`) at its step and its log-probability, or an error.

    Both are read from raw logits; a merged closing tag has the log-probability of both tags.
    """

    token: int
    p: float
    log_probability: float
    error: Exception | None = None


def choose_tokens(logits: torch.Tensor, segments: Sequence[RunningSegment]) -> list[Choice]:
    """Choose the next token of each segment from its row of `logits` (rows, vocabulary).

    Segments are not changed. Raises torch.OutOfMemoryError; whatever else goes wrong with one row is that
    row's error.
    """
    groups: dict[Any, list[int]] = {}
    for i, segment in enumerate(segments):
        params = segment.params
        key = (
            params.tags, params.score, params.masks_tags, params.merges_closing_tags, params.top_k,
            params.top_p,
        )  # fmt: skip
        groups.setdefault(key, []).append(i)
    if len(groups) == 1:
        return _choose_alike(logits, segments)
    found: dict[int, Choice] = {}
    for rows in groups.values():
        found.update(zip(rows, _choose_alike(logits[rows], [segments[i] for i in rows]), strict=True))
    return [found[i] for i in range(len(segments))]


def _choose_alike(logits: torch.Tensor, segments: Sequence[RunningSegment]) -> list[Choice]:
    """Choose tokens of rows whose parameters differ at most in temperature, processors and noise key."""
    params = segments[0].params
    raw = logits.float()
    ps = Verifier(params.tags, params.score).p(raw)
    if params.merges_closing_tags and params.tags != NO_TAGS:
        raw = merge_closing_tags(raw, params.tags)
    scores = raw
    if params.masks_tags and params.tags != NO_TAGS:
        scores = mask_tags(raw, [segment.is_inside for segment in segments], params.tags)
    scores, errors = _process(scores, segments)
    tokens = choose(
        scores,
        [segment.params.temperature for segment in segments],
        [_noise(segment.params, len(segment.ids)) for segment in segments],
        params.top_k,
        params.top_p,
    )
    log_probabilities = raw.gather(1, tokens[:, None]).squeeze(1) - raw.logsumexp(dim=-1)
    numbers = torch.stack((ps, log_probabilities)).tolist()
    choices = [Choice(*each) for each in zip(tokens.tolist(), *numbers, errors, strict=True)]
    for choice, segment in zip(choices, segments, strict=True):
        if not math.isfinite(choice.p):
            choice.error = not_finite(segment.params.position + len(segment.ids))
    return choices


def _noise(params: SegmentParams, index: int) -> float:
    if params.temperature <= 0:
        return 0.0
    return uniform(params.seed, params.position + index, params.attempt, params.path)


def _process(
    scores: torch.Tensor, segments: Sequence[RunningSegment]
) -> tuple[torch.Tensor, list[Exception | None]]:
    """Return the scores after `SegmentParams.process`, and the error of each row for which it failed."""
    errors: list[Exception | None] = [None] * len(segments)
    if all(segment.params.process is None for segment in segments):
        return scores, errors
    rows = list(scores.split(1))
    for i, segment in enumerate(segments):
        if segment.params.process is None:
            continue
        try:
            processed = segment.params.process(segment.ids, rows[i])
            if bool((torch.isnan(processed) | torch.isposinf(processed)).any()):
                raise RequestError(
                    "the logits processors made scores that are NaN or inf: give finite ones, or -inf to ban"
                )
            rows[i] = processed
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of the caller's code
            errors[i] = error
    return torch.cat(rows), errors
