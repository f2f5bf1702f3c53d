"""Sequences on captured steps: one step ahead of what has been read.

A step is launched before the one before it was read, since most of the time its input is what that one chose.
If a segment ended and the sequence goes on from there, the step ahead is its next one; if the sequence went
back, what the step ahead says about it is thrown away. So a rewind costs one step of one row.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial, wraps
from itertools import count
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from reverse.decoding.backends.cuda_graph.prefill import Prefilled, prefill
from reverse.decoding.backends.cuda_graph.row_state import (
    BLOCK,
    FEED_IDS,
    FEEDS_AT_ONCE,
    CaptureConfig,
    Feed,
    LogitsHook,
    PendingStep,
    RowState,
    StepPlan,
    round_up,
)
from reverse.decoding.backends.cuda_graph.runner import GraphRunner
from reverse.decoding.backends.cuda_graph.sequences import CacheRow, group_rows, same_sampling, sampling_of
from reverse.decoding.backends.cuda_graph.weights import text_model, unsupported
from reverse.decoding.backends.hf import compat
from reverse.decoding.backends.protocol import (
    Capabilities,
    EncodedPicture,
    OutOfMemory,
    Picture,
    Prompt,
    RunningSegment,
    SegmentParams,
    StepOutput,
    find_pictures_end,
    not_finite,
)
from reverse.errors import BackendError, RequestError
from reverse.models import family_of
from reverse.models.unwrapping import unwrap_model
from reverse.tokens.spans import TokenIds

__all__ = ["CudaGraphBackend", "DifferentLogits"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_MARGIN = 128  # ids that a row has room for beyond what was expected of its sequence
_FIRST_ROWS = 8  # of a new cache; it grows to the number of sequences when more are needed
_Launched = tuple[PendingStep, list[tuple[CacheRow, int] | None]]  # whose results, and of which epoch


class DifferentLogits(BackendError, ValueError):
    """A captured step does not compute what the model computes, for a `reason`."""

    def __init__(self, reason: str):
        super().__init__(f"backend='cuda_graph' cannot decode this: {reason}; use backend='auto'")
        self.reason = reason


def _on_device(
    verb: Callable[Concatenate[CudaGraphBackend, _P], _R],
) -> Callable[Concatenate[CudaGraphBackend, _P], _R]:
    """Run a verb on the model's GPU and without a graph of gradients.

    An error of memory loses everything, unless the verb raises OutOfMemory itself: see `_memory_errors`.
    """

    @wraps(verb)
    def run(self: CudaGraphBackend, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        is_sound, self._is_sound = self._is_sound, False
        try:
            with torch.no_grad(), self._device_context():
                result = verb(self, *args, **kwargs)
        except torch.OutOfMemoryError as error:
            self._drop_everything()
            lost = OutOfMemory(str(error))
            lost.lost_everything = True
            raise lost from error
        except (OutOfMemory, ValueError, KeyError, NotImplementedError):  # raised before anything changed
            self._is_sound = is_sound
            raise
        self._is_sound = is_sound
        return result

    return run


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Around what allocates memory and changes nothing until it succeeds."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(str(error)) from error


class CudaGraphBackend:
    """Sequences in the rows of a `GraphRunner`.

    Args: `open_runner()` gives an idle runner of the model or None, and `keep_runner(runner)` takes it back
    when no sequence is left; `hook` is shown logits before anything is chosen (benchmarks impose scripts).

    OutOfMemory has the attribute `lost_everything`, True if every sequence is gone and `reset` is due.
    """

    def __init__(
        self,
        model: Any,
        *,
        max_sequences: int,
        tags: TokenIds,
        hook: LogitsHook | None = None,
        open_runner: Callable[[], GraphRunner | None] = lambda: None,
        keep_runner: Callable[[GraphRunner], None] = lambda runner: None,
    ):
        self.model = unwrap_model(model)
        self.config = CaptureConfig(tags, hook)
        self.runner: GraphRunner | None = None
        self.discarded_steps = 0  # of one row each: looked ahead in vain
        self._max_sequences = max_sequences
        self._open_runner, self._keep_runner = open_runner, keep_runner
        family = family_of(self.model)
        self._image_token = family.image_token_id(self.model.config)
        self._context = family.context_length(self.model.config)
        self._rows: dict[int, CacheRow] = {}
        self._names, self._prefixes = count(), count()
        self._launched: deque[_Launched] = deque()
        self._states: dict[int, RowState] = {}  # to be written before the next step
        self._noise: dict[int, list[float]] = {}
        self._is_sound = True  # no error has left the runner in a state that nobody knows

    @property
    def capabilities(self) -> Capabilities:
        """What the backend can do now."""
        return Capabilities(self._max_sequences)

    def reserve(self, sequences: int) -> None:
        """Be ready to hold so many sequences at once; memory is taken once they come."""
        self._max_sequences = max(sequences, len(self._rows))

    def _device_context(self) -> AbstractContextManager[Any]:
        """Make the model's GPU the current one: kernels and graphs run there, not where their tensors are."""
        device = self.model.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    # ------------------------------------------------------------------ sequences come and go
    @_on_device
    def encode(self, pictures: Sequence[Picture]) -> list[EncodedPicture]:
        """Run the vision tower and the projector, once for all of them."""
        with _memory_errors():
            if not pictures:
                return []
            return compat.encode_pictures(self.model, [picture.tensors for picture in pictures])

    @_on_device
    def add(self, prompts: Sequence[Prompt]) -> list[int]:
        """Prefill new sequences in one batch; returns their ids.

        Raises ValueError if a prompt is empty, or has not as many placeholders as its pictures have features;
        DifferentLogits if the first step of a new runner computes something else than the model.
        """
        if not prompts:
            return []
        ends = [find_pictures_end(i, prompt, self._image_token) for i, prompt in enumerate(prompts)]
        self._check_room(len(prompts))
        longest = max(max(prompt.max_length, len(prompt.ids)) for prompt in prompts)
        try:
            with _memory_errors():
                runner = self._make_room(len(prompts), longest)
                prefilled = prefill(self.model, prompts, self._image_token)
                indices = self._free_rows(runner)[: len(prompts)]
                for i, index in enumerate(indices):
                    runner.load(index, prefilled.layers, i, prefilled.padding[i])
                self._compare(runner, prompts, prefilled, indices)
        except OutOfMemory:
            self._allow_fewer(len(prompts))
            raise
        except DifferentLogits:
            if not self._rows:
                self.runner = None  # its cache is of no use to anybody
            raise
        rows = [
            CacheRow(
                next(self._names), indices[i], list(prompt.ids), prefilled.rope_offsets[i], ends[i],
                len(prompt.ids) - 1,  # the last is fed again: the first choice comes from a step too
            )
            for i, prompt in enumerate(prompts)
        ]  # fmt: skip
        self._rows |= {row.name: row for row in rows}
        return [row.name for row in rows]

    @_on_device
    def split(self, sequence: int, n: int) -> list[int]:
        """`n` further sequences with the same tokens; the cached prefix is copied on the device."""
        source = self._rows[sequence]
        self._check_room(n)
        with _memory_errors():
            runner = self._make_room(n, 0)
            indices = self._free_rows(runner)[:n]
            shared = min(source.cached, len(source.ids) - 1)
            runner.copy_row(source.index, indices, shared)
        if source.shared is None or source.shared[1] != shared:
            source.shared = next(self._prefixes), shared
        rows = [source.copy(next(self._names), index) for index in indices]
        self._rows |= {row.name: row for row in rows}
        return [row.name for row in rows]

    def release(self, sequence: int) -> None:
        """Let a sequence go, whatever it was doing. Unknown ids are ignored. Never raises."""
        row = self._rows.pop(sequence, None)
        if row is not None:
            row.abandon_steps()
            self._states.pop(row.index, None)
            self._noise.pop(row.index, None)
        if not self._rows:
            self._give_back()

    def reset(self) -> None:
        """Let every sequence go. Works after any error, an interrupt in the middle of a verb too."""
        for row in self._rows.values():
            row.abandon_steps()
        self._rows.clear()
        self._give_back()

    def _give_back(self) -> None:
        """Let go of the runner, for other backends of the model to take if nothing went wrong with it."""
        self._launched.clear()
        self._states.clear()
        self._noise.clear()
        runner, self.runner = self.runner, None
        if runner is not None and self._is_sound:
            self._keep_runner(runner)
        self._is_sound = True

    def _drop_everything(self) -> None:
        """Let go of all sequences and the memory that they hold, and allow half as many from now on."""
        self._max_sequences = max(1, min(self._max_sequences, len(self._rows)) // 2)
        self._is_sound = False
        self.reset()

    def _allow_fewer(self, asked: int) -> None:
        """After memory ran out while `asked` sequences were added; if nothing is held, the cache goes too."""
        held = len(self._rows)
        self._max_sequences = max(1, held, min(self._max_sequences, held + asked) // 2)
        if not held:
            self.runner = None

    def _check_room(self, n: int) -> None:
        if len(self._rows) + n > self._max_sequences:
            raise RequestError(
                f"{len(self._rows)} sequences are held and {n} more were asked for, of at most "
                f"{self._max_sequences}: release some first"
            )

    def _make_room(self, n: int, length: int) -> GraphRunner:
        """A runner with `n` free rows of at least `length` ids. An error of memory changes nothing."""
        need = len(self._rows) + n
        most = max(need, self._max_sequences)
        wanted = min(_FIRST_ROWS, most) if need <= _FIRST_ROWS else most
        length = self._row_length(length)
        if not self._rows:
            self.runner = self._idle_runner(need, length)
        if self.runner is None:
            self.runner = self._try_sizes(wanted, need, partial(GraphRunner, text_model(self.model)), length)
        elif need > self.runner.rows or length > self.runner.length:
            self._try_sizes(wanted, need, self.runner.resize, length)
        return self.runner

    def _idle_runner(self, rows: int, length: int) -> GraphRunner | None:
        """The model's runner, if it is large enough and has the weights of now."""
        runner, self.runner = self.runner or self._open_runner(), None
        if (reason := unsupported(self.model)) is not None:
            raise DifferentLogits(reason)
        if runner is None or not runner.text.same_as(text_model(self.model)):
            return None
        return runner if rows <= runner.rows and length <= runner.length else None

    @staticmethod
    def _try_sizes(wanted: int, need: int, make: Callable[[int, int], _R], length: int) -> _R:
        """Rows for all sequences that there may be, or else for those that there are."""
        try:
            return make(wanted, length)
        except torch.OutOfMemoryError:
            if wanted == need:
                raise
        return make(need, length)

    def _row_length(self, ids: int) -> int:
        """Slots of a row for so many ids: no row outgrows the context, whatever length was asked for."""
        return round_up(min(ids + _MARGIN, self._context), 128) if ids else 0

    def _free_rows(self, runner: GraphRunner) -> list[int]:
        used = {row.index for row in self._rows.values()}
        return [index for index in range(1, runner.rows + 1) if index not in used]

    def _compare(
        self, runner: GraphRunner, prompts: Sequence[Prompt], prefilled: Prefilled, indices: Sequence[int]
    ) -> None:
        """Compare the logits of a new runner for one prompt with the model's own."""
        for i, prompt in enumerate(prompts):
            if runner.is_compared:
                return
            at = len(prompt.ids) - 1
            found = runner.feed_one(indices[i], prompt.ids[-1], at, at + prefilled.rope_offsets[i])
            runner.is_compared = _check_logits(found, prefilled.logits[i])

    # ------------------------------------------------------------------ segments
    @_on_device
    def set_tokens(self, sequence: int, ids: Sequence[int]) -> None:
        """Make `ids` the tokens of a sequence and end its segment; the common prefix stays cached.

        Raises ValueError if a picture would have to be fed again: its features are not kept here.
        """
        self._rows[sequence].set_ids(list(ids))

    @_on_device
    def start(self, sequence: int, params: SegmentParams) -> None:
        """Begin a segment after the sequence's tokens.

        Raises ValueError for other tags than those of the backend, and for `params.process`.
        """
        row = self._rows[sequence]
        if params.tags != self.config.tags:
            raise RequestError(f"tags {params.tags} are not those of this backend, {self.config.tags}")
        if params.process is not None:
            raise RequestError("a captured step cannot call params.process: use backend='hf'")
        before = row.accepted
        if before is not None and row.in_flight and same_sampling(before, params):
            row.accepted, row.segment = None, RunningSegment(params)  # the step ahead is this segment's first
            return
        runner = self.runner
        assert runner is not None
        if len(row.ids) + params.max_tokens + 2 > runner.length:
            with _memory_errors():
                runner.resize(0, self._row_length(len(row.ids) + params.max_tokens + 2 - _MARGIN))
        row.abandon_steps()
        row.segment, row.noise_until = RunningSegment(params), 0
        if row.cached >= len(row.ids) - 1:
            self._states[row.index] = row.state_at(len(row.ids), params)

    @_on_device
    def step(self) -> list[StepOutput]:
        """One decode step of all sequences that decode a segment; empty if there is none.

        Ids that a sequence lacks are fed first, some of them in every step, while the others decode.
        """
        while True:
            if not self._launched and not self._launch():
                return []
            self._launch()
            if outputs := self._read(*self._launched.popleft()):
                return outputs

    @_on_device
    def score(self, sequences: Sequence[int], kind: str) -> list[float]:
        """`"likelihood"`: the mean log-probability of each sequence's decoded tokens, from raw logits.

        Tokens that were set and never decoded do not count; NaN for a sequence without decoded tokens.
        """
        if kind != "likelihood":
            raise RequestError(f"score must be 'likelihood' on this backend, got {kind!r}")
        known = [[x for x in self._rows[name].log_probabilities if not math.isnan(x)] for name in sequences]
        return [math.fsum(each) / len(each) if each else math.nan for each in known]

    # ------------------------------------------------------------------ launching
    def _launch(self) -> bool:
        """Queue a step of everything that decodes; False if there is nothing."""
        runner = self.runner
        if runner is None:
            return False
        decoding: list[CacheRow] = []
        fed: list[tuple[CacheRow, Feed, bool]] = []
        for row in self._rows.values():
            segment = row.segment
            if segment is None or len(segment.ids) + row.in_flight >= segment.params.max_tokens:
                continue
            if row.cached >= len(row.ids) - 1:
                decoding.append(row)
            else:
                self._feed(row, segment.params, fed)
        if not decoding and not fed:
            return False
        plan, order = self._plan(decoding, fed)
        for row in order:
            if (noise := row.refill_noise()) is not None:
                self._noise[row.index] = noise
        runner.write(self._states, self._noise)
        self._states, self._noise = {}, {}
        pending = runner.launch(plan, self.config)
        finished = [True] * len(decoding) + [is_last for _, _, is_last in fed]
        entries: list[tuple[CacheRow, int] | None] = []
        for row, is_last in zip(order, finished, strict=True):
            row.in_flight += is_last
            entries.append((row, row.epoch) if is_last else None)
        self._launched.append((pending, entries))
        return True

    def _plan(
        self, decoding: list[CacheRow], fed: list[tuple[CacheRow, Feed, bool]]
    ) -> tuple[StepPlan, list[CacheRow]]:
        """A step of these rows, and the rows in the order of its results."""
        plain, groups, prefixes, size = group_rows(decoding)
        order = [*plain, *(row for group in groups for row in group), *(row for row, _, _ in fed)]
        plan = StepPlan(
            [row.index for row in plain],
            [[row.index for row in group] for group in groups],
            prefixes,
            size,
            [feed for _, feed, _ in fed],
            sampling_of(row.segment for row in order if row.segment is not None),
        )
        return plan, order

    def _feed(self, row: CacheRow, params: SegmentParams, fed: list[tuple[CacheRow, Feed, bool]]) -> None:
        """Feed what a row of the cache lacks, as far as it fits into this step; the rest waits."""
        missing = row.ids[row.cached :]
        fits = FEED_IDS - sum(round_up(len(feed.ids), BLOCK) for _, feed, _ in fed)
        if len(fed) == FEEDS_AT_ONCE or (round_up(len(missing), BLOCK) > fits and fed):
            return
        is_last = len(missing) <= fits
        # At least two stay behind: a row that lacks only its last id counts as one whose state is set.
        part = missing if is_last else missing[: min(fits, len(missing) - 2)]
        self._states[row.index] = row.state_at(row.cached + len(part), params)
        fed.append((row, Feed(row.index, part, row.cached, row.cached + row.rope_offset), is_last))
        row.cached = len(row.ids) if is_last else row.cached + len(part)

    # ------------------------------------------------------------------ reading
    def _read(self, pending: PendingStep, entries: list[tuple[CacheRow, int] | None]) -> list[StepOutput]:
        outputs = []
        for entry, token, p, log_probability in zip(entries, *pending.read(), strict=True):
            if entry is None:
                continue
            row, epoch = entry
            if epoch != row.epoch:
                self.discarded_steps += 1
                continue
            row.in_flight -= 1
            if row.segment is None:  # a step ahead that nobody took up
                self.discarded_steps += 1
                row.abandon_steps()
                continue
            outputs.append(self._take(row, row.segment, token, p, log_probability))
        return outputs

    def _take(
        self, row: CacheRow, segment: RunningSegment, token: int, p: float, log_probability: float
    ) -> StepOutput:
        """Take up a chosen token, or the error that ends a sequence."""
        if not math.isfinite(p):
            row.abandon_steps()
            error: Exception = not_finite(segment.params.position + len(segment.ids))
            return StepOutput(row.name, token, p, error=error)
        row.cached = len(row.ids)
        row.ids.append(token)
        row.log_probabilities.append(log_probability)
        try:
            ended = segment.append(token, p)
        except Exception as raised:  # of the caller's `should_stop`
            row.abandon_steps()
            return StepOutput(row.name, token, p, error=raised)
        if ended is not None:
            row.segment = None
            if ended.end == "phrase":
                row.accepted = segment
            else:  # the step ahead may think that a phrase is open
                row.abandon_steps()
        return StepOutput(row.name, token, p, ended)


def _check_logits(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether a step's logits for a prompt could be compared with those of the model's own forward pass.

    Done once for each runner: it tells of whatever `find_modification` does not know. Half precision rounds
    the two differently, by about a hundredth; another computation differs by the size of the logits.
    Raises DifferentLogits if they are not the same.
    """
    most = 0.25 if expected.dtype in (torch.bfloat16, torch.float16) else 1e-3
    found, expected = found.double(), expected.double()
    if not bool(torch.isfinite(expected).all()):  # a fault of the model, which the first step reports
        return False
    difference = float((found - expected).norm() / expected.norm().clamp(min=1e-12))
    if not difference <= most:
        raise DifferentLogits(
            "a step read from the weights gives other logits than the model's forward pass (by "
            f"{difference:.1%} of their size), so something in it was changed"
        )
    return True
