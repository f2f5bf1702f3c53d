"""What the same tokens buy without going back: best of n answers, and decoding against a noised picture.

    results = best_of_n(model, processor, pictures, PROMPT, n=2, by="likelihood")
    results = contrastive(model, processor, pictures, PROMPT)

Best of n: the greedy answer and n - 1 sampled ones, of which one is kept, by the mean log-probability of its
tokens or by the mean p(`</CN>`) of its phrases; both are read in one further forward over each answer, whose
tokens are not counted as generated (which favours the baseline). Contrastive decoding is VCD (Leng et al.,
CVPR 2024, arXiv:2311.16922): what a noised picture makes likely as well is pushed down, among the tokens that
are likely at all; it takes two forwards a token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from reverse.api import generate
from reverse.decoding.backends.hf.compat import cache_argument
from reverse.decoding.result import Phrase, Result, Usage
from reverse.decoding.text.answer_text import read_answer
from reverse.decoding.verifier import NO_TAGS
from reverse.models import family_of, prepare_inputs
from reverse.tokens import find_token_ids
from reverse.tokens.spans import TokenIds

__all__ = ["NoisedPicture", "best_of_n", "candidates_for", "contrastive", "judge"]

By = Literal["likelihood", "confidence"]
_STEPS = 1000  # of the diffusion that noise is counted in


def candidates_for(tokens_ratio: float) -> int:
    """How many answers cost at least what resampling did: tokens made for each kept, rounded up."""
    return max(2, math.ceil(round(tokens_ratio, 6)))


def best_of_n(
    model: Any,
    processor: Any,
    images: Sequence[Any],
    prompt: str,
    *,
    n: int,
    by: By | Sequence[By] = "likelihood",
    temperature: float = 0.7,
    max_new_tokens: int = 128,
    batch_size: int = 16,
    seed: int = 0,
) -> Any:
    """One answer a picture, the best of n; `usage.discarded` counts the tokens of the others.

    With several `by` the candidates are made once, and a list of results is returned for each by its name.
    Raises ValueError for n below 1 or an unknown `by`.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}: 2 is the least that has a choice")
    rules = [by] if isinstance(by, str) else list(by)
    for rule in rules:
        if rule not in ("likelihood", "confidence"):
            raise ValueError(f"by must be likelihood or confidence, got {rule!r}")
    drawn = []  # (n, pictures)
    for k in range(n):
        drawn.append(
            generate(
                model,
                processor,
                images=list(images),
                prompt=[prompt] * len(images),
                mode="plain",
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                do_sample=k > 0,
                temperature=temperature if k > 0 else 1.0,
                seed=[_seed(seed, k, i) for i in range(len(images))],
            )
        )
    chosen: dict[str, list[Result]] = {rule: [] for rule in rules}
    for i, image in enumerate(images):
        candidates = [answers[i] for answers in drawn]
        judged = judge(model, processor, image, prompt, candidates)
        made = sum(c.usage.kept + c.usage.discarded for c in candidates)
        spent = sum(c.usage.seconds for c in candidates)
        forwards = sum(c.usage.forwards for c in candidates) + 1
        for rule in rules:
            best = candidates[int(np.argmax(judged[rule]))]  # the first of equals: the greedy one
            usage = Usage(best.usage.kept, made - best.usage.kept, forwards, spent)
            chosen[rule].append(replace(best, usage=usage))
    return chosen[rules[0]] if isinstance(by, str) else chosen


@torch.no_grad()
def judge(
    model: Any, processor: Any, image: Any, prompt: str, answers: Sequence[Result]
) -> dict[str, np.ndarray]:
    """Mean log-probability of the answers' tokens, and mean p(`</CN>`) of their phrases, (answers,) each.

    Read by one forward over the prompt with each answer behind it, in float32. An answer without tokens is
    the least likely one, one without phrases the least confident. Confidence is left out where the vocabulary
    has no tags.
    """
    inputs = prepare_inputs(processor, [image] * len(answers), [prompt] * len(answers), family_of(model))
    inputs = inputs.to(model.device)
    length = inputs["input_ids"].shape[1]
    width = max(1, *(len(a.ids) for a in answers))
    ids = torch.zeros((len(answers), width), dtype=torch.long)
    there = torch.zeros_like(ids)
    for row, answer in enumerate(answers):
        ids[row, : len(answer.ids)] = torch.tensor(answer.ids, dtype=torch.long)
        there[row, : len(answer.ids)] = 1
    ids, there = ids.to(model.device), there.to(model.device)
    shape = inputs["input_ids"].shape
    longer = {
        name: torch.cat([value, tail.to(value.dtype)], dim=1)
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor) and value.shape == shape
        for tail in [
            ids if name == "input_ids" else there if name == "attention_mask" else torch.zeros_like(ids)
        ]
    }
    logits = model(**{**inputs, **longer}, use_cache=False).logits[:, length - 1 : -1].float()
    logp = logits.log_softmax(dim=-1)
    each = logp.gather(-1, ids[..., None])[..., 0]
    count = there.sum(dim=1)
    total = (each * there).sum(dim=1)
    found = {"likelihood": torch.where(count > 0, total / count.clamp(min=1), -torch.inf).cpu().numpy()}
    try:
        tags = find_token_ids(processor)
    except ValueError:
        return found
    closing = ((ids == tags.cn) | (ids == tags.un)) & (there == 1)
    closed = closing.sum(dim=1)
    sure = (logp[..., tags.cn].exp() * closing).sum(dim=1)
    found["confidence"] = torch.where(closed > 0, sure / closed.clamp(min=1), -torch.inf).cpu().numpy()
    return found


