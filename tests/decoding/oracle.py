"""The slow and obvious way: every id from a forward of the whole text, images included, without a cache.

It shares the policy and the scheduler with the library and nothing of a backend: no slots, no masks, no
positions of our own, batch 1.
"""

import copy
from contextlib import contextmanager
from dataclasses import replace

import torch

from reverse.decoding.asks import Node
from reverse.decoding.backends.protocol import Capabilities, RunningSegment, StepOutput
from reverse.decoding.config import ResamplingConfig
from reverse.decoding.policies import make_policy_factory
from reverse.decoding.sampling import uniform
from reverse.decoding.scheduling.branch import AnswerRules, Branch
from reverse.decoding.scheduling.scheduler import Scheduler
from reverse.decoding.text.codec import TextCodec
from reverse.decoding.text.hints import HintWriter
from reverse.decoding.verifier import Verifier
from reverse.models import family_of


class NaiveBackend:
    def __init__(self, model, inputs, max_sequences=64):
        self.model = model
        self.capabilities = Capabilities(max_sequences, logits_processors=True, likelihood=False)
        self.extra = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask")}
        self.types = inputs["mm_token_type_ids"][0].tolist() if "mm_token_type_ids" in inputs else None
        self.texts = {}  # sequence -> ids
        self.segments = {}  # sequence -> the segment that it decodes
        self.added = 0
        self.known = {}  # text -> logits: a text that comes again after a rewind is not computed again
        self.seen = []  # what the tower says of the pictures, which are always the same

    def reserve(self, sequences):
        self.capabilities = replace(self.capabilities, max_sequences=sequences)

    def encode(self, pictures):
        raise AssertionError("the pictures stand in the inputs")

    def add(self, prompts):
        return [self._add(prompt.ids) for prompt in prompts]

    def _add(self, ids):
        self.added += 1
        self.texts[self.added] = list(ids)
        return self.added

    def split(self, sequence, n):
        return [self._add(self.texts[sequence]) for _ in range(n)]

    def set_tokens(self, sequence, ids):
        self.texts[sequence] = list(ids)
        self.segments.pop(sequence, None)

    def start(self, sequence, params):
        self.segments[sequence] = RunningSegment(params)

    def score(self, sequences, kind, begins=None):
        raise NotImplementedError

    def release(self, sequence):
        self.texts.pop(sequence, None)
        self.segments.pop(sequence, None)

    def reset(self):
        self.texts, self.segments = {}, {}

    def step(self):
        return [self._step(sequence, segment) for sequence, segment in list(self.segments.items())]

    def _step(self, sequence, segment):
        params, tags = segment.params, segment.params.tags
        logits = self._logits(sequence)
        p = float(torch.softmax(logits, dim=-1)[tags.un]) if tags.un >= 0 else 0.0
        if params.merges_closing_tags and tags.un >= 0:
            logits[tags.cn] = logits[[tags.cn, tags.un]].exp().sum().log()
            logits[tags.un] = -torch.inf
        if params.masks_tags:
            for token in tags:
                if (token == tags.span) == segment.is_inside:
                    logits[token] = -torch.inf
        if params.process is not None:
            logits = params.process(segment.ids, logits[None])[0]
        if params.temperature == 0:
            token = int(logits.argmax())
        else:
            scores = logits.double() / params.temperature
            if 0 < params.top_k < len(scores):
                scores[scores < scores.topk(params.top_k).values[-1]] = -torch.inf
            weights = torch.softmax(scores, dim=-1)
            at = params.position + len(segment.ids)
            noise = uniform(params.seed, at, params.attempt, params.path)
            token = int((weights.cumsum(0) <= noise).sum())
        self.texts[sequence].append(token)
        output = segment.append(token, p)
        if output is not None:
            del self.segments[sequence]
        return StepOutput(sequence, token, p, output)

    @torch.no_grad()
    def _logits(self, sequence):
        text = tuple(self.texts[sequence])
        if "pixel_values" not in self.extra:  # the models of scripts may say something else the next time
            return self._forward(list(text))
        if text not in self.known:
            with looking_once(self.model, self.seen):
                self.known[text] = self._forward(list(text))
        return self.known[text].clone()

    def _forward(self, ids):
        extra = dict(self.extra)
        if self.types is not None:
            extra["mm_token_type_ids"] = torch.tensor([self.types + [0] * (len(ids) - len(self.types))])
        ids = torch.tensor([ids])
        out = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **extra)
        return out.logits[0, -1].float()


@contextmanager
def looking_once(model, seen):
    """Let the vision tower return what it has `seen` in its first forward. Only for forwards of one input."""
    tower = family_of(model).vision_tower(model)
    look = tower.forward

    def remember(*args, **kwargs):
        if not seen:
            seen.append(look(*args, **kwargs))
        return copy.copy(seen[0])  # some models write into it

    tower.forward = remember
    try:
        yield
    finally:
        del tower.forward


def drive(backend, branches, limit=64):
    """Decode branches to their end; returns their results, in their order."""
    scheduler = Scheduler(backend, limit)
    for branch in branches:
        scheduler.add(branch)
    while scheduler.has_work:
        for branch in scheduler.step():
            if branch.error is not None:
                raise branch.error
    return [branch.result for branch in branches]


def naive_generate(
    model, processor, inputs, config: ResamplingConfig, max_new_tokens, temperature=0.0, seed=0, process=None
):
    """One prompt through the naive backend; `inputs` a batch of one without padding.

    `process` maps (ids of the answer, masked logits) to logits.
    """
    codec = TextCodec(processor)
    eos = model.generation_config.eos_token_id
    prompt = inputs["input_ids"][0].tolist()
    rules = AnswerRules(
        codec.decode,
        codec.tags,
        Verifier(codec.tags, config.score, config.check),
        max_new_tokens,
        frozenset(eos if isinstance(eos, list) else [eos]),
        seed,
        hints=HintWriter(processor, config.hints) if config.hints else None,
        process=None if process is None else lambda ids, scores: process(ids, scores[0])[None],
    )
    hint_at = None if rules.hints is None else rules.hints.insert_at(prompt)
    policy = make_policy_factory(config)(config, codec.tags, max_new_tokens, temperature)
    branch = Branch(Node(tuple(prompt), hint_at=hint_at), policy, rules)
    return drive(NaiveBackend(model, inputs), [branch])[0]
