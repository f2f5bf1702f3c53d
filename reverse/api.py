"""The public calls: one picture, many, as a stream.

    result = reverse.generate(model, processor, images="kitchen.png", prompt="Describe this image.")
    for result in reverse.generate_many(model, processor, ({"images": path} for path in paths)): ...
    for piece in reverse.stream(model, processor, "kitchen.png", "Describe this image."): ...

All of them share one engine for each model, so that calls of several threads are decoded side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, overload

import reverse.modes  # noqa: F401  so that modes have their names
from reverse.decoding.calls.calls import Call, Interrupted, Job
from reverse.decoding.calls.failures import FailedRequest, add_results
from reverse.decoding.calls.sinks import sinks_of
from reverse.decoding.calls.text_stream import TextStream
from reverse.decoding.config import check_seed, check_whole, resolve_config
from reverse.decoding.engine import Engine, shared_engine
from reverse.decoding.events import Event
from reverse.decoding.request import QUESTION, Request
from reverse.decoding.result import Result
from reverse.errors import RequestError, RequestTypeError

__all__ = ["Engine", "generate", "generate_many", "stream"]

_WINDOWS = 4  # of `max_sequences` requests that may be under way or waiting to be handed out in order
_ARGUMENTS = (
    "images", "prompt", "mode", "config", "max_new_tokens", "do_sample", "temperature", "batch_size",
    "system", "generation", "progress", "stream", "events", "stop_strings", "max_sequences", "ordered",
    "on_error", "backend",
)  # fmt: skip


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
    prompt: Any = QUESTION,
    *,
    seed: int | Sequence[int] | None = None,
    batch_size: int = 8,
    progress: Callable[[int], None] | None = None,
    stream: Any = None,
    events: Callable[[Event], None] | None = None,
    backend: Literal["auto", "hf", "cuda_graph"] = "auto",
    **options: Any,
) -> Result | list[Result]:
    """Answer `prompt` about `images`, taking back what the model is not sure of.

    Args:
        images: a picture (path, PIL, bytes), None, or a list with one entry a request; an entry may be a
            list of several pictures.
        prompt: a question, a chat message list, or a list of either. One prompt with a list of images asks
            it of each.
        seed: of all requests (by default the config's), or one a request; the same request and seed give
            the same answer in any batch.
        batch_size: requests decoded side by side; one that ends makes room for the next.
        progress: called with the number of requests that finished, 1 each time.
        stream: gets text that is never taken back: a `reverse.TextStream`, or an object with `put(ids)` and
            `end()` as transformers' streamers; one a request. `reverse.stream()` iterates it.
        events: called with every append and retraction, see `reverse.decoding.events`.
        backend: "hf" runs anywhere, "cuda_graph" captures steps on CUDA, "auto" takes it where it can.
        options: `mode`, a name or an object of `reverse.modes` ("resample" checks and corrects; "plain"
            decodes as `model.generate()` would and only reads p); `max_new_tokens` (256), tags included;
            `do_sample`, `temperature`; `system`, a system turn; `stop_strings`, found in the text without
            tags; `generation`, further arguments for `model.generate()`, such as `repetition_penalty`;
            `config`, or fields of `ResamplingConfig`, such as `threshold`, `hints`, `on_exhausted`.

    Returns one Result, or a list of them where `images` or `prompt` was a list.
    Raises ValueError or TypeError that name the value and the remedy; Interrupted, with the results there
    are, at Ctrl-C; torch.OutOfMemoryError where not even one request fits.
    """
    batch_size = check_whole("batch_size", batch_size, 1)
    request = _template(options)
    requests, single = _requests_of(request, images, prompt, seed)
    sinks = sinks_of(stream)
    if sinks and len(sinks) != len(requests):
        raise RequestError(f"got {len(sinks)} streams for {len(requests)} requests: give one a request")
    jobs = (_job(i, each) for i, each in enumerate(requests))
    engine = shared_engine(model, processor, backend)
    engine.check(request)
    several = len(requests) > 1
    branches = min(batch_size, len(requests))
    if not requests:
        return []
    call = Call(engine, branches, request.config.candidates, sinks=sinks, events=events, several=several)
    found: dict[int, Any] = {}
    try:
        for i, result in call.answer(jobs):
            found[i] = result
            if progress is not None:
                progress(1)
    except KeyboardInterrupt as stopped:  # while an answer was made, or while `progress` told of one
        call.close()
        raise Interrupted(found | getattr(stopped, "results", {})) from None
    except Exception as error:
        add_results(error, found)
        raise
    results = [found[i] for i in range(len(requests))]
    return results[0] if single else results


def generate_many(
    model: Any,
    processor: Any,
    requests: Iterable[Any],
    *,
    max_sequences: int = 8,
    ordered: bool = True,
    seed: int | None = None,
    events: Callable[[Event], None] | None = None,
    on_error: Literal["raise", "yield"] = "raise",
    backend: Literal["auto", "hf", "cuda_graph"] = "auto",
    **options: Any,
) -> Iterator[Any]:
    """Answer requests without end, `max_sequences` side by side, reading them as there is room.

    A request is a mapping with `images`, `prompt` and `seed`, of which any may be left out, or a pair
    (images, prompt). Other arguments are those of `generate()`.

    Yields a Result a request, in their order; with `ordered=False` pairs (index, Result) as they finish.
    In order, at most `4 * max_sequences` requests are under way or wait for an earlier one. The model rests
    while nobody waits for the next answer. Closing the iterator frees all that it holds.

    A request that cannot be answered (no such picture, a prompt longer than the context, logits that are not
    finite) does not end the others: with `on_error="yield"` a FailedRequest comes in its place, and the
    iteration goes on. With "raise" those before it are finished, those after it given up, and then its error
    is raised, as by `generate()`, with the number of the request. What the model itself raises ends the
    iteration in either case, after what was finished by then. Answers that were finished and could not be
    handed out in order are in the error's `results`, by index; in those of `Interrupted` too.
    """
    most = check_whole("max_sequences", max_sequences, 1)
    if not isinstance(requests, Iterable):
        raise RequestTypeError(
            f"requests must be an iterable of mappings with images and prompt, got {requests!r:.80}"
        )
    if on_error not in ("raise", "yield"):
        raise RequestError(f"on_error must be one of raise, yield, got {on_error!r:.80}")
    request = _template(options)
    (first_seed,) = _check_seeds(request.seed if seed is None else seed, 1)
    engine = shared_engine(model, processor, backend)
    engine.check(request)
    request = replace(request, seed=first_seed)
    jobs = (_read_job(i, given, request) for i, given in enumerate(requests))
    call = Call(engine, most, request.config.candidates, events=events)
    then: Literal["later", "yield"] = "later" if on_error == "raise" else "yield"
    if not ordered:
        return call.answer(jobs, None, then)
    return _in_order(call.answer(jobs, _WINDOWS * most, then))


def stream(
    model: Any,
    processor: Any,
    images: Any = None,
    prompt: Any = QUESTION,
    *,
    events: bool = False,
    seed: int | Sequence[int] | None = None,
    batch_size: int = 8,
    backend: Literal["auto", "hf", "cuda_graph"] = "auto",
    **options: Any,
) -> TextStream:
    """`generate()` as an iterator over pieces of text that will not be taken back.

    With `events=True` it yields every `Append`, `Retract`, `Commit` and `Finish` instead, and `prompt` and
    `images` may be lists. Other arguments are those of `generate()`. Arguments that are wrong are refused at
    once; an error of decoding is raised where the stream is read. Decoding begins with the first piece asked
    for.
    """
    batch_size = check_whole("batch_size", batch_size, 1)
    request = _template(options)
    requests, single = _requests_of(request, images, prompt, seed)
    if not events and len(requests) > 1:
        raise RequestError(
            f"got {len(requests)} requests, whose texts would be mixed: stream one, or use events=True"
        )
    engine = shared_engine(model, processor, backend)
    engine.check(request)
    return TextStream.of_requests(engine, requests, min(batch_size, len(requests)), events, single)


# ---------------------------------------------------------------------- arguments
def _template(options: dict[str, Any]) -> Request:
    """The request that all of a call are made from. Raises TypeError, ValueError."""
    own = ("system", "mode", "max_new_tokens", "do_sample", "temperature", "stop_strings", "generation")
    chosen = {name: options.pop(name) for name in own if name in options}
    config = options.pop("config", None)
    return Request(config=resolve_config(config, options, _ARGUMENTS), **chosen)


def _requests_of(request: Request, images: Any, prompt: Any, seed: Any) -> tuple[list[Request], bool]:
    """A request for each picture and prompt, made from one, and whether the caller asked for one answer."""
    pictures, prompts, single = _pair_up(images, prompt)
    seeds = _check_seeds(request.seed if seed is None else seed, len(prompts))
    if len(seeds) != len(prompts):
        raise RequestError(
            f"got {len(seeds)} seeds for {len(prompts)} requests: give one a request, or a number"
        )
    places = zip(pictures, prompts, seeds, strict=True)
    return [replace(request, images=i, prompt=p, seed=s) for i, p, s in places], single


def _job(index: int, request: Request, given: Any = None) -> Job:
    return Job(index, lambda call, job: call.submit(job, request), given)


def _read_job(index: int, given: Any, request: Request) -> Job | FailedRequest:
    """A request of `generate_many()` in one form."""
    try:
        if isinstance(given, Mapping):
            unknown = sorted(map(str, set(given) - {"images", "prompt", "seed"}))
            if unknown:
                raise RequestError(
                    f"request {index} has {', '.join(map(repr, unknown)):.200}: known are images, prompt, "
                    "seed"
                )
            (own,) = _check_seeds(given.get("seed", request.seed), 1)
            images, prompt = given.get("images"), given.get("prompt", QUESTION)
            return _job(index, replace(request, images=images, prompt=prompt, seed=own), given)
        if isinstance(given, tuple) and len(given) == 2:
            return _job(index, replace(request, images=given[0], prompt=given[1]), given)
        raise RequestTypeError(
            f"request {index} is a {type(given).__name__}: give a mapping with images and prompt, or a pair "
            "of them"
        )
    except (TypeError, ValueError) as error:
        return FailedRequest(index, given, error)


def _pair_up(images: Any, prompt: Any) -> tuple[list[Any], list[Any], bool]:
    """Images and prompts as lists of equal length, and whether the caller asked for one answer."""
    if not isinstance(prompt, (str, list, tuple)):
        raise RequestTypeError(
            f"prompt must be a text, a chat (a list of messages) or a list of either, got "
            f"{type(prompt).__name__}: try 'Describe this image.'"
        )
    one_prompt = isinstance(prompt, str) or (len(prompt) > 0 and isinstance(prompt[0], dict))
    prompts = [prompt] if one_prompt else list(prompt)
    if one_prompt and isinstance(images, (list, tuple)) and not images:
        raise RequestError(
            f"images holds no picture for the prompt, got {images!r}: give None to ask without a picture"
        )
    if not prompts and not isinstance(images, (list, tuple)):
        raise RequestError(
            f"prompt holds no question, got {prompt!r}: try 'Describe this image.' (an empty batch is "
            "images=[] with prompt=[])"
        )
    if not isinstance(images, (list, tuple)):
        return [images] * len(prompts), prompts, one_prompt
    if one_prompt:
        return list(images), prompts * len(images), False
    if len(images) != len(prompts):
        raise RequestError(
            f"got {len(images)} images for {len(prompts)} prompts: give one entry a prompt "
            "(a list where a prompt has several pictures, None where it has none)"
        )
    return list(images), prompts, False


def _check_seeds(seed: Any, requests: int) -> list[int]:
    try:
        if isinstance(seed, (list, tuple)):
            return [check_seed(s) for s in seed]
        return [check_seed(seed)] * requests
    except TypeError:
        raise RequestTypeError(
            f"seed must be a whole number, or a list of them with one a request, got {seed!r}: try 0"
        ) from None


# ---------------------------------------------------------------------- order
def _in_order(found: Iterator[tuple[int, Result | FailedRequest]]) -> Iterator[Result | FailedRequest]:
    waiting: dict[int, Result | FailedRequest] = {}
    following = 0
    try:
        for i, result in found:
            waiting[i] = result
            while following in waiting:
                following += 1
                yield waiting.pop(following - 1)
    except Interrupted as stopped:
        raise Interrupted(_answers(waiting) | stopped.results) from None
    except Exception as error:
        add_results(error, _answers(waiting))
        raise


def _answers(waiting: dict[int, Result | FailedRequest]) -> dict[int, Result]:
    return {i: result for i, result in waiting.items() if isinstance(result, Result)}
