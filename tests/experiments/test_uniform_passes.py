"""Passes over equal pictures, against the forward of transformers."""

import numpy as np
import pytest
import torch

from experiments.uniform_passes import UniformPass
from reverse.training.data.collator import Collator
from reverse.training.data.encoding import Encoder, TrainingItem, Turn
from reverse.training.data.labels import IGNORE
from reverse.training.data.picture_encoding import PictureEncoder

SIZES = {
    "llava": {"vision": {"num_hidden_layers": 3}},
    "qwen": {"patch_size": 8, "vision": {"num_hidden_layers": 3, "fullatt_block_indexes": [1]}},
}


@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_loss_and_gradients_are_those_of_the_models_own_forward(tiny, name):
    """What is trained here would not be the model that decodes."""
    model, processor = tiny(name, dtype=torch.float64, **SIZES[name])
    encoder, pictures = Encoder(processor), PictureEncoder(processor)
    noise = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)
    made = [pictures(each) for each in noise]
    count = made[0][1]
    texts = [["A dog.", "There is <SPAN>a cat</UN>"], ["A long answer about many things."]]
    items = [
        TrainingItem(tuple(encoder.row([Turn("What is there?", text)], count) for text in answers), inputs)
        for answers, (inputs, _) in zip(texts, made, strict=True)
    ]
    items.append(TrainingItem((encoder.row([Turn("Hello?", "Hi.")], None),), None))
    batch = Collator(processor)(items)
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    # The mean over all targets, as the model itself has it.
    expected = model(**batch).loss
    expected.backward()
    wanted = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    ids, labels = batch["input_ids"], batch["labels"]
    first = int((ids[0] == processor.image_token_id).nonzero()[0])
    passes = UniformPass(model, processor, side=112, first=first, count=count)
    features = passes.see(torch.from_numpy(noise))
    nexts = torch.full_like(labels, IGNORE)
    nexts[:, :-1] = labels[:, 1:]
    at = (nexts.flatten() != IGNORE).nonzero().flatten()
    loss = passes.loss(features, ids, torch.tensor([0, 0, 1, -1]), at, nexts.flatten()[at])
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for key, parameter in model.named_parameters():
        if key in wanted:
            # Both turn by rotary positions and normalise in float32 here and there.
            apart = (parameter.grad - wanted[key]).norm() / (wanted[key].norm() + 1e-9)
            assert apart < 1e-4, (key, apart)


def test_pictures_of_another_size_are_refused(tiny_any):
    """A picture that the processor would resize would be trained on as it is."""
    model, processor = tiny_any
    with pytest.raises(ValueError, match="90 pixels"):
        UniformPass(model, processor, side=90, first=1, count=4)
