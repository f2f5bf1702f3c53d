"""Pictures as a model takes them: exactly what its image processor makes of them, in a tenth of the time.

For a picture that already has the model's size, an image processor such as CLIP's only rescales and
normalises, and then a picture is 256 numbers per channel looked up. Whether that holds is not assumed: the
numbers come out of the processor itself, once per picture size, and a picture of noise must come out equal
to the last bit. Everything else (photographs, Qwen2.5-VL's patches) goes through the processor.

    pictures = PictureEncoder(processor)
    inputs, tokens = pictures(picture)      # {"pixel_values": (1, 3, 112, 112) float32}, 196
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reverse.errors import DataError

__all__ = ["PictureEncoder", "join_pictures"]

Table = npt.NDArray[np.float32]  # (3, 256): what each value of each channel becomes


class PictureEncoder:
    """One picture to (the image processor's tensors, how many ids stand for it in a prompt)."""

    def __init__(self, processor: Any):
        self.processor = processor
        self._tables: dict[tuple[int, int], Table | None] = {}
        self._tokens: dict[tuple[int, ...], int] = {}

    def __call__(self, picture: Any) -> tuple[dict[str, Tensor], int]:
        """Encode a uint8 array of shape (height, width, 3), or a PIL image.

        Returns:
            The tensors of one picture as the image processor gives them, float32, and the number of ids.
        """
        table = self._table(picture) if isinstance(picture, np.ndarray) else None
        if table is None:
            inputs = self._slow(picture)
        else:
            inputs = {"pixel_values": torch.from_numpy(_look_up(table, picture))}
        return inputs, self._count(inputs, picture)

    def most(self) -> int:
        """As many ids as a picture can take, where one's size decides; else as many as each of them takes."""
        images = self.processor.image_processor
        if self.keeps_size:
            return int(images.size["longest_edge"]) // (images.patch_size * images.merge_size) ** 2
        return self(np.full((64, 64, 3), 127, dtype=np.uint8))[1]

    @property
    def keeps_size(self) -> bool:
        """Whether the image processor scales a picture by a rule of its own (Qwen2.5-VL)."""
        images = self.processor.image_processor
        return "longest_edge" in images.size and hasattr(images, "merge_size")

    def usual(self) -> int:
        """As many ids as a picture of usual size takes."""
        return self.count(448, 448) if self.keeps_size else self.most()

    def count(self, width: int, height: int) -> int:
        """How many ids a picture of this size takes, without the picture; sides may be exchanged."""
        images = self.processor.image_processor
        if not self.keeps_size:
            return self.most()
        return int(images.get_number_of_image_patches(height, width)) // images.merge_size**2

    def _slow(self, picture: Any) -> dict[str, Tensor]:
        return dict(self.processor.image_processor(images=[picture], return_tensors="pt"))

    def _table(self, picture: npt.NDArray[np.uint8]) -> Table | None:
        """The table for pictures of this size, None where the processor does more than look up."""
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise DataError(
                f"a picture must be uint8 of shape (height, width, 3), got {picture.dtype} of {picture.shape}"
            )
        size = picture.shape[:2]
        if size not in self._tables:
            self._tables[size] = self._learn(*size)
        return self._tables[size]

    def _learn(self, height: int, width: int) -> Table | None:
        if height * width < 256:
            return None
        ramp = (np.arange(height * width) % 256).astype(np.uint8).reshape(height, width, 1).repeat(3, axis=2)
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        out = self._slow(ramp)
        if set(out) != {"pixel_values"} or out["pixel_values"].shape != (1, 3, height, width):
            return None
        table = out["pixel_values"].reshape(3, -1)[:, :256].numpy().copy()
        same = np.array_equal(_look_up(table, noise), self._slow(noise)["pixel_values"].numpy())
        return table if same else None

    def _count(self, inputs: dict[str, Tensor], picture: Any) -> int:
        """Ids a picture takes; the processor is asked once for each shape of its output."""
        shape = tuple(inputs["pixel_values"].shape)
        if shape not in self._tokens:
            token = self.processor.image_token
            ids = self.processor(images=[picture], text=[token], return_tensors="np")["input_ids"]
            self._tokens[shape] = int((np.asarray(ids) == self.processor.image_token_id).sum())
        return self._tokens[shape]


def join_pictures(pictures: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of pictures that were encoded one by one as the image processor gives them for all."""
    if len(pictures) == 1:
        return pictures[0]
    return {name: torch.cat([tensors[name] for tensors in pictures]) for name in pictures[0]}


def _look_up(table: Table, picture: npt.NDArray[np.uint8]) -> Table:
    """(height, width, 3) uint8 to (1, 3, height, width) float32."""
    out = np.empty((1, 3, *picture.shape[:2]), dtype=np.float32)
    for channel in range(3):
        np.take(table[channel], picture[:, :, channel], out=out[0, channel], mode="clip")
    return out
