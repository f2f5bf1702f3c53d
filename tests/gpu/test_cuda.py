"""The engine on a CUDA device against the same oracle as on a CPU."""

import pytest
import torch

from reverse.custom_generate import Retrospective
from reverse.decoding.config import ResamplingConfig
from tests.decoding.oracle import naive_generate
from tests.decoding.test_backend import ROOM, inputs_for, world

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("family", ["llava", "qwen"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_cuda_equals_the_cpu_oracle(family, temperature):
    """Slots, masks or noise would depend on the device."""
    settings = ResamplingConfig(threshold=0.1, local_attempts=3, max_attempts=14, commit="answer")
    rows = [0, 1, 2, 3, 4]
    model, processor = world(family)
    expected = [
        naive_generate(model, processor, inputs_for(family, [row]), settings, ROOM, temperature, 100 + row)
        for row in rows
    ]
    options = {"do_sample": True, "temperature": temperature} if temperature else {}
    decoder = Retrospective(processor, settings, [100 + row for row in rows])
    inputs = {k: v.cuda() for k, v in inputs_for(family, rows).items()}
    try:
        model.cuda().generate(**inputs, custom_generate=decoder, max_new_tokens=ROOM, **options)
    finally:
        model.cpu()
    assert [r.ids for r in decoder.results] == [r.ids for r in expected]
    assert sum(len(r.trace) for r in decoder.results) > 3
