"""`generate()` and `generate_many()`: retrospective resampling on transformers models.

result = reverse.generate(model, processor, images="kitchen.png", prompt="Describe this image.")
for result in reverse.generate_many(model, processor, ({"images": path} for path in paths), slots=16):
    print(result.text)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, overload

import torch

from reverse.decoding import _hf
from reverse.decoding.backend import OutOfMemory, Prefill
from reverse.decoding.config import ResamplingConfig, check_seed, check_whole
from reverse.decoding.events import Event, telling
from reverse.decoding.loop import Request
from reverse.decoding.retrospective import Interrupted, Retrospective, retrospective, settled
from reverse.decoding.sources import Job, Stream
from reverse.decoding.trace import Result
from reverse.decoding.turns import model_lock
from reverse.models import family_of, prepare_inputs
from reverse.models.unwrapping import check_wrappers, input_device, unwrap_model

__all__ = ["Interrupted", "Retrospective", "generate", "generate_many", "retrospective"]

MODES = ("resample", "plain")
_DESCRIBE = "Describe this image."
_AHEAD = 4  # windows of `slots` requests that may be under way or waiting to be handed out in order
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
        "stop_strings",
        "temperature",
        "top_k",
        "top_p",
    }
)


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
    prompt: Any = _DESCRIBE,
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
    stream: Any = None,
    events: Callable[[Event], None] | None = None,
    stop_strings: str | Sequence[str] | None = None,
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
        batch_size: requests decoded side by side; one that ends makes room for the next.
        generation: further arguments for `model.generate()`, such as `repetition_penalty`.
        progress: called with the number of requests that finished, 1 each time.
        stream: gets text that is never taken back: a `reverse.TextStream`, or an object with `put(ids)` and
            `end()` as transformers' streamers; one a request. `reverse.stream()` iterates it.
        events: called with every append and retraction, see `reverse.decoding.events`.
        stop_strings: a text or several that end the answer, found in the text without tags.
        settings: fields of `ResamplingConfig`, such as `threshold`, `hints`, `on_exhausted`.

    Returns one Result, or a list of them where `images` or `prompt` was a list.
    Raises ValueError or TypeError that name the value and the mend; Interrupted, with the results there
    are, at Ctrl-C; torch.OutOfMemoryError where not even one request fits.
    """
    batch_size = check_whole("batch_size", batch_size, 1)
    asking = _Asking(
        model,
        processor,
        mode,
        config,
        max_new_tokens,
        do_sample,
        temperature,
        system,
        generation,
        settings,
        stream,
        events,
        stop_strings,
    )
    pictures, prompts, single = _requests(images, prompt)
    seeds = _one_a_request(asking.config.seed if seed is None else seed, len(prompts))
    if len(seeds) != len(prompts):
        raise ValueError(
            f"got {len(seeds)} seeds for {len(prompts)} requests: give one a request, or a number"
        )
    sinks = asking.decoder.sinks
    if sinks and len(sinks) != len(prompts):
        raise ValueError(f"got {len(sinks)} streams for {len(prompts)} requests: give one a request")
    jobs = map(Job, range(len(prompts)), pictures, prompts, seeds)
    found: dict[int, Result] = {}
    try:
        with telling(sinks):
            for i, result in asking.run(jobs, min(batch_size, len(prompts))):
                found[i] = result
                if progress is not None:
                    progress(1)
    except Interrupted as stopped:
        raise Interrupted(found | stopped.results) from None
    results = [found[i] for i in range(len(prompts))]
    return results[0] if single else results


def generate_many(
    model: Any,
    processor: Any,
    requests: Iterable[Any],
    *,
    slots: int = 8,
    ordered: bool = True,
    mode: Literal["resample", "plain"] = "resample",
    config: ResamplingConfig | None = None,
    max_new_tokens: int = 256,
    do_sample: bool = False,
    temperature: float = 1.0,
    seed: int | None = None,
    system: str | None = None,
    generation: dict[str, Any] | None = None,
    events: Callable[[Event], None] | None = None,
    stop_strings: str | Sequence[str] | None = None,
    **settings: Any,
) -> Iterator[Any]:
    """Answer requests without end through `slots` rows, reading them only as rows become free.

    A request is a mapping with `images`, `prompt` and `seed`, of which any may be left out, or a pair
    (images, prompt). Other arguments are those of `generate()`.

    Yields a Result a request, in their order; with `ordered=False` pairs (index, Result) as they finish.
    In order, at most `4 * slots` requests are under way or wait for an earlier one. `requests` is read while
    the model is free for others. Closing the iterator frees all that it holds.
    Raises as `generate()` does, but not before the requests that came before a refused one are answered;
    `Interrupted.results` has those that were finished and not yet handed out.
    """
    slots = check_whole("slots", slots, 1)
    asking = _Asking(
        model,
        processor,
        mode,
        config,
        max_new_tokens,
        do_sample,
        temperature,
        system,
        generation,
        settings,
        events=events,
        stop_strings=stop_strings,
    )
    (first_seed,) = _one_a_request(asking.config.seed if seed is None else seed, 1)
    jobs = (_job(i, request, first_seed) for i, request in enumerate(requests))
    if not ordered:
        return asking.run(jobs, slots, patient=True)
    return _in_order(asking.run(jobs, slots, _AHEAD * slots, patient=True))


