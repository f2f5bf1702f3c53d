"""The slow and obvious way: every id from a forward of the whole row, images included, without a cache.

It shares the policy and the loop with the library and nothing of the engine: no slots, no masks, no
positions of our own, batch 1.
"""

import torch

from reverse.decoding.backend import Run
from reverse.decoding.config import ResamplingConfig
from reverse.decoding.loop import Request, resample
from reverse.decoding.policy import Policy
from reverse.decoding.rewriting import HintWriter
from reverse.decoding.sampling import uniform
from reverse.decoding.verifier import Verifier
from reverse.tokens import token_ids


class NaiveBackend:
    def __init__(self, model, inputs, tags, eos):
        self.model, self.tags, self.eos = model, tags, eos
        self.extra = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
        self.ids = inputs["input_ids"][0].tolist()
        self.types = inputs["mm_token_type_ids"][0].tolist() if "mm_token_type_ids" in inputs else None

    def rewind(self, row, ids):
        self.ids = list(ids)

    def start(self, row, draw):
        self.draw = draw

    def finish(self, row):
        self.draw = None

    def extend(self):
        if self.draw is None:
            return []
        run, ps, inside, end = [], [], False, None
        while end is None:
            logits = self._logits(self.ids + run)
            ps.append(float(torch.softmax(logits, dim=-1)[self.tags.un]))
            for token in self.tags:
                if (token == self.tags.span) == inside:
                    logits[token] = -torch.inf
            if self.draw.temperature == 0:
                token = int(logits.argmax())
            else:
                weights = torch.softmax(logits.double() / self.draw.temperature, dim=-1)
                noise = uniform(self.draw.seed, self.draw.position + len(run), self.draw.attempt)
                token = int((weights.cumsum(0) <= noise).sum())
            run.append(token)
            inside = inside or token == self.tags.span
            if token in (self.tags.cn, self.tags.un):
                end = "phrase"
            elif token in self.eos:
                end = "eos"
            elif len(run) == self.draw.room:
                end = "length"
        self.draw = None
        return [(0, Run(tuple(run), tuple(ps), end, len(run)))]

    @torch.no_grad()
    def _logits(self, ids):
        extra = dict(self.extra)
        if self.types is not None:
            extra["mm_token_type_ids"] = torch.tensor([self.types + [0] * (len(ids) - len(self.types))])
        ids = torch.tensor([ids])
        out = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **extra)
        return out.logits[0, -1].float()


def naive_generate(
    model, processor, inputs, config: ResamplingConfig, max_new_tokens, temperature=0.0, seed=0
):
    """One row through the naive backend; `inputs` a batch of one without padding."""
    tokenizer = processor.tokenizer
    tags = token_ids(tokenizer)
    eos = model.generation_config.eos_token_id
    eos = frozenset(eos if isinstance(eos, list) else [eos])
    backend = NaiveBackend(model, inputs, tags, eos)
    hints = HintWriter(processor, config.hints) if config.hints else None
    policy = Policy(config, tags, max_new_tokens, temperature)
    request = Request(inputs["input_ids"][0].tolist(), policy, seed, hints)

    def decode(ids):
        return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    return resample(backend, [request], decode, Verifier(tags), eos)[0]
