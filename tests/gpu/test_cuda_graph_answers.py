"""Whole answers on captured steps on a CUDA device, against those of the `hf` backend."""

import pytest
import torch

import reverse
from reverse.decoding.backends import auto
from tests.decoding.worlds import picture, talkative

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("family", ["llava", "qwen"])
@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"candidates": 3}])
def test_graphs_say_what_the_hf_backend_says(family, options):
    """A captured step would read what stood there when it was captured."""
    model, processor = talkative(family)
    model = model.cuda()
    pictures = [picture(i, size) for i, size in enumerate([(112, 112), (140, 84), (84, 168), (112, 56)])]
    settings = {"threshold": 0.3, "max_new_tokens": 40, "local_attempts": 3, "max_attempts": 10}
    found = [
        reverse.generate(model, processor, pictures, backend=backend, batch_size=3, **settings | options)
        for backend in ("hf", "cuda_graph", "cuda_graph")
    ]
    assert [r.ids for r in found[0]] == [r.ids for r in found[1]] == [r.ids for r in found[2]]
    assert any(r.trace for r in found[0])


def test_auto_takes_captured_steps_for_bfloat16():
    """The fast backend would never be used, or its log line come for every call."""
    model, processor = talkative("llava", torch.bfloat16)
    model = model.cuda()
    reverse.generate(model, processor, picture(0), threshold=0.3, max_new_tokens=8)
    assert model in auto._idle
    auto.release(model)
