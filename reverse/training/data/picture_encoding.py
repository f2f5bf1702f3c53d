"""Encode pictures as tensors for a model, and count the ids that stand for one in a prompt.

pictures = PictureEncoder(processor)
inputs, tokens = pictures(picture)      # {"pixel_values": (1, 3, 336, 336) float32}, 576
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["PictureEncoder", "join_pictures"]


class PictureEncoder:
    """Encodes one picture by the image processor and counts its ids.

    Args:
        processor: of the model.
    """

    def __init__(self, processor: Any):
        self.processor = processor
        self._tokens: dict[tuple[int, ...], int] = {}

    def __call__(self, picture: Any) -> tuple[dict[str, Tensor], int]:
        """Encode a PIL image, or a uint8 array of shape (height, width, 3).

        Returns:
            The tensors of one picture as the image processor gives them, float32, and the number of ids.
        """
        inputs = self._encode(picture)
        return inputs, self._count(inputs, picture)

    def most(self) -> int:
        """The largest number of ids that a picture can take."""
        images = self.processor.image_processor
        if self.keeps_size:
            return int(images.size["longest_edge"]) // (images.patch_size * images.merge_size) ** 2
        return self(np.full((64, 64, 3), 127, dtype=np.uint8))[1]

    @property
    def keeps_size(self) -> bool:
        """Whether the size of a picture decides how many ids it takes (Qwen2.5-VL)."""
        images = self.processor.image_processor
        return "longest_edge" in images.size and hasattr(images, "merge_size")

    def usual(self) -> int:
        """Return the number of ids of a picture of usual size."""
        return self.count(448, 448) if self.keeps_size else self.most()

    def count(self, width: int, height: int) -> int:
        """Return the number of ids of a picture of this size; the sides may be swapped."""
        images = self.processor.image_processor
        if not self.keeps_size:
            return self.most()
        return int(images.get_number_of_image_patches(height, width)) // images.merge_size**2

    def _encode(self, picture: Any) -> dict[str, Tensor]:
        return dict(self.processor.image_processor(images=[picture], return_tensors="pt"))

    def _count(self, inputs: dict[str, Tensor], picture: Any) -> int:
        """Return the number of ids of a picture; the processor is called once per shape of tensors."""
        shape = tuple(inputs["pixel_values"].shape)
        if shape not in self._tokens:
            token = self.processor.image_token
            ids = self.processor(images=[picture], text=[token], return_tensors="np")["input_ids"]
            self._tokens[shape] = int((np.asarray(ids) == self.processor.image_token_id).sum())
        return self._tokens[shape]


def join_pictures(pictures: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join the tensors of pictures that were encoded one by one, as the processor does for all at once."""
    if len(pictures) == 1:
        return pictures[0]
    return {name: torch.cat([tensors[name] for tensors in pictures]) for name in pictures[0]}
