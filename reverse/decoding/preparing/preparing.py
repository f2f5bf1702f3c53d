"""Preparing requests: pictures, prompt ids, and the options of transformers' `generate()`.

preparer = Preparer(model, TextCodec(processor))
prepared = preparer.prepare(conversation, request, hints=True)
prepared.node, prepared.options
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from reverse.decoding.asks import Conversation, Node, PictureRef
from reverse.decoding.config import ResamplingConfig
from reverse.decoding.preparing import caller_options
from reverse.decoding.preparing.picture_cache import PictureCache
from reverse.decoding.request import Request
from reverse.decoding.scheduling.branch import AnswerRules
from reverse.decoding.text.codec import TextCodec
from reverse.decoding.text.hints import check_plain_text
from reverse.decoding.text.stopping import Stops
from reverse.decoding.verifier import Verifier
from reverse.errors import RequestError, ReverseError
from reverse.models import default_threshold, family_of, prepare_inputs
from reverse.models.unwrapping import input_device, unwrap_model

__all__ = [
    "CallerOptions",
    "PreparedPrompt",
    "Preparer",
    "check_request_texts",
    "limit_new_tokens",
    "read_row_options",
    "resolve_threshold",
    "wants_hints",
]

_HINT_ROOM = 128  # ids of the context that are reserved for hints
_YES_NO = 0.5  # threshold for yes/no questions, in all the paper's discriminative benchmarks (§5)


@dataclass(frozen=True, slots=True)
class CallerOptions:
    """Options of transformers' `generate()` for one row, apart from sampling."""

    eos: frozenset[int]
    max_new_tokens: int
    prompt: torch.Tensor  # (length,) int64: the row as `generate()` knows it, padding included
    deadline: float | None = None  # as of `time.time()`
    strings: tuple[str, ...] = ()
    criteria: tuple[Any, ...] = ()
    processors: Any = None  # the caller's logits processors for this row, or None

    @property
    def processor_names(self) -> str:
        """Class names of the processors, for errors."""
        return ", ".join(type(processor).__name__ for processor in self.processors or ())

    def process(self, answer: Sequence[int], scores: torch.Tensor) -> torch.Tensor:
        """Apply the processors to `scores` (1, vocabulary) after the prompt and the answer so far.

        Raises RequestError if no token can be chosen from the processed scores.
        """
        tail = torch.tensor(answer, dtype=self.prompt.dtype, device=self.prompt.device)
        ids = torch.cat((self.prompt, tail)).unsqueeze(0).to(scores.device)
        processed = self.processors(ids, scores)
        if bool((torch.isnan(processed) | torch.isposinf(processed)).any()):
            raise RequestError(
                f"{self.processor_names} made scores that are NaN or inf: give finite ones, or -inf to ban"
            )
        return processed


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """A conversation that is ready to be prefilled, and its options."""

    node: Node
    options: CallerOptions


