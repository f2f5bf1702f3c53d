"""Policies decide after every segment of an answer whether to continue, rewind or finish."""

from __future__ import annotations

from functools import partial
from typing import Any

from reverse.decoding.config import ResamplingConfig
from reverse.decoding.policies.policy import PolicyFactory
from reverse.decoding.policies.released_policy import FORMAT_ERROR, ReleasedPolicy
from reverse.decoding.policies.resample_policy import ResamplePolicy
from reverse.errors import RequestError

__all__ = ["make_policy_factory"]


def make_policy_factory(config: ResamplingConfig, codec: Any = None) -> PolicyFactory:
    """Return the factory of the policy that a configuration names. `"released"` needs a TextCodec."""
    if config.policy == "paper":
        return partial(ResamplePolicy, sentence_rewind_points=False)
    if config.policy == "resample":
        return ResamplePolicy
    if codec is None:
        raise RequestError("policy='released' reads the text of ids: give a codec")
    return partial(
        ReleasedPolicy,
        full_stop=codec.full_stop,
        decode=codec.decode,
        format_error=tuple(codec.tokenizer.encode(FORMAT_ERROR, add_special_tokens=False)),
    )
