"""The protocol between engine and runtime: a few verbs over token sequences and their KV caches.

A backend knows token ids, pictures and sampling parameters; it knows nothing of thresholds, hints, attempts
or requests. Every sequence is named by an id that is never used again.

    pictures = backend.encode([picture])
    (sequence,) = backend.add([Prompt(ids, pictures, max_length=len(ids) + 64)])
    backend.start(sequence, SegmentParams(max_tokens=64, tags=tags, eos=eos))
    while not (outputs := backend.step())[0].segment: ...
    (branch,) = backend.split(sequence, 1)          # the same tokens, decoded on its own from here
    backend.set_tokens(sequence, ids)               # rewind to the prompt
    backend.release(sequence); backend.release(branch)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from reverse.errors import BackendError, RequestError
from reverse.tokens.spans import TokenIds

if TYPE_CHECKING:
    import torch

__all__ = [
    "Backend",
    "Capabilities",
    "EncodedPicture",
    "End",
    "OutOfMemory",
    "Picture",
    "Prompt",
    "RunningSegment",
    "SegmentOutput",
    "SegmentParams",
    "StepOutput",
    "common_prefix",
    "does_not_fit",
    "find_pictures_end",
    "mean_log_probability",
    "not_finite",
]

End = Literal["phrase", "eos", "stop", "length"]


class OutOfMemory(BackendError):
    """The device is out of memory; fewer sequences may fit. The verb that raised it has changed nothing.

    Where a backend could not keep that promise, `lost_everything` is True and all sequences are gone.
    """

    lost_everything = False


def mean_log_probability(log_probabilities: Sequence[float], length: int, begin: int = 0) -> float:
    """The mean of what is known of the tokens from position `begin` on; NaN if nothing is.

    `log_probabilities` are those of the last tokens of a sequence of `length`; NaN: never decoded.
    """
    first = max(0, begin - (length - len(log_probabilities)))
    known = [x for x in log_probabilities[first:] if not math.isnan(x)]
    return math.fsum(known) / len(known) if known else math.nan


def does_not_fit(message: str) -> OutOfMemory:
    """Make the error of a sequence that does not fit into memory alone; `message` is the device's."""
    detail = message.splitlines()[0] if message else "no detail"
    return OutOfMemory(
        f"out of memory with a single row ({detail}): use smaller pictures, fewer candidates, "
        "a smaller max_new_tokens, or load the model in bfloat16"
    )


def not_finite(position: int) -> ValueError:
    """Make the error of a sequence whose logits are NaN or infinite at a position of its answer."""
    return RequestError(
        f"logits are not finite at answer position {position}: check the weights, or load with dtype=float32"
    )


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The abilities and limits of a backend."""

    max_sequences: int  # sequences that it can hold at once, now: fewer after memory ran out
    keyed_noise: bool = True  # samples depend on (seed, path, position, attempt) and on nothing else
    logits_processors: bool = False  # `SegmentParams.process` is honoured
    hidden_states: bool = False  # `score(kind="value")` is possible
    likelihood: bool = True  # `score(kind="likelihood")` is possible


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One picture as the model's processor prepares it.

    `tensors` holds what belongs to this picture, with a first dimension of its own: `pixel_values` of shape
    (1, 3, height, width) for LLaVA; (patches, width) with `image_grid_thw` (1, 3) for Qwen2.5-VL.
    """

    tensors: Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPicture:
    """The features of one picture. They are freed with the last reference.

    `features` (tokens, width) on the model's device or on the host; `grid` (temporal, height, width) in
    patches for models with multimodal rotary positions, else None.
    """

    features: torch.Tensor
    grid: tuple[int, int, int] | None = None


@dataclass(slots=True)
class Prompt:
    """The beginning of a sequence: its ids and pictures."""

    ids: Sequence[int]  # without padding; every picture has as many placeholders as it has features
    pictures: Sequence[EncodedPicture] = ()  # in the order of their placeholders
    max_length: int = 0  # ids that the sequence is expected to hold at most; it may grow beyond


@dataclass(frozen=True, slots=True)
class SegmentParams:
    """Parameters of the next segment of a sequence: how it is decoded and what ends it."""

    max_tokens: int
    tags: TokenIds
    eos: frozenset[int] = frozenset()
    temperature: float = 0.0  # 0: the most probable token
    temperature_after_accept: float = 0.0  # of the next segment, once this phrase is accepted
    top_k: int = 0  # 0: all tokens
    top_p: float = 1.0
    score: Literal["softmax", "pair"] = "softmax"  # what is read as p(</UN>), see `Verifier`
    masks_tags: bool = True  # tags that would be malformed are never chosen
    # `</UN>` is never chosen: `</CN>` has the probability of both. p(`</UN>`) is read as before.
    merges_closing_tags: bool = False
    seed: int = 0
    path: tuple[int, ...] = ()  # of the ask and branch within the request
    position: int = 0  # of the segment's first id in the answer
    attempt: int = 0  # with seed, path and position the key of the noise
    should_stop: Callable[[Sequence[int]], bool] | None = None  # shown the segment so far, after every token
    # Changes the scores (1, vocabulary) of the next token, shown the segment so far; a ValueError that it
    # raises is the sequence's error. Only where the backend's capabilities say `logits_processors`.
    process: Callable[[Sequence[int], torch.Tensor], torch.Tensor] | None = None


