"""From what a user asks to ids, pictures and rules, before any weight is needed but those of the options.

preparer = Preparer(model, processor)
prepared = preparer.prepare(conversation, request)
prepared.node, prepared.rules, prepared.stops
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from reverse.decoding.asks import Conversation, Node, PictureRef
from reverse.decoding.branch import AnswerRules
from reverse.decoding.config import ResamplingConfig
from reverse.decoding.preparing import caller_options
from reverse.decoding.preparing.picture_cache import PictureCache
from reverse.decoding.request import Request
from reverse.decoding.text.codec import TextCodec
from reverse.decoding.text.hints import check_plain_text
from reverse.decoding.text.stopping import Stops
from reverse.decoding.verifier import Verifier
from reverse.errors import RequestError
from reverse.models import default_threshold, family_of, prepare_inputs
from reverse.models.unwrapping import input_device, unwrap_model

__all__ = [
    "CallerOptions",
    "Prepared",
    "Preparer",
    "answer_room",
    "check_request_texts",
    "resolve_threshold",
    "row_options",
    "wants_hints",
]

_HINT_ROOM = 128  # ids of the context that a generous max_new_tokens leaves to the hints
_YES_NO = 0.5  # threshold for yes/no questions, in all the paper's discriminative benchmarks (§5)


@dataclass(frozen=True, slots=True)
class CallerOptions:
    """What the options of transformers' `generate()` ask for, apart from sampling, of one row."""

    eos: frozenset[int]
    room: int  # new ids at most
    prompt: torch.Tensor  # (length,) int64: the row as `generate()` knows it, padding included
    deadline: float | None = None  # in the terms of `time.time()`
    strings: tuple[str, ...] = ()
    criteria: tuple[Any, ...] = ()
    processors: Any = None  # the caller's logits processors for this row, or None

    @property
    def processor_names(self) -> str:
        """The processors' classes, for errors."""
        return ", ".join(type(processor).__name__ for processor in self.processors or ())

    def process(self, answer: Sequence[int], scores: torch.Tensor) -> torch.Tensor:
        """What the processors make of `scores` (1, vocabulary), shown the prompt and the answer so far.

        Raises ValueError where nothing can be chosen from what they make.
        """
        said = torch.tensor(answer, dtype=self.prompt.dtype, device=self.prompt.device)
        ids = torch.cat((self.prompt, said)).unsqueeze(0).to(scores.device)
        processed = self.processors(ids, scores)
        if bool((torch.isnan(processed) | torch.isposinf(processed)).any()):
            raise RequestError(
                f"{self.processor_names} made scores that are NaN or inf: give finite ones, or -inf to ban"
            )
        return processed


@dataclass(frozen=True, slots=True)
class Prepared:
    """A conversation that is ready to be prefilled, and what the options say of its answers."""

    node: Node
    options: CallerOptions


