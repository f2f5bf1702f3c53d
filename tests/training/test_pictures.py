"""Pictures and batches: fast equals slow, together equals alone."""

import numpy as np
import pytest
import torch

from reverse.training.data.collator import Collator
from reverse.training.data.encoding import Encoder, TrainingItem, Turn
from reverse.training.data.labels import IGNORE
from reverse.training.data.picture_encoding import PictureEncoder


def noise(seed, height=112, width=112):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(112, 112), (112, 150), (90, 70)])
def test_tensors_are_the_processors_own(tiny_any, size):
    """Pictures trained on would differ from pictures decoded from."""
    _, processor = tiny_any
    pictures = PictureEncoder(processor)
    for seed in (1, 2):
        inputs, tokens = pictures(noise(seed, *size))
        expected = processor(images=[noise(seed, *size)], text=[processor.image_token], return_tensors="pt")
        for name, tensor in inputs.items():
            assert torch.equal(tensor, expected[name]), name
        assert tokens == int((expected["input_ids"] == processor.image_token_id).sum())


def items(processor):
    encoder, pictures = Encoder(processor), PictureEncoder(processor)
    texts = [["A dog.", "There is <SPAN>a cat</UN>"], ["A long answer about many things on a table."]]
    made = []
    for seed, answers in enumerate(texts):
        inputs, tokens = pictures(noise(seed, 112, 112 + 56 * seed))
        rows = tuple(encoder.row([Turn("What is there?", answer)], tokens) for answer in answers)
        made.append(TrainingItem(rows, inputs))
    made.append(TrainingItem((encoder.row([Turn("Hello?", "Hi.")], None),), None))
    return made


def losses(model, batch):
    """Cross entropy of each row, (rows,)."""
    with torch.no_grad():
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1]
    targets = batch["labels"][:, 1:]
    each = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none"
    )
    return each.view(targets.shape).sum(dim=1) / (targets != IGNORE).sum(dim=1)


def test_a_batch_equals_its_rows_alone(tiny_any):
    """Padding without an attention mask, or a picture given to the wrong row, would change a row's loss."""
    model, processor = tiny_any
    collate = Collator(processor)
    made = items(processor)
    together = losses(model, collate(made))
    alone = [
        losses(model, collate([TrainingItem((row,), item.picture)])) for item in made for row in item.rows
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_padding_is_no_target(tiny_llava):
    """The padding id would be trained."""
    batch = Collator(tiny_llava[1], multiple=32)(items(tiny_llava[1]))
    assert batch["input_ids"].shape[1] % 32 == 0
    padding = batch["input_ids"] == tiny_llava[1].tokenizer.pad_token_id
    assert padding.any() and (batch["labels"][padding] == IGNORE).all()
    kept = batch["labels"] != IGNORE
    assert torch.equal(batch["labels"][kept], batch["input_ids"][kept])


def test_pixels_alone_are_cast(tiny_qwen):
    """`image_grid_thw` in bfloat16 would count patches wrongly."""
    batch = Collator(tiny_qwen[1], pixel_dtype=torch.bfloat16)(items(tiny_qwen[1]))
    assert batch["pixel_values"].dtype == torch.bfloat16
    assert batch["image_grid_thw"].dtype == torch.int64
    assert batch["image_grid_thw"].shape == (3, 3)
