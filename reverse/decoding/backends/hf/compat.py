"""The private and version-dependent parts of transformers that the backend uses, in one place.

Checked on transformers 5.18, 5.23 and 5.24. What is used, and how it is guarded:
- the argument of `forward` that takes the cache: its name is read from the signature (`past_key_values` up to
  5.23, `cache` from 5.24 on);
- `get_image_features()` of the model below the head, with the arguments that `generate()` gives it, and the
  argument `mm_encoder_outputs` of `forward`, whose `"image"` holds one tensor (tokens, width) a picture in
  `pooler_output`;
- `get_rope_index()` of models with multimodal rotary positions, and `position_ids` of shape (4, rows, length)
  with text positions first;
- `DynamicLayer.keys` and `.values` of shape (rows, heads, tokens, width), which are replaced to move tokens.
After every forward the cache must hold exactly the tokens that were fed. Where something is otherwise,
IncompatibleLibraryError names the installed version and the supported ones.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache as cached
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from reverse.compatibility import IncompatibleLibraryError
from reverse.decoding.backends.protocol import EncodedPicture, OutOfMemory
from reverse.errors import RequestError
from reverse.models.families import family_of
from reverse.models.unwrapping import input_device, unwrap_model
from reverse.models.window_attention import use_varlen_window_attention

__all__ = [
    "build_positions",
    "cache_argument",
    "capture_hidden_states",
    "check_cache",
    "cut_cache",
    "encode_pictures",
    "forward",
    "has_multimodal_rope",
    "layer_count",
    "memory_errors",
    "move_layer",
    "new_cache",
    "pad_id",
]

_CACHE_NAMES = ("cache", "past_key_values")  # of the argument of `forward`, newest first


def cache_argument(model: Any) -> str:
    """Return the name of the cache argument of a model's `forward`, whatever wraps the model."""
    kind: Any = type(unwrap_model(model))
    known = _parameters_of(kind)
    for name in _CACHE_NAMES:
        if name in known:
            return name
    raise IncompatibleLibraryError(
        "transformers", f"{kind.__name__}.forward takes no cache under the names {', '.join(_CACHE_NAMES)}"
    )


@cached
def _parameters_of(kind: Any) -> Any:
    """Return the parameters of the class's `forward`: that of an instance may be a wrapper without names."""
    return frozenset(inspect.signature(kind.forward).parameters)


def pad_id(model: Any) -> int:
    """Return the padding id: the generation config's, else its first end-of-text id, else 0."""
    config = model.generation_config
    if config.pad_token_id is not None:
        return int(config.pad_token_id)
    ids = config.eos_token_id
    return 0 if ids is None else int(torch.as_tensor(ids).reshape(-1)[0])


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn torch's out-of-memory error into the backend's, and free the tensors of its frames."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)
        raise OutOfMemory(str(error)) from None


# ------------------------------------------------------------------ pictures and positions
def encode_pictures(model: Any, pictures: Sequence[Mapping[str, torch.Tensor]]) -> list[EncodedPicture]:
    """Return every picture's features and grid, from one run of the vision tower and the projector.

    `pictures` are mappings from the name of a processor's output to its tensor for one picture.
    """
    kind: Any = type(unwrap_model(model))
    if "mm_encoder_outputs" not in _parameters_of(kind):
        raise IncompatibleLibraryError(
            "transformers", f"{kind.__name__}.forward does not take mm_encoder_outputs"
        )
    device = input_device(model)
    inputs = {
        name: torch.cat([tensors[name].to(device) for tensors in pictures]) for name in dict(pictures[0])
    }
    with use_varlen_window_attention(model):
        encoded = model.base_model.get_image_features(**inputs, return_dict=True)
    features = list(encoded.pooler_output)
    if len(features) != len(pictures) or any(each.dim() != 2 for each in features):
        raise IncompatibleLibraryError(
            "transformers",
            f"get_image_features() gave {len(features)} tensors, such as of shape "
            f"{tuple(features[0].shape)}, for {len(pictures)} pictures, where one (tokens, width) each was "
            "expected",
        )
    if len(features) > 1:
        features = [each.clone() for each in features]  # each with its own memory
    field = family_of(model).grid_field
    grids = [None if field is None else _read_grid(tensors[field]) for tensors in pictures]
    return [EncodedPicture(f, grid) for f, grid in zip(features, grids, strict=True)]


def _read_grid(grid: torch.Tensor) -> tuple[int, int, int]:
    temporal, height, width = grid.reshape(-1).tolist()
    return temporal, height, width


def has_multimodal_rope(model: Any) -> bool:
    """Whether rotary positions have three dimensions, and so differ from text positions after a picture."""
    return hasattr(model.base_model, "get_rope_index")


