"""Options of transformers' `generate()`, and the version-dependent parts of transformers that they need.

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

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, GenerationConfig
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

from reverse.compatibility import IncompatibleLibraryError
from reverse.decoding.backends.protocol import EncodedPicture
from reverse.decoding.preparing.caller_processors import copy_processors
from reverse.errors import RequestError
from reverse.models import family_of

__all__ = [
    "CallerStops",
    "check_request",
    "copy_processors",
    "read_eos_ids",
    "read_pad_id",
    "read_stops",
    "split_pictures_by_row",
]

_CACHE_NAMES = ("cache", "past_key_values")  # of the argument of `forward`, newest first
_OTHER_MODES = (
    "prompt_lookup_num_tokens", "penalty_alpha", "dola_layers", "force_words_ids", "constraints",
    "assistant_early_exit", "use_mtp",
)  # fmt: skip
_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
_OTHER_SAMPLING = {"min_p": 0.0, "top_h": None, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}


def check_request(config: GenerationConfig, criteria: StoppingCriteriaList, kwargs: dict[str, Any]) -> None:
    """Raise RequestError for options that cannot be honoured while text can be taken back."""
    if (config.num_beams or 1) > 1:
        raise RequestError(
            f"num_beams={config.num_beams} cannot be rolled back row by row: use num_beams=1 "
            "(do_sample=True with num_return_sequences gives several answers)"
        )
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise RequestError(
            f"{mode.value} cannot be combined with resampling: leave out the option that asks for it "
            f"({', '.join(_list_set_options(config, _OTHER_MODES))})"
        )
    if config.do_sample:
        _check_sampling(config)
    unseen = _list_set_options(config, _OUTPUTS)
    if unseen:
        raise RequestError(
            f"{', '.join(unseen)} cannot be returned for text that was taken back: leave it out; p of each "
            "phrase is in `results` of the decoder"
        )
    for criterion in criteria:
        if isinstance(criterion, ConfidenceCriteria):
            raise RequestError(
                "stopping criterion ConfidenceCriteria reads the scores of a draft model: leave out the "
                "option that asks for it (assistant_confidence_threshold)"
            )
    if kwargs.get("inputs_embeds") is not None:
        raise RequestError("inputs_embeds cannot be rewound to token ids: pass input_ids")
    _check_no_own_cache(config, kwargs)
    mask = kwargs.get("attention_mask")
    if mask is not None:
        if mask.dim() != 2:
            raise RequestError(f"attention_mask must have shape (rows, length), got {tuple(mask.shape)}")
        if bool((mask[:, -1] == 0).any()) or bool((mask.diff(dim=1) < 0).any()):
            raise RequestError(
                "attention_mask has padding on the right or in the middle: set "
                "tokenizer.padding_side = 'left'"
            )


def _check_no_own_cache(config: GenerationConfig, kwargs: dict[str, Any]) -> None:
    """Raise RequestError for every cache but the plain one that `generate()` makes itself."""
    for name in _CACHE_NAMES:
        cache = kwargs.get(name)
        if cache is None:
            continue
        if not isinstance(cache, Cache):
            raise RequestError(
                f"{name} must be left out, got a {type(cache).__name__}: the decoder keeps its own"
            )
        is_own = getattr(cache, "_is_user_defined", False)
        if not is_own and config.cache_implementation is None:
            _check_layers(cache)
        kinds = _name_other_layers(cache)
        if kinds:
            raise RequestError(
                f"a cache of {kinds} cannot be rewound: leave cache_implementation at its default"
            )
        if cache.get_seq_length() > 0:
            raise RequestError(f"{name} already holds {cache.get_seq_length()} tokens: leave {name} out")
        if is_own:
            raise RequestError(
                f"{name} is a cache of the caller's own, which would stay empty, since the decoder keeps one "
                f"that it can rewind: leave {name} out"
            )
    kind = config.cache_implementation
    if kind not in (None, "dynamic"):
        raise RequestError(
            f"cache_implementation={kind!r} cannot be rewound row by row: leave cache_implementation at its "
            "default"
        )


def _check_sampling(config: GenerationConfig) -> None:
    """Raise RequestError for options that belong in `ResamplingConfig`; top_k=50 and top_p=1.0 are
    transformers' defaults.
    """
    if config.top_k not in (None, 0, 50) or config.top_p not in (None, 1.0):
        raise RequestError(
            f"model.generate() was given top_k={config.top_k}, top_p={config.top_p} (or the checkpoint's "
            "generation_config.json sets them), which are settings of the decoder here: use "
            "retrospective(..., top_k=..., top_p=...), and top_k=0, top_p=1.0 in model.generate()"
        )
    active = [name for name, off in _OTHER_SAMPLING.items() if getattr(config, name, None) not in (None, off)]
    if active:
        raise RequestError(
            f"{', '.join(_list_set_options(config, tuple(active)))} is not supported while text can be taken "
            "back: leave it out (where a checkpoint brings it, set it to None on model.generation_config), "
            "and use the settings top_k, top_p"
        )


def _list_set_options(config: GenerationConfig, names: tuple[str, ...]) -> list[str]:
    return [f"{name}={getattr(config, name)}" for name in names if getattr(config, name, None)]


@dataclass(frozen=True, slots=True)
class CallerStops:
    """Stopping criteria of the caller of `model.generate()`."""

    max_length: int  # ids of a row, prompt and padding included
    deadline: float | None  # as of `time.time()`
    strings: tuple[str, ...]
    criteria: tuple[Any, ...]  # functions of a row's ids


def read_stops(config: GenerationConfig, criteria: StoppingCriteriaList) -> CallerStops:
    """Separate the stopping criteria that `model.generate()` passes into its own and the caller's."""
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
    return {int(i) for i in criterion.eos_token_id.reshape(-1)} <= read_eos_ids(config)


