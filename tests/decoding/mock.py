"""A mock language model whose logits are a known function of the ids before, and a decoder for its ids.

Vocabulary: 0 "<s>", 1 "<SPAN>", 2 "</CN>", 3 "</UN>", 4 "</s>", 5 ".", 6 and up words " a", " b", …
"""

import hashlib
from types import SimpleNamespace

import numpy as np
import torch

from reverse.decoding.asks import Node
from reverse.decoding.config import ResamplingConfig
from reverse.decoding.policies import make_policy_factory
from reverse.decoding.policies.plain_policy import PlainPolicy
from reverse.decoding.scheduling.branch import AnswerRules, Branch
from reverse.decoding.verifier import Verifier
from reverse.tokens.spans import TokenIds
from tests.decoding.oracle import NaiveBackend, drive

BOS, SPAN, CN, UN, EOS, DOT = range(6)
TAGS = TokenIds(SPAN, CN, UN)
SIZE = 16
TEXTS = ["<s>", "<SPAN>", "</CN>", "</UN>", "</s>", "."] + [f" {chr(97 + i)}" for i in range(SIZE - 6)]


def decode(ids):
    return "".join(TEXTS[i] for i in ids if i not in (BOS, EOS))


class MockModel:
    """`logits(prefix) -> list of SIZE numbers`, called with all ids of the row."""

    def __init__(self, logits):
        self.logits = logits

    def __call__(self, input_ids, **_):
        row = torch.tensor(self.logits(input_ids[0].tolist()), dtype=torch.float32)
        return SimpleNamespace(logits=row[None, None])


def hashed(salt, scale=3.0):
    """Logits that look random and depend on every id before."""

    def logits(prefix):
        digest = hashlib.blake2b(bytes(prefix) + salt.to_bytes(8, "little"), digest_size=8).digest()
        return np.random.default_rng(int.from_bytes(digest, "little")).normal(0, scale, SIZE)

    return MockModel(logits)


def always(*cycle):
    """Says `cycle` over and over, whatever happens."""

    def logits(prefix):
        row = [-20.0] * SIZE
        row[cycle[(len(prefix) - 1) % len(cycle)]] = 20.0
        return row

    return MockModel(logits)


def branch(
    config: ResamplingConfig,
    max_new_tokens=40,
    temperature=0.0,
    seed=0,
    checking=True,
    factory=None,
    **options,
):
    """A branch behind a prompt of one id."""
    factory = factory or (make_policy_factory(config) if checking else PlainPolicy)
    verifier = Verifier(TAGS, config.score, config.check)
    rules = AnswerRules(decode, TAGS, verifier, max_new_tokens, frozenset({EOS}), seed)
    return Branch(Node((BOS,)), factory(config, TAGS, max_new_tokens, temperature), rules, **options)


def backend(model, max_sequences=64):
    return NaiveBackend(model, {"input_ids": torch.tensor([[BOS]])}, max_sequences)


def run(
    model, config: ResamplingConfig, max_new_tokens=40, temperature=0.0, seed=0, checking=True, factory=None
):
    """Decode one answer to the end; returns (Result, Policy)."""
    decoded = branch(config, max_new_tokens, temperature, seed, checking, factory)
    return drive(backend(model), [decoded])[0], decoded.policy
