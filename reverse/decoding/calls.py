"""One call of `generate()` or `generate_many()`: its arguments are checked, its jobs become requests.

call = prepare_call(model, processor, images, prompt, threshold=0.003)      # nothing is read yet
results = call()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from numbers import Real
from typing import Any, Literal

import torch

from reverse.decoding import _hf
from reverse.decoding.backend import OutOfMemory, Prefill
from reverse.decoding.config import ResamplingConfig, check_seed, check_whole
from reverse.decoding.events import Event, telling
from reverse.decoding.failures import FailedRequest, add_results
from reverse.decoding.loop import Request
from reverse.decoding.retrospective import Interrupted, Retrospective, settled
from reverse.decoding.sources import Job, Stream
from reverse.decoding.trace import Result
from reverse.decoding.turns import model_lock
from reverse.models import family_of, prepare_inputs
from reverse.models.unwrapping import check_wrappers, input_device, unwrap_model

__all__ = ["AHEAD", "MODES", "QUESTION", "GenerationCall", "check_seeds", "make_job", "prepare_call"]

MODES = ("resample", "plain")
QUESTION = "Describe this image."
AHEAD = 4  # windows of `slots` requests that may be under way or waiting to be handed out in order
_ARGUMENTS = (
    "images", "prompt", "mode", "config", "max_new_tokens", "do_sample", "temperature", "batch_size",
    "system", "generation", "progress", "stream", "events", "stop_strings", "slots", "ordered", "on_error",
)  # fmt: skip
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


def prepare_call(
    model: Any,
    processor: Any,
    images: Any = None,
    prompt: Any = QUESTION,
    *,
    seed: int | Sequence[int] | None = None,
    batch_size: int = 8,
    progress: Callable[[int], None] | None = None,
    **options: Any,
) -> Callable[[], Result | list[Result]]:
    """Check the arguments of `generate()`, as far as no picture and no weight is needed; returns the call."""
    batch_size = check_whole("batch_size", batch_size, 1)
    asking = GenerationCall(model, processor, **options)
    pictures, prompts, single = _requests(images, prompt)
    seeds = check_seeds(asking.config.seed if seed is None else seed, len(prompts))
    if len(seeds) != len(prompts):
        raise ValueError(
            f"got {len(seeds)} seeds for {len(prompts)} requests: give one a request, or a number"
        )
    sinks = asking.decoder.sinks
    if sinks and len(sinks) != len(prompts):
        raise ValueError(f"got {len(sinks)} streams for {len(prompts)} requests: give one a request")

    def call() -> Result | list[Result]:
        jobs = map(Job, range(len(prompts)), pictures, prompts, seeds)
        found: dict[int, Any] = {}
        slots = min(batch_size, len(prompts))
        try:
            with telling(sinks), closing(asking.run(jobs, slots, several=len(prompts) > 1)) as answers:
                for i, result in answers:
                    found[i] = result
                    if progress is not None:
                        progress(1)
        except KeyboardInterrupt as stopped:  # while an answer was made, or while `progress` told of one
            raise Interrupted(found | getattr(stopped, "results", {})) from None
        except Exception as error:
            add_results(error, found)
            raise
        results = [found[i] for i in range(len(prompts))]
        return results[0] if single else results

    return call


class GenerationCall:
    """One call of `generate()` or `generate_many()`: its settings, and how its jobs become requests."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        mode: str = "resample",
        config: ResamplingConfig | None = None,
        max_new_tokens: int = 256,
        do_sample: bool = False,
        temperature: float = 1.0,
        system: str | None = None,
        generation: dict[str, Any] | None = None,
        stream: Any = None,
        events: Callable[[Event], None] | None = None,
        stop_strings: str | Sequence[str] | None = None,
        **settings: Any,
    ):
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        max_new_tokens = check_whole("max_new_tokens", max_new_tokens, 1)
        _check_sampling(do_sample, temperature)
        if generation is not None and not isinstance(generation, Mapping):
            raise TypeError(
                f"generation must be a mapping, got {generation!r:.80}: try {{'repetition_penalty': 1.2}}"
            )
        ours = sorted(set(generation or {}) & _OWN_OPTIONS)
        if ours:
            raise ValueError(
                f"generation holds {', '.join(ours)}, which is not for model.generate() to decide here: use "
                "the arguments max_new_tokens, do_sample, temperature, stop_strings, images, prompt and the "
                "settings top_k, top_p"
            )
        check_wrappers(model)
        self.model, self.base, self.processor, self.system = model, unwrap_model(model), processor, system
        if not hasattr(self.base, "generate"):
            raise TypeError(
                f"{type(self.base).__name__} has no head to generate with: give the "
                f"{family_of(self.base).model_class} that reverse.load() returns"
            )
        self.config = settled(config, settings, _ARGUMENTS)
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
        self,
        jobs: Iterator[Job | FailedRequest],
        slots: int,
        window: int | None = None,
        on_error: Literal["now", "later", "yield"] = "now",
        several: bool = True,
    ) -> Generator[tuple[int, Result | FailedRequest], None, None]:
        """Answer jobs as they come; yields (index, Result) as they finish.

        `on_error`, for a job that cannot be answered: as in `Stream`. Whatever else the model raises comes
        after the answers that were finished.
        """
        source = Stream(jobs, self.prepare, window, on_error, several)
        loop = self.decoder.loop(self.base, source, slots)
        ready: list[tuple[Request, Result]] = []
        fault: Exception | None = None
        try:
            while fault is None:
                try:
                    ready = loop.step()
                    for request, why in loop.failed:
                        source.fail(request.name, why)
                except Exception as why:
                    fault, ready = why, [*ready, *loop.finished]
                loop.failed, failures, source.failures = [], source.failures, []
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
                for failure in failures:
                    yield failure.index, failure
                if loop.done and not failures:
                    break
            if (error := fault or source.error) is not None:
                add_results(error, {})
                raise error
        except KeyboardInterrupt:
            left = [(request.name, result) for request, result in [*ready, *loop.finished]]
            whole = {j.index: r for j, r in left if r.text.strip() or not self._asks_again(j)}
            raise Interrupted(whole) from None
        except OutOfMemory as why:
            raise torch.OutOfMemoryError(str(why)) from None
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


