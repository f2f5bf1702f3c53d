"""Everything of transformers that is private or tied to a version, in one place.

Checked on transformers 5.18, 5.23 and 5.24. What is used, and how it is guarded:
`GenerationMixin._prefill` (encoded images go in here and nowhere else); the argument of `forward` that takes
the cache, whose name is read from the signature (`past_key_values` up to 5.23, `cache` from 5.24 on);
`DynamicLayer.keys` / `.values` (slots are picked by index for compaction); `position_ids` of shape
(4, rows, length) for models with multimodal rotary positions, text positions first; and
`mm_encoder_outputs["image"].pooler_output`, a list with one tensor (tokens, width) a picture.
After every prefill and every step the cache must hold exactly the tokens that were fed. Where something is
otherwise, IncompatibleLibraryError names the installed version and the supported ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache as cached
from typing import Any

import torch
from transformers import Cache, DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.stopping_criteria import (
    ConfidenceCriteria,
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from reverse.compatibility import IncompatibleLibraryError, warn_of_newer_versions
from reverse.decoding._hf_processors import caller_processors
from reverse.decoding.backend import OutOfMemory, Prefill
from reverse.models.unwrapping import unwrap_model

__all__ = [
    "CallerStops",
    "cache_argument",
    "caller_processors",
    "caller_stops",
    "check_request",
    "eos_ids",
    "forward",
    "gather_slots",
    "layers",
    "memory_errors",
    "pad_id",
    "prefill",
    "rows_of",
]

_CACHE_NAMES = ("cache", "past_key_values")  # of the argument of `forward`, newest first
_OTHER_MODES = (
    "prompt_lookup_num_tokens", "penalty_alpha", "dola_layers", "force_words_ids", "constraints",
    "assistant_early_exit", "use_mtp",
)  # fmt: skip
_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
_OTHER_SAMPLING = {"min_p": 0.0, "top_h": None, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}


def check_request(config: GenerationConfig, criteria: StoppingCriteriaList, kwargs: dict[str, Any]) -> None:
    """Refuse what a decoder that goes back cannot honour, naming the option. Raises ValueError."""
    if (config.num_beams or 1) > 1:
        raise ValueError(
            f"num_beams={config.num_beams} cannot be rolled back row by row: use num_beams=1 "
            "(do_sample=True with num_return_sequences gives several answers)"
        )
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise ValueError(
            f"{mode.value} is another way of decoding than resampling: leave out the option that asks for it "
            f"({', '.join(_set_of(config, _OTHER_MODES))})"
        )
    if config.do_sample:
        _check_sampling(config)
    unseen = _set_of(config, _OUTPUTS)
    if unseen:
        raise ValueError(
            f"{', '.join(unseen)} cannot be returned for text that was taken back: leave it out; p of each "
            "phrase is in `results` of the decoder"
        )
    for criterion in criteria:
        if isinstance(criterion, ConfidenceCriteria):
            raise ValueError(
                "stopping criterion ConfidenceCriteria reads the scores of a draft model: leave out the "
                "option that asks for it (assistant_confidence_threshold)"
            )
    if kwargs.get("inputs_embeds") is not None:
        raise ValueError("inputs_embeds cannot be rewound to token ids: pass input_ids")
    _check_no_own_cache(config, kwargs)
    mask = kwargs.get("attention_mask")
    if mask is not None:
        if mask.dim() != 2:
            raise ValueError(f"attention_mask must have shape (rows, length), got {tuple(mask.shape)}")
        if bool((mask[:, -1] == 0).any()) or bool((mask.diff(dim=1) < 0).any()):
            raise ValueError(
                "attention_mask has padding on the right or in the middle: set "
                "tokenizer.padding_side = 'left'"
            )


def _check_no_own_cache(config: GenerationConfig, kwargs: dict[str, Any]) -> None:
    """Refuse every cache but the plain one that `generate()` makes by itself, under any of its names."""
    for name in _CACHE_NAMES:
        cache = kwargs.get(name)
        if cache is None:
            continue
        if not isinstance(cache, Cache):
            raise ValueError(
                f"{name} must be left out, got a {type(cache).__name__}: the decoder keeps its own"
            )
        is_own = getattr(cache, "_is_user_defined", False)
        if not is_own and config.cache_implementation is None:
            _check_layers(cache)
        kinds = _other_layers(cache)
        if kinds:
            raise ValueError(
                f"a cache of {kinds} cannot be rewound: leave cache_implementation at its default"
            )
        if cache.get_seq_length() > 0:
            raise ValueError(f"{name} already holds {cache.get_seq_length()} tokens: leave {name} out")
        if is_own:
            raise ValueError(
                f"{name} is a cache of the caller's own, which would stay empty, since the decoder keeps one "
                f"that it can rewind: leave {name} out"
            )
    kind = config.cache_implementation
    if kind not in (None, "dynamic"):
        raise ValueError(
            f"cache_implementation={kind!r} cannot be rewound row by row: leave cache_implementation at its "
            "default"
        )


def _check_sampling(config: GenerationConfig) -> None:
    """Sampling options stand in `ResamplingConfig`; 50 and 1.0 are what transformers fills in unasked."""
    if config.top_k not in (None, 0, 50) or config.top_p not in (None, 1.0):
        raise ValueError(
            f"model.generate() was given top_k={config.top_k}, top_p={config.top_p} (or the checkpoint's "
            "generation_config.json sets them), which are settings of the decoder here: use "
            "retrospective(..., top_k=..., top_p=...), and top_k=0, top_p=1.0 in model.generate()"
        )
    active = [name for name, off in _OTHER_SAMPLING.items() if getattr(config, name, None) not in (None, off)]
    if active:
        raise ValueError(
            f"{', '.join(_set_of(config, tuple(active)))} is not supported while text can be taken back: "
            "leave it out (where a checkpoint brings it, set it to None on model.generation_config), and use "
            "the settings top_k, top_p"
        )


def _set_of(config: GenerationConfig, names: tuple[str, ...]) -> list[str]:
    return [f"{name}={getattr(config, name)}" for name in names if getattr(config, name, None)]


@dataclass(frozen=True, slots=True)
class CallerStops:
    """What ends an answer by the wish of the caller of `model.generate()`."""

    max_length: int  # ids of a row, prompt and padding included
    deadline: float | None  # in the terms of `time.time()`
    strings: tuple[str, ...]
    criteria: tuple[Any, ...]  # functions of a row's ids


def caller_stops(config: GenerationConfig, criteria: StoppingCriteriaList) -> CallerStops:
    """The stopping criteria that `model.generate()` hands over, its own and the caller's, told apart."""
    length, ends, strings, others = config.max_length, [], (), []
    for criterion in criteria:
        if isinstance(criterion, MaxLengthCriteria):
            length = min(length, criterion.max_length)
        elif isinstance(criterion, MaxTimeCriteria):
            ends.append(criterion.initial_timestamp + criterion.max_time)
        elif isinstance(criterion, StopStringCriteria):
            strings += tuple(criterion.stop_strings)
        elif not (isinstance(criterion, EosTokenCriteria) and _is_ours(criterion, config)):
            others.append(criterion)
    return CallerStops(length, min(ends, default=None), strings, tuple(others))


