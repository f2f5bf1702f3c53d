"""Pack rows end to end: models that support it, and the positions of a row.

Several rows in one are only right where the model keeps them apart: positions start anew at each, and
attention does not look back over a start. Transformers derives both from `position_ids` for the attention
functions named here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reverse.compatibility import IncompatibleLibraryError
from reverse.errors import DataError
from reverse.models import family_of
from reverse.training.data.collator import Positions

__all__ = ["check_packing", "row_positions"]

_ATTENTION = ("eager", "sdpa", "flash_attention_2")


def check_packing(model: Any) -> None:
    """Raise ValueError, naming why, unless the model keeps packed rows apart."""
    config = family_of(model).decoder(model).config
    if config._attn_implementation not in _ATTENTION:
        raise DataError(
            f"packing needs attention that keeps rows apart by their positions, which "
            f"{', '.join(_ATTENTION)} do; this model has {config._attn_implementation!r}: change "
            "compute.attention, or take compute.packing=false"
        )


def row_positions(model: Any, processor: Any) -> Positions:
    """Return a function from one row's ids (1, length) and its pictures' tensors to its positions.

    Positions are (length,), or (3, length) if the model gives pictures positions by row and column.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not hasattr(base.model, "get_rope_index"):
        return lambda ids, picture: torch.arange(ids.shape[1])
    rope, image_id = base.model.get_rope_index, int(processor.image_token_id)
    grid_field = str(family_of(base).grid_field)

    def positions(ids: Tensor, picture: dict[str, Tensor]) -> Tensor:
        if grid_field not in picture:
            return torch.arange(ids.shape[1]).expand(3, -1)
        types = (ids == image_id).int()
        try:
            return rope(ids, mm_token_type_ids=types, **{grid_field: picture[grid_field]})[0][:, 0]
        except TypeError as error:
            raise IncompatibleLibraryError("transformers", f"get_rope_index was changed ({error})") from error

    return positions