def _in_order(found: Iterator[tuple[int, Result]]) -> Iterator[Result]:
    waiting: dict[int, Result] = {}
    following = 0
    try:
        for i, result in found:
            waiting[i] = result
            while following in waiting:
                following += 1
                yield waiting.pop(following - 1)
    except Interrupted as stopped:
        raise Interrupted(waiting | stopped.results) from None


class _Asking:
    """One call of `generate()` or `generate_many()`: its settings, and how its jobs become requests."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        mode: str,
        config: ResamplingConfig | None,
        max_new_tokens: int,
        do_sample: bool,
        temperature: float,
        system: str | None,
        generation: dict[str, Any] | None,
        settings: dict[str, Any],
        stream: Any = None,
        events: Callable[[Event], None] | None = None,
        stop_strings: str | Sequence[str] | None = None,
    ):
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        max_new_tokens = check_whole("max_new_tokens", max_new_tokens, 1)
        ours = sorted(set(generation or {}) & _OWN_OPTIONS)
        if ours:
            raise ValueError(
                f"generation holds {', '.join(ours)}, which is not for model.generate() to decide here: use "
                "the arguments max_new_tokens, do_sample, temperature, stop_strings, images, prompt and the "
                "settings top_k, top_p"
            )
        check_wrappers(model)
        self.model, self.base, self.processor, self.system = model, unwrap_model(model), processor, system
        self.config = settled(config, settings)
        self.options = dict(generation or {})
        self.options.update(max_new_tokens=max_new_tokens, do_sample=do_sample, num_return_sequences=1)
        if do_sample:  # ours stand in the config; a checkpoint's own would arrive as if they were asked for
            self.options.update(temperature=temperature, top_k=0, top_p=1.0)
        with model_lock(model):  # finding the place of hints tokenises
            self.decoder = Retrospective(
                processor,
                self.config,
                checking=mode == "resample",
                stream=stream,
                events=events,
                stop_strings=stop_strings,
            )

    def run(
        self, jobs: Iterator[Job], slots: int, window: int | None = None, patient: bool = False
    ) -> Iterator[tuple[int, Result]]:
        """Answer jobs as they come; yields (index, Result) as they finish.

        Where a job cannot be answered, a `patient` run finishes those before it and raises then.
        """
        source = Stream(jobs, self.prepare, window, patient)
        loop = self.decoder.loop(self.base, source, slots)
        ready: list[tuple[Request, Result]] = []
        try:
            while not loop.done:
                ready = loop.step()
                while ready:
                    request, result = ready.pop(0)
                    job = request.name
                    if self._asks_again(job) and not result.text.strip():
                        # the paper's second round for open-ended questions (§4)
                        prompt = _with_instruction(job.prompt, self.config.false_premise)
                        source.ask_again(replace(job, prompt=prompt, second=True))
                        continue
                    source.finished(job)
                    yield job.index, result
            if source.error is not None:
                raise source.error
        except KeyboardInterrupt:
            left = [(request.name, result) for request, result in [*ready, *loop.finished]]
            whole = {j.index: r for j, r in left if r.text.strip() or not self._asks_again(j)}
            raise Interrupted(whole) from None
        except OutOfMemory as error:
            raise torch.OutOfMemoryError(str(error)) from None
        finally:
            loop.close()

    def _asks_again(self, job: Job) -> bool:
        """Whether a blank answer is not the last word."""
        return self.config.open_ended and not job.second

    def prepare(self, jobs: list[Job]) -> tuple[list[Request], Prefill]:
        """Open pictures, write prompts, and let `model.generate()` do all that it does before decoding."""
        family = family_of(self.base)
        inputs = prepare_inputs(
            self.processor,
            [job.images for job in jobs],
            [job.prompt for job in jobs],
            family,
            system=self.system,
            context_length=family.context_length(self.base.config),
        ).to(input_device(self.base))
        held: list[tuple[list[Request], Prefill]] = []

        def capture(
            model: Any,
            input_ids: torch.Tensor,
            logits_processor: Any,
            stopping_criteria: Any,
            generation_config: Any,
            **model_kwargs: Any,
        ) -> torch.Tensor:
            seeds = [job.seed for job in jobs]
            held.append(
                self.decoder.prepare(
                    model,
                    input_ids,
                    logits_processor,
                    stopping_criteria,
                    generation_config,
                    model_kwargs,
                    seeds,
                    [job.index for job in jobs],
                    [self._asks_again(job) for job in jobs],
                )
            )
            return input_ids

        # A wrapper's own generate() knows what else belongs to a call, such as its generation_config.
        ask = getattr(self.model, "generate", self.base.generate)
        with _hf.memory_errors():
            ask(**inputs, custom_generate=capture, **self.options)
        requests, prefill = held[0]
        for request, job in zip(requests, jobs, strict=True):
            request.name = job
        return requests, prefill


def _job(i: int, request: Any, seed: int) -> Job:
    """A request of `generate_many()` in one form. Raises TypeError, ValueError."""
    if isinstance(request, Mapping):
        unknown = sorted(set(request) - {"images", "prompt", "seed"})
        if unknown:
            raise ValueError(
                f"request {i} has {', '.join(map(repr, unknown))}: known are images, prompt, seed"
            )
        (own,) = _one_a_request(request.get("seed", seed), 1)
        return Job(i, request.get("images"), request.get("prompt", _DESCRIBE), own)
    if isinstance(request, tuple) and len(request) == 2:
        return Job(i, request[0], request[1], seed)
    raise TypeError(
        f"request {i} is a {type(request).__name__}: give a mapping with images and prompt, or a pair of them"
    )


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
