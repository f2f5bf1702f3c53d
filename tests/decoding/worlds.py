"""Tiny random models that love to open and close phrases, and pictures to show them."""

import numpy as np
import torch
from PIL import Image

from experiments.tiny_models import build_tiny_llava, build_tiny_qwen
from reverse.tokens import add_tokens, find_token_ids

BUILDERS = {"llava": build_tiny_llava, "qwen": build_tiny_qwen}


def talkative(family: str, dtype=torch.float64, seed: int = 0, rejects_rarely: bool = False):
    """A random model whose head is scaled so that tags and ends of text come up often.

    With `rejects_rarely` it never generates `</UN>` and closes fewer phrases.
    """
    model, processor = BUILDERS[family](seed=seed)
    add_tokens(model, processor, seed=seed)
    tags = find_token_ids(processor.tokenizer)
    head = model.get_output_embeddings().weight
    generator = torch.Generator().manual_seed(seed)
    eos = model.generation_config.eos_token_id
    eos = eos[0] if isinstance(eos, list) else eos
    with torch.no_grad():
        for name, weight in model.named_parameters():  # small initial weights only echo the last token
            if "language_model.layers" in name and weight.dim() == 2:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.25)
        head.copy_(torch.randn(head.shape, generator=generator) * 0.5)
        head[list(tags)] *= 5.0
        if rejects_rarely:
            head[tags.un] = 0.0
            head[tags.span] *= 0.5
            head[tags.cn] *= 0.45
            head[eos] *= 0.5
        head[eos] *= 2.0
        others = [i for i in processor.tokenizer.all_special_ids if i != eos]
        head[others] *= 0.1
    return model.to(dtype).eval(), processor


def picture(seed: int, size=(112, 112)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
