"""`generate()` and the drop-in for `model.generate()`: retrospective resampling on transformers models.

result = reverse.generate(model, processor, images="kitchen.png", prompt="Describe this image.")
ids = model.generate(**inputs, custom_generate=reverse.retrospective(processor, threshold=0.003))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, overload

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.utils import GenerateDecoderOnlyOutput

from reverse.decoding import _hf
from reverse.decoding.config import ResamplingConfig, check_seed, check_whole
from reverse.decoding.loop import Request, resample
from reverse.decoding.policy import Policy
from reverse.decoding.rewriting import HintWriter
from reverse.decoding.trace import Result
from reverse.decoding.transformers import TransformersBackend
from reverse.decoding.verifier import NO_TAGS, Verifier
from reverse.models import default_threshold, family_of, prepare_inputs
from reverse.tokens import token_ids
from reverse.tokens.spans import TokenIds

__all__ = ["Retrospective", "generate", "retrospective"]

MODES = ("resample", "plain")
_YES_NO = 0.5  # threshold for yes/no questions, in all the paper's discriminative benchmarks (§5)
_HINT_ROOM = 128  # ids of the context that a generous max_new_tokens leaves to the hints
# Of `generation`: those that would be overruled without a word.
_OWN_OPTIONS = frozenset(
    {
        "attention_mask",
        "custom_generate",
        "do_sample",
        "generation_config",
        "input_ids",
        "inputs",
        "inputs_embeds",
        "max_length",
        "max_new_tokens",
        "num_return_sequences",
        "pixel_values",
        "temperature",
        "top_k",
        "top_p",
    }
)


class Retrospective:
    """A decoding loop for `model.generate(custom_generate=...)`; `results` holds what the last call found.

    Args: `processor` (or a tokenizer) with a chat template; `config`; `seeds`, one a request, else
    `config.seed` for every request; `checking=False` decodes plainly and only reads p.
    """

    def __init__(
        self,
        processor: Any,
        config: ResamplingConfig,
        seeds: Sequence[int] | None = None,
        checking: bool = True,
    ):
        self.processor, self.config, self.seeds, self.checking = processor, config, seeds, checking
        self.tokenizer = getattr(processor, "tokenizer", processor)
        if not hasattr(self.tokenizer, "get_vocab"):
            raise TypeError(
                f"processor must be a processor or a tokenizer, got {processor!r:.80}: load one, "
                "model, processor = reverse.load('tiny-llava')"
            )
        self.tags = token_ids(self.tokenizer) if checking else _tags_if_any(self.tokenizer)
        hinting = checking and config.hints > 0 and config.max_attempts > 0
        self.hints = HintWriter(processor, config.hints) if hinting else None
        self.results: list[Result] = []

    def decode(self, ids: list[int]) -> str:
        """Ids as text: tags shown, special tokens not, no clean-up of spaces."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @torch.no_grad()
    def __call__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> torch.Tensor | GenerateDecoderOnlyOutput:
        """What `model.generate()` calls; returns its usual type, ids with tags, right-padded."""
        self.results = []
        _hf.check_request(generation_config, stopping_criteria, model_kwargs)
        config = self.config
        if config.threshold is None:
            config = replace(config, threshold=_YES_NO if config.yes_no else default_threshold(model))
        verifier = Verifier(self.tags, config.score, config.check)
        length = input_ids.shape[1]
        context = family_of(model).context_length(model.config)
        warm = generation_config.do_sample
        temperature = 1.0 if generation_config.temperature is None else generation_config.temperature
        mask = model_kwargs.get("attention_mask")
        requests = []
        for row, (ids, seed) in enumerate(
            zip(input_ids.tolist(), self._seeds(len(input_ids), generation_config), strict=True)
        ):
            prompt = ids if mask is None else ids[int((mask[row] == 0).sum()) :]
            if self.hints is not None:
                self.hints.insert_at(prompt)  # an unusual prompt is refused before any work is done
            room = _room(len(prompt), context, generation_config.max_length - length, self.hints is not None)
            policy = Policy(config, self.tags, room, temperature if warm else 0.0, self.checking)
            requests.append(Request(prompt, policy, seed, self.hints, context))
        backend = TransformersBackend(
            model,
            input_ids,
            generation_config,
            model_kwargs,
            tags=self.tags,
            verifier=verifier,
            processors=_hf.caller_processors(logits_processor, mask, len(input_ids)),
            top_k=config.top_k,
            top_p=config.top_p,
            well_formed=self.checking,
        )
        self.results = resample(backend, requests, self.decode, verifier, backend.eos)
        sequences = _pad(input_ids, [r.ids for r in self.results], backend.pad)
        if generation_config.return_dict_in_generate:
            return GenerateDecoderOnlyOutput(sequences=sequences)
        return sequences

    def _seeds(self, rows: int, generation_config: GenerationConfig) -> list[int]:
        """One seed a row; the answers asked for one request (`num_return_sequences`) get consecutive ones."""
        copies = generation_config.num_return_sequences or 1
        seeds = list(self.seeds) if self.seeds is not None else [self.config.seed] * (rows // copies)
        if len(seeds) * copies != rows:
            raise ValueError(f"got {len(seeds)} seeds for {rows // copies} requests: give one a request")
        return [check_seed(seed + i) for seed in seeds for i in range(copies)]


def _tags_if_any(tokenizer: Any) -> TokenIds:
    """Plain decoding works for models without the tokens too, such as a plain twin."""
    try:
        return token_ids(tokenizer)
    except ValueError:
        return NO_TAGS


def retrospective(
    processor: Any,
    config: ResamplingConfig | None = None,
    *,
    seeds: Sequence[int] | None = None,
    **settings: Any,
) -> Retrospective:
    """The drop-in: `model.generate(**inputs, custom_generate=retrospective(processor, threshold=0.003))`.

    `settings` are fields of `ResamplingConfig`. Temperature and max_new_tokens stay arguments of
    `model.generate()`; top-k and top-p are settings here, since the library's silent top_k=50 is taken out.
    Raises ValueError where the tokenizer has no confidence tokens or a setting is out of range.
    """
    return Retrospective(processor, _settled(config, settings), seeds)


def _settled(config: ResamplingConfig | None, settings: dict[str, Any]) -> ResamplingConfig:
    if config is not None and not isinstance(config, ResamplingConfig):
        raise TypeError(
            f"config must be a ResamplingConfig, got {type(config).__name__}: give its fields by name, "
            "threshold=0.003, or make one, ResamplingConfig(threshold=0.003)"
        )
    return (config or ResamplingConfig()).with_changes(settings)


@overload
def generate(model: Any, processor: Any, images: Any = ..., prompt: str = ..., **kwargs: Any) -> Result: ...
@overload
def generate(
    model: Any, processor: Any, images: Any = ..., prompt: Sequence[Any] = ..., **kwargs: Any
) -> list[Result]: ...
def generate(
    model: Any,
    processor: Any,
    images: Any = None,
    prompt: Any = "Describe this image.",
    *,
    mode: Literal["resample", "plain"] = "resample",
    config: ResamplingConfig | None = None,
    max_new_tokens: int = 256,
    do_sample: bool = False,
    temperature: float = 1.0,
    seed: int | Sequence[int] | None = None,
    batch_size: int = 8,
    system: str | None = None,
    generation: dict[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
    **settings: Any,
) -> Result | list[Result]:
    """Answer `prompt` about `images`, taking back what the model is not sure of.

    Args:
        images: a picture (path, PIL, bytes), None, or a list with one entry a request; an entry may be a
            list of several pictures.
        prompt: a question, a chat message list, or a list of either. One prompt with a list of images asks
            it of each.
        mode: "resample" checks and corrects; "plain" decodes as `model.generate()` would and only reads p.
        max_new_tokens: the most tokens of an answer, tags included.
        seed: of all requests (by default the config's), or one a request; the same request and seed give
            the same answer in any batch.
        batch_size: requests decoded side by side.
        generation: further arguments for `model.generate()`, such as `repetition_penalty`.
        progress: called with the number of requests that each batch finished.
        settings: fields of `ResamplingConfig`, such as `threshold`, `hints`, `on_exhausted`.

    Returns one Result, or a list of them where `images` or `prompt` was a list.
    Raises ValueError or TypeError that name the value and the mend.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    max_new_tokens = check_whole("max_new_tokens", max_new_tokens, 1)
    batch_size = check_whole("batch_size", batch_size, 1)
    ours = sorted(set(generation or {}) & _OWN_OPTIONS)
    if ours:
        raise ValueError(
            f"generation holds {', '.join(ours)}, which is not for model.generate() to decide here: use the "
            "arguments max_new_tokens, do_sample, temperature, images, prompt and the settings top_k, top_p"
        )
    settled = _settled(config, settings)
    pictures, prompts, single = _requests(images, prompt)
    seeds = _one_a_request(settled.seed if seed is None else seed, len(prompts))
    if len(seeds) != len(prompts):
        raise ValueError(
            f"got {len(seeds)} seeds for {len(prompts)} requests: give one a request, or a number"
        )

    options = dict(generation or {})
    options.update(max_new_tokens=max_new_tokens, do_sample=do_sample, num_return_sequences=1)
    if do_sample:  # ours stand in `settled`; a checkpoint's own would arrive as if they were asked for
        options.update(temperature=temperature, top_k=0, top_p=1.0)

    def ask(rows: Sequence[int], questions: Sequence[Any]) -> list[Result]:
        inputs = prepare_inputs(
            processor,
            [pictures[i] for i in rows],
            list(questions),
            family_of(model),
            system=system,
            context_length=family_of(model).context_length(model.config),
        ).to(model.device)
        decoder = Retrospective(processor, settled, [seeds[i] for i in rows], checking=mode == "resample")
        model.generate(**inputs, custom_generate=decoder, **options)
        return decoder.results

    results: list[Result] = []
    for batch in _batches(range(len(prompts)), batch_size):
        answers = ask(batch, [prompts[i] for i in batch])
        blank = [j for j, answer in enumerate(answers) if settled.open_ended and not answer.text.strip()]
        if blank:  # the paper's second round for open-ended questions (§4)
            again = [_with_instruction(prompts[batch[j]], settled.false_premise) for j in blank]
            for j, answer in zip(blank, ask([batch[j] for j in blank], again), strict=True):
                answers[j] = answer
        results.extend(answers)
        if progress is not None:
            progress(len(batch))
    return results[0] if single else results


def _requests(images: Any, prompt: Any) -> tuple[list[Any], list[Any], bool]:
    """Images and prompts as lists of equal length, and whether the caller asked for one answer."""
    if not isinstance(prompt, (str, list, tuple)):
        raise TypeError(
            f"prompt must be a text, a chat (a list of messages) or a list of either, got "
            f"{type(prompt).__name__}: try 'Describe this image.'"
        )
    one_prompt = isinstance(prompt, str) or (len(prompt) > 0 and isinstance(prompt[0], dict))
    prompts = [prompt] if one_prompt else list(prompt)
    if not isinstance(images, (list, tuple)):
        return [images] * len(prompts), prompts, one_prompt
    if one_prompt:
        return list(images), prompts * len(images), False
    if len(images) != len(prompts):
        raise ValueError(
            f"got {len(images)} images for {len(prompts)} prompts: give one entry a prompt "
            "(a list where a prompt has several pictures, None where it has none)"
        )
    return list(images), prompts, False


def _one_a_request(seed: Any, requests: int) -> list[int]:
    try:
        if isinstance(seed, (list, tuple)):
            return [check_seed(s) for s in seed]
        return [check_seed(seed)] * requests
    except TypeError:
        raise TypeError(
            f"seed must be a whole number, or a list of them with one a request, got {seed!r}: try 0"
        ) from None


def _with_instruction(prompt: Any, instruction: str) -> Any:
    if isinstance(prompt, str):
        return f"{prompt} {instruction}"
    turns = [dict(turn) for turn in prompt]
    last = max(i for i, turn in enumerate(turns) if turn.get("role") == "user")
    content = turns[last]["content"]
    if isinstance(content, str):
        turns[last]["content"] = f"{content} {instruction}"
    else:
        turns[last]["content"] = [*content, {"type": "text", "text": " " + instruction}]
    return turns


def _batches(rows: range, size: int) -> Iterable[list[int]]:
    for start in range(0, len(rows), size):
        yield list(rows[start : start + size])


def _room(prompt: int, context: int, asked: int, hints: bool) -> int:
    """The most ids an answer may hold: what was asked for, as far as the context and its hints allow."""
    if prompt >= context:
        raise ValueError(
            f"the prompt has {prompt} tokens, images included, and the context is {context}: shorten the "
            "prompt or use smaller images"
        )
    left = context - prompt
    reserved = _HINT_ROOM if hints and left - _HINT_ROOM >= left / 2 else 0
    return min(asked, left - reserved)


def _pad(prompts: torch.Tensor, answers: Sequence[Sequence[int]], pad: int) -> torch.Tensor:
    width = max(len(a) for a in answers)
    tail = torch.full((len(answers), width), pad, dtype=prompts.dtype, device=prompts.device)
    for row, answer in enumerate(answers):
        tail[row, : len(answer)] = torch.tensor(answer, dtype=prompts.dtype)
    return torch.cat((prompts, tail), dim=1)
