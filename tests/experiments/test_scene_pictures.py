"""Pictures of scenes: encoded faster, and equal to what the processor makes of them."""

import numpy as np
import pytest
import torch

from experiments.scene_dataset import ScenePictures


def noise(seed, height=112, width=112):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(112, 112), (112, 150), (90, 70)])
def test_tensors_are_the_processors_own(tiny_any, size):
    """Pictures trained on would differ from pictures decoded from."""
    _, processor = tiny_any
    pictures = ScenePictures(processor)
    for seed in (1, 2):
        inputs, tokens = pictures(noise(seed, *size))
        expected = processor(images=[noise(seed, *size)], text=[processor.image_token], return_tensors="pt")
        for name, tensor in inputs.items():
            assert torch.equal(tensor, expected[name]), name
        assert tokens == int((expected["input_ids"] == processor.image_token_id).sum())


def test_scene_size_takes_the_fast_way(tiny_llava):
    """Throughput: the image processor takes ten times as long."""
    pictures = ScenePictures(tiny_llava[1])
    pictures(noise(0))
    assert pictures._tables[112, 112] is not None


def test_wrong_pictures_are_refused(tiny_llava):
    """Floats between 0 and 1 would become black pictures."""
    with pytest.raises(ValueError, match="uint8"):
        ScenePictures(tiny_llava[1])(noise(0) / 255)