class NoisedPicture(LogitsProcessor):
    """VCD's rule: (1 + alpha) l(picture) - alpha l(noised picture), among tokens with p >= beta max p.

    Keeps a second stream with a cache of its own, so it is for one `model.generate()` with prompts of one
    length, and for nothing that goes back. Raises ValueError for padded prompts.
    """

    def __init__(
        self,
        model: Any,
        inputs: Any,
        *,
        alpha: float = 1.0,
        beta: float = 0.1,
        step: int = 500,
        seed: int = 0,
    ):
        if not bool((inputs["attention_mask"] == 1).all()):
            raise ValueError("the prompts have different lengths: contrast those of one length at a time")
        if not 0 < beta <= 1 or alpha < 0 or not 0 <= step < _STEPS:
            raise ValueError(
                f"alpha, beta and step must be at least 0, in (0, 1] and in 0..{_STEPS - 1}, got "
                f"{alpha}, {beta}, {step}: 1, 0.1 and 500 are the published ones"
            )
        self.model, self.alpha, self.beta = model, alpha, beta
        self.inputs = {**inputs, "pixel_values": noised(inputs["pixel_values"], step, seed)}
        self.cache: Any = None

    @torch.no_grad()
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.cache is None:
            output = self.model(**self.inputs, use_cache=True)
        else:
            # no mask: without padding there is none, and Qwen2.5-VL would count positions from its beginning
            output = self.model(
                input_ids=input_ids[:, -1:],
                use_cache=True,
                **{cache_argument(self.model): self.cache},
            )
        self.cache = output[cache_argument(self.model)]
        scores = scores.float()
        other = output.logits[:, -1].float()
        unlikely = scores < scores.max(dim=-1, keepdim=True).values + math.log(self.beta)
        return ((1 + self.alpha) * scores - self.alpha * other).masked_fill(unlikely, -torch.inf)


def noised(pixels: torch.Tensor, step: int, seed: int) -> torch.Tensor:
    """Pixels after `step` of 1000 steps of forward diffusion with sigmoid betas (VCD, §3.1)."""
    ramp = torch.sigmoid(torch.linspace(-6, 6, _STEPS, dtype=torch.float64))
    left = torch.cumprod(1 - (1e-5 + ramp * (5e-3 - 1e-5)), dim=0)[step].item()
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed)).to(pixels)
    return math.sqrt(left) * pixels + math.sqrt(1 - left) * noise


def contrastive(
    model: Any,
    processor: Any,
    images: Sequence[Any],
    prompt: str,
    *,
    alpha: float = 1.0,
    beta: float = 0.1,
    step: int = 500,
    max_new_tokens: int = 128,
    batch_size: int = 16,
    seed: int = 0,
) -> list[Result]:
    """Greedy answers against noised pictures; p of phrases is not read, `forwards` counts both streams."""
    import time

    results: list[Result] = []
    for start in range(0, len(images), batch_size):
        batch = list(images[start : start + batch_size])
        inputs = prepare_inputs(processor, batch, [prompt] * len(batch), family_of(model)).to(model.device)
        contrast = NoisedPicture(model, inputs, alpha=alpha, beta=beta, step=step, seed=seed + start)
        began = time.perf_counter()
        sequences = model.generate(
            **inputs,
            logits_processor=LogitsProcessorList([contrast]),
            do_sample=False,
            max_new_tokens=max_new_tokens,
        )
        seconds = (time.perf_counter() - began) / len(batch)
        for ids in sequences[:, inputs["input_ids"].shape[1] :].tolist():
            results.append(_result(processor, model, ids, seconds))
    return results


def _result(processor: Any, model: Any, ids: list[int], seconds: float) -> Result:
    stops = model.generation_config.eos_token_id
    ends = {stops} if isinstance(stops, int) else set(stops or ())
    end = next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))
    ids = ids[:end]
    finished = bool(ids) and ids[-1] in ends
    read = read_answer(
        lambda some: processor.tokenizer.decode(
            some, skip_special_tokens=True, clean_up_tokenization_spaces=False
        ),
        ids[:-1] if finished else ids,
        _tags(processor.tokenizer),
    )
    phrases = tuple(
        Phrase(p.text, p.start, p.end, None, "accepted" if p.confident else "unresolved")
        for p in read.phrases
    )
    usage = Usage(len(ids), 0, 2 * len(ids), seconds)
    reason = "eos" if finished else "length"
    return Result(read.text, read.tagged, phrases, None, reason, (), usage, tuple(ids))


def _tags(tokenizer: Any) -> TokenIds:
    """The three ids; of a model without the tokens, ids that never come up."""
    try:
        return find_token_ids(tokenizer)
    except ValueError:
        return NO_TAGS


def _seed(seed: int, candidate: int, picture: int) -> int:
    """Apart for every candidate of every picture; the same in any batch."""
    return int(np.random.SeedSequence([seed & 0xFFFFFFFF, candidate, picture]).generate_state(1)[0])
