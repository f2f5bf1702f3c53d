"""The slow and obvious way: every id from a forward of the whole row, images included, without a cache.

It shares the policy and the loop with the library and nothing of the engine: no slots, no masks, no
positions of our own, batch 1.
"""

import torch

from reverse.decoding.backend import Prefill, Run
from reverse.decoding.config import ResamplingConfig
from reverse.decoding.loop import Loop, Request
from reverse.decoding.policy import Policy
from reverse.decoding.rewriting import HintWriter
from reverse.decoding.sampling import uniform
from reverse.decoding.sources import Batch
from reverse.decoding.verifier import Verifier
from reverse.tokens import token_ids


class NaiveBackend:
    process = None  # a caller's logits processors

    def __init__(self, model, inputs, tags, eos, slots=1):
        self.model, self.tags, self.eos, self.slots = model, tags, eos, slots
        self.extra = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
        self.types = inputs["mm_token_type_ids"][0].tolist() if "mm_token_type_ids" in inputs else None
        self.texts = {}  # row -> ids
        self.draws = {}  # row -> draws not decoded yet
        self.runs = {}  # row -> ids of the candidates decoded last
        self.admitted = 0
        self.unused = 0  # ids of candidates that were dropped

    def free(self):
        return self.slots - len(self.texts)

    def admit(self, batch):
        rows = range(self.admitted, self.admitted + len(batch.input_ids))
        self.admitted = rows.stop
        self.texts.update(zip(rows, batch.input_ids.tolist(), strict=True))
        return list(rows)

    def rewind(self, row, ids):
        self.texts[row] = list(ids)

    def start(self, row, draw):
        self.fork(row, [draw])

    def fork(self, row, draws):
        self.draws[row] = list(draws)

    def adopt(self, row, candidate):
        self.unused += sum(len(run) for run in self.runs[row][candidate + 1 :])
        self.texts[row] = self.texts[row] + list(self.runs[row][candidate])
        return 0  # all of them have ended

    def finish(self, row):
        self.texts.pop(row, None)
        self.draws.pop(row, None)

    def close(self):
        self.texts, self.draws = {}, {}

    def extend(self):
        started, self.draws = self.draws, {}
        ended = []
        for row, draws in started.items():
            runs = [self._decode(self.texts[row], i, draw) for i, draw in enumerate(draws)]
            self.runs[row] = [run.ids for run in runs]
            ended += [(row, i, run) for i, run in enumerate(runs)]
        return ended

    def _decode(self, text, candidate, draw):
        run, ps, inside, end = [], [], False, None
        while end is None:
            logits = self._logits(text + run)
            ps.append(float(torch.softmax(logits, dim=-1)[self.tags.un]))
            for token in self.tags:
                if (token == self.tags.span) == inside:
                    logits[token] = -torch.inf
            if self.process is not None:
                logits = self.process(text + run, logits)
            if draw.temperature == 0:
                token = int(logits.argmax())
            else:
                weights = torch.softmax(logits.double() / draw.temperature, dim=-1)
                noise = uniform(draw.seed, draw.position + len(run), draw.attempt)
                token = int((weights.cumsum(0) <= noise).sum())
            run.append(token)
            if draw.watch is not None:
                draw.watch(candidate, token, ps[-1])
            inside = inside or token == self.tags.span
            if token in (self.tags.cn, self.tags.un):
                end = "phrase"
            elif token in self.eos:
                end = "eos"
            elif draw.stops is not None and draw.stops(run):
                end = "stop"
            elif len(run) == draw.room:
                end = "length"
        return Run(tuple(run), tuple(ps), end, len(run))

    @torch.no_grad()
    def _logits(self, ids):
        extra = dict(self.extra)
        if self.types is not None:
            extra["mm_token_type_ids"] = torch.tensor([self.types + [0] * (len(ids) - len(self.types))])
        ids = torch.tensor([ids])
        out = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **extra)
        return out.logits[0, -1].float()


def resample(backend, requests, decode, verifier, eos=frozenset()):
    """Requests of equal prompt lengths through the loop; results in their order."""
    prompts = torch.tensor([list(request.prompt) for request in requests])
    loop = Loop(backend, Batch(requests, Prefill(prompts, eos=eos)), decode, verifier)
    found = {}
    while not loop.done:
        found.update((request.name, result) for request, result in loop.step())
    return [found[i] for i in range(len(requests))]


def naive_generate(
    model, processor, inputs, config: ResamplingConfig, max_new_tokens, temperature=0.0, seed=0, process=None
):
    """One row through the naive backend; `inputs` a batch of one without padding.

    `process` maps (ids of the answer, masked logits) to logits; it needs a config without hints.
    """
    tokenizer = processor.tokenizer
    tags = token_ids(tokenizer)
    eos = model.generation_config.eos_token_id
    eos = frozenset(eos if isinstance(eos, list) else [eos])
    backend = NaiveBackend(model, inputs, tags, eos)
    if process is not None:
        length = inputs["input_ids"].shape[1]
        backend.process = lambda ids, logits: process(ids[length:], logits)
    hints = HintWriter(processor, config.hints) if config.hints else None
    policy = Policy(config, tags, max_new_tokens, temperature)
    request = Request(inputs["input_ids"][0].tolist(), policy, seed, hints)

    def decode(ids):
        return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    return resample(backend, [request], decode, Verifier(tags), eos)[0]
