"""Prompts for the transformers backend, a driver for it, and the next token computed without a cache."""

import functools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_outputs import BaseModelOutputWithPooling

from reverse.decoding.backends.hf.hf_backend import HfBackend
from reverse.decoding.backends.protocol import Picture, Prompt, SegmentParams
from reverse.decoding.sampling import choose, mask_tags, uniform
from reverse.models import family_of
from reverse.tokens import find_token_ids
from tests.decoding.worlds import picture, talkative

FAMILIES = ["llava", "qwen"]
QUESTIONS = ["Describe this image.", "What is on the left, and how many dogs are there?", "Is there a cat?"]
SIZES = [(112, 112), (140, 84), (84, 168), (112, 56)]

world = functools.cache(talkative)


@functools.cache
def question(family, row, pictures=1):
    """Ids of a prompt and the processor's tensors of its pictures."""
    _, processor = world(family)
    content = [{"type": "image"}] * pictures + [{"type": "text", "text": QUESTIONS[row % len(QUESTIONS)]}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    images = [picture(row + 10 * i, SIZES[(row + i) % len(SIZES)]) for i in range(pictures)]
    inputs = processor(text=[text], images=images or None, return_tensors="pt")
    if pictures == 0:
        return inputs["input_ids"][0].tolist(), ()
    pixels = inputs["pixel_values"].double()
    if "image_grid_thw" not in inputs:
        return inputs["input_ids"][0].tolist(), tuple(
            Picture({"pixel_values": each[None]}) for each in pixels
        )
    grids = inputs["image_grid_thw"]
    parts = zip(pixels.split(grids.prod(dim=1).tolist()), grids.split(1), strict=True)
    return inputs["input_ids"][0].tolist(), tuple(
        Picture({"pixel_values": each, "image_grid_thw": grid}) for each, grid in parts
    )


def backend_of(family, max_sequences=16):
    return HfBackend(world(family)[0], max_sequences=max_sequences)


def add(backend, family, *rows, **settings):
    """Sequences of questions; a row is a number, or (number, how many pictures)."""
    asked = [question(family, *(row if isinstance(row, tuple) else (row,))) for row in rows]
    encoded = iter(backend.encode([each for _, pictures in asked for each in pictures]))
    prompts = [Prompt(ids, [next(encoded) for _ in pictures], **settings) for ids, pictures in asked]
    return backend.add(prompts)


def params(family, max_tokens=12, **settings):
    model, processor = world(family)
    eos = model.generation_config.eos_token_id
    settings = {
        "tags": find_token_ids(processor.tokenizer),
        "eos": frozenset([eos] if isinstance(eos, int) else eos),
    } | settings
    return SegmentParams(max_tokens, **settings)


def decode(backend, wanted):
    """Decode {sequence: params} until all segments have ended; returns {sequence: segment}."""
    for sequence, each in wanted.items():
        backend.start(sequence, each)
    ended = {}
    while outputs := backend.step():
        for output in outputs:
            if output.error is not None:
                raise output.error
            if output.segment is not None:
                ended[output.sequence] = output.segment
    return ended


class Oracle:
    """What a model says after any ids: one forward of all of them, pictures included, without a cache."""

    def __init__(self, family):
        self.family, (self.model, _) = family, world(family)
        self.image_token = family_of(self.model).image_token_id(self.model.config)

    @torch.no_grad()
    def logits(self, ids, pictures, n):
        """Logits (n, vocabulary) after the last `n` ids, and after as many more before each."""
        ids, extra = torch.tensor([ids]), {}
        if pictures:
            features = [features_of(self.family, each) for each in pictures]
            extra["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=features)}
        if self.family == "qwen" and pictures:
            extra["mm_token_type_ids"] = (ids == self.image_token).int()
            extra["image_grid_thw"] = torch.cat([each.tensors["image_grid_thw"] for each in pictures])
        out = self.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, logits_to_keep=n, **extra
        )
        return out.logits[0]

    def follow(self, ids, pictures, params, said):
        """(token, p, log-probability) that a fresh sequence chooses at every step of a segment it says."""
        tags, chosen = params.tags, []
        for i, logits in enumerate(self.logits([*ids, *said[:-1]], pictures, len(said))):
            p = logits.softmax(-1)[tags.un]
            if params.score == "pair":
                p = (logits[tags.un] - logits[tags.cn]).sigmoid()
            scores = logits[None].float()
            if params.merges_closing_tags:  # a model whose `</UN>` is a second `</CN>`
                both = scores[:, [tags.cn, tags.un]].exp().sum(dim=-1).log()
                scores[:, tags.cn], scores[:, tags.un] = both, -torch.inf
            said_of = scores[0]
            if params.masks_tags:
                scores = mask_tags(scores, [tags.span in said[:i]], tags)
            noise = uniform(params.seed, params.position + i, params.attempt, params.path)
            token = int(choose(scores, [params.temperature], [noise], params.top_k, params.top_p))
            chosen.append((token, float(p), float(said_of.log_softmax(-1)[token])))
        return chosen

    def check(self, segment, ids, pictures, params):
        """Assert that a segment is the one that a fresh sequence of these ids and pictures decodes."""
        tokens, ps, _ = zip(*self.follow(ids, pictures, params, segment.ids), strict=True)
        assert segment.ids == tokens and segment.ps == pytest.approx(ps, abs=2e-6)
        ends = [token in params.tags.closing or token in params.eos for token in tokens]
        assert not any(ends[:-1]) and (ends[-1] or len(tokens) == params.max_tokens)


@functools.cache
def oracle_of(family):
    return Oracle(family)


@functools.cache
@torch.no_grad()
def features_of(family, picture):
    """Features of one picture, encoded by itself."""
    model, _ = world(family)
    (features,) = model.model.get_image_features(**picture.tensors, return_dict=True).pooler_output
    return features


class FailAt(TorchDispatchMode):
    """Raises torch's out-of-memory error at the n-th operation that may allocate, and after it."""

    def __init__(self, n):
        super().__init__()
        self.left = n

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.left -= not func.is_view
        if self.left < 0 and not func.is_view:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return func(*args, **(kwargs or {}))
