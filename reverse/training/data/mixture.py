"""Several sets of records trained together: how many items of each a pass has, and in what order they come.

    mixture = Mixture([solve, replay], [PartPlan(), PartPlan(share=0.1)], seed=0)
    len(mixture)                                   # items of one pass
    ordered = mixture.arrange(passes=3)            # all items of three passes, shuffled

The order depends on seed, sizes and plans alone, not on workers, and is that of a longer run up to its end.
A part that brings only some of its records to a pass brings others to the next one, until all had their turn.
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
    """Numbers of the records of each pass, (passes, items) int64, part after part.

    Records are numbered through all parts. The first passes are the same however many are drawn.
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
    """One pass over several parts, part after part; `arrange` gives the order of a run.

    Args:
        parts: datasets that know their length; what is left out of them was left out before.
        plans: one for each part.
        seed: of what is drawn and of the order.
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
        """Item `index` of the first pass."""
        if self._first is None:
            self._first = draw_passes(self.sizes, self.counts, 1, self.seed)[0]
        return self.records[int(self._first[index])]

    def lengths(self) -> npt.NDArray[np.int64]:
        """Approximate length of every record of all parts, as `RecordDataset.lengths` gives them."""
        return np.concatenate([part.lengths() for part in self.parts])

    def arrange(self, passes: int, *, shuffle: bool = True, group: int | None = None) -> Ordered:
        """The items of `passes` passes in the order they are trained in.

        Args:
            shuffle: each pass in an order of its own; False: part after part.
            group: items of an optimizer step, to have items of about one length in it (then passes mix).
        """
        drawn = draw_passes(self.sizes, self.counts, passes, self.seed)
        if group is not None:
            flat = drawn.reshape(-1)
            return Ordered(self.records, flat[grouped_order(self.lengths()[flat], group, self.seed)])
        if shuffle:
            for number, one in enumerate(drawn):
                np.random.default_rng((self.seed, len(self.parts), number)).shuffle(one)
        return Ordered(self.records, drawn.reshape(-1))