def _is_ours(criterion: EosTokenCriteria, config: GenerationConfig) -> bool:
    return {int(i) for i in criterion.eos_token_id.reshape(-1)} <= eos_ids(config)


def eos_ids(config: GenerationConfig) -> frozenset[int]:
    return frozenset(_eos_list(config))


def pad_id(config: GenerationConfig) -> int:
    if config.pad_token_id is not None:
        return int(config.pad_token_id)
    return min(_eos_list(config)[:1], default=0)


def _eos_list(config: GenerationConfig) -> list[int]:
    ids = config.eos_token_id
    return [] if ids is None else [int(i) for i in torch.as_tensor(ids).reshape(-1)]


def cache_argument(model: Any) -> str:
    """The name under which `forward` of a model takes its cache, whatever wraps the model."""
    return _cache_argument_of(type(unwrap_model(model)))  # type: ignore[arg-type]


@cached
def _cache_argument_of(kind: Any) -> str:
    """Read from the class: on an instance `forward` may be replaced by a wrapper that names no arguments."""
    known = inspect.signature(kind.forward).parameters
    for name in _CACHE_NAMES:
        if name in known:
            return name
    raise IncompatibleLibraryError(
        "transformers", f"{kind.__name__}.forward takes no cache under the names {', '.join(_CACHE_NAMES)}"
    )


