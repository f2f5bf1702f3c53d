"""The queue of launched steps that were not read yet (at most two), and of writes before the next step.

A step is launched before the previous one was read, because its input is usually the token that the previous
one chose. If a segment ended and the sequence continues there, the step ahead is its next one. If the
sequence was rewound, the result of the step ahead is dropped, so a rewind costs one step of one row.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from reverse.decoding.backends.cuda_graph.row_state import (
    BLOCK,
    FEED_IDS,
    FEEDS_AT_ONCE,
    CaptureConfig,
    Feed,
    PendingStep,
    RowState,
    StepPlan,
    round_up,
)
from reverse.decoding.backends.cuda_graph.runner import GraphRunner
from reverse.decoding.backends.cuda_graph.sequences import PoolRow, group_rows, sampling_of
from reverse.decoding.backends.protocol import RunningSegment, SegmentParams, StepOutput, not_finite

__all__ = ["StepQueue"]

_Entry = tuple[PoolRow, int] | None  # a row and its epoch at launch; None: nothing is chosen for it yet


class StepQueue:
    """Launches steps of rows on a runner and reads them in order."""

    def __init__(self, config: CaptureConfig):
        self.config = config
        self.discarded = 0  # steps of one row each that were launched ahead in vain
        self._launched: deque[tuple[PendingStep, list[_Entry]]] = deque()
        self._states: dict[int, RowState] = {}  # of rows of the cache, to be written before the next step
        self._noise: dict[int, list[float]] = {}

    @property
    def is_empty(self) -> bool:
        """Whether no step is under way."""
        return not self._launched

    def set_state(self, row: PoolRow, params: SegmentParams) -> None:
        """Let the next step feed the last id of a row and choose the first of a segment."""
        self._states[row.index] = row.state_at(len(row.ids), params)

    def forget_row(self, index: int) -> None:
        """Write nothing more to a row of the cache."""
        self._states.pop(index, None)
        self._noise.pop(index, None)

    def clear(self) -> None:
        """Forget everything."""
        self._launched.clear()
        self._states.clear()
        self._noise.clear()

    # ------------------------------------------------------------------ launching
    def launch(self, rows: Iterable[PoolRow], runner: GraphRunner) -> bool:
        """Queue a step of all rows that decode a segment; False if there is none."""
        decoding: list[PoolRow] = []
        fed: list[tuple[PoolRow, Feed, bool]] = []  # and whether these are the last ids that the row lacks
        for row in rows:
            segment = row.segment
            if segment is None or len(segment.ids) + row.in_flight >= segment.params.max_tokens:
                continue
            if row.cached >= len(row.ids) - 1:
                decoding.append(row)
            else:
                self._feed(row, segment.params, fed)
        if not decoding and not fed:
            return False
        plan, order = _plan_step(decoding, fed)
        for row in order:
            if (noise := row.refill_noise()) is not None:
                self._noise[row.index] = noise
        runner.write(self._states, self._noise)
        self._states, self._noise = {}, {}
        pending = runner.launch(plan, self.config)
        chooses = [True] * len(decoding) + [is_last for _, _, is_last in fed]
        entries: list[_Entry] = []
        for row, is_chosen in zip(order, chooses, strict=True):
            row.in_flight += is_chosen
            entries.append((row, row.epoch) if is_chosen else None)
        self._launched.append((pending, entries))
        return True

    def _feed(self, row: PoolRow, params: SegmentParams, fed: list[tuple[PoolRow, Feed, bool]]) -> None:
        """Feed ids that a row of the cache lacks, as many as fit into this step; the rest waits."""
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
    def read(self) -> list[StepOutput]:
        """Wait for the oldest step; return outputs of the rows that still want them."""
        pending, entries = self._launched.popleft()
        outputs = []
        for entry, token, p, log_probability in zip(entries, *pending.read(), strict=True):
            if entry is None:
                continue
            row, epoch = entry
            if epoch != row.epoch:
                self.discarded += 1
                continue
            row.in_flight -= 1
            if row.segment is None:  # a step ahead that nobody took up
                self.discarded += 1
                row.abandon_steps()
                continue
            outputs.append(_take_token(row, row.segment, token, p, log_probability))
        return outputs


def _plan_step(
    decoding: list[PoolRow], fed: list[tuple[PoolRow, Feed, bool]]
) -> tuple[StepPlan, list[PoolRow]]:
    """Plan a step of these rows; also return the rows in the order of its results."""
    plain, groups, prefixes, size = group_rows(decoding)
    order = [*plain, *(row for group in groups for row in group), *(row for row, _, _ in fed)]
    plan = StepPlan(
        [row.index for row in plain],
        [[row.index for row in group] for group in groups],
        prefixes,
        size,
        [feed for _, feed, _ in fed],
        sampling_of(row.segment for row in order if row.segment is not None),
        any(row.segment is not None and row.segment.params.merges_closing_tags for row in order),
    )
    return plan, order


def _take_token(
    row: PoolRow, segment: RunningSegment, token: int, p: float, log_probability: float
) -> StepOutput:
    """Append a chosen token to its row, or end the segment with an error."""
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
