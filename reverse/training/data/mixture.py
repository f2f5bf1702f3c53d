"""Train several sets of records together: number of items of each set in a pass, and their order.

    mixture = Mixture([solve, replay], [PartPlan(), PartPlan(share=0.1)], seed=0)
    len(mixture)                                   # items of one pass
    ordered = mixture.arrange(passes=3)            # all items of three passes, shuffled

The order depends on seed, sizes and plans alone, not on workers, and is that of a longer run up to its end.
A part that gives only some of its records to a pass gives others to the next one, until all were used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import ConcatDataset, Dataset

from reverse.training.data.encoding import TrainingItem
from reverse.training.data.item_order import Ordered, grouped_order
from reverse.training.recipes.mixture_plan import PartPlan, check_plans, count_items

__all__ = ["Mixture", "draw_passes"]

Ids = npt.NDArray[np.int64]


def draw_passes(sizes: Sequence[int], counts: Sequence[int], passes: int, seed: int) -> Ids:
    """Draw the indices of the records of each pass, (passes, items) int64, part after part.

    Records are numbered through all parts. The first passes do not depend on the number of passes.
    """
    columns, start = [], 0
    for part, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        rng = np.random.default_rng((seed, part))
        rounds = -(-count * passes // size)
        numbers = np.concatenate([rng.permutation(size) for _ in range(rounds)])[: count * passes]
        columns.append(numbers.reshape(passes, count) + start)
        start += size
    return np.concatenate(columns, axis=1).astype(np.int64)


class Mixture(Dataset[TrainingItem]):
    """A pass over several parts, part after part. `arrange` gives the order of a run.

    Args:
        parts: datasets that know their length, with bad records left out already.
        plans: one for each part.
        seed: random seed of draws and order.
    """

    def __init__(self, parts: Sequence[Any], plans: Sequence[PartPlan], *, seed: int = 0):
        check_plans(plans)
        self.parts, self.plans, self.seed = list(parts), list(plans), seed
        self.sizes = [len(part) for part in self.parts]
        self.counts = count_items(self.sizes, plans)
        self.records: ConcatDataset[TrainingItem] = ConcatDataset(self.parts)
        self._first: Ids | None = None

    def __len__(self) -> int:
        return sum(self.counts)

    def __getitem__(self, index: int) -> TrainingItem:
        """Return item `index` of the first pass."""
        if self._first is None:
            self._first = draw_passes(self.sizes, self.counts, 1, self.seed)[0]
        return self.records[int(self._first[index])]

    def lengths(self) -> npt.NDArray[np.int64]:
        """Approximate length of every record of all parts, as `RecordDataset.lengths` gives them."""
        return np.concatenate([part.lengths() for part in self.parts])

    def arrange(self, passes: int, *, shuffle: bool = True, group: int | None = None) -> Ordered:
        """Return the items of `passes` passes in training order.

        Args:
            shuffle: shuffle each pass by itself; False: part after part.
            group: number of items of an optimizer step, to give it items of similar length (passes are mixed
                then).
        """
        drawn = draw_passes(self.sizes, self.counts, passes, self.seed)
        if group is not None:
            flat = drawn.reshape(-1)
            return Ordered(self.records, flat[grouped_order(self.lengths()[flat], group, self.seed)])
        if shuffle:
            for number, one in enumerate(drawn):
                np.random.default_rng((self.seed, len(self.parts), number)).shuffle(one)
        return Ordered(self.records, drawn.reshape(-1))