class Preparer:
    """Opens pictures, writes prompts and reads the options of transformers' `generate()`. It is thread-safe.

    Args: `model` as the user gave it, with its wrappers; `pictures` finds pictures that were prepared before.
    """

    def __init__(self, model: Any, codec: TextCodec, pictures: PictureCache | None = None):
        self.pictures = PictureCache() if pictures is None else pictures
        self._lock = threading.Lock()  # held during calls of the model's or its wrapper's `generate()`
        self._known_options: tuple[str, CallerOptions] | None = None  # (key, options) of the last request
        self.model, self.base, self.codec = model, unwrap_model(model), codec
        self.family = family_of(self.base)
        self.context = self.family.context_length(self.base.config)

    def prepare(self, conversation: Conversation, request: Request, hints: bool) -> PreparedPrompt:
        """Return the node and the options of a conversation; `hints`: with a position for hints.

        Raises errors of pictures and prompts.
        """
        refs: list[PictureRef] = []

        def process(picture: Any, settings: str, make: Callable[[], Any]) -> Any:
            ref = self.pictures.find(picture, settings, lambda: self.family.split_pictures(make())[0])
            refs.append(ref)
            return ref.outline

        inputs = prepare_inputs(
            self.codec.processor,
            [conversation.images],
            [conversation.prompt],
            self.family,
            system=conversation.system,
            context_length=self.context,
            process=process,
        )
        node = Node(tuple(inputs["input_ids"][0].tolist()), tuple(refs), None, self.codec)
        if hints:
            node.hint_at = self.codec.get_hint_writer(request.config.hints).insert_at(node.ids)
        return PreparedPrompt(node, self.read_options(node.ids, request))

    def read_options(self, ids: Sequence[int], request: Request) -> CallerOptions:
        """Return the options of `request.generation` and the model's generation_config after a prompt.

        Raises RequestError for options that cannot be honoured while text can be taken back.
        """
        key = self._make_options_key(request)
        known = self._known_options
        if key is not None and known is not None and known[0] == key:
            return replace(known[1], prompt=torch.tensor(ids))
        with self._lock:
            found = self._capture_options(ids, request)
        if key is not None and not (found.processors or found.criteria or found.deadline):
            self._known_options = key, found
        return found

    def _make_options_key(self, request: Request) -> str | None:
        """Return a key that the options depend on, or None for a wrapped model or options of the caller."""
        if self.model is not self.base or request.generation:
            return None
        asked = request.max_new_tokens, request.do_sample, request.temperature
        return f"{asked} {vars(self.base.generation_config)}"

    def _capture_options(self, ids: Sequence[int], request: Request) -> CallerOptions:
        found: list[CallerOptions] = []

        def capture(
            model: Any,
            input_ids: torch.Tensor,
            logits_processor: Any,
            stopping_criteria: Any,
            generation_config: Any,
            **kwargs: Any,
        ) -> torch.Tensor:
            caller_options.check_request(generation_config, stopping_criteria, kwargs)
            found.extend(
                read_row_options(input_ids, None, logits_processor, stopping_criteria, generation_config)
            )
            return input_ids

        options = dict(request.generation or {})
        options.update(
            max_new_tokens=request.max_new_tokens, do_sample=request.do_sample, num_return_sequences=1
        )
        if request.do_sample:  # ours are in the config; the checkpoint's would look like the caller's
            options.update(temperature=request.temperature, top_k=0, top_p=1.0)
        # A wrapper's generate() adds its own settings to a call, such as its generation_config.
        ask = getattr(self.model, "generate", self.base.generate)
        prompt = torch.tensor([list(ids)], device=input_device(self.base))
        try:
            ask(input_ids=prompt, attention_mask=torch.ones_like(prompt), custom_generate=capture, **options)
        except ReverseError:
            raise
        except ValueError as error:  # an option that transformers refuses
            raise RequestError(str(error)) from error
        return found[0]

    def make_rules(
        self, config: ResamplingConfig, options: CallerOptions, max_new_tokens: int, seed: int, hints: bool
    ) -> AnswerRules:
        """Return the rules of an answer of at most `max_new_tokens` ids."""
        return AnswerRules(
            decode=self.codec.decode,
            tags=self.codec.tags,
            verifier=Verifier(self.codec.tags, config.score, config.check),
            max_new_tokens=max_new_tokens,
            eos=options.eos,
            seed=seed,
            top_k=config.top_k,
            top_p=config.top_p,
            hints=self.codec.get_hint_writer(config.hints) if hints else None,
            context=self.context,
            process=options.process if options.processors else None,
            placeholder=self.family.image_token_id(self.base.config),
            processor_names=options.processor_names,
        )

    def make_stops(
        self,
        request: Request,
        options: CallerOptions,
        strings: tuple[str, ...],
        has_left: Callable[[], bool] | None,
        checking: bool,
    ) -> Stops | None:
        """Return the stops of an answer, or None if there are none."""
        stops = Stops(
            options.prompt,
            self.codec.decode,
            self.codec.tags,
            strings=(*request.stop_strings, *options.strings, *strings),
            criteria=options.criteria,
            deadline=options.deadline,
            has_left=has_left,
            checking=checking,
        )
        return stops if stops else None


def wants_hints(request: Request) -> bool:
    """Return whether the prompt names rejected phrases."""
    return request.config.hints > 0 and request.config.max_attempts > 0


def check_request_texts(codec: TextCodec, request: Request) -> None:
    """Raise RequestError if the tokenizer finds special tokens in a text of the request."""
    if request.config.open_ended:
        check_plain_text(codec.tokenizer, "false_premise", request.config.false_premise)


def read_row_options(
    input_ids: torch.Tensor, mask: torch.Tensor | None, processors: Any, criteria: Any, generation_config: Any
) -> list[CallerOptions]:
    """Return the options that `generate()` passes for each row of `input_ids` (rows, length)."""
    stops = caller_options.read_stops(generation_config, criteria)
    eos = caller_options.read_eos_ids(generation_config)
    per_row = caller_options.copy_processors(processors, mask, len(input_ids))
    return [
        CallerOptions(
            eos,
            stops.max_length - input_ids.shape[1],
            row,
            stops.deadline,
            stops.strings,
            stops.criteria,
            own if len(own) else None,
        )
        for row, own in zip(input_ids, per_row, strict=True)
    ]


def resolve_threshold(config: ResamplingConfig, model: Any) -> ResamplingConfig:
    """Return `config` with a threshold: its own, that of yes/no questions, or the checkpoint's."""
    if config.threshold is not None:
        return config
    return replace(config, threshold=_YES_NO if config.yes_no else default_threshold(model))


def limit_new_tokens(prompt: int, context: int, asked: int, hints: bool) -> int:
    """Return the most ids of an answer: `asked`, or what the context leaves beside the hints."""
    if prompt >= context:
        raise RequestError(
            f"the prompt has {prompt} tokens, images included, and the context is {context}: shorten the "
            "prompt or use smaller images"
        )
    left = context - prompt
    reserved = _HINT_ROOM if hints and left - _HINT_ROOM >= left / 2 else 0
    return min(asked, left - reserved)
