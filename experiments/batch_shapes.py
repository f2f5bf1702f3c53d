"""One shape for all batches of a training, so that one compiled step serves them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from experiments.scene_packs import Rows
from reverse.training.data.labels import IGNORE

__all__ = ["Shape"]


@dataclass(frozen=True)
class Shape:
    """What all batches are padded to, so that one compiled step serves them; larger ones go uncompiled."""

    rows: int
    length: int
    targets: int

    @classmethod
    def of(cls, rows: Rows, batch: int, least: int) -> Shape:
        """Room for nearly every batch of `batch` pictures, judged by a shard; `least` ids long.

        Rounded, so that trainings of one kind find each other's compiled step.
        """
        each = np.diff(rows.begins)
        spare = 1.06 * batch / len(each)
        count = batch * each[0] if (each == each[0]).all() else _up(len(rows.ids) * spare, 16)
        targets = int((rows.labels[:, 1:] != IGNORE).sum())
        return cls(int(count), _up(max(least, rows.ids.shape[1]), 16), _up(targets * spare, 1024))

    def pad(self, batch: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        """(ids, which, at, targets) of this shape and with the same loss; None where it does not fit."""
        ids, which, at, targets = batch
        count, length = ids.shape
        if count > self.rows or length > self.length or len(at) > self.targets:
            return None
        at = at // length * self.length + at % length
        more = self.targets - len(at)
        return (
            F.pad(ids, (0, self.length - length, 0, self.rows - count)),
            F.pad(which, (0, self.rows - count), value=-1),
            F.pad(at, (0, more)),
            F.pad(targets, (0, more), value=IGNORE),
        )


def _up(n: float, block: int) -> int:
    return -(-int(n) // block) * block
