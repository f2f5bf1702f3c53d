"""The public calls: answer one request or a batch, any number of requests, or a stream of text.

    result = reverse.generate(model, processor, images="kitchen.png", prompt="Describe this image.")
    for result in reverse.generate_many(model, processor, ({"images": path} for path in paths)): ...
    for piece in reverse.stream(model, processor, "kitchen.png", "Describe this image."): ...

They share one engine per model, so calls of several threads are decoded side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, overload

import reverse.modes  # noqa: F401  so that names of modes are known
from reverse.background_threads import close_at_exit
from reverse.decoding.calls.call import Call, Interrupted, Job
from reverse.decoding.calls.failures import FailedRequest, add_results
from reverse.decoding.calls.sinks import make_sinks
from reverse.decoding.calls.text_stream import TextStream
from reverse.decoding.config import check_seed, check_whole_number, resolve_config
from reverse.decoding.engine import Engine
from reverse.decoding.events import Event
from reverse.decoding.request import QUESTION, Request
from reverse.decoding.result import Result
from reverse.decoding.shared_engines import find_shared_engine
from reverse.errors import RequestError, RequestTypeError

__all__ = ["Engine", "generate", "generate_many", "stream"]

_WINDOWS = 4  # times `max_sequences` requests may be under way or wait for an earlier one
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
    """Answer `prompt` about `images` and take back phrases that the model is not sure of.

    Args:
        images: a picture (path, PIL, bytes), None, or a list with one entry per request; an entry may be a
            list of several pictures.
        prompt: a question, a chat message list, or a list of either. One prompt with a list of images is
            asked about each of them.
        seed: random seed of all requests (default: the config's), or a list with one per request.
        batch_size: requests decoded side by side. A new one starts when one ends.
        progress: called with the number of requests that finished, 1 each time.
        stream: receives final text: a `reverse.TextStream` or a streamer of transformers, one per request.
        events: called with every append and retraction, see `reverse.decoding.events`.
        backend: "hf" runs anywhere, "cuda_graph" captures steps on CUDA, "auto" chooses between them.
        options: `mode`, a name or an object of `reverse.modes` ("resample" checks and corrects; "plain"
            decodes as `model.generate()` would and only reads p); `max_new_tokens` (256), tags included;
            `do_sample`, `temperature`; `system`, a system turn; `stop_strings`, found in the text without
            tags; `generation`, further arguments for `model.generate()`, such as `repetition_penalty`;
            `config`, or fields of `ResamplingConfig`, such as `threshold`, `hints`, `on_exhausted`.

    Returns one Result, or a list if `images` or `prompt` was a list.
    Raises RequestError that names the value and the remedy; Interrupted with the finished results at Ctrl-C;
    torch.OutOfMemoryError if not even one request fits.
    """
    batch_size = check_whole_number("batch_size", batch_size, 1)
    request = _make_template(options)
    requests, single = _make_requests(request, images, prompt, seed)
    sinks = make_sinks(stream)
    if sinks and len(sinks) != len(requests):
        raise RequestError(f"got {len(sinks)} streams for {len(requests)} requests: give one per request")
    jobs = (Job(i, each) for i, each in enumerate(requests))
    engine = find_shared_engine(model, processor, backend)
    engine.check(request)
    branches = min(batch_size, len(requests))
    if not requests:
        return []
    call = Call(
        engine,
        branches,
        request.config.candidates,
        sinks=sinks,
        events=events,
        names_requests=len(requests) > 1,
    )
    found: dict[int, Any] = {}
    try:
        for i, result in call.answer(jobs):
            found[i] = result
            if progress is not None:
                progress(1)
    except KeyboardInterrupt as stopped:  # also one that came inside of `progress`
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
    """Answer an iterable of requests, `max_sequences` side by side. Requests are read when there is room.

    A request is a pair (images, prompt) or a mapping with `images`, `prompt`, `seed` and `mode`, all
    optional. Other arguments are those of `generate()`.

    Yields one Result per request in order, or pairs (index, Result) as they finish with `ordered=False`.
    In order, at most `4 * max_sequences` requests are under way or wait for an earlier one. Nothing is
    decoded while the caller does not wait for the next result. Closing the iterator frees its memory.

    A request that fails (no such picture, a prompt longer than the context, logits that are not finite) does
    not end the others. With `on_error="yield"` a FailedRequest is yielded in its place. With "raise" the
    requests before it are finished, those after it cancelled, and its error is raised with the index of the
    request. An error of the model itself always ends the iteration. Results that were finished and not
    yielded are in the error's `results`, by index; `Interrupted` has them too.
    """
    most = check_whole_number("max_sequences", max_sequences, 1)
    if not isinstance(requests, Iterable):
        raise RequestTypeError(
            f"requests must be an iterable of mappings with images and prompt, got {requests!r:.80}"
        )
    if on_error not in ("raise", "yield"):
        raise RequestError(f"on_error must be one of raise, yield, got {on_error!r:.80}")
    request = _make_template(options)
    (first_seed,) = _check_seeds(request.seed if seed is None else seed, 1)
    engine = find_shared_engine(model, processor, backend)
    engine.check(request)
    request = replace(request, seed=first_seed)
    jobs = (_read_job(i, given, request) for i, given in enumerate(requests))
    call = Call(engine, most, request.config.candidates, events=events)
    action: Literal["later", "yield"] = "later" if on_error == "raise" else "yield"
    found = call.answer(jobs, _WINDOWS * most if ordered else None, action)
    return close_at_exit(_sort_results(found) if ordered else found)


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
    """Answer like `generate()`, as an iterator over pieces of final text.

    With `events=True` it yields every `Append`, `Retract`, `Commit` and `Complete` instead, and `prompt` and
    `images` may be lists. Other arguments are those of `generate()`. Wrong arguments are refused at once; an
    error of decoding is raised where the stream is read. Decoding begins when the first piece is read.
    """
    batch_size = check_whole_number("batch_size", batch_size, 1)
    request = _make_template(options)
    requests, single = _make_requests(request, images, prompt, seed)
    if not events and len(requests) > 1:
        raise RequestError(
            f"got {len(requests)} requests, whose texts would be mixed: stream one, or use events=True"
        )
    engine = find_shared_engine(model, processor, backend)
    engine.check(request)
    return TextStream.from_requests(engine, requests, min(batch_size, len(requests)), events, single)


# ---------------------------------------------------------------------- arguments
def _make_template(options: dict[str, Any]) -> Request:
    """Return the request that all requests of a call are copies of. Raises RequestError."""
    names = ("system", "mode", "max_new_tokens", "do_sample", "temperature", "stop_strings", "generation")
    chosen = {name: options.pop(name) for name in names if name in options}
    config = options.pop("config", None)
    return Request(config=resolve_config(config, options, _ARGUMENTS), **chosen)


def _make_requests(request: Request, images: Any, prompt: Any, seed: Any) -> tuple[list[Request], bool]:
    """Return a request per picture and prompt, and whether the caller asked for a single answer."""
    pictures, prompts, single = _pair_up(images, prompt)
    seeds = _check_seeds(request.seed if seed is None else seed, len(prompts))
    if len(seeds) != len(prompts):
        raise RequestError(
            f"got {len(seeds)} seeds for {len(prompts)} requests: give one per request, or a number"
        )
    places = zip(pictures, prompts, seeds, strict=True)
    return [replace(request, images=i, prompt=p, seed=s) for i, p, s in places], single


def _read_job(index: int, given: Any, request: Request) -> Job | FailedRequest:
    """Return the job of a request of `generate_many()`, or its failure."""
    try:
        if isinstance(given, Mapping):
            unknown = sorted(map(str, set(given) - {"images", "prompt", "seed", "mode"}))
            if unknown:
                raise RequestError(
                    f"request {index} has {', '.join(map(repr, unknown)):.200}: known are images, prompt, "
                    "seed, mode"
                )
            (own,) = _check_seeds(given.get("seed", request.seed), 1)
            images, prompt = given.get("images"), given.get("prompt", QUESTION)
            mode = given.get("mode", request.mode)
            return Job(index, replace(request, images=images, prompt=prompt, seed=own, mode=mode), given)
        if isinstance(given, tuple) and len(given) == 2:
            return Job(index, replace(request, images=given[0], prompt=given[1]), given)
        raise RequestTypeError(
            f"request {index} is a {type(given).__name__}: give a mapping with images and prompt, or a pair "
            "of them"
        )
    except (TypeError, ValueError) as error:
        return FailedRequest(index, given, error)


def _pair_up(images: Any, prompt: Any) -> tuple[list[Any], list[Any], bool]:
    """Return images and prompts as lists of equal length, and whether one answer was asked for."""
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
            f"got {len(images)} images for {len(prompts)} prompts: give one entry per prompt "
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
            f"seed must be a whole number, or a list of them with one per request, got {seed!r}: try 0"
        ) from None


# ---------------------------------------------------------------------- order
def _sort_results(
    found: Iterator[tuple[int, Result | FailedRequest]],
) -> Generator[Result | FailedRequest, None, None]:
    waiting: dict[int, Result | FailedRequest] = {}
    following = 0
    try:
        for i, result in found:
            waiting[i] = result
            while following in waiting:
                following += 1
                yield waiting.pop(following - 1)
    except Interrupted as stopped:
        raise Interrupted(_select_results(waiting) | stopped.results) from None
    except Exception as error:
        add_results(error, _select_results(waiting))
        raise


def _select_results(waiting: dict[int, Result | FailedRequest]) -> dict[int, Result]:
    return {i: result for i, result in waiting.items() if isinstance(result, Result)}
