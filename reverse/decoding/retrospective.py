"""The drop-in for `model.generate()`, and what turns its arguments into requests for the loop.

ids = model.generate(**inputs, custom_generate=reverse.retrospective(processor, threshold=0.003))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.utils import GenerateDecoderOnlyOutput

from reverse.decoding import _hf
from reverse.decoding.backend import OutOfMemory, Prefill
from reverse.decoding.config import ResamplingConfig, check_seed
from reverse.decoding.engines import ChosenBackend
from reverse.decoding.events import Event, Watch, sinks_of, telling
from reverse.decoding.loop import Loop, Request, Source
from reverse.decoding.policy import Policy
from reverse.decoding.rewriting import HintWriter, check_plain_text
from reverse.decoding.shown import half_character
from reverse.decoding.sources import Batch
from reverse.decoding.static.state import Style
from reverse.decoding.stopping import Stops, stop_texts
from reverse.decoding.trace import Result
from reverse.decoding.transformers import TransformersBackend
from reverse.decoding.turns import DecodingTurn
from reverse.decoding.verifier import NO_TAGS, Verifier
from reverse.models import default_threshold, family_of
from reverse.models.unwrapping import check_adapter_hooks, check_wrappers, unwrap_model
from reverse.tokens import token_ids
from reverse.tokens.spans import TokenIds

__all__ = ["Interrupted", "Retrospective", "retrospective"]

_HINT_ROOM = 128  # ids of the context that a generous max_new_tokens leaves to the hints
_YES_NO = 0.5  # threshold for yes/no questions, in all the paper's discriminative benchmarks (§5)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while answers were made. `results` maps the index of a request to its Result, for those that
    were finished (and, in `generate_many()`, not handed out yet)."""

    def __init__(self, results: dict[int, Result]):
        super().__init__(f"interrupted with {len(results)} answers finished: they are in .results")
        self.results = results