def read_eos_ids(config: GenerationConfig) -> frozenset[int]:
    return frozenset(_read_eos_list(config))


def read_pad_id(config: GenerationConfig) -> int:
    if config.pad_token_id is not None:
        return int(config.pad_token_id)
    return min(_read_eos_list(config)[:1], default=0)


def _read_eos_list(config: GenerationConfig) -> list[int]:
    ids = config.eos_token_id
    return [] if ids is None else [int(i) for i in torch.as_tensor(ids).reshape(-1)]


def _check_layers(cache: Any) -> None:
    """Raise RequestError for a model whose cache has layers that drop tokens or keep recurrent states."""
    if kinds := _name_other_layers(cache):
        raise RequestError(
            f"the model keeps its cache in {kinds}, which cannot be rewound: only models with full attention "
            "in every layer can be decoded"
        )


def _name_other_layers(cache: Any) -> str:
    return ", ".join(
        sorted({type(layer).__name__ for layer in cache.layers if type(layer) is not DynamicLayer})
    )


def split_pictures_by_row(
    model: Any, input_ids: torch.Tensor, kwargs: dict[str, Any]
) -> list[list[EncodedPicture]]:
    """Return the pictures of each row, encoded by `model.generate()`, in the order of their placeholders.

    Their grids are computed from the rotary positions. Raises RequestError for other inputs than pictures,
    which cannot be assigned to rows.
    """
    encoded = kwargs.get("mm_encoder_outputs") or {}
    others = sorted(kind for kind, value in encoded.items() if kind != "image" and value is not None)
    if others:
        raise RequestError(f"the prompt has {', '.join(others)} inputs: only pictures can be decoded with")
    outputs = encoded.get("image")
    if outputs is None:
        return [[] for _ in input_ids]
    family = family_of(model)
    places = input_ids == family.image_token_id(model.config)
    positions = kwargs.get("position_ids")
    features = list(outputs.pooler_output)  # one tensor (tokens, width) a picture
    found: list[list[EncodedPicture]] = []
    taken = 0
    for row, mask in enumerate(places):
        at = mask.nonzero()[:, 0].tolist()
        pictures = []
        while at:
            if taken == len(features) or len(features[taken]) > len(at):
                raise _make_pictures_error(outputs)
            count = len(features[taken])
            mine, at = at[:count], at[count:]
            grid = None
            if positions is not None and positions.dim() == 3:
                grid = _compute_grid(positions[1:, row, mine], family.merge_size(model.config))
            pictures.append(EncodedPicture(features[taken], grid))
            taken += 1
        found.append(pictures)
    if taken != len(features):
        raise _make_pictures_error(outputs)
    return found


def _compute_grid(positions: torch.Tensor, merge: int) -> tuple[int, int, int]:
    """Return (temporal, height, width) in patches of a picture with rotary positions (3, tokens)."""
    height, width = (int(axis.max() - axis.min()) + 1 for axis in positions[1:])
    temporal = positions.shape[1] // (height * width)
    if temporal * height * width != positions.shape[1]:
        raise IncompatibleLibraryError(
            "transformers",
            f"a picture of {positions.shape[1]} tokens has rotary positions of {height} by {width}",
        )
    return temporal, height * merge, width * merge


def _make_pictures_error(encoded: Any) -> IncompatibleLibraryError:
    return IncompatibleLibraryError(
        "transformers",
        f"{type(encoded).__name__}.pooler_output does not hold as many features as there are placeholders",
    )
