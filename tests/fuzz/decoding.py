"""Decoding with scripted adversaries: whatever a model says, decoding ends and tells the truth about it.

The mock's vocabulary spells tags and control tokens in ordinary pieces too (`<`, `SPAN`, `>`, `</`, `UN`):
what is spelled is text, and no phrase. Its next logits are a fixed function of the ids before.
"""

from __future__ import annotations

import hashlib
import math
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from reverse.decoding.asks import Node
from reverse.decoding.config import ResamplingConfig
from reverse.decoding.policies import make_policy_factory
from reverse.decoding.policies.plain_policy import PlainPolicy
from reverse.decoding.scheduling.branch import AnswerRules, Branch
from reverse.decoding.verifier import Verifier
from reverse.tokens import spans
from reverse.tokens.spans import TokenIds
from tests.decoding.oracle import NaiveBackend, drive
from tests.fuzz.running import REFUSALS, Target, check_refusal, expect

BOS, SPAN, CN, UN, EOS, DOT = range(6)
TAGS = TokenIds(SPAN, CN, UN)
TEXTS = [
    "<s>",
    "<SPAN>",
    "</CN>",
    "</UN>",
    "</s>",
    ".",
    " a",
    " b",
    "c",
    "<",
    "SPAN",
    ">",
    "</",
    "CN",
    "UN",
    "<image>",
    " ",
    "\n",
    "狗",
    "3.5",
    "<SPAN",
    "N>",
]
SIZE = len(TEXTS)
MARKS = ("<SPAN>", "</CN>", "</UN>")


def decode(ids: Any) -> str:
    return "".join(TEXTS[i] for i in ids if i not in (BOS, EOS))


def script(kind: str, salt: int, scale: float, words: tuple[int, ...], odd: float) -> Any:
    """A model: "cycle" says `words` over and over, "noise" anything, "mixed" both; `odd` is a logit."""

    def logits(prefix: list[int]) -> np.ndarray:
        digest = hashlib.blake2b(bytes(prefix) + salt.to_bytes(8, "little"), digest_size=8).digest()
        rng = np.random.default_rng(int.from_bytes(digest, "little"))
        row = rng.normal(0, scale, SIZE) if kind != "cycle" else np.full(SIZE, -20.0)
        if kind != "noise":
            row[words[(len(prefix) - 1) % len(words)]] += 20.0 if kind == "cycle" else 2 * scale
        if odd and rng.random() < 0.05:
            row[rng.integers(SIZE)] = odd
        return row

    def call(input_ids: torch.Tensor, **_: Any) -> Any:
        row = torch.tensor(logits(input_ids[0].tolist()), dtype=torch.float32)
        return SimpleNamespace(logits=row[None, None])

    return call


def make(rng: Random) -> dict[str, Any]:
    settings = {
        "threshold": rng.choice((0.02, 0.2, 0.6, 1.0)),
        "local_attempts": rng.randint(1, 4),
        "max_attempts": rng.choice((0, 1, 5, 12)),
        "temperature_step": rng.choice((0.0, 0.1, 0.5)),
        "commit": rng.choice(("phrase", "sentence", "answer")),
        "on_exhausted": rng.choice(("best", "drop")),
        "check": rng.choice(("closing", "closing", "every_token")),
        "policy": rng.choice(("resample", "paper")),
        "candidates": rng.choice((1, 1, 2, 3)),
        "hints": rng.choice((0, 2, 5)),
        "max_extra_tokens": rng.choice((None, None, 0, 3, 12)),
    }
    return {
        "settings": settings,
        "kind": rng.choice(("cycle", "noise", "mixed", "mixed")),
        "salt": rng.getrandbits(32),
        "scale": rng.choice((0.5, 3.0, 8.0)),
        "words": tuple(rng.choices(range(1, SIZE), k=rng.randint(1, 9))),
        "odd": rng.choice((0.0, 0.0, 0.0, 0.0, math.nan, math.inf, -math.inf, 1e30)),
        "room": rng.randint(1, 40),
        "temperature": rng.choice((0.0, 0.7)),
        "checking": rng.random() < 0.9,
    }


def check(case: dict[str, Any]) -> str:
    config = ResamplingConfig(**case["settings"])
    model = script(case["kind"], case["salt"], case["scale"], case["words"], case["odd"])
    backend = NaiveBackend(model, {"input_ids": torch.tensor([[BOS]])})
    factory = make_policy_factory(config) if case["checking"] else PlainPolicy
    policy = factory(config, TAGS, case["room"], case["temperature"])
    verifier = Verifier(TAGS, config.score, config.check)
    rules = AnswerRules(decode, TAGS, verifier, case["room"], frozenset({EOS}), case["salt"] % 97)
    try:
        (result,) = drive(backend, [Branch(Node((BOS,)), policy, rules)])
    except REFUSALS as error:
        expect(case["odd"] and not abs(case["odd"]) < 1e29, "finite logits are refused", error)
        return check_refusal(error)
    judge(case, config, policy, result)
    return "read"


def judge(case: dict[str, Any], config: ResamplingConfig, policy: Any, result: Any) -> None:
    ids, phrases = list(result.ids), result.phrases
    expect(len(ids) <= case["room"], "more tokens than there is room", len(ids))
    tries = len(policy.answer.attempts)
    expect(tries <= config.max_attempts, "more attempts than allowed", tries)
    expect(
        all(result.text[p.start : p.end] == p.text for p in phrases), "a phrase is not where it says", phrases
    )
    expect(result.usage.kept == len(ids), "kept", result.usage)
    if not case["checking"]:
        expect(result.resolved is None, "resolved without checking", result.resolved)
        return
    expect(UN not in ids, "a </UN> stays", ids)
    opened = closed = 0
    for token in ids:
        expect(not (token == SPAN and opened) and not (token == CN and not opened), "tags are malformed", ids)
        opened = token == SPAN or (opened and token != CN)
        closed += token == CN
    expect(
        len(phrases) == closed, "phrases are those of the ids, and no spelled ones", phrases, result.tagged
    )
    # One that the model left open, and that was closed in the end, has none, and is unresolved.
    read = all(math.isfinite(p.p_un) for p in phrases if p.p_un is not None)
    known = all(p.p_un is not None for p in phrases if p.status == "accepted")
    expect(read and known, "an accepted phrase without p", phrases)
    if result.resolved:
        expect(not opened, "resolved with an open phrase", ids)
        expect(all(p.p_un <= config.threshold for p in phrases), "resolved with a suspect phrase", phrases)
        expect(all(p.status == "accepted" for p in phrases), "resolved with an unresolved phrase", phrases)
    spelled = "".join(TEXTS[i] for i in ids if i not in (BOS, EOS, SPAN, CN, UN))
    expect(squeeze(result.text) == squeeze(spelled), "not the text of its tokens", result.text, spelled)
    parsed = spans.parse_tags(result.tagged)
    expect(parsed.text == result.text, "the tagged text is another", result.tagged, result.text)
    places = [(p.start, p.end) for p in phrases]
    expect([(p.start, p.end) for p in parsed.phrases] == places, "other phrases in the tagged text", phrases)


def squeeze(text: str) -> str:
    """Without blanks: a spelled tag is written with one in it, so that nobody takes it for a tag."""
    return "".join(text.split())


TARGET = Target("decoding", make, check, share=0.015, quick=60, seconds=4.0, shrinks=False)
