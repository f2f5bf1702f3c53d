"""Everything of transformers that is private or tied to a version, in one place.

Checked on transformers 5.19 and 5.23. What is used:
`GenerationMixin._prefill` (encoded images go in here and nowhere else), `generation_config._eos_token_tensor`
and `._pad_token_tensor`, `DynamicLayer.keys` / `.values` (slots are picked by index for compaction),
`position_ids` of shape (4, rows, length) for models with multimodal rotary positions, and
`mm_encoder_outputs["image"].pooler_output`, a list with one tensor (tokens, width) a picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.logits_process import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.logits_process import MinNewTokensLengthLogitsProcessor as _MinNewTokens
from transformers.generation.stopping_criteria import (
    ConfidenceCriteria,
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from reverse.decoding.backend import OutOfMemory, Prefill

__all__ = [
    "CallerStops",
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

_OTHER_MODES = (
    "prompt_lookup_num_tokens", "penalty_alpha", "dola_layers", "force_words_ids", "constraints",
    "assistant_early_exit", "use_mtp",
)  # fmt: skip
_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
_OTHER_SAMPLING = {"min_p": 0.0, "top_h": None, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
_OURS = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)
# Processors that carry a state from step to step: after a rewind it would belong to text that is gone.
_STATEFUL = (
    "UnbatchedClassifierFreeGuidanceLogitsProcessor",
    "ClassifierFreeGuidanceLogitsProcessor",
    "WatermarkLogitsProcessor",
    "SynthIDTextWatermarkLogitsProcessor",
    "PrefixConstrainedLogitsProcessor",
    "WhisperTimeStampLogitsProcessor",
    "BarkEosPrioritizerLogitsProcessor",
    "AlternatingCodebooksLogitsProcessor",
    "DiaClassifierFreeGuidanceLogitsProcessor",
    "DiaEOSChannelFilterLogitsProcessor",
    "DiaEOSDelayPatternLogitsProcessor",
)
# Those that narrow the distribution after temperature, which rises and falls here.
_WARPERS = {
    "MinPLogitsWarper": "min_p",
    "TypicalLogitsWarper": "typical_p",
    "EpsilonLogitsWarper": "epsilon_cutoff",
    "EtaLogitsWarper": "eta_cutoff",
    "TopHLogitsWarper": "top_h",
}


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
    cache = kwargs.get("past_key_values")
    if cache is not None:
        if any(type(layer) is not DynamicLayer for layer in getattr(cache, "layers", [])):
            kinds = sorted({type(layer).__name__ for layer in cache.layers})
            raise ValueError(
                f"a cache of {', '.join(kinds)} cannot be rewound: leave cache_implementation at its default"
            )
        if cache.get_seq_length() > 0:
            raise ValueError(
                f"past_key_values already holds {cache.get_seq_length()} tokens: pass an empty cache or none"
            )
    mask = kwargs.get("attention_mask")
    if mask is not None:
        if mask.dim() != 2:
            raise ValueError(f"attention_mask must have shape (rows, length), got {tuple(mask.shape)}")
        if bool((mask[:, -1] == 0).any()) or bool((mask.diff(dim=1) < 0).any()):
            raise ValueError(
                "attention_mask has padding on the right or in the middle: set "
                "tokenizer.padding_side = 'left'"
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


def caller_processors(
    processors: LogitsProcessorList, mask: torch.Tensor | None, rows: int
) -> list[LogitsProcessorList]:
    """Per row the caller's processors without temperature, top-k and top-p, which our loop owns.

    Each will be shown its row alone, padding included, as lengths were counted with it. Raises ValueError for
    a processor whose state cannot be rewound, and for one that needs the temperature.
    """
    kept = [p for p in processors if not isinstance(p, _OURS)]
    for processor in kept:
        name = type(processor).__name__
        if name in _STATEFUL:
            raise ValueError(
                f"{name} keeps a state that cannot be rewound, or acts on more than one row: remove the "
                "option that adds it"
            )
        if name in _WARPERS:
            raise ValueError(
                f"{_WARPERS[name]} ({name}) narrows the choice after temperature, which rises and falls with "
                "the attempts: use the settings top_k and top_p"
            )
    # generate() makes a least length of `min_new_tokens` as well, in which the padding is counted already
    least = {p.prompt_length_to_skip + p.min_new_tokens for p in kept if isinstance(p, _MinNewTokens)}
    kept = [p for p in kept if not (isinstance(p, MinLengthLogitsProcessor) and p.min_length in least)]
    padding = [0] * rows if mask is None else (mask == 0).sum(dim=1).tolist()
    return [_RowProcessors([_for_row(p, row, rows, padding[row]) for p in kept]) for row in range(rows)]


class _RowProcessors(LogitsProcessorList):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        scores = super().__call__(input_ids, scores, **kwargs)
        if bool(torch.isneginf(scores).all()):
            names = ", ".join(type(p).__name__ for p in self)
            raise ValueError(
                f"{names} and the mask that keeps tags well-formed leave no token to choose after "
                f"{input_ids.shape[1]} tokens: ban fewer of them"
            )
        return scores


def _for_row(processor: Any, row: int, rows: int, padding: int) -> Any:
    """The processor as it would be, had the row been asked about alone: some know the whole batch."""
    if isinstance(processor, RepetitionPenaltyLogitsProcessor):
        skip = processor.prompt_ignore_length
        if isinstance(skip, torch.Tensor):  # generate() has it skip the padding
            skip = int(skip[row * len(skip) // rows])
        skip = max(skip or 0, padding)
        return RepetitionPenaltyLogitsProcessor(processor.penalty, prompt_ignore_length=skip)
    if isinstance(processor, MinLengthLogitsProcessor):
        return MinLengthLogitsProcessor(processor.min_length + padding, processor.eos_token_id)
    if isinstance(processor, EncoderRepetitionPenaltyLogitsProcessor):
        prompts = processor.encoder_input_ids
        alone = EncoderRepetitionPenaltyLogitsProcessor(
            1.0, prompts[row * len(prompts) // rows, None, padding:]
        )
        alone.penalty = processor.penalty
        return alone
    if isinstance(processor, EncoderNoRepeatNGramLogitsProcessor):
        ngrams = processor.generated_ngrams
        alone = copy(processor)
        alone.batch_size, alone.generated_ngrams = 1, [ngrams[row * len(ngrams) // rows]]
        return alone
    return processor


def eos_ids(config: GenerationConfig) -> frozenset[int]:
    tensor = getattr(config, "_eos_token_tensor", None)
    return frozenset() if tensor is None else frozenset(int(i) for i in tensor.reshape(-1))


def pad_id(config: GenerationConfig) -> int:
    tensor = getattr(config, "_pad_token_tensor", None)
    if tensor is not None:
        return int(tensor)
    return min(eos_ids(config), default=0)


def prefill(model: Any, batch: Prefill) -> tuple[torch.Tensor, DynamicCache, torch.Tensor | None]:
    """Run the prompts, images included, once; `batch` stays as it is.

    Returns logits of the last position, shape (rows, vocabulary); a new cache; and for models with multimodal
    rotary positions their distance from text positions after the images, shape (rows,) int64 on the CPU.
    """
    cache = DynamicCache(config=model.config.get_text_config())
    kwargs = {**batch.kwargs, "past_key_values": cache, "logits_to_keep": 1, "use_cache": True}
    positions = kwargs.get("position_ids")
    distance = None
    if positions is not None and positions.dim() == 3:
        distance = (positions[1, :, -1] - positions[0, :, -1]).cpu()
    outputs = model._prefill(batch.input_ids, batch.config, kwargs)
    return outputs.logits[:, -1], cache, distance


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
        while placeholders > 0:
            placeholders -= features[taken].shape[0]
            taken += 1
        of_row.append(features[first:taken])
    chosen = [feature for row in rows for feature in of_row[row]]
    return type(encoded)(pooler_output=chosen) if chosen else None


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
    outputs = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        return_dict=True,
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
            for picked, tensor in ((keys, other.keys), (values, other.values)):
                if rows != list(range(tensor.shape[0])):  # a copy of its own
                    tensor = tensor[rows]
                picked.append(tensor.gather(2, index))
        for cache, _, _ in sources[1:]:
            cache.layers[i].keys = cache.layers[i].values = None
        layer.keys = keys[0] if len(keys) == 1 else torch.cat(keys)
        layer.values = values[0] if len(values) == 1 else torch.cat(values)
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
