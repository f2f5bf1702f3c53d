"""Decode several rows about one picture whose common beginning, system prompt and picture, is read once.

    loss = shared_prefix_loss(passes, features, ids, labels, weights, rows=4)

The rows of a picture follow each other. The result is that of `UniformPass.weighted_loss`, where every row
reads the beginning for itself (tested).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from experiments.uniform_passes import UniformPass

__all__ = ["shared_prefix_loss"]


class _LayerPrefix:
    """Keys and values of the common beginning in one layer, in the place of a cache."""

    def __init__(self, rows: int):
        self.rows = rows
        self.held: tuple[Tensor, Tensor] | None = None

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keep the first keys and values, (pictures, heads, ids, width); later ones come behind them."""
        if self.held is None:
            self.held = (key, value)
            return key, value
        before = (each.repeat_interleave(self.rows, dim=0) for each in self.held)
        return torch.cat([next(before), key], dim=2), torch.cat([next(before), value], dim=2)


def shared_prefix_loss(
    passes: UniformPass, features: Tensor, ids: Tensor, labels: Tensor, weights: Tensor, *, rows: int
) -> Tensor:
    """Weighted mean cross entropy over the targets behind the picture, a scalar.

    Args:
        features: of the pictures, (pictures, count, hidden).
        ids, labels: int64 (pictures * rows, length); every row begins alike, up to the end of its picture,
            and the id behind the picture is no target.
        weights: of each row's targets, float (pictures * rows,).
    """
    end, (total, length) = passes.first + passes.count, ids.shape
    pictures = total // rows
    which = torch.arange(pictures, device=ids.device)
    before = passes.embed(features, ids[::rows, :end], which)
    after = passes.embeddings(ids[:, end:]).to(before.dtype)
    turns = [
        passes.decoder.rotary_emb(before, position_ids=passes.position_ids(pictures, 0, end)),
        passes.decoder.rotary_emb(after, position_ids=passes.position_ids(total, end, length)),
    ]
    places = torch.arange(length, device=ids.device)
    mask = (places[None] <= places[end:, None])[None, None]  # (1, 1, length - end, length)
    for layer in passes.decoder.layers:
        prefix = {passes.cache_name: _LayerPrefix(rows)}
        before = layer(before, attention_mask=None, position_embeddings=turns[0], use_cache=True, **prefix)
        after = layer(after, attention_mask=mask, position_embeddings=turns[1], use_cache=True, **prefix)
    return passes.weighted_mean(passes.decoder.norm(after)[:, :-1], labels[:, end + 1 :], weights)