def prefill(model: Any, batch: Prefill) -> tuple[torch.Tensor, DynamicCache, torch.Tensor | None]:
    """Run the prompts, images included, once; `batch` stays as it is.

    Returns logits of the last position, shape (rows, vocabulary); a new cache; and for models with multimodal
    rotary positions their distance from text positions after the images, shape (rows,) int64 on the CPU.
    """
    warn_of_newer_versions()
    if not hasattr(model, "_prefill"):
        raise IncompatibleLibraryError("transformers", f"{type(model).__name__} has no method _prefill")
    cache = DynamicCache(config=model.config.get_text_config())
    kwargs = {name: value for name, value in batch.kwargs.items() if name not in _CACHE_NAMES}
    kwargs |= {cache_argument(model): cache, "logits_to_keep": 1, "use_cache": True}
    distance = _rope_distance(kwargs.get("position_ids"), batch)
    outputs = model._prefill(batch.input_ids, batch.config, kwargs)
    _check_cache(cache, *batch.input_ids.shape)
    return outputs.logits[:, -1], cache, distance


def _rope_distance(positions: torch.Tensor | None, batch: Prefill) -> torch.Tensor | None:
    """How far rotary positions are from text positions after each prompt; None where they are the same."""
    if positions is None or positions.dim() != 3:
        return None
    mask = batch.kwargs.get("attention_mask")
    rows, length = batch.input_ids.shape
    count = torch.full((rows,), length) if mask is None else mask.sum(dim=1).cpu()
    last = positions[:, :, -1].cpu()
    if len(positions) != 4 or not torch.equal(last[0], count - 1):
        raise IncompatibleLibraryError(
            "transformers",
            f"position_ids have the shape {tuple(positions.shape)} and end with {last.tolist()}, where "
            f"(4, rows, length) was expected, text positions first, ending with {(count - 1).tolist()}",
        )
    return last[1] - last[0]


def _check_cache(cache: DynamicCache, rows: int, length: int) -> None:
    """Raise unless every layer holds keys and values of exactly `length` tokens of `rows` rows."""
    _check_layers(cache)
    for i, layer in enumerate(cache.layers):
        for name in ("keys", "values"):
            held = getattr(layer, name, None)
            shape = None if held is None else tuple(held.shape)
            if shape is None or len(shape) != 4 or (shape[0], shape[2]) != (rows, length):
                raise _other_cache(f"{name} of layer {i}", shape, rows, length)


def _check_layers(cache: Any) -> None:
    """Refuse a model whose own cache has layers that forget tokens, or states in their place."""
    if kinds := _other_layers(cache):
        raise ValueError(
            f"the model keeps its cache in {kinds}, which cannot be rewound: only models with full attention "
            "in every layer can be decoded"
        )


def _other_layers(cache: Any) -> str:
    return ", ".join(
        sorted({type(layer).__name__ for layer in cache.layers if type(layer) is not DynamicLayer})
    )


def _other_cache(what: str, shape: Any, rows: int, length: int) -> IncompatibleLibraryError:
    found = "nothing" if shape is None else f"shape {shape}"
    return IncompatibleLibraryError(
        "transformers",
        f"after {length} tokens were fed to each of {rows} rows the cache holds {found} as {what}, where "
        "(rows, heads, tokens, width) was expected",
    )


def rows_of(batch: Prefill, rows: list[int], image_token: int | None) -> Prefill:
    """Some rows of a Prefill, padding kept, with the features of their own pictures."""
    kwargs = {}
    for name, value in batch.kwargs.items():
        if name == "mm_encoder_outputs":
            value = {k: _pictures_of(v, k, batch.input_ids, rows, image_token) for k, v in value.items()}
            value = {k: v for k, v in value.items() if v is not None}
        elif name == "position_ids" and value is not None and value.dim() == 3:
            value = value[:, rows]
        elif isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == len(batch.input_ids):
            value = value[rows]
        kwargs[name] = value
    processors = [batch.processors[row] for row in rows] if batch.processors else ()
    return Prefill(batch.input_ids[rows], batch.config, kwargs, processors, batch.eos, batch.pad)


