"""`generate()` and `generate_many()`: retrospective resampling on transformers models.

result = reverse.generate(model, processor, images="kitchen.png", prompt="Describe this image.")
for result in reverse.generate_many(model, processor, ({"images": path} for path in paths), slots=16):
    print(result.text)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, overload

from reverse.decoding.calls import AHEAD, MODES, QUESTION, GenerationCall, check_seeds, make_job, prepare_call
from reverse.decoding.config import ResamplingConfig, check_whole
from reverse.decoding.events import Event
from reverse.decoding.failures import FailedRequest, add_results
from reverse.decoding.retrospective import Interrupted, Retrospective, retrospective
from reverse.decoding.trace import Result

__all__ = ["MODES", "Interrupted", "Retrospective", "generate", "generate_many", "retrospective"]


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
    call = prepare_call(
        model,
        processor,
        images,
        prompt,
        mode=mode,
        config=config,
        max_new_tokens=max_new_tokens,
        do_sample=do_sample,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
        system=system,
        generation=generation,
        progress=progress,
        stream=stream,
        events=events,
        stop_strings=stop_strings,
        **settings,
    )
    return call()


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
    on_error: Literal["raise", "yield"] = "raise",
    **settings: Any,
) -> Iterator[Any]:
    """Answer requests without end through `slots` rows, reading them only as rows become free.

    A request is a mapping with `images`, `prompt` and `seed`, of which any may be left out, or a pair
    (images, prompt). Other arguments are those of `generate()`.

    Yields a Result a request, in their order; with `ordered=False` pairs (index, Result) as they finish.
    In order, at most `4 * slots` requests are under way or wait for an earlier one. `requests` is read while
    the model is free for others. Closing the iterator frees all that it holds.

    A request that cannot be answered (no such picture, a prompt longer than the context, logits that are not
    finite) does not end the others: with `on_error="yield"` a FailedRequest comes in its place, and the
    iteration goes on. With "raise" no request is taken after it, those under way are finished, and then its
    error is raised, as by `generate()`, with the number of the request. What the model itself raises ends the
    iteration in either case, after what was finished by then. Answers that were finished and could not be
    handed out in order are in the error's `results`, by index; in those of `Interrupted` too.
    """
    slots = check_whole("slots", slots, 1)
    if not isinstance(requests, Iterable):
        raise TypeError(
            f"requests must be an iterable of mappings with images and prompt, got {requests!r:.80}"
        )
    if on_error not in ("raise", "yield"):
        raise ValueError(f"on_error must be one of raise, yield, got {on_error!r:.80}")
    asking = GenerationCall(
        model,
        processor,
        mode=mode,
        config=config,
        max_new_tokens=max_new_tokens,
        do_sample=do_sample,
        temperature=temperature,
        system=system,
        generation=generation,
        events=events,
        stop_strings=stop_strings,
        **settings,
    )
    (first_seed,) = check_seeds(asking.config.seed if seed is None else seed, 1)
    jobs = (make_job(i, request, first_seed) for i, request in enumerate(requests))
    then: Literal["later", "yield"] = "later" if on_error == "raise" else "yield"
    if not ordered:
        return asking.run(jobs, slots, None, then)
    return _in_order(asking.run(jobs, slots, AHEAD * slots, then))


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
