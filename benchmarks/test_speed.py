"""Time of the policy and of the CPU path: `pytest benchmarks --benchmark-autosave`.

Nothing is asserted about time. With `--benchmark-compare --benchmark-compare-fail=mean:20%` a run fails where
it is a fifth slower than the one before.
"""

import pytest
import torch
from PIL import Image

import reverse
from reverse.data.scenes import make_scene, render_scene
from reverse.decoding.config import ResamplingConfig
from reverse.decoding.policies.policy import Finish, Segment
from reverse.decoding.policies.resample_policy import ResamplePolicy
from reverse.tokens import TokenIds

SPAN, CN, UN, EOS = 5, 6, 7, 2


def answer(rejections: int) -> int:
    """A policy's work on an answer of 40 phrases, each rejected so many times first."""
    config = ResamplingConfig(threshold=0.1, max_attempts=1000)
    policy = ResamplePolicy(config, TokenIds(SPAN, CN, UN), 1024)
    for phrase in range(40):
        for i in range(rejections):
            policy.next(Segment((20, SPAN, 30 + i, 100 + phrase, UN), "phrase", 0.9))
        policy.next(Segment((20, SPAN, 29, 100 + phrase, CN), "phrase", 0.01))
    assert isinstance(policy.next(Segment((21, EOS), "eos")), Finish)
    return len(policy.answer.ids)


@pytest.mark.parametrize("rejections", [0, 5])
def test_policy(benchmark, rejections):
    """Host time an answer beside the model's."""
    assert benchmark(answer, rejections) == 202


@pytest.fixture(scope="module")
def bundled():
    torch.set_num_threads(1)
    return reverse.load("tiny-llava")


@pytest.mark.parametrize("backend", ["hf", "cuda_graph"])
@pytest.mark.parametrize("batch", [1, 8])
def test_cpu_path(benchmark, bundled, backend, batch):
    """Eight pictures on one core."""
    pictures = [Image.fromarray(render_scene(make_scene("test", i))) for i in range(8)]
    results = benchmark.pedantic(
        reverse.generate,
        (*bundled, pictures),
        {"backend": backend, "batch_size": batch, "max_new_tokens": 96},
        rounds=3,
        warmup_rounds=1,
    )
    assert len(results) == 8
