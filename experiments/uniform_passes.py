"""Training passes for pictures of one size: each picture is seen once, however many rows are about it.

    passes = UniformPass(model, processor, side=112)
    features = passes.see(pictures)                       # uint8 (B, 112, 112, 3) -> (B, n, hidden)
    loss = passes.loss(features, ids, which, at, targets)

The modules are the model's own and the loss is that of its forward (tested). What is left out is what every
forward of transformers works out anew for pictures of any size: Qwen2.5-VL attends picture by picture in a
Python loop and asks the device for positions row by row. Normalising happens on the device, from bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from reverse.decoding.backends.hf.compat import cache_argument
from reverse.models import family_of
from reverse.models.families import LLAVA, QWEN2_5_VL, Family
from reverse.training.data.labels import IGNORE

__all__ = ["UniformPass"]

LONGEST = 1024  # ids of a row


class UniformPass:
    """Features and loss of one model, for pictures of `side` by `side` pixels.

    Every row about a picture must hold its ids at the same place, as rows of one system prompt do.

    Args:
        model: of either family, on its device; trained in place.
        processor: of the model; its image processor must leave pictures of this size as large as they are.
        side: pixels.
        first: where the picture's ids begin in a row.
        count: how many ids a picture takes.

    Raises:
        ValueError: the image processor does more than rescale, normalise and cut into patches.
    """

    def __init__(self, model: Any, processor: Any, *, side: int, first: int, count: int):
        self.model, self.first, self.count = model, first, count
        self.family = family_of(model)
        self.decoder = self.family.decoder(model)
        self.cache_name = cache_argument(self.decoder.layers[0])
        self.embeddings = model.get_input_embeddings()
        self.head = model.get_output_embeddings()
        device = model.device
        settings = processor.image_processor
        mean, std = (torch.tensor(each, device=device) for each in (settings.image_mean, settings.image_std))
        self.scale = (settings.rescale_factor / std).view(3, 1, 1)
        self.shift = (-mean / std).view(3, 1, 1)
        self._check(processor, side)
        self.sight = _SIGHT[self.family](model, side)
        self.positions = _POSITIONS[self.family](model, first, count)  # None or (3, LONGEST)

    def freeze_tower(self) -> None:
        """Leave tower and projector as they are in training: features of pictures stay the same."""
        for module in (self.family.vision_tower(self.model), self.family.image_projector(self.model)):
            for parameter in module.parameters():
                parameter.requires_grad_(False)

    def normalise(self, pictures: Tensor) -> Tensor:
        """uint8 (B, side, side, 3) to float32 (B, 3, side, side)."""
        return pictures.permute(0, 3, 1, 2).float() * self.scale + self.shift

    def see(self, pictures: Tensor, warp: Tensor | None = None) -> Tensor:
        """uint8 (B, side, side, 3) to what stands for each picture in a row, (B, count, hidden).

        `warp`: (B, 2, 3), where each picture's points are taken from, as `affine_grid` has it; what lies
        outside is mirrored.
        """
        pixels = self.normalise(pictures)
        if warp is not None:
            grid = F.affine_grid(warp, list(pixels.shape), align_corners=False)
            pixels = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
        return self.sight(pixels.to(self.model.dtype))

    def loss(self, features: Tensor, ids: Tensor, which: Tensor, at: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy over the targets, a scalar.

        Args:
            features: from `see`, (B, count, hidden).
            ids: int64 (rows, length), the picture's ids written out, padded on the right.
            which: int64 (rows,): each row's picture, -1 for none.
            at: int64 (targets,): places in the flattened rows that predict a target.
            targets: int64 (targets,): what comes next there.
        """
        hidden = self._decode(self.embed(features, ids, which), self._position_ids(ids, which))
        logits = self.head(hidden.flatten(0, 1).index_select(0, at))  # (targets, vocabulary)
        return F.cross_entropy(logits.float(), targets)

    def embed(self, features: Tensor, ids: Tensor, which: Tensor) -> Tensor:
        """What the decoder reads, (rows, length, hidden); arguments as of `loss`."""
        embedded = self.embeddings(ids)
        end = self.first + self.count
        shown = features.index_select(0, which.clamp(min=0)).to(embedded.dtype)
        middle = torch.where((which >= 0).view(-1, 1, 1), shown, embedded[:, self.first : end])
        return torch.cat([embedded[:, : self.first], middle, embedded[:, end:]], dim=1)

    def weighted_loss(self, features: Tensor, ids: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Weighted mean cross entropy over the targets behind the picture, a scalar.

        No shape depends on the labels, so that one compiled step serves all batches.

        Args:
            features: of each row's picture, (rows, count, hidden).
            ids, labels: int64 (rows, length).
            weights: of each row's targets, float (rows,).
        """
        which = torch.arange(len(ids), device=ids.device)
        hidden = self._decode(self.embed(features, ids, which), self._position_ids(ids, which))
        begin = self.first + self.count
        return self.weighted_mean(hidden[:, begin - 1 : -1], labels[:, begin:], weights)

    def weighted_mean(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Weighted mean cross entropy, a scalar.

        Args:
            hidden: of the ids before the targets, (rows, n, hidden).
            targets: int64 (rows, n).
            weights: of each row's targets, float (rows,).
        """
        logits = self.head(hidden)  # (rows, n, vocabulary)
        losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        each = weights[:, None] * (targets != IGNORE)
        return (losses.view_as(each) * each).sum() / each.sum().clamp(min=1e-6)

    def position_ids(self, rows: int, begin: int, end: int) -> Tensor:
        """Of ids `begin` to `end` of rows with a picture: (rows, n), or (3, rows, n) for Qwen2.5-VL."""
        if self.positions is None:
            return torch.arange(begin, end, device=self.scale.device).expand(rows, -1)
        return self.positions[:, None, begin:end].expand(3, rows, end - begin)

    def _decode(self, hidden: Tensor, position_ids: Tensor) -> Tensor:
        """The decoder without the mask that its forward would make: that asks the device at every step.

        Without a mask attention is causal, and nothing attends to the padding on the right.
        """
        turn = self.decoder.rotary_emb(hidden, position_ids=position_ids)
        for layer in self.decoder.layers:
            hidden = layer(hidden, attention_mask=None, position_embeddings=turn, use_cache=False)
        return self.decoder.norm(hidden)

    def _position_ids(self, ids: Tensor, which: Tensor) -> Tensor:
        rows, length = ids.shape
        if self.positions is None:
            return torch.arange(length, device=ids.device)[None]
        plain = torch.arange(length, device=ids.device).expand(3, rows, length)
        pictured = self.positions[:, None, :length].expand(3, rows, length)
        return torch.where((which >= 0).view(1, -1, 1), pictured, plain)

    def _check(self, processor: Any, side: int) -> None:
        """The image processor's own numbers must be those of `normalise`, for noise."""
        noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
        expected = processor.image_processor(images=[noise], return_tensors="pt")["pixel_values"]
        ours = self.normalise(torch.from_numpy(noise)[None].to(self.scale.device)).cpu()
        if self.family is QWEN2_5_VL and ours.numel() * 2 == expected.numel():
            ours = _patches(ours, processor.image_processor.patch_size).repeat_interleave(2, dim=-3)
        if ours.numel() != expected.numel() or not torch.allclose(
            ours.reshape(expected.shape), expected, atol=1e-5
        ):
            raise ValueError(
                f"the image processor does not take pictures of {side} pixels as they are: give the size it "
                "was made for, or train through reverse.training.sft"
            )


def _llava_sight(model: Any, side: int) -> Callable[[Tensor], Tensor]:
    tower, projector = LLAVA.vision_tower(model), LLAVA.image_projector(model)
    layer = model.config.vision_feature_layer

    def see(pixels: Tensor) -> Tensor:
        states = tower(pixels, output_hidden_states=True).hidden_states
        return projector(states[layer][:, 1:])  # without the class token

    return see


def _qwen_sight(model: Any, side: int) -> Callable[[Tensor], Tensor]:
    """Qwen2.5-VL's tower over equal pictures at once: windows are a mask, nothing is permuted."""
    tower = QWEN2_5_VL.vision_tower(model)
    config = tower.config
    patch, merge = config.patch_size, config.spatial_merge_size
    places = _places(side // patch, merge)  # (n, 2)
    device = model.device
    turn = _axial(places, config.hidden_size // config.num_heads).to(device)
    window = places // (config.window_size // patch)
    mask = (window[:, None] == window[None]).all(-1).to(device)  # (n, n)
    whole = set(config.fullatt_block_indexes)

    def see(pixels: Tensor) -> Tensor:
        # A still picture is shown as two equal frames: their weights add up.
        weight = tower.patch_embed.proj.weight.sum(dim=2).flatten(1)  # (hidden, 3 * patch * patch)
        hidden = F.linear(_patches(pixels, patch).flatten(-3), weight).to(weight.dtype)  # (B, n, hidden)
        for number, block in enumerate(tower.blocks):
            seen = None if number in whole else mask
            hidden = hidden + _attend(block.attn, block.norm1(hidden), turn, seen)
            hidden = hidden + block.mlp(block.norm2(hidden))
        merged = tower.merger(hidden)
        return merged.view(len(pixels), -1, merged.shape[-1])

    return see


def _attend(attention: Any, hidden: Tensor, turn: Tensor, mask: Tensor | None) -> Tensor:
    rows, length, width = hidden.shape
    query, key, value = (
        attention.qkv(hidden).view(rows, length, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    )
    query, key = (_turned(each, turn).to(value.dtype) for each in (query, key))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return attention.proj(out.transpose(1, 2).reshape(rows, length, width))


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    """Rotary positions; `turn` holds cosine and sine, (2, n, head)."""
    first, second = x.chunk(2, dim=-1)
    return x * turn[0] + torch.cat([-second, first], dim=-1) * turn[1]


def _places(grid: int, merge: int) -> Tensor:
    """Row and column of each patch in the order of the image processor: (n, 2), merged ones together."""
    place = torch.stack(torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij"), dim=-1)
    units = grid // merge
    return place.view(units, merge, units, merge, 2).transpose(1, 2).reshape(-1, 2)


def _axial(places: Tensor, head: int) -> Tensor:
    """Cosine and sine of the tower's rotary positions, (2, n, head) float32."""
    frequencies = 1.0 / (10_000.0 ** (torch.arange(0, head // 2, 2, dtype=torch.float) / (head // 2)))
    angles = (places[..., None].float() * frequencies).flatten(1)  # rows, then columns: (n, head / 2)
    angles = torch.cat([angles, angles], dim=-1)
    return torch.stack([angles.cos(), angles.sin()])


def _patches(pixels: Tensor, patch: int, merge: int = 2) -> Tensor:
    """(B, 3, side, side) to (B, n, 3, patch, patch) in the order of Qwen2.5-VL's image processor."""
    rows, channels, side, _ = pixels.shape
    units = side // patch // merge
    cut = pixels.view(rows, channels, units, merge, patch, units, merge, patch)
    return cut.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(rows, -1, channels, patch, patch)


def _qwen_positions(model: Any, first: int, count: int) -> Tensor:
    """Of a row with a picture, by the model's own rule: (3, LONGEST)."""
    config = model.config
    ids = torch.zeros(1, LONGEST, dtype=torch.long)
    ids[0, first : first + count] = config.image_token_id
    merge = config.vision_config.spatial_merge_size
    grid = merge * round(count**0.5)
    positions, _ = model.model.get_rope_index(
        ids,
        mm_token_type_ids=(ids == config.image_token_id).int(),
        image_grid_thw=torch.tensor([[1, grid, grid]]),
    )
    return positions[:, 0].to(model.device)


_SIGHT: dict[Family, Callable[[Any, int], Callable[[Tensor], Tensor]]] = {
    LLAVA: _llava_sight,
    QWEN2_5_VL: _qwen_sight,
}
_POSITIONS: dict[Family, Callable[[Any, int, int], Tensor | None]] = {
    LLAVA: lambda model, first, count: None,
    QWEN2_5_VL: _qwen_positions,
}
