"""Check the caller's logits processors of transformers for use with rewinding, and copy them for each row.

All names here are tied to releases of transformers.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from transformers.generation import logits_process
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

from reverse.compatibility import IncompatibleLibraryError
from reverse.errors import RequestError

__all__ = ["copy_processors"]

_ENGINE_WARPERS = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)
# Processors with a state, which would be wrong after a rewind.
_STATEFUL = (
    "UnbatchedClassifierFreeGuidanceLogitsProcessor",
    "ClassifierFreeGuidanceLogitsProcessor",
    "WatermarkLogitsProcessor",
    "SynthIDTextWatermarkLogitsProcessor",
    "PrefixConstrainedLogitsProcessor",
    "WhisperTimeStampLogitsProcessor",
    "WhisperNoSpeechDetection",
    "BarkEosPrioritizerLogitsProcessor",
    "AlternatingCodebooksLogitsProcessor",
    "DiaClassifierFreeGuidanceLogitsProcessor",
    "DiaEOSChannelFilterLogitsProcessor",
    "DiaEOSDelayPatternLogitsProcessor",
)
# The other processors of transformers up to the newest supported release. They depend on the ids only.
_STATELESS = (
    "EncoderNoRepeatNGramLogitsProcessor",
    "EncoderRepetitionPenaltyLogitsProcessor",
    "ExponentialDecayLengthPenalty",
    "ForcedBOSTokenLogitsProcessor",
    "ForcedEOSTokenLogitsProcessor",
    "InfNanRemoveLogitsProcessor",
    "LogitNormalization",
    "MinLengthLogitsProcessor",
    "MinNewTokensLengthLogitsProcessor",
    "NoBadWordsLogitsProcessor",
    "NoRepeatNGramLogitsProcessor",
    "RepetitionPenaltyLogitsProcessor",
    "SequenceBiasLogitsProcessor",
    "SuppressTokensAtBeginLogitsProcessor",
    "SuppressTokensLogitsProcessor",
)
# Processors that narrow the distribution after temperature, which changes with the attempts.
_WARPERS = {
    "MinPLogitsWarper": "min_p",
    "TypicalLogitsWarper": "typical_p",
    "EpsilonLogitsWarper": "epsilon_cutoff",
    "EtaLogitsWarper": "eta_cutoff",
    "TopHLogitsWarper": "top_h",
}


def copy_processors(
    processors: LogitsProcessorList, mask: torch.Tensor | None, rows: int
) -> list[LogitsProcessorList]:
    """Return the caller's processors for each row, without temperature, top-k and top-p.

    Each is called with its row alone, padding included. Raises RequestError for a processor whose state
    cannot be rewound, and for one that depends on the temperature.
    """
    kept = [p for p in processors if not isinstance(p, _ENGINE_WARPERS)]
    for processor in kept:
        name = type(processor).__name__
        if name in _STATEFUL:
            raise RequestError(
                f"{name} keeps a state that cannot be rewound, or acts on more than one row: remove the "
                "option that adds it"
            )
        if name in _WARPERS:
            raise RequestError(
                f"{_WARPERS[name]} ({name}) narrows the choice after temperature, which rises and falls with "
                "the attempts: use the settings top_k and top_p"
            )
        if type(processor).__module__ == logits_process.__name__ and name not in _STATELESS:
            raise RequestError(
                f"{name} is not known to this release, so it may keep a state that cannot be rewound: "
                "remove the option that adds it"
            )
    padding = [0] * rows if mask is None else (mask == 0).sum(dim=1).tolist()
    try:
        # For `min_new_tokens`, generate() adds a minimal length too, which counts the padding already.
        least = {p.prompt_length_to_skip + p.min_new_tokens for p in kept if isinstance(p, _MinNewTokens)}
        kept = [p for p in kept if not (isinstance(p, MinLengthLogitsProcessor) and p.min_length in least)]
        return [
            _RowProcessors([_copy_for_row(p, row, rows, padding[row]) for p in kept]) for row in range(rows)
        ]
    except AttributeError as error:
        raise IncompatibleLibraryError("transformers", f"a logits processor was changed ({error})") from error


class _RowProcessors(LogitsProcessorList):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        scores = super().__call__(input_ids, scores, **kwargs)
        if bool(torch.isneginf(scores).all()):
            names = ", ".join(type(p).__name__ for p in self)
            raise RequestError(
                f"{names} and the mask that keeps tags well-formed leave no token to choose after "
                f"{input_ids.shape[1]} tokens: ban fewer of them"
            )
        return scores


def _copy_for_row(processor: Any, row: int, rows: int, padding: int) -> Any:
    """Return the processor for one row; some are made for the whole batch."""
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