class Retrospective:
    """A decoding loop for `model.generate(custom_generate=...)`; `results` holds what the last call found.

    Args: `processor` (or a tokenizer) with a chat template; `config`; `seeds`, one a request, else
    `config.seed` for every request; `checking=False` decodes plainly and only reads p; `stream`, `events` and
    `stop_strings` as for `retrospective()`.
    """

    def __init__(
        self,
        processor: Any,
        config: ResamplingConfig,
        seeds: Sequence[int] | None = None,
        checking: bool = True,
        stream: Any = None,
        events: Callable[[Event], None] | None = None,
        stop_strings: str | Sequence[str] | None = None,
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
        if config.open_ended:
            check_plain_text(self.tokenizer, "false_premise", config.false_premise)
        self.sinks, self.events, self.stop_strings = sinks_of(stream), events, stop_texts(stop_strings)
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
        check_wrappers(model)
        model = unwrap_model(model)
        _check_pictures(model, model_kwargs)
        with telling(self.sinks):
            requests, prefill = self.prepare(
                model, input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs
            )
            found = self._run(model, requests, prefill)
        self.results = [found[i] for i in range(len(requests))]
        sequences = _pad(input_ids, [r.ids for r in self.results], prefill.pad)
        if generation_config.return_dict_in_generate:
            return GenerateDecoderOnlyOutput(sequences=sequences)
        return sequences

    def _run(self, model: Any, requests: list[Request], prefill: Prefill) -> dict[int, Result]:
        source = Batch(requests, prefill, family_of(model).image_token_id(model.config))
        loop = self.loop(model, source, len(requests))
        found: dict[int, Result] = {}
        try:
            while not loop.done:
                found.update((request.name, result) for request, result in loop.step())
                for _, error in loop.failed:
                    raise error
        except OutOfMemory as error:
            raise torch.OutOfMemoryError(str(error)) from None
        except KeyboardInterrupt:
            found.update((request.name, result) for request, result in loop.finished)
            raise Interrupted(found) from None
        finally:
            loop.close()
        return found

    def prepare(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        seeds: Sequence[int] | None = None,
        names: Sequence[int] | None = None,
        keep_open: Sequence[bool] | None = None,
    ) -> tuple[list[Request], Prefill]:
        """What `generate()` hands over as requests and their Prefill.

        `names` are the numbers of the rows in events and among the streams; `keep_open` see `Watch`.
        Raises ValueError for options that a decoder which goes back cannot honour.
        """
        _hf.check_request(generation_config, stopping_criteria, model_kwargs)
        check_adapter_hooks(model)
        config = self.config
        if config.threshold is None:
            config = replace(config, threshold=_YES_NO if config.yes_no else default_threshold(model))
        if names is None:
            names = range(len(input_ids))
            if self.sinks and len(self.sinks) != len(input_ids):
                raise ValueError(
                    f"got {len(self.sinks)} streams for {len(input_ids)} rows: give a list with one a row"
                )
        caller = _hf.caller_stops(generation_config, stopping_criteria)
        length = input_ids.shape[1]
        context = family_of(model).context_length(model.config)
        warm = generation_config.do_sample
        temperature = 1.0 if generation_config.temperature is None else generation_config.temperature
        mask = model_kwargs.get("attention_mask")
        requests = []
        for row, (ids, seed) in enumerate(
            zip(input_ids.tolist(), self._seeds(len(input_ids), generation_config, seeds), strict=True)
        ):
            prompt = ids if mask is None else ids[int((mask[row] == 0).sum()) :]
            if self.hints is not None:
                self.hints.insert_at(prompt)  # an unusual prompt is refused before any work is done
            room = _room(len(prompt), context, caller.max_length - length, self.hints is not None)
            policy = Policy(config, self.tags, room, temperature if warm else 0.0, self.checking)
            request = Request(prompt, policy, seed, self.hints, context)
            blank = keep_open is not None and keep_open[row]
            self._listen(request, names[row], input_ids[row], caller, _hf.eos_ids(generation_config), blank)
            requests.append(request)
        prefill = Prefill(
            input_ids,
            generation_config,
            model_kwargs,
            _hf.caller_processors(logits_processor, mask, len(input_ids)),
            _hf.eos_ids(generation_config),
            _hf.pad_id(generation_config),
        )
        return requests, prefill

    def _listen(
        self,
        request: Request,
        name: int,
        padded: torch.Tensor,
        caller: _hf.CallerStops,
        eos: frozenset[int],
        keep_open: bool,
    ) -> None:
        """Attach to a request what ends it and those who want to hear of it."""
        sink = self.sinks[name] if self.sinks else None
        stops = Stops(
            padded,
            self.decode,
            self.tags,
            strings=(*self.stop_strings, *caller.strings),
            criteria=caller.criteria,
            deadline=caller.deadline,
            left=None if sink is None else lambda: sink.closed,
            checking=self.checking,
        )
        if stops:
            request.stops = stops
        if sink is not None or self.events is not None:
            watch = Watch(
                name,
                request.policy,
                self.decode,
                self.tags,
                half=half_character(self.tokenizer),
                eos=eos,
                events=self.events,
                sink=sink,
                prompt=request.prompt,
                keep_open=keep_open,
            )
            request.on_token, request.on_action = watch.token, watch.action
            request.on_finish = watch.finish

    def loop(self, model: Any, source: Source, slots: int) -> Loop:
        """A loop over `source` on a backend of its own."""
        config = self.config
        verifier = Verifier(self.tags, config.score, config.check)

        def dynamic() -> TransformersBackend:
            return TransformersBackend(
                model,
                slots=slots,
                tags=self.tags,
                verifier=verifier,
                top_k=config.top_k,
                top_p=config.top_p,
                well_formed=self.checking,
            )

        style = Style(self.tags, self.checking, config.score == "pair", config.top_k, config.top_p)
        backend = ChosenBackend(
            model, dynamic, engine=config.engine, style=style, slots=slots, candidates=config.candidates
        )
        return Loop(backend, source, self.decode, verifier, DecodingTurn(model))

    def _seeds(
        self, rows: int, generation_config: GenerationConfig, given: Sequence[int] | None
    ) -> list[int]:
        """One seed a row; the answers asked for one request (`num_return_sequences`) get consecutive ones."""
        copies = generation_config.num_return_sequences or 1
        given = self.seeds if given is None else given
        seeds = list(given) if given is not None else [self.config.seed] * (rows // copies)
        if len(seeds) * copies != rows:
            raise ValueError(f"got {len(seeds)} seeds for {rows // copies} requests: give one a request")
        return [check_seed(seed + i) for seed in seeds for i in range(copies)]


def _check_pictures(model: Any, model_kwargs: dict[str, Any]) -> None:
    """Refuse pictures that `model.generate()` encoded with dropout, before the decoding loop had a say."""
    if not any((model_kwargs.get("mm_encoder_outputs") or {}).values()):
        return
    family = family_of(model)
    for part in (family.vision_tower(model), family.image_projector(model)):
        for module in part.modules():
            rates = [getattr(module, name, 0) for name in ("p", "dropout", "attention_dropout")]
            if module.training and any(isinstance(rate, float) and rate > 0 for rate in rates):
                raise ValueError(
                    f"the pictures were encoded in train mode, with dropout ({type(module).__name__}): call "
                    "model.eval() before model.generate(), or use reverse.generate()"
                )


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
    stream: Any = None,
    events: Callable[[Event], None] | None = None,
    stop_strings: str | Sequence[str] | None = None,
    **settings: Any,
) -> Retrospective:
    """The drop-in: `model.generate(**inputs, custom_generate=retrospective(processor, threshold=0.003))`.

    `settings` are fields of `ResamplingConfig`. Temperature and max_new_tokens stay arguments of
    `model.generate()`; top-k and top-p are settings here, since the library's silent top_k=50 is taken out.
    `stream`, a `reverse.TextStream` or an object with `put(ids)` and `end()`, or a list with one a row, gets
    text that is never taken back; `events` is called with every append and retraction; `stop_strings` end an
    answer (`model.generate()` cannot hand these three to a decoding loop).
    Raises ValueError where the tokenizer has no confidence tokens or a setting is out of range.
    """
    chosen = settled(config, settings, ("seeds", "stream", "events", "stop_strings"))
    decoder = Retrospective(processor, chosen, seeds, stream=stream, events=events, stop_strings=stop_strings)
    if chosen.open_ended:
        raise ValueError(
            "open_ended asks a second question, which model.generate() has no place for: leave it out, or "
            "use reverse.generate()"
        )
    return decoder


def settled(
    config: ResamplingConfig | None, settings: dict[str, Any], arguments: Sequence[str] = ()
) -> ResamplingConfig:
    """`config` with `settings` changed; `arguments` are the other names that the caller knows.

    Raises TypeError, ValueError.
    """
    if config is not None and not isinstance(config, ResamplingConfig):
        raise TypeError(
            f"config must be a ResamplingConfig, got {type(config).__name__}: give its fields by name, "
            "threshold=0.003, or make one, ResamplingConfig(threshold=0.003)"
        )
    return (config or ResamplingConfig()).with_changes(settings, arguments)


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
