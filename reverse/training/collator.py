"""Items to one batch: rows padded on the right, pictures one per row, nothing but tensors.

Right padding needs no attention mask: attention looks back only, so no id of an answer sees what comes after
its row, and what stands there is no target. Without a mask scaled dot-product attention keeps its causal
kernel. (Decoding pads on the left, as every generate() does.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reverse.training.encoding import Item
from reverse.training.labels import IGNORE

__all__ = ["Collator"]


class Collator:
    """A list of items to what the model's forward takes.

    Args:
        processor: of the model; names the padding id and whether positions need `mm_token_type_ids`.
        pixel_dtype: what pixels are sent as; bfloat16 halves the traffic and is what autocast makes of them.
        multiple: rows are padded to a multiple of this many ids, so that few shapes occur.
    """

    def __init__(self, processor: Any, *, pixel_dtype: torch.dtype = torch.float32, multiple: int = 8):
        tokenizer = processor.tokenizer
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.image_id = int(processor.image_token_id)
        self.type_ids = "mm_token_type_ids" in processor.model_input_names
        self.pixel_dtype = pixel_dtype
        self.multiple = multiple

    def __call__(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Flatten the items into rows.

        Returns:
            `input_ids`, `labels` (rows, length) int64; where there are pictures what the image processor
            calls its tensors (`pixel_values`, for Qwen2.5-VL `image_grid_thw`), pictures in the order of
            rows; for Qwen2.5-VL `mm_token_type_ids` (rows, length) int32, 1 where a picture stands.
        """
        rows = [row for item in items for row in item.rows]
        lengths = np.array([len(row.ids) for row in rows])
        longest = -(-int(lengths.max()) // self.multiple) * self.multiple
        filled = np.arange(longest) < lengths[:, None]  # (rows, length)
        ids = np.full((len(rows), longest), self.pad_id, dtype=np.int64)
        labels = np.full((len(rows), longest), IGNORE, dtype=np.int64)
        ids[filled] = np.concatenate([row.ids for row in rows])
        labels[filled] = np.concatenate([row.labels for row in rows])
        batch = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
        batch.update(self._pictures(items))
        if self.type_ids:
            batch["mm_token_type_ids"] = (batch["input_ids"] == self.image_id).int()
        return batch

    def _pictures(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Each picture once for every row about it, one after another along the first dimension."""
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