def build_positions(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, image_token: int, grids: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, list[int]]:
    """Compute the positions of left-padded prompts.

    Also returns one offset for each prompt: rotary position minus text position of what follows it.

    Args: `ids` and `mask` (rows, length) on the CPU; `grids` of all pictures in order.
    Returns positions of shape (rows, length), or (4, rows, length) with multimodal rotary positions.
    """
    text = (mask.cumsum(dim=1) - 1).masked_fill(mask == 0, 0)
    if not has_multimodal_rope(model):
        return text, [0] * len(ids)
    if not grids:  # the model's method takes pictures only
        return text.expand(4, -1, -1), [0] * len(ids)
    rotary, offsets = model.base_model.get_rope_index(
        ids, (ids == image_token).int(), image_grid_thw=torch.tensor(grids), attention_mask=mask
    )
    if rotary.shape != (3, *ids.shape) or offsets.numel() != len(ids):
        raise IncompatibleLibraryError(
            "transformers",
            f"get_rope_index() gave shapes {tuple(rotary.shape)} and {tuple(offsets.shape)} for ids of shape "
            f"{tuple(ids.shape)}, where (3, rows, length) and (rows, 1) were expected",
        )
    return torch.cat((text[None], rotary.to(text.dtype))), [int(offset) for offset in offsets.reshape(-1)]


# ------------------------------------------------------------------ the cache
def new_cache(model: Any) -> DynamicCache:
    """Make an empty cache. Raises ValueError for a model with layers whose cache cannot be rewound."""
    cache = DynamicCache(config=model.config.get_text_config())
    others = {type(layer).__name__ for layer in cache.layers if type(layer) is not DynamicLayer}
    if others:
        raise RequestError(
            f"the model keeps its cache in {', '.join(sorted(others))}, which cannot be rewound: only models "
            "with full attention in every layer can be decoded"
        )
    return cache


def layer_count(cache: DynamicCache) -> int:
    return len(cache.layers)


def forward(
    model: Any,
    cache: DynamicCache,
    ids: torch.Tensor,
    mask: torch.Tensor | None,
    positions: torch.Tensor,
    features: Sequence[torch.Tensor] = (),
) -> torch.Tensor:
    """Feed `ids` of shape (rows, n); returns logits of the last of them, shape (rows, vocabulary).

    Args: `mask` (rows, cached + n) has 0 for padding and for what was taken back; None: all count.
    `positions` (rows, n) or (4, rows, n); `features` of all pictures in `ids`, in order.
    If it raises OutOfMemory's cause, the cache may hold the new tokens in some layers: see `cut_cache`.
    """
    pictures = {}
    if features:
        joined = torch.cat(list(features)) if family_of(model).joined_features else list(features)
        pictures["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=joined)}
    outputs = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
        return_dict=True,
        **{cache_argument(model): cache},
        **pictures,
    )
    return outputs.logits[:, -1]


@contextmanager
def capture_hidden_states(model: Any) -> Iterator[list[torch.Tensor]]:
    """A list that receives, at every forward inside, what the head is given: (rows, positions, width)."""
    found: list[torch.Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda module, given: found.append(given[0].detach())
    )
    try:
        yield found
    finally:
        hook.remove()


def check_cache(cache: DynamicCache, rows: int, length: int, every_layer: bool) -> None:
    """Raise IncompatibleLibraryError unless the cache holds exactly `length` tokens of `rows` rows.

    `every_layer=False` looks at the first and the last layer, which is cheap enough for every step.
    """
    layers = list(enumerate(cache.layers))
    for i, layer in layers if every_layer else layers[:: max(1, len(layers) - 1)]:
        for name in ("keys", "values"):
            held = getattr(layer, name, None)
            shape = None if held is None else tuple(held.shape)
            if shape is None or len(shape) != 4 or (shape[0], shape[2]) != (rows, length):
                raise _other_cache(f"{name} of layer {i}", shape, rows, length)
        if layer.get_seq_length() != length:  # masks are made from it
            raise _other_cache(f"length of layer {i}", layer.get_seq_length(), rows, length)


def _other_cache(what: str, shape: Any, rows: int, length: int) -> IncompatibleLibraryError:
    return IncompatibleLibraryError(
        "transformers",
        f"after {length} tokens were fed to each of {rows} rows the cache holds "
        f"{'nothing' if shape is None else f'shape {shape}'} as {what}, where (rows, heads, tokens, width) "
        "was expected",
    )


def cut_cache(cache: DynamicCache, length: int) -> None:
    """Forget all tokens after the first `length` in every layer. Allocates nothing."""
    for layer in cache.layers:
        for name in ("keys", "values"):
            held = getattr(layer, name)
            if held.shape[2] > length:
                setattr(layer, name, held[:, :, :length])


def move_layer(
    layer: int, sources: Sequence[tuple[DynamicCache, list[int], torch.Tensor]], target: DynamicCache
) -> None:
    """Fill a layer of `target` with rows and slots from several caches, whose own layers are emptied.

    `sources` gives a cache, `rows` of it and their `slots` of shape (len(rows), n). Keys are stored already
    rotated, so moving them changes nothing but their place. On error nothing has changed.
    """
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    for cache, rows, slots in sources:
        held = cache.layers[layer]
        heads, width = held.keys.shape[1], held.keys.shape[3]
        index = slots.to(held.keys.device)  # layers may be spread over several devices
        index = index[:, None, :, None].expand(-1, heads, -1, width)
        for picked, tensor in ((keys, held.keys), (values, held.values)):
            if rows != list(range(tensor.shape[0])):
                tensor = tensor[rows]
            picked.append(tensor.gather(2, index))
    all_keys = keys[0] if len(keys) == 1 else torch.cat(keys)
    all_values = values[0] if len(values) == 1 else torch.cat(values)
    for cache, _, _ in sources:
        if cache is not target:
            cache.layers[layer].keys = cache.layers[layer].values = None
    target.layers[layer].keys, target.layers[layer].values = all_keys, all_values
