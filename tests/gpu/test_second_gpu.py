"""A model on the second GPU, which is not the current one."""

import pytest
import torch

import reverse
from tests.decoding.worlds import picture

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]


@pytest.mark.parametrize("backend", ["cuda_graph", "hf"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen"])
def test_the_second_gpu_answers_as_the_first(name, dtype, backend):
    """Without this, `device="cuda:1"` fails in the kernels, or computes on the first GPU."""
    answers = []
    for device in ("cuda:0", "cuda:1"):
        model, processor = reverse.load(name, device=device, dtype=dtype)
        images = [picture(seed) for seed in range(3)]
        results = reverse.generate(model, processor, images, max_new_tokens=40, backend=backend)
        answers.append([result.ids for result in results])
    assert answers[0] == answers[1]
    assert torch.cuda.current_device() == 0
