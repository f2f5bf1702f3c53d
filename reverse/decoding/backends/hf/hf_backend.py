"""The backend on transformers: sequences that share forwards on one dynamic KV cache.

    backend = HfBackend(model, max_sequences=32)
    (sequence,) = backend.add([Prompt(ids)])

Tokens live in `shared_cache`, the choice of the next token in `token_choice`, and whatever is private to
transformers in `compat`. A verb that raises OutOfMemory has changed nothing: what a forward had put into some
layers is cut off again, and moving tokens within the cache goes on later where it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import torch

from reverse.compatibility import warn_of_newer_versions
from reverse.decoding.backends.hf import compat
from reverse.decoding.backends.hf.shared_cache import CacheRow, SlotCache
from reverse.decoding.backends.hf.token_choice import Choice, choose_tokens
from reverse.decoding.backends.protocol import (
    Capabilities,
    EncodedPicture,
    Picture,
    Prompt,
    RunningSegment,
    SegmentParams,
    StepOutput,
    common_prefix,
    find_pictures_end,
    mean_log_probability,
)
from reverse.errors import RequestError
from reverse.models.families import family_of
from reverse.models.unwrapping import unwrap_model
from reverse.models.value_head import find_value_head

__all__ = ["HfBackend"]


@dataclass(slots=True, eq=False)
class _Sequence:
    row: CacheRow
    pictures_end: int = 0  # ids up to the last placeholder of a picture, which cannot be fed again
    log_probabilities: list[float] = field(default_factory=list)  # of its last tokens; NaN: never decoded
    segment: RunningSegment | None = None

    @property
    def tokens(self) -> list[int]:
        return self.row.ids + self.row.pending

    def copy(self) -> _Sequence:
        return _Sequence(self.row.copy(), self.pictures_end, self.log_probabilities[:])


class HfBackend:
    """Sequences on a LLaVA or Qwen2.5-VL model with a dynamic cache.

    A sequence whose logits are not finite, or whose `process` or `should_stop` raises, gets that error in its
    `StepOutput`, and the others go on.
    """

    def __init__(self, model: Any, *, max_sequences: int):
        warn_of_newer_versions()
        self.model = unwrap_model(model)
        self.capabilities = Capabilities(max_sequences, logits_processors=True, hidden_states=True)
        self._image_token = family_of(self.model).image_token_id(self.model.config)
        self._cache = SlotCache(self.model)
        self._sequences: dict[int, _Sequence] = {}
        self._names = count()

    def reserve(self, sequences: int) -> None:
        """Set how many sequences may be held at once, but never fewer than are held now."""
        most = max(sequences, len(self._sequences))
        self.capabilities = replace(self.capabilities, max_sequences=most)

    @torch.no_grad()
    def encode(self, pictures: Sequence[Picture]) -> list[EncodedPicture]:
        """Run the vision tower and the projector, once for all of them."""
        if not pictures:
            return []
        with compat.memory_errors():
            return compat.encode_pictures(self.model, [picture.tensors for picture in pictures])

    @torch.no_grad()
    def add(self, prompts: Sequence[Prompt]) -> list[int]:
        """Prefill new sequences in one batch; returns their ids.

        Raises ValueError if a prompt is empty, or has not as many placeholders as its pictures have features.
        """
        if not prompts:
            return []
        ends = [find_pictures_end(i, prompt, self._image_token) for i, prompt in enumerate(prompts)]
        self._check_room(len(prompts))
        with compat.memory_errors():
            rows = self._cache.prefill(prompts, self._image_token)
        return [self._register(_Sequence(row, end)) for row, end in zip(rows, ends, strict=True)]

    def split(self, sequence: int, n: int) -> list[int]:
        """Add `n` sequences with the same tokens, copied before the next forward."""
        source = self._sequences[sequence]
        self._check_room(n)
        return [self._register(source.copy()) for _ in range(n)]

    def set_tokens(self, sequence: int, ids: Sequence[int]) -> None:
        """Make `ids` the tokens of a sequence and end its segment; the common prefix stays cached.

        Raises ValueError if a picture would have to be fed again: its features are not kept here.
        """
        held, ids = self._sequences[sequence], list(ids)
        if not ids:
            raise RequestError(f"sequence {sequence} was given no tokens: it needs at least one, such as BOS")
        shared = common_prefix(held.row.ids, ids)
        fits = shared == len(ids) == len(held.row.ids) and held.row.logits is not None
        if not fits:
            shared = min(shared, len(ids) - 1)  # the last id is fed again: its logits choose the next one
            if shared < held.pictures_end:
                raise RequestError(
                    f"tokens of sequence {sequence} change at {shared}, before the end of its pictures at "
                    f"{held.pictures_end}: release the sequence and add a new one"
                )
        known = common_prefix(held.tokens, ids)
        ends = max(0, known - (len(held.tokens) - len(held.log_probabilities)))
        held.log_probabilities = held.log_probabilities[:ends]
        if ends:
            held.log_probabilities += [math.nan] * (len(ids) - known)
        held.segment = None
        if not fits:
            self._cache.cut(held.row, shared)
            held.row.pending = ids[shared:]

    def start(self, sequence: int, params: SegmentParams) -> None:
        """Begin a segment after the sequence's tokens."""
        self._sequences[sequence].segment = RunningSegment(params)

    @torch.no_grad()
    def step(self) -> list[StepOutput]:
        """One decode step of all sequences that decode a segment; empty if there is none.

        Sequences that were just prefilled, or split off such, choose their first token without a forward and
        without the others, and then keep step with them.
        """
        running = {name: each for name, each in self._sequences.items() if each.segment is not None}
        if not running:
            return []
        with compat.memory_errors():
            if all(each.row.logits is None for each in running.values()):
                kept = [each.row for each in self._sequences.values()]
                self._cache.feed([each.row for each in running.values()], kept)
            ready = {name: each for name, each in running.items() if each.row.logits is not None}
            logits = torch.stack([each.row.logits for each in ready.values() if each.row.logits is not None])
            segments = [each.segment for each in ready.values() if each.segment is not None]
            choices = choose_tokens(logits, segments)
        return [
            _append(name, each, choice) for (name, each), choice in zip(ready.items(), choices, strict=True)
        ]

    def score(self, sequences: Sequence[int], kind: str, begins: Sequence[int] | None = None) -> list[float]:
        """`"likelihood"`: the mean log-probability of each sequence's decoded tokens; `"value"`: of its head.

        It is that of raw logits, kept at the steps that decoded them, and costs nothing. Tokens that were set
        and never decoded do not count; NaN for a sequence without decoded tokens. A value is read from the
        last hidden state of the last token, which is fed for it. Raises RequestError without a value head.
        """
        if kind == "value":
            return self._read_values([self._sequences[name].row for name in sequences])
        if kind != "likelihood":
            raise RequestError(f"score must be 'likelihood' or 'value' on this backend, got {kind!r}")
        held = [self._sequences[name] for name in sequences]
        return [
            mean_log_probability(each.log_probabilities, len(each.tokens), begin)
            for each, begin in zip(held, begins or [0] * len(held), strict=True)
        ]

    def release(self, sequence: int) -> None:
        """Release a sequence, also while it decodes. Unknown ids are ignored. Never raises."""
        self._sequences.pop(sequence, None)
        if not self._sequences:
            self._cache.clear()

    def reset(self) -> None:
        """Release every sequence.

        It works after any error, also after an interrupt in the middle of a verb.
        """
        self._sequences.clear()
        self._cache.clear()

    # ------------------------------------------------------------------ helpers
    @torch.no_grad()
    def _read_values(self, rows: Sequence[CacheRow]) -> list[float]:
        head = find_value_head(self.model)
        if head is None:
            raise RequestError("score 'value' needs a value head: load_value_head(folder, model=model)")
        for row in rows:
            if not row.pending:  # its last token was fed before, and what came of it is not kept
                last = row.ids[-1]
                self._cache.cut(row, len(row.ids) - 1)
                row.pending = [last]
        with compat.memory_errors(), compat.capture_hidden_states(self.model) as captured:
            self._cache.feed(rows, [each.row for each in self._sequences.values()])
        hidden = captured[-1][:, -1]  # (rows of the cache, width)
        places = torch.tensor([row.places[0].at for row in rows], device=hidden.device)
        return [float(value) for value in head(hidden[places])]

    def _register(self, sequence: _Sequence) -> int:
        name = next(self._names)
        self._sequences[name] = sequence
        return name

    def _check_room(self, n: int) -> None:
        most = self.capabilities.max_sequences
        if len(self._sequences) + n > most:
            raise RequestError(
                f"{len(self._sequences)} sequences are held and {n} more were asked for, of at most {most}: "
                "release some first"
            )


def _append(name: int, sequence: _Sequence, choice: Choice) -> StepOutput:
    """Add a chosen token to a sequence, or end the sequence with an error."""
    segment, error, ended = sequence.segment, choice.error, None
    assert segment is not None
    if error is None:
        sequence.row.logits, sequence.row.pending = None, [choice.token]
        sequence.log_probabilities.append(choice.log_probability)
        try:
            ended = segment.append(choice.token, choice.p)
        except Exception as why:  # of the caller's `should_stop`
            error = why
    if ended is not None or error is not None:
        sequence.segment = None
    return StepOutput(name, choice.token, choice.p, ended, error)