def _pictures_of(
    encoded: Any, kind: str, input_ids: torch.Tensor, rows: list[int], image_token: int | None
) -> Any:
    """Of encoded pictures, in the order of their placeholders, those of `rows`; None where they have none."""
    if encoded is None:
        return None
    if kind != "image" or image_token is None:
        raise OutOfMemory(f"rows with {kind} inputs cannot be told apart: pass fewer rows at once")
    features = list(encoded.pooler_output)  # one tensor (tokens, width) a picture
    of_row: list[list[Any]] = []
    taken = 0
    for placeholders in (input_ids == image_token).sum(dim=1).tolist():
        first = taken
        while placeholders > 0 and taken < len(features):
            placeholders -= features[taken].shape[0]
            taken += 1
        if placeholders:
            raise _other_pictures(encoded)
        of_row.append(features[first:taken])
    if taken != len(features):
        raise _other_pictures(encoded)
    chosen = [feature for row in rows for feature in of_row[row]]
    return type(encoded)(pooler_output=chosen) if chosen else None


def _other_pictures(encoded: Any) -> IncompatibleLibraryError:
    return IncompatibleLibraryError(
        "transformers",
        f"{type(encoded).__name__}.pooler_output does not hold as many features as there are placeholders",
    )


def forward(
    model: Any,
    cache: DynamicCache,
    ids: torch.Tensor,
    mask: torch.Tensor | None,
    positions: torch.Tensor,
    distance: torch.Tensor | None,
) -> torch.Tensor:
    """Feed `ids` of shape (rows, n); returns logits of the last of them, shape (rows, vocabulary).

    `mask` (rows, cached + n) has 0 for slots that are padding or were taken back; None: all count.
    `positions` (rows, n) are text positions; with `distance` (rows, 1) rotary positions are told apart.
    """
    if distance is not None:
        rotary = positions + distance
        positions = torch.stack((positions, rotary, rotary, rotary))
    length = cache.get_seq_length() + ids.shape[1]
    outputs = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
        return_dict=True,
        **{cache_argument(model): cache},
    )
    for layer in (cache.layers[0], cache.layers[-1]):  # they stand for the rest: this is done at every step
        if layer.keys is None or layer.keys.shape[2] != length:
            raise _other_cache(
                "keys", None if layer.keys is None else tuple(layer.keys.shape), len(ids), length
            )
    return outputs.logits[:, -1]


def gather_slots(sources: list[tuple[DynamicCache, list[int], torch.Tensor]]) -> DynamicCache:
    """One cache of rows and slots picked from several: per source its `rows` and their `slots` (r, n).

    Keys are stored already rotated, so moving them changes nothing but their place. The first source becomes
    the result; all of them are emptied layer by layer, so that no more than one layer stands twice.
    """
    first = sources[0][0]
    for i, layer in enumerate(first.layers):
        keys: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        for cache, rows, slots in sources:
            other = cache.layers[i]
            heads, width = other.keys.shape[1], other.keys.shape[3]
            index = slots[:, None, :, None].expand(-1, heads, -1, width)
            index = index.to(other.keys.device)  # layers may be spread over several devices
            for picked, tensor in ((keys, other.keys), (values, other.values)):
                if rows != list(range(tensor.shape[0])):  # a copy of its own
                    tensor = tensor[rows]
                picked.append(tensor.gather(2, index))
        for cache, _, _ in sources[1:]:
            cache.layers[i].keys = cache.layers[i].values = None
        layer.keys = keys[0] if len(keys) == 1 else torch.cat(keys)
        layer.values = values[0] if len(values) == 1 else torch.cat(values)
    if first.get_seq_length() != first.layers[0].keys.shape[2]:
        raise _other_cache("length", first.get_seq_length(), *first.layers[0].keys.shape[:3:2])
    return first


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn torch's error into the one that the loop knows how to mend."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(str(error)) from error


def layers(cache: DynamicCache) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of each layer, (rows, kv heads, length, head_dim)."""
    return [(layer.keys, layer.values) for layer in cache.layers]
