"""The host's record of a sequence, and the grouping of sequences in a step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from reverse.decoding.backends.cuda_graph.row_state import GREEDY, NOISE, SAMPLED, TRUNCATED, RowState
from reverse.decoding.backends.protocol import RunningSegment, SegmentParams, common_prefix
from reverse.decoding.sampling import uniform
from reverse.errors import RequestError

__all__ = ["PoolRow", "group_rows", "is_sampled", "same_sampling", "sampling_of"]

_SHARED_AT_LEAST = 64  # ids: reading fewer for each row alone costs nothing
# Rows that read a shared prefix together, and how many of them must be there for that to pay.
_GROUPS = ((16, 13), (4, 3))


@dataclass(slots=True, eq=False)
class PoolRow:
    """A sequence and its row of the cache."""

    name: int  # of the sequence
    index: int  # of the row
    ids: list[int]
    rope_offset: int  # of rotary positions from text positions
    pictures_end: int  # ids up to the last placeholder of a picture, which cannot be fed again
    cached: int  # ids whose keys and values are in the row
    shared: tuple[int, int] | None = None  # (key, length): rows of one key hold the same ids up to the least
    segment: RunningSegment | None = None
    accepted: RunningSegment | None = None  # ended with a phrase: the step ahead may be the next one's
    epoch: int = 0  # steps that were launched in an earlier one are not wanted any more
    in_flight: int = 0  # steps of this epoch that were launched and not read
    noise_until: int = 0  # positions of the answer before this have their number on the device
    log_probabilities: list[float] = field(default_factory=list)  # of its last ids; NaN: never decoded

    def abandon_steps(self) -> None:
        """Ignore the results of the steps that the device has under way for this row."""
        self.epoch += 1
        self.in_flight = 0
        self.segment = self.accepted = None

    def set_ids(self, ids: list[int]) -> None:
        """Make `ids` the tokens of the sequence; the common prefix stays cached.

        Raises ValueError if a picture would have to be fed again.
        """
        if not ids:
            raise RequestError(
                f"sequence {self.name} was given no tokens: it needs at least one, such as BOS"
            )
        known = common_prefix(self.ids, ids)
        is_same = known == len(self.ids) == len(ids)
        if not is_same and min(known, len(ids) - 1) < self.pictures_end:
            raise RequestError(
                f"tokens of sequence {self.name} change at {known}, before the end of its pictures at "
                f"{self.pictures_end}: release the sequence and add a new one"
            )
        if is_same and self.segment is None:
            return
        self.abandon_steps()
        decoded = max(0, known - (len(self.ids) - len(self.log_probabilities)))
        self.log_probabilities = self.log_probabilities[:decoded]
        if decoded:
            self.log_probabilities += [float("nan")] * (len(ids) - known)
        self.cached = min(self.cached, known, len(ids) - 1)
        self.ids = ids
        if self.shared is not None:
            self.shared = self.shared[0], min(self.shared[1], self.cached)

    def copy(self, name: int, index: int) -> PoolRow:
        """Return a sequence with the same tokens in row `index`, to which this row's cache is copied."""
        cached = min(self.cached, len(self.ids) - 1)
        return PoolRow(
            name, index, self.ids[:], self.rope_offset, self.pictures_end, cached, self.shared,
            log_probabilities=self.log_probabilities[:],
        )  # fmt: skip

    def state_at(self, length: int, params: SegmentParams) -> RowState:
        """Return the state of the row just before the last of its first `length` ids is fed."""
        at = length - 1
        return RowState(self.ids[at], at, at + self.rope_offset, params)

    def refill_noise(self) -> list[float] | None:
        """Return the next random numbers of a sampled segment if those on the device are nearly used up."""
        segment = self.segment
        if segment is None or not is_sampled(segment.params):
            return None
        params, done = segment.params, len(segment.ids)
        if params.position + done + 3 < self.noise_until:  # what two steps under way may use
            return None
        begin = params.position + max(0, done - 1)
        numbers = [0.0] * NOISE
        for position in range(begin, begin + NOISE):
            numbers[position % NOISE] = uniform(params.seed, position, params.attempt, params.path)
        self.noise_until = begin + NOISE
        return numbers


def is_sampled(params: SegmentParams) -> bool:
    """Whether this segment, or the step launched ahead of its end, uses a random number."""
    return params.temperature > 0 or params.temperature_after_accept > 0


def sampling_of(segments: Iterable[RunningSegment]) -> int:
    """Return the settings that a step of these segments must be captured with."""
    sampling = GREEDY
    for segment in segments:
        params = segment.params
        if is_sampled(params):
            if params.top_k > 0 or params.top_p < 1.0:
                return TRUNCATED
            sampling = SAMPLED
    return sampling


def same_sampling(before: RunningSegment, after: SegmentParams) -> bool:
    """Whether the token chosen ahead, after an accepted phrase, may be the first of the next segment."""
    was = before.params
    temperature = was.temperature_after_accept
    if (temperature, temperature) != (after.temperature, after.temperature_after_accept):
        return False
    if was.position + len(before.ids) != after.position or was.attempt != after.attempt:
        return False
    rules = [(each.score, each.masks_tags, each.merges_closing_tags) for each in (was, after)]
    if rules[0] != rules[1]:
        return False
    draws = [(each.seed, each.path, each.top_k, each.top_p) for each in (was, after)]
    return temperature <= 0 or draws[0] == draws[1]


def group_rows(rows: Sequence[PoolRow]) -> tuple[list[PoolRow], list[list[PoolRow]], list[int], int]:
    """Return single rows, groups of rows with a common prefix, the length of each prefix, and the group size.

    Each row holds its prefix itself, so a group is only a way of reading it once: which rows are grouped
    changes nothing but rounding.
    """
    sets: dict[int, list[PoolRow]] = {}
    for row in rows:
        if row.shared is not None and row.shared[1] >= _SHARED_AT_LEAST:
            sets.setdefault(row.shared[0], []).append(row)
    best: list[list[PoolRow]] = []
    best_size = _GROUPS[-1][0]
    for size, least in _GROUPS:
        groups = [
            held[i : i + size]
            for held in sets.values()
            for i in range(0, len(held), size)
            if len(held) - i >= least
        ]
        if sum(map(len, groups)) > sum(map(len, best)):
            best, best_size = groups, size
    grouped = {id(row) for group in best for row in group}
    prefixes = [min(row.shared[1] for row in group if row.shared) for group in best]
    return [row for row in rows if id(row) not in grouped], best, prefixes, best_size
