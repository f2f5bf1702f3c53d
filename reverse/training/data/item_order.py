"""The order of items: at random, or with items of similar length together, so that rows need little padding.

    dataset = Ordered(dataset, grouped_order(dataset.lengths(), batch=128, seed=0))

The order is made once, from the seed, for all epochs. It is the same on all devices and workers and after a
restart.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from reverse.training.data.encoding import TrainingItem

__all__ = ["Ordered", "grouped_order"]

Ids = npt.NDArray[np.int64]
MEGABATCH = 50  # batches that are sorted by length among themselves


class Ordered(Dataset[TrainingItem]):
    """The items of `dataset` in the order of `order`, (items,) int64."""

    def __init__(self, dataset: Any, order: Ids):
        self.dataset = dataset
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> TrainingItem:
        return self.dataset[int(self.order[index])]


def grouped_order(lengths: npt.ArrayLike, batch: int, seed: int, epochs: int = 1) -> Ids:
    """Return the indices of `epochs` passes: shuffled, sorted by length within 50 batches, batches shuffled
    again.

    Args:
        lengths: (items,), any measure that grows with the number of ids. Items with and without a picture do
            not mix in a batch if the lengths of the latter are negative (as in LLaVA).
        batch: items per optimizer step, over all devices.
    """
    sizes = np.asarray(lengths)
    rng = np.random.default_rng(seed)
    passes, rests = [], []
    for _ in range(epochs):
        groups = []
        for group in (np.flatnonzero(sizes >= 0), np.flatnonzero(sizes < 0)):
            rng.shuffle(group)
            for start in range(0, len(group), MEGABATCH * batch):
                part = group[start : start + MEGABATCH * batch]
                groups += _batches(part[np.argsort(-np.abs(sizes[part]), kind="stable")], batch)
        whole = [group for group in groups if len(group) == batch]
        whole = [whole[k] for k in rng.permutation(len(whole))]
        passes += whole
        rests += [group for group in groups if len(group) != batch]  # at the end: else they shift the others
    return np.concatenate([np.empty(0, dtype=np.int64), *passes, *rests]).astype(np.int64)


def _batches(indices: Ids, batch: int) -> list[Ids]:
    return [indices[start : start + batch] for start in range(0, len(indices), batch)]
