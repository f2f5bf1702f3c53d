"""The backend on captured decode steps: sequences in the rows of a fixed cache, one step ahead of the host.

`runner` holds the cache and the captured steps, `step_queue` launches and reads them, `sequences` knows what
stands in each row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial, wraps
from itertools import count
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from reverse.decoding.backends.cuda_graph.logits_check import DifferentLogits, check_logits
from reverse.decoding.backends.cuda_graph.row_state import (
    CaptureConfig,
    LogitsHook,
    round_up,
)
from reverse.decoding.backends.cuda_graph.runner import GraphRunner
from reverse.decoding.backends.cuda_graph.sequences import PoolRow, same_sampling
from reverse.decoding.backends.cuda_graph.step_queue import StepQueue
from reverse.decoding.backends.cuda_graph.weights import text_model, unsupported
from reverse.decoding.backends.hf import compat
from reverse.decoding.backends.hf.prefill import Prefilled, prefill
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
    mean_log_probability,
)
from reverse.errors import RequestError
from reverse.models import family_of
from reverse.models.unwrapping import unwrap_model
from reverse.tokens.spans import TokenIds

__all__ = ["CudaGraphBackend"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_MARGIN = 128  # ids that a row has room for beyond what was expected of its sequence
_FIRST_ROWS = 8  # of a new cache; it grows to the number of sequences when more are needed


def _on_device(
    verb: Callable[Concatenate[CudaGraphBackend, _P], _R],
) -> Callable[Concatenate[CudaGraphBackend, _P], _R]:
    """Run a verb on the model's GPU and without a graph of gradients.

    Running out of memory loses all sequences, unless the verb raises OutOfMemory itself: see
    `_memory_errors`.
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
        # Verbs raise these before they change anything: no memory, bad arguments, unknown sequences.
        except (OutOfMemory, RequestError, DifferentLogits, KeyError):
            self._is_sound = is_sound
            raise
        self._is_sound = is_sound
        return result

    return run


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Turn memory errors of the block into OutOfMemory; the block must change nothing until it succeeds."""
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
        self.steps = StepQueue(self.config)
        self._max_sequences = max_sequences
        self._open_runner, self._keep_runner = open_runner, keep_runner
        family = family_of(self.model)
        self._image_token = family.image_token_id(self.model.config)
        self._context = family.context_length(self.model.config)
        self._rows: dict[int, PoolRow] = {}
        self._names, self._prefixes = count(), count()
        self._is_sound = True  # no error has left the runner in a state that nobody knows

    @property
    def capabilities(self) -> Capabilities:
        """The current capabilities of the backend."""
        return Capabilities(self._max_sequences)

    def reserve(self, sequences: int) -> None:
        """Set how many sequences may be held at once; memory is allocated when they are added."""
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
                layers = [(layer.keys, layer.values) for layer in prefilled.cache.layers]
                for i, index in enumerate(indices):
                    runner.load(index, layers, i, prefilled.padding[i])
                self._compare(runner, prompts, prefilled, indices)
        except OutOfMemory:
            self._allow_fewer(len(prompts))
            raise
        except DifferentLogits:
            if not self._rows:
                self.runner = None  # its cache is of no use to anybody
            raise
        rows = [
            PoolRow(
                next(self._names), indices[i], list(prompt.ids), prefilled.rope_offsets[i], ends[i],
                len(prompt.ids) - 1,  # the last is fed again: the first choice comes from a step too
            )
            for i, prompt in enumerate(prompts)
        ]  # fmt: skip
        self._rows |= {row.name: row for row in rows}
        return [row.name for row in rows]

    @_on_device
    def split(self, sequence: int, n: int) -> list[int]:
        """Add `n` sequences with the same tokens; the cached prefix is copied on the device."""
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
        """Release a sequence, also while it decodes. Unknown ids are ignored. Never raises."""
        row = self._rows.pop(sequence, None)
        if row is not None:
            row.abandon_steps()
            self.steps.forget_row(row.index)
        if not self._rows:
            self._give_back()

    def reset(self) -> None:
        """Release every sequence.

        It works after any error, also after an interrupt in the middle of a verb.
        """
        for row in self._rows.values():
            row.abandon_steps()
        self._rows.clear()
        self._give_back()

    def _give_back(self) -> None:
        """Give the runner back, so that other backends of the model can take it unless it had an error."""
        self.steps.clear()
        runner, self.runner = self.runner, None
        if runner is not None and self._is_sound:
            self._keep_runner(runner)
        self._is_sound = True

    def _drop_everything(self) -> None:
        """Release all sequences and their memory, and allow half as many from now on."""
        self._max_sequences = max(1, min(self._max_sequences, len(self._rows)) // 2)
        self._is_sound = False
        self.reset()

    def _allow_fewer(self, asked: int) -> None:
        """Allow fewer sequences after memory ran out while `asked` were added; without sequences the cache is
        freed too.
        """
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
        """Return a runner with `n` free rows of at least `length` ids.

        Running out of memory changes nothing.
        """
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
        """Return the model's idle runner if it is large enough and has the current weights."""
        runner, self.runner = self.runner or self._open_runner(), None
        if (reason := unsupported(self.model)) is not None:
            raise DifferentLogits(reason)
        if runner is None or not runner.text.same_as(text_model(self.model)):
            return None
        return runner if rows <= runner.rows and length <= runner.length else None

    @staticmethod
    def _try_sizes(wanted: int, need: int, make: Callable[[int, int], _R], length: int) -> _R:
        """Open a runner with rows for the largest number of sequences, or else for the present ones."""
        try:
            return make(wanted, length)
        except torch.OutOfMemoryError:
            if wanted == need:
                raise
        return make(need, length)

    def _row_length(self, ids: int) -> int:
        """Return the number of slots of a row for `length` ids, at most the context length."""
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
            runner.is_compared = check_logits(found, prefilled.logits[i])

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
            self.steps.set_state(row, params)

    @_on_device
    def step(self) -> list[StepOutput]:
        """One decode step of all sequences that decode a segment; empty if there is none.

        Ids that a sequence lacks are fed first, some of them in every step, while the others decode.
        """
        steps, runner = self.steps, self.runner
        if runner is None:
            return []
        while True:
            if steps.is_empty and not steps.launch(self._rows.values(), runner):
                return []
            steps.launch(self._rows.values(), runner)
            if outputs := steps.read():
                return outputs

    @_on_device
    def score(self, sequences: Sequence[int], kind: str, begins: Sequence[int] | None = None) -> list[float]:
        """`"likelihood"`: the mean log-probability of each sequence's decoded tokens, from raw logits.

        Tokens that were set and never decoded do not count; NaN for a sequence without decoded tokens.
        """
        if kind != "likelihood":
            remedy = ": take backend='hf'" if kind == "value" else ""
            raise RequestError(f"score must be 'likelihood' on this backend, got {kind!r}{remedy}")
        held = [self._rows[name] for name in sequences]
        return [
            mean_log_probability(each.log_probabilities, len(each.ids), begin)
            for each, begin in zip(held, begins or [0] * len(held), strict=True)
        ]
