"""The transformers engine: a batch whose rows go back each on its own.

Truth about a row is two lists: the ids in the cache and the slots they stand in. Going back cuts both;
the slots left behind are masked, and every so often the live ones are moved together (compaction).
Positions and masks follow from the lists. Rows are fed as many ids as they are behind in one forward,
aligned right; a row that has less to catch up leaves dead slots, so no forward serves one row alone.

Masking is exact (rows agree with fresh runs to 1e-7); zeroing keys and values would not be, since a zero
key still takes its share of the softmax.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList

from reverse.decoding import _hf
from reverse.decoding.backend import Draw, Run
from reverse.decoding.sampling import choose, mask_tags, uniform
from reverse.decoding.verifier import Verifier
from reverse.tokens.spans import TokenIds

__all__ = ["TransformersBackend"]

_WASTE = 0.1  # share of slots no row uses above which the cache is compacted
_WASTE_SLOTS = 16  # and at least so many: a copy of the cache should buy something


@dataclass(slots=True)
class _Row:
    ids: list[int]  # fed, in slot order
    slots: list[int]  # where they stand in the cache
    lane: int  # the row of the cache; -1: given back
    pending: list[int] = field(default_factory=list)  # to be fed
    run: list[int] = field(default_factory=list)  # the segment so far
    ps: list[float] = field(default_factory=list)
    draw: Draw | None = None
    inside: bool = False  # a phrase is open
    forwards: int = 0


class TransformersBackend:
    """Rows of one batch on a LLaVA or Qwen2.5-VL model, called from inside `model.generate()`.

    Args: what `generate()` hands to a decoding loop (`input_ids` (rows, length), left-padded, and the model's
    keyword arguments); `tags` and the `verifier`; `well_formed=False` leaves tags unmasked.
    """

    def __init__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        config: GenerationConfig,
        kwargs: dict[str, Any],
        *,
        tags: TokenIds,
        verifier: Verifier,
        processors: Sequence[LogitsProcessorList] | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        well_formed: bool = True,
    ):
        self.model, self.tags, self.verifier, self.processors = model, tags, verifier, processors
        self.top_k, self.top_p, self.well_formed = top_k, top_p, well_formed
        self.eos, self.pad, self.device = _hf.eos_ids(config), _hf.pad_id(config), model.device
        mask = kwargs.get("attention_mask")
        live = torch.ones_like(input_ids) if mask is None else mask
        self.mask = live.to(self.device, torch.int64)
        multimodal = kwargs.get("position_ids") is not None and kwargs["position_ids"].dim() == 3
        logits, self.cache, distance = _hf.prefill(model, input_ids, config, kwargs)
        self.distance = distance.to(self.device).unsqueeze(1) if multimodal else None
        self.length = input_ids.shape[1]
        self.prompts = input_ids.tolist()  # with padding and without hints: what processors are shown
        self.rows: list[_Row] = []
        for lane, (ids, alive) in enumerate(zip(input_ids.tolist(), live.tolist(), strict=True)):
            first = alive.index(1)
            self.rows.append(_Row(ids[first:], list(range(first, self.length)), lane))
        self._lanes = list(range(len(self.rows)))  # lane -> row
        self._logits: torch.Tensor | None = logits  # of the prompts' last ids: no need to feed those again
        self._dead: list[tuple[int, int]] = []  # (lane, slot) to be masked before the next forward
        self.compactions = 0

    # ------------------------------------------------------------------ verbs
    def rewind(self, row: int, ids: Sequence[int]) -> None:
        state = self.rows[row]
        shared = 0
        for ours, theirs in zip(state.ids, ids, strict=False):
            if ours != theirs:
                break
            shared += 1
        shared = min(shared, len(ids) - 1)  # the last id is fed again: its logits choose the next one
        self._dead.extend((state.lane, slot) for slot in state.slots[shared:])
        del state.ids[shared:], state.slots[shared:]
        state.pending = list(ids[shared:])

    def start(self, row: int, draw: Draw) -> None:
        state = self.rows[row]
        state.draw, state.run, state.ps, state.inside, state.forwards = draw, [], [], False, 0

    def finish(self, row: int) -> None:
        state = self.rows[row]
        state.draw, state.pending = None, []

    def extend(self) -> list[tuple[int, Run]]:
        while any(r.draw is not None for r in self.rows):
            done = self._step()
            if done:
                return done
        return []

    # ------------------------------------------------------------------ one forward, one id a row
    def _step(self) -> list[tuple[int, Run]]:
        logits = self._take_logits()
        ps = self.verifier.p(logits).tolist()
        active = [(lane, i) for lane, i in enumerate(self._lanes) if self.rows[i].draw is not None]
        picked = self._pick(logits, active)
        done = []
        for (lane, i), token in zip(active, picked, strict=True):
            state = self.rows[i]
            assert state.draw is not None
            state.forwards += 1
            if not math.isfinite(ps[lane]):
                raise ValueError(
                    f"logits of row {i} are not finite at answer position "
                    f"{state.draw.position + len(state.run)}: check the weights, or load with dtype=float32"
                )
            state.run.append(token)
            state.ps.append(ps[lane])
            state.pending = [token]
            end = self._end(state, token)
            if end is not None:
                done.append((i, Run(tuple(state.run), tuple(state.ps), end, state.forwards)))
                state.draw = None
        return done

    def _end(self, state: _Row, token: int) -> Any:
        if token == self.tags.span:
            state.inside = True
        if token in self.tags.closing:
            return "phrase"
        if token in self.eos:
            return "eos"
        assert state.draw is not None
        return "length" if len(state.run) >= state.draw.room else None

    def _pick(self, logits: torch.Tensor, active: list[tuple[int, int]]) -> list[int]:
        states = [self.rows[i] for _, i in active]
        draws = [s.draw for s in states if s.draw is not None]
        scores = logits[[lane for lane, _ in active]].float()
        if self.well_formed:
            scores = mask_tags(scores, [s.inside for s in states], self.tags)
        if self.processors and self.processors[0]:  # rows have different lengths, so each is shown alone
            scores = torch.cat(
                [self.processors[i](self._history(i), scores[j : j + 1]) for j, (_, i) in enumerate(active)]
            )
        noise = [
            uniform(d.seed, d.position + len(s.run), d.attempt) if d.temperature > 0 else 0.0
            for s, d in zip(states, draws, strict=True)
        ]
        return choose(scores, [d.temperature for d in draws], noise, self.top_k, self.top_p).tolist()

    def _history(self, row: int) -> torch.Tensor:
        """The row as `generate()` would show it to a processor: its padded prompt and the answer so far."""
        state = self.rows[row]
        assert state.draw is not None
        said = state.draw.position + len(state.run)
        answer = (state.ids + state.pending)[-said:] if said else []
        return torch.tensor([self.prompts[row] + answer], device=self.device)

    def _take_logits(self) -> torch.Tensor:
        """Logits after every lane's text, shape (lanes, vocabulary); feeds what is pending."""
        if self._logits is not None:
            logits, self._logits = self._logits, None
            return logits
        self._tidy()
        width = max(len(self.rows[i].pending) for i in self._lanes)
        ids = torch.full((len(self._lanes), width), self.pad)
        positions = torch.zeros_like(ids)
        fresh = torch.zeros_like(ids)
        for lane, i in enumerate(self._lanes):
            state = self.rows[i]
            n = len(state.pending)
            if n == 0:
                continue
            at = len(state.ids)
            ids[lane, width - n :] = torch.tensor(state.pending)
            positions[lane, width - n :] = torch.arange(at, at + n)
            fresh[lane, width - n :] = 1
            end = self.length + width
            state.slots.extend(range(end - n, end))
            state.ids.extend(state.pending)
            state.pending = []
        self.mask = torch.cat((self.mask, fresh.to(self.device)), dim=1)
        self.length += width
        mask = None if bool(self.mask.all()) else self.mask
        return _hf.forward(
            self.model, self.cache, ids.to(self.device), mask, positions.to(self.device), self.distance
        )

    # ------------------------------------------------------------------ slots
    def _tidy(self) -> None:
        """Mask what was taken back; move live slots together when too many are of no use."""
        if self._dead:
            where = torch.tensor(self._dead, device=self.device)
            self.mask[where[:, 0], where[:, 1]] = 0
            self._dead = []
        kept = [i for i in self._lanes if self.rows[i].draw is not None]
        longest = max(len(self.rows[i].slots) for i in kept)
        waste = self.length - longest
        if len(kept) == len(self._lanes) and waste <= max(_WASTE_SLOTS, _WASTE * self.length):
            return
        self.compactions += 1
        lanes = torch.tensor([self.rows[i].lane for i in kept], device=self.device)
        slots = torch.zeros((len(kept), longest), dtype=torch.int64)
        mask = torch.zeros_like(slots)
        for lane, i in enumerate(kept):
            state = self.rows[i]
            n = len(state.slots)
            slots[lane, longest - n :] = torch.tensor(state.slots)
            mask[lane, longest - n :] = 1
            state.slots = list(range(longest - n, longest))
            state.lane = lane
        for i in set(self._lanes) - set(kept):
            self.rows[i].lane = -1
        _hf.select_slots(self.cache, lanes, slots.to(self.device))
        if self.distance is not None:
            self.distance = self.distance[lanes]
        self.mask, self.length, self._lanes = mask.to(self.device), longest, kept
