"""`model.generate(custom_generate=...)`: arguments of transformers become requests of the engine.

ids = model.generate(**inputs, custom_generate=reverse.retrospective(processor, threshold=0.003))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.utils import GenerateDecoderOnlyOutput

from reverse.decoding.asks import Node, PictureRef
from reverse.decoding.backends.auto import BackendName
from reverse.decoding.calls.call import Call, Interrupted, Job
from reverse.decoding.calls.sinks import make_sinks, propagate_errors_to
from reverse.decoding.config import ResamplingConfig, check_seed, resolve_config
from reverse.decoding.events import Event
from reverse.decoding.preparing import caller_options
from reverse.decoding.preparing.preparing import read_row_options
from reverse.decoding.request import Request
from reverse.decoding.result import Result
from reverse.decoding.shared_engines import find_shared_engine
from reverse.decoding.text.codec import TextCodec
from reverse.decoding.text.stopping import check_stop_strings
from reverse.errors import RequestError
from reverse.models import family_of
from reverse.models.unwrapping import check_adapter_hooks, check_wrappers, unwrap_model
from reverse.modes import Plain, Resample

__all__ = ["Interrupted", "Retrospective", "retrospective"]


class Retrospective:
    """A decoding loop for `model.generate(custom_generate=...)`. `results` holds those of the last call.

    Args: `processor` (or a tokenizer) with a chat template; `config`; `seeds` one per request (default:
    `config.seed` for all); `checking=False` decodes plainly and only reads p; `stream`, `events`,
    `stop_strings` and `backend` as of `retrospective()`.
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
        backend: BackendName = "auto",
    ):
        self.processor, self.config, self.seeds, self.backend = processor, config, seeds, backend
        self.mode = Resample() if checking else Plain()
        codec = TextCodec(processor)
        self.hints = checking and config.hints > 0 and config.max_attempts > 0
        if checking:
            codec.check_tags()
        self._writer = codec.get_hint_writer(config.hints) if self.hints else None
        self._codec = codec
        self.sinks, self.events, self.stop_strings = (
            make_sinks(stream),
            events,
            check_stop_strings(stop_strings),
        )
        self.results: list[Result] = []

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
        """Decode a batch of `model.generate()`; return its usual type, ids with tags, right-padded.

        Raises RequestError for options that cannot be honoured while text can be taken back.
        """
        self.results = []
        check_wrappers(model)
        model = unwrap_model(model)
        _check_pictures(model, model_kwargs)
        with propagate_errors_to(self.sinks):
            caller_options.check_request(generation_config, stopping_criteria, model_kwargs)
            check_adapter_hooks(model)
            if self.sinks and len(self.sinks) != len(input_ids):
                raise RequestError(
                    f"got {len(self.sinks)} streams for {len(input_ids)} rows: give a list with one per row"
                )
            jobs = self._make_jobs(
                model, input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs
            )
        engine = find_shared_engine(model, self.processor, self.backend)
        rows, candidates = len(input_ids), self.config.candidates
        call = Call(engine, rows, candidates, sinks=self.sinks, events=self.events, names_requests=False)
        found: dict[int, Any] = {}
        try:
            found.update(call.answer(iter(jobs)))
        except Interrupted as stopped:
            raise Interrupted(found | stopped.results) from None
        self.results = [found[i] for i in range(rows)]
        pad = caller_options.read_pad_id(generation_config)
        sequences = _pad_answers(input_ids, [result.ids for result in self.results], pad)
        if generation_config.return_dict_in_generate:
            return GenerateDecoderOnlyOutput(sequences=sequences)
        return sequences

    def _make_jobs(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
    ) -> list[Job]:
        """Return one job per row of what `generate()` passes."""
        mask = model_kwargs.get("attention_mask")
        options = read_row_options(input_ids, mask, logits_processor, stopping_criteria, generation_config)
        pictures = caller_options.split_pictures_by_row(model, input_ids, model_kwargs)
        temperature = 1.0 if generation_config.temperature is None else generation_config.temperature
        do_sample = generation_config.do_sample
        request = Request(
            config=self.config,
            mode=self.mode,
            do_sample=bool(do_sample),
            temperature=temperature if do_sample else 1.0,
            stop_strings=self.stop_strings,
        )
        seeds = self._make_seeds(len(input_ids), generation_config)
        jobs = []
        for row, (ids, seed) in enumerate(zip(input_ids.tolist(), seeds, strict=True)):
            prompt = ids if mask is None else ids[int((mask[row] == 0).sum()) :]
            hint_at = None if self._writer is None else self._writer.insert_at(prompt)
            refs = tuple(PictureRef(None, encoded) for encoded in pictures[row])
            node = Node(tuple(prompt), refs, hint_at, self._codec)
            jobs.append(Job(row, replace(request, seed=seed), source=node, options=options[row]))
        return jobs

    def _make_seeds(self, rows: int, generation_config: GenerationConfig) -> list[int]:
        """Return one seed per row. The `num_return_sequences` answers of a request get consecutive seeds."""
        copies = generation_config.num_return_sequences or 1
        given = self.seeds
        seeds = list(given) if given is not None else [self.config.seed] * (rows // copies)
        if len(seeds) * copies != rows:
            raise RequestError(f"got {len(seeds)} seeds for {rows // copies} requests: give one per request")
        return [check_seed(seed + i) for seed in seeds for i in range(copies)]


def _check_pictures(model: Any, model_kwargs: dict[str, Any]) -> None:
    """Raise an error for pictures that `model.generate()` encoded in train mode, that is with dropout."""
    if not any((model_kwargs.get("mm_encoder_outputs") or {}).values()):
        return
    family = family_of(model)
    for part in (family.vision_tower(model), family.image_projector(model)):
        for module in part.modules():
            rates = [getattr(module, name, 0) for name in ("p", "dropout", "attention_dropout")]
            if module.training and any(isinstance(rate, float) and rate > 0 for rate in rates):
                raise RequestError(
                    f"the pictures were encoded in train mode, with dropout ({type(module).__name__}): call "
                    "model.eval() before model.generate(), or use reverse.generate()"
                )


def retrospective(
    processor: Any,
    config: ResamplingConfig | None = None,
    *,
    seeds: Sequence[int] | None = None,
    stream: Any = None,
    events: Callable[[Event], None] | None = None,
    stop_strings: str | Sequence[str] | None = None,
    backend: BackendName = "auto",
    **settings: Any,
) -> Retrospective:
    """Return a decoder for `model.generate(**inputs, custom_generate=retrospective(processor))`.

    `settings` are fields of `ResamplingConfig`. Temperature and max_new_tokens stay arguments of
    `model.generate()`; top-k and top-p are settings here, because transformers fills in top_k=50 unasked.
    `stream`, a `reverse.TextStream`, an object with `put(ids)` and `end()`, or a list with one per row,
    receives final text; `events` is called with every append and retraction; `stop_strings` end an answer
    (`model.generate()` passes none of these three to a decoding loop); `backend` as of `generate()`.
    Raises RequestError if the tokenizer lacks the three tokens or a setting is out of range.
    """
    chosen = resolve_config(config, settings, ("seeds", "stream", "events", "stop_strings", "backend"))
    decoder = Retrospective(
        processor, chosen, seeds, stream=stream, events=events, stop_strings=stop_strings, backend=backend
    )
    if chosen.open_ended:
        raise RequestError(
            "open_ended asks a second question, which model.generate() does not support: leave it out, or "
            "use reverse.generate()"
        )
    return decoder


def _pad_answers(prompts: torch.Tensor, answers: Sequence[Sequence[int]], pad: int) -> torch.Tensor:
    width = max(len(a) for a in answers)
    tail = torch.full((len(answers), width), pad, dtype=prompts.dtype, device=prompts.device)
    for row, answer in enumerate(answers):
        tail[row, : len(answer)] = torch.tensor(answer, dtype=prompts.dtype)
    return torch.cat((prompts, tail), dim=1)