def _check_sampling(do_sample: Any, temperature: Any) -> None:
    """Refuse a temperature that no sampling would heed. Raises TypeError, ValueError."""
    if not isinstance(do_sample, bool):
        raise TypeError(f"do_sample must be True or False, got {do_sample!r:.80}")
    if not isinstance(temperature, Real) or isinstance(temperature, bool):
        raise TypeError(f"temperature must be a number, got {temperature!r:.80}: try 0.7 with do_sample=True")
    if not 0 <= float(temperature) < math.inf:
        raise ValueError(f"temperature must be a finite number of at least 0, got {temperature}: try 0.7")
    if do_sample and temperature == 0:
        raise ValueError("temperature must be above 0 with do_sample=True, got 0: leave do_sample out")
    if not do_sample and temperature not in (0.0, 1.0):
        raise ValueError(
            f"temperature={temperature} is that of sampling and would do nothing: add do_sample=True, or "
            "leave it out"
        )


def make_job(i: int, request: Any, seed: int) -> Job | FailedRequest:
    """A request of `generate_many()` in one form."""
    try:
        if isinstance(request, Mapping):
            unknown = sorted(map(str, set(request) - {"images", "prompt", "seed"}))
            if unknown:
                raise ValueError(
                    f"request {i} has {', '.join(map(repr, unknown)):.200}: known are images, prompt, seed"
                )
            (own,) = check_seeds(request.get("seed", seed), 1)
            return Job(i, request.get("images"), request.get("prompt", QUESTION), own, request=request)
        if isinstance(request, tuple) and len(request) == 2:
            return Job(i, request[0], request[1], seed, request=request)
        raise TypeError(
            f"request {i} is a {type(request).__name__}: give a mapping with images and prompt, or a pair of "
            "them"
        )
    except (TypeError, ValueError) as error:
        return FailedRequest(i, request, error)


def _requests(images: Any, prompt: Any) -> tuple[list[Any], list[Any], bool]:
    """Images and prompts as lists of equal length, and whether the caller asked for one answer."""
    if not isinstance(prompt, (str, list, tuple)):
        raise TypeError(
            f"prompt must be a text, a chat (a list of messages) or a list of either, got "
            f"{type(prompt).__name__}: try 'Describe this image.'"
        )
    one_prompt = isinstance(prompt, str) or (len(prompt) > 0 and isinstance(prompt[0], dict))
    prompts = [prompt] if one_prompt else list(prompt)
    if one_prompt and isinstance(images, (list, tuple)) and not images:
        raise ValueError(
            f"images holds no picture for the prompt, got {images!r}: give None to ask without a picture"
        )
    if not prompts and not isinstance(images, (list, tuple)):
        raise ValueError(
            f"prompt holds no question, got {prompt!r}: try 'Describe this image.' (an empty batch is "
            "images=[] with prompt=[])"
        )
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


def check_seeds(seed: Any, requests: int) -> list[int]:
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