@dataclass(frozen=True, slots=True)
class SegmentOutput:
    """A decoded segment: `ps[i]` is p(`</UN>`) at the step that chose `ids[i]`."""

    ids: tuple[int, ...]
    ps: tuple[float, ...]
    end: End
    forwards: int


@dataclass(frozen=True, slots=True)
class StepOutput:
    """The outcome of one decode step for one sequence: a token, or an error that ends the sequence."""

    sequence: int
    token: int = -1
    p: float = math.nan  # p(</UN>) at this step
    segment: SegmentOutput | None = None  # set when the token ended the segment
    error: Exception | None = None


@dataclass(slots=True)
class RunningSegment:
    """A segment while it is decoded, with the rule that ends it, which is the same for every backend."""

    params: SegmentParams
    ids: list[int] = field(default_factory=list)
    ps: list[float] = field(default_factory=list)
    forwards: int = 0
    is_inside: bool = False  # a phrase is open

    def append(self, token: int, p: float) -> SegmentOutput | None:
        """Add a token and p(`</UN>`) at its step; returns the segment if the token ended it.

        A closing tag ends it, an end-of-text id, `should_stop` or `max_tokens`: whichever holds first.
        """
        params = self.params
        self.forwards += 1
        self.ids.append(token)
        self.ps.append(p)
        end: End | None = None
        if token == params.tags.span:
            self.is_inside = True
        if token in params.tags.closing:
            end = "phrase"
        elif token in params.eos:
            end = "eos"
        elif params.should_stop is not None and params.should_stop(self.ids):
            end = "stop"
        elif len(self.ids) >= params.max_tokens:
            end = "length"
        return None if end is None else SegmentOutput(tuple(self.ids), tuple(self.ps), end, self.forwards)


def common_prefix(before: Sequence[int], after: Sequence[int]) -> int:
    """Return how many ids two texts share from their start."""
    if before == after:
        return len(before)
    return next(
        (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b),
        min(len(before), len(after)),
    )


def find_pictures_end(i: int, prompt: Prompt, image_token: int) -> int:
    """Return where the last picture of prompt number `i` ends. Ids before it cannot be fed again.

    Raises ValueError for a prompt without ids, or with other placeholders than its pictures have features.
    """
    if not prompt.ids:
        raise RequestError(f"prompt {i} has no ids: it needs at least one, such as BOS")
    places = [at for at, token in enumerate(prompt.ids) if token == image_token]
    features = sum(len(picture.features) for picture in prompt.pictures)
    if len(places) != features:
        raise RequestError(
            f"prompt {i} has {len(places)} picture placeholders, but its pictures have {features} features "
            "and each feature needs one placeholder: prepare ids and pictures with the same processor"
        )
    return places[-1] + 1 if places else 0


class Backend(Protocol):
    """A runtime that decodes sequences. Its verbs are called by one thread at a time.

    Any verb but `release` and `reset` may raise OutOfMemory, and one that raises has changed nothing, unless
    the error says `lost_everything`. After that, and after any other exception, the engine calls `reset`.
    """

    @property
    def capabilities(self) -> Capabilities:
        """The current capabilities of the backend."""

    def reserve(self, sequences: int) -> None:
        """Set how many sequences may be held at once, but never fewer than are held now."""

    def encode(self, pictures: Sequence[Picture]) -> list[EncodedPicture]:
        """Run the vision tower and the projector, once for all of them."""

    def add(self, prompts: Sequence[Prompt]) -> list[int]:
        """Prefill new sequences in one batch; returns their ids."""

    def split(self, sequence: int, n: int) -> list[int]:
        """Add `n` sequences with the same tokens; the cached prefix is shared or copied."""

    def set_tokens(self, sequence: int, ids: Sequence[int]) -> None:
        """Make `ids` the tokens of a sequence and end its segment; the common prefix stays cached."""

    def start(self, sequence: int, params: SegmentParams) -> None:
        """Begin a segment after the sequence's tokens."""

    def step(self) -> list[StepOutput]:
        """One decode step of all sequences that decode a segment; one output for each token that came of it.

        Empty only if no segment is being decoded. A backend may run ahead of what it returns.
        """

    def score(self, sequences: Sequence[int], kind: str, begins: Sequence[int] | None = None) -> list[float]:
        """Return a number for each sequence: `"likelihood"` is the mean log-probability of its decoded
        tokens.

        With `begins` only the tokens from these positions on count. `"value"` is what the model's value head
        says of the last token; it may cost a forward. Only where the backend's capabilities say
        `hidden_states`.
        """

    def release(self, sequence: int) -> None:
        """Release a sequence, also while it decodes. Unknown ids are ignored. Never raises."""

    def reset(self) -> None:
        """Release every sequence.

        It works after any error, also after an interrupt in the middle of a verb.
        """
