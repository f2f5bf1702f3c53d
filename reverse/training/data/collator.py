"""Collate items to a batch of tensors: rows padded on the right or packed end to end, and their pictures.

Right padding needs no attention mask: attention looks back only, so no id of an answer sees what comes after
its row, and what stands there is no target. Without a mask scaled dot-product attention keeps its causal
kernel. (Decoding pads on the left, as every generate() does.)

Packed, the rows of a batch become one row without padding. Positions start anew at each, and from them the
model derives that no id attends beyond the start of its own row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reverse.training.data.encoding import Encoder, Row, TrainingItem, Turn
from reverse.training.data.labels import IGNORE
from reverse.training.data.picture_encoding import PictureEncoder

__all__ = ["Collator", "blank_item"]

Positions = Callable[[Tensor, dict[str, Tensor]], Tensor]


class Collator:
    """Makes the arguments of the model's forward from a list of items.

    Args:
        processor: of the model; names the padding id and whether positions need `mm_token_type_ids`.
        pixel_dtype: dtype of pixels; bfloat16 halves the transfer, and autocast would convert to it anyway.
        multiple: rows are padded to a multiple of this many ids, so that few shapes occur.
        packed: put rows end to end; needs `positions`.
        positions: of one row: its ids (1, length) and its pictures' tensors to positions (length,) or, where
        pictures have positions by row and column, (3, length), int64. blank: an item without targets, added
            to a batch without pictures: with sharded weights, all processes must call the same modules in the
                same order, also those of the tower (`blank_item` makes one).
    """

    def __init__(
        self,
        processor: Any,
        *,
        pixel_dtype: torch.dtype = torch.float32,
        multiple: int = 8,
        packed: bool = False,
        positions: Positions | None = None,
        blank: TrainingItem | None = None,
    ):
        tokenizer = processor.tokenizer
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.image_id = int(processor.image_token_id)
        self.type_ids = "mm_token_type_ids" in processor.model_input_names
        self.pixel_dtype = pixel_dtype
        self.multiple = multiple
        self.packed = packed
        self.positions = positions
        self.blank = blank

    def __call__(self, items: Sequence[TrainingItem]) -> dict[str, Tensor]:
        """Flatten the items into rows.

        Returns:
            `input_ids`, `labels` (rows, length) int64; `places` (targets,) int64, the places in the flattened
            rows whose next id is a target; `weights` (targets,) float32 of these targets, if any row's weight
            is not 1; where there are pictures what the image processor
            calls its tensors (`pixel_values`, for Qwen2.5-VL `image_grid_thw`), pictures in the order of
            rows, and of a row as they stand in it; for Qwen2.5-VL `mm_token_type_ids` (rows, length) int32, 1
            where a picture stands. Packed: one row, and `position_ids` (1, length) or (4, 1, length), the
            first of four counting ids.
        """
        if self.blank is not None and all(item.picture is None for item in items):
            items = [*items, self.blank]
        batch = self._packed(items) if self.packed else self._padded(items)
        labels = batch["labels"]
        follows = torch.zeros(labels.shape, dtype=torch.bool)
        follows[:, :-1] = labels[:, 1:] != IGNORE
        batch["places"] = places = follows.flatten().nonzero().squeeze(1)
        rows = [row for item in items for row in item.rows]
        if any(row.weight != 1 for row in rows):
            batch["weights"] = _weights(rows, labels.shape[1], self.packed)[places + 1]
        batch.update(self._pictures(items))
        if self.type_ids:
            batch["mm_token_type_ids"] = (batch["input_ids"] == self.image_id).int()
        return batch

    def _padded(self, items: Sequence[TrainingItem]) -> dict[str, Tensor]:
        rows = [row for item in items for row in item.rows]
        lengths = np.array([len(row.ids) for row in rows])
        longest = -(-int(lengths.max()) // self.multiple) * self.multiple
        filled = np.arange(longest) < lengths[:, None]  # (rows, length)
        ids = np.full((len(rows), longest), self.pad_id, dtype=np.int64)
        labels = np.full((len(rows), longest), IGNORE, dtype=np.int64)
        ids[filled] = np.concatenate([row.ids for row in rows])
        labels[filled] = np.concatenate([row.labels for row in rows])
        return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}

    def _packed(self, items: Sequence[TrainingItem]) -> dict[str, Tensor]:
        """Pack the rows end to end into one row.

        The first id of a row is not a target of the row before it.
        """
        assert self.positions is not None
        rows = [(row, item.picture) for item in items for row in item.rows]
        ids = [torch.from_numpy(row.ids)[None] for row, _ in rows]
        placed = [
            self.positions(one, dict(picture or {})) for one, (_, picture) in zip(ids, rows, strict=True)
        ]
        positions = torch.cat(placed, dim=-1)  # (length,) or (3, length)
        if positions.ndim == 2:
            text = torch.cat([torch.arange(one.shape[1]) for one in ids])
            positions = torch.cat([text[None], positions])[:, None]  # (4, 1, length)
        else:
            positions = positions[None]
        labels = torch.from_numpy(np.concatenate([row.labels for row, _ in rows]))[None]
        return {"input_ids": torch.cat(ids, dim=1), "labels": labels, "position_ids": positions}

    def _pictures(self, items: Sequence[TrainingItem]) -> dict[str, Tensor]:
        """Join the tensors of each item's pictures along the first dimension, repeated for every row about
        them.
        """
        shown = [(item.picture, len(item.rows)) for item in items if item.picture is not None]
        if not shown:
            return {}
        batch = {}
        for name in shown[0][0]:
            tensors = [tensor for picture, rows in shown for tensor in [self._cast(picture[name])] * rows]
            batch[name] = torch.cat(tensors)
        return batch

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.pixel_dtype) if tensor.is_floating_point() else tensor


def _weights(rows: Sequence[Row], length: int, packed: bool) -> Tensor:
    """Return the weight of every id of the flattened rows, (ids,) float32."""
    each = torch.tensor([row.weight for row in rows], dtype=torch.float32)
    lengths = torch.tensor([len(row.ids) for row in rows]) if packed else length
    return torch.repeat_interleave(each, lengths)


def blank_item(processor: Any) -> TrainingItem:
    """Make an item with a grey picture and a question, without targets."""
    from PIL import Image

    tensors, tokens = PictureEncoder(processor)(Image.new("RGB", (112, 112), "grey"))
    row = Encoder(processor).row([Turn("Describe this image.", "It is grey.")], tokens)
    return TrainingItem((Row(row.ids, np.full_like(row.labels, IGNORE)),), tensors)