class Preparer:
    """Opens pictures, writes prompts and reads the options of transformers' `generate()`.

    Args: `model` as the user gave it, whatever wraps it; `pictures` finds a picture that was there before.
    Threads may share it.
    """

    def __init__(self, model: Any, codec: TextCodec, pictures: PictureCache | None = None):
        self.pictures = PictureCache() if pictures is None else pictures
        self._asking = threading.Lock()  # a model's `generate()`, which may be a wrapper's
        self._known_options: tuple[str, CallerOptions] | None = None  # those found last, and for what
        self.model, self.base, self.codec = model, unwrap_model(model), codec
        self.family = family_of(self.base)
        self.context = self.family.context_length(self.base.config)

    def prepare(self, conversation: Conversation, request: Request, hints: bool) -> Prepared:
        """The node of a conversation; `hints`: with the place where rejected phrases are named.

        Raises ValueError, TypeError and OSError of pictures and prompts.
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
            node.hint_at = self.codec.hint_writer(request.config.hints).insert_at(node.ids)
        return Prepared(node, self.options(node.ids, request))

    def options(self, ids: Sequence[int], request: Request) -> CallerOptions:
        """What `request.generation` and the model's generation_config ask for behind a prompt.

        The prompt's pictures are not encoded for it. Raises ValueError for options that a decoder which goes
        back cannot honour.
        """
        key = self._key_of(request)
        known = self._known_options
        if key is not None and known is not None and known[0] == key:
            return replace(known[1], prompt=torch.tensor(ids))
        with self._asking:
            found = self._ask_for_options(ids, request)
        if key is not None and not (found.processors or found.criteria or found.deadline):
            self._known_options = key, found
        return found

    def _key_of(self, request: Request) -> str | None:
        """What the options follow from, where that is known: for a model itself and options of ours alone."""
        if self.model is not self.base or request.generation:
            return None
        asked = request.max_new_tokens, request.do_sample, request.temperature
        return f"{asked} {vars(self.base.generation_config)}"

    def _ask_for_options(self, ids: Sequence[int], request: Request) -> CallerOptions:
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
            found.extend(row_options(input_ids, None, logits_processor, stopping_criteria, generation_config))
            return input_ids

        options = dict(request.generation or {})
        options.update(
            max_new_tokens=request.max_new_tokens, do_sample=request.do_sample, num_return_sequences=1
        )
        if request.do_sample:  # ours stand in the config; a checkpoint's own would arrive as if asked for
            options.update(temperature=request.temperature, top_k=0, top_p=1.0)
        # A wrapper's own generate() knows what else belongs to a call, such as its generation_config.
        ask = getattr(self.model, "generate", self.base.generate)
        prompt = torch.tensor([list(ids)], device=input_device(self.base))
        ask(input_ids=prompt, attention_mask=torch.ones_like(prompt), custom_generate=capture, **options)
        return found[0]

    def rules(
        self, config: ResamplingConfig, options: CallerOptions, room: int, seed: int, hints: bool
    ) -> AnswerRules:
        """What holds for an answer of at most `room` ids."""
        return AnswerRules(
            decode=self.codec.decode,
            tags=self.codec.tags,
            verifier=Verifier(self.codec.tags, config.score, config.check),
            max_new_tokens=room,
            eos=options.eos,
            seed=seed,
            top_k=config.top_k,
            top_p=config.top_p,
            hints=self.codec.hint_writer(config.hints) if hints else None,
            context=self.context,
            process=options.process if options.processors else None,
            placeholder=self.family.image_token_id(self.base.config),
            processor_names=options.processor_names,
        )

    def stops(
        self,
        request: Request,
        options: CallerOptions,
        strings: tuple[str, ...],
        left: Callable[[], bool] | None,
        checking: bool,
    ) -> Stops | None:
        """What ends an answer apart from its own end; None where nothing does."""
        stops = Stops(
            options.prompt,
            self.codec.decode,
            self.codec.tags,
            strings=(*request.stop_strings, *options.strings, *strings),
            criteria=options.criteria,
            deadline=options.deadline,
            left=left,
            checking=checking,
        )
        return stops if stops else None


def wants_hints(request: Request) -> bool:
    """Whether rejected phrases are named in the prompt."""
    return request.config.hints > 0 and request.config.max_attempts > 0


def check_request_texts(codec: TextCodec, request: Request) -> None:
    """Refuse texts of a request that the tokenizer reads as more than text. Raises ValueError."""
    if request.config.open_ended:
        check_plain_text(codec.tokenizer, "false_premise", request.config.false_premise)


def row_options(
    input_ids: torch.Tensor, mask: torch.Tensor | None, processors: Any, criteria: Any, generation_config: Any
) -> list[CallerOptions]:
    """What transformers' `generate()` hands over, for each row of `input_ids` (rows, length)."""
    stops = caller_options.caller_stops(generation_config, criteria)
    eos = caller_options.eos_ids(generation_config)
    per_row = caller_options.caller_processors(processors, mask, len(input_ids))
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
    """`config` with the threshold that holds: its own, that of yes/no questions, or the checkpoint's."""
    if config.threshold is not None:
        return config
    return replace(config, threshold=_YES_NO if config.yes_no else default_threshold(model))


def answer_room(prompt: int, context: int, asked: int, hints: bool) -> int:
    """The most ids an answer may hold: what was asked for, as far as the context and its hints allow."""
    if prompt >= context:
        raise RequestError(
            f"the prompt has {prompt} tokens, images included, and the context is {context}: shorten the "
            "prompt or use smaller images"
        )
    left = context - prompt
    reserved = _HINT_ROOM if hints and left - _HINT_ROOM >= left / 2 else 0
    return min(asked, left - reserved)
