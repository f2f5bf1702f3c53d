"""A request: pictures, a question, how to sample and which mode answers.

Request("kitchen.png", "Describe this image.", config=ResamplingConfig(threshold=0.003))
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import Any

from reverse.decoding.asks import Conversation, Mode
from reverse.decoding.config import ResamplingConfig, check_seed, check_whole_number
from reverse.decoding.text.stopping import check_stop_strings
from reverse.errors import RequestError, RequestTypeError

__all__ = ["QUESTION", "Request"]

QUESTION = "Describe this image."
# Options that `generation` must not hold, because the engine sets them.
_ENGINE_OPTIONS = frozenset(
    {
        "attention_mask", "custom_generate", "do_sample", "generation_config", "input_ids", "inputs",
        "inputs_embeds", "max_length", "max_new_tokens", "num_return_sequences", "pixel_values",
        "stop_strings", "temperature", "top_k", "top_p",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    """A question about pictures and how it is answered. Raises RequestError for values out of range.

    Args:
        images: a picture (path, PIL, bytes), None, or a list of several pictures.
        prompt: a question, or a chat: a list of messages.
        config: settings of resampling, with top-k and top-p.
        mode: a name or an object of `reverse.modes`.
        max_new_tokens: most tokens of an answer, tags included.
        temperature: of sampling, with `do_sample`.
        seed: random seed; None: that of `config`.
        stop_strings: texts that end the answer.
        generation: further options of transformers' `generate()`, such as `repetition_penalty`.
    """

    images: Any = None
    prompt: Any = QUESTION
    system: str | None = None
    config: ResamplingConfig = field(default_factory=ResamplingConfig)
    mode: str | Mode = "resample"
    max_new_tokens: int = 256
    do_sample: bool = False
    temperature: float = 1.0
    seed: int | None = None
    stop_strings: Any = None
    generation: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "max_new_tokens", check_whole_number("max_new_tokens", self.max_new_tokens, 1))
        set_field(self, "seed", check_seed(self.config.seed if self.seed is None else self.seed))
        set_field(self, "stop_strings", check_stop_strings(self.stop_strings))
        _check_sampling(self.do_sample, self.temperature)
        _check_options(self.generation)

    @cached_property
    def conversation(self) -> Conversation:
        """The conversation that modes continue."""
        return Conversation(self.images, self.prompt, self.system)

    @property
    def base_temperature(self) -> float:
        """T0 of the paper; 0 is greedy decoding."""
        return float(self.temperature) if self.do_sample else 0.0


def _check_options(generation: Any) -> None:
    if generation is not None and not isinstance(generation, Mapping):
        raise RequestTypeError(
            f"generation must be a mapping, got {generation!r:.80}: try {{'repetition_penalty': 1.2}}"
        )
    if "adapter_names" in (generation or {}):
        raise RequestError(
            "adapter_names gives the rows of a batch different adapters, and requests are decoded in any "
            "order here: call once for each adapter, after `model.set_adapter(name)`"
        )
    ours = sorted(set(generation or {}) & _ENGINE_OPTIONS)
    if ours:
        raise RequestError(
            f"generation holds {', '.join(ours)}, which is not for model.generate() to decide here: use "
            "the arguments max_new_tokens, do_sample, temperature, stop_strings, images, prompt and the "
            "settings top_k, top_p"
        )


def _check_sampling(do_sample: Any, temperature: Any) -> None:
    """Refuse a temperature that would have no effect. Raises RequestError."""
    if not isinstance(do_sample, bool):
        raise RequestTypeError(f"do_sample must be True or False, got {do_sample!r:.80}")
    if not isinstance(temperature, Real) or isinstance(temperature, bool):
        raise RequestTypeError(
            f"temperature must be a number, got {temperature!r:.80}: try 0.7 with do_sample=True"
        )
    if not 0 <= float(temperature) < math.inf:
        raise RequestError(f"temperature must be a finite number of at least 0, got {temperature}: try 0.7")
    if do_sample and temperature == 0:
        raise RequestError("temperature must be above 0 with do_sample=True, got 0: leave do_sample out")
    if not do_sample and temperature not in (0.0, 1.0):
        raise RequestError(
            f"temperature={temperature} is that of sampling and would do nothing: add do_sample=True, or "
            "leave it out"
        )
