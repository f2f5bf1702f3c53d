"""Check that a merged model answers as the adapter on its base did: one probe, before and after merging.

    before = run_probe(peft_model, family, processor)
    ...                                                   # merge
    check_merged(before, run_probe(merged, family, processor), base, dtype)

The module also unties models whose embeddings and head share a matrix of which an adapter changes only one
use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from reverse.errors import CheckpointError
from reverse.models.families import Family
from reverse.models.unwrapping import unwrap_model
from reverse.tokens.vocabulary import find_token_ids

__all__ = [
    "ProbeReport",
    "cast_parameters",
    "check_lora_bias",
    "check_merged",
    "retie_or_mark",
    "run_probe",
    "untie",
]

_IDS = 48  # tokens of the probe
_EXACT = 2e-5  # largest difference of float32, in units of the largest value where that is above 1
_ROUNDED = 0.05  # largest relative difference of half precision, whose merged matrices are rounded once more
_CERTAIN = 0.01  # above it, a difference as large as what the adapter changes is no longer rounding


@dataclass(frozen=True)
class ProbeReport:
    """The differences between the merged and the unmerged model; `str()` gives a readable sentence."""

    difference: float  # largest, of logits and picture features
    relative: float  # of the vectors' lengths
    allowed: float  # of `difference` in float32 and float64, of `relative` in half precision
    exact: bool  # float32 or float64
    effect: float  # how much the adapter changes, of the vectors' lengths

    def __str__(self) -> str:
        if self.exact:
            return f"merged and unmerged differ by at most {self.difference:.1e} (allowed {self.allowed:.1e})"
        return (
            f"merged and unmerged differ by {self.relative:.2%}, at most {self.difference:.1e} "
            f"(rounding; allowed {self.allowed:.0%}; the adapter changes {self.effect:.1%})"
        )


@torch.no_grad()
def run_probe(model: Any, family: Family, processor: Any) -> dict[str, torch.Tensor]:
    """Return logits of a fixed text with the three tokens and features of a fixed picture, float64 on the
    CPU.
    """
    tokenizer = processor.tokenizer
    banned = {*tokenizer.all_special_ids, tokenizer.convert_tokens_to_ids(family.image_token)}
    usable = sorted(set(tokenizer.get_vocab().values()) - banned)
    generator = np.random.default_rng(0)
    ids = [int(i) for i in generator.choice(usable, _IDS)]
    tags = list(find_token_ids(processor))
    ids[1::8] = [tags[i % 3] for i in range(len(ids[1::8]))]
    picture = Image.fromarray(generator.integers(0, 256, (112, 112, 3), dtype=np.uint8))
    pixels = processor.image_processor(images=[picture], return_tensors="pt")
    pixels["pixel_values"] = pixels["pixel_values"].to(model.dtype)
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
    features = unwrap_model(model).get_image_features(**pixels)
    features = getattr(features, "pooler_output", features)
    if isinstance(features, (list, tuple)):
        features = torch.cat(list(features))
    return {"logits": logits.double(), "picture features": features.double()}


def check_merged(
    unmerged: dict[str, torch.Tensor],
    merged: dict[str, torch.Tensor],
    base: dict[str, torch.Tensor],
    dtype: torch.dtype,
) -> ProbeReport:
    """Compare the probes before and after merging; `base` is the probe of the base without the adapter.

    Raises CheckpointError if they are further apart than rounding explains.
    """
    exact = dtype in (torch.float32, torch.float64)
    difference = relative = allowed = effect = 0.0
    for name, before in unmerged.items():
        apart = merged[name] - before
        largest, size = float(apart.abs().max()), max(float(before.norm()), 1e-12)
        ratio, changed = float(apart.norm()) / size, float((before - base[name]).norm()) / size
        limit = _EXACT * max(1.0, float(before.abs().max())) if exact else _ROUNDED
        if not ((largest if exact else ratio) <= limit):
            raise CheckpointError(
                _differs(name, largest, f"{ratio:.1%} of their size; allowed {limit:.2g}", exact)
            )
        # An adapter that changes less than rounding does may have survived: it is lost if the result is the
        # base's.
        moved = float((merged[name] - base[name]).norm()) / size
        lost = ratio > 0.5 * changed if changed > _ROUNDED else moved < 0.5 * changed
        if not exact and ratio > _CERTAIN and lost:
            raise CheckpointError(_differs(name, largest, f"the adapter changes {changed:.1%}", exact))
        difference, relative = max(difference, largest), max(relative, ratio)
        allowed, effect = max(allowed, limit), max(effect, changed)
    return ProbeReport(difference, relative, allowed, exact, effect)


def _differs(name: str, largest: float, how: str, exact: bool) -> str:
    again = "" if exact else "merge in float32 (--dtype float32, dtype='float32'), or "
    return (
        f"the {name} of the merged model differ from those of the adapter on its base by up to {largest:.2g} "
        f"({how}): it is not what was trained, and nothing is written; {again}decode with the adapter "
        "unmerged, which reverse.generate() takes"
    )


def check_lora_bias(wrapped: Any) -> None:
    """Raise CheckpointError for LoRA biases on layers that have none: there is nowhere to merge them."""
    for name, module in wrapped.named_modules():
        trained = any(dict(getattr(module, "lora_bias", None) or {}).values())
        if trained and getattr(getattr(module, "base_layer", None), "bias", None) is None:
            raise CheckpointError(
                "the adapter was trained with lora_bias=True, and "
                f"{name.removeprefix('base_model.model.')} has no bias to merge it into: decode with "
                "the adapter unmerged, which reverse.generate() takes, or train with lora_bias=False"
            )


def untie(wrapped: Any, shared: nn.Parameter | None) -> None:
    """Give the head a copy of the matrix that it shares with the embeddings, if an adapter is on either.

    Merging into a matrix that both read would change both, although one of them was trained. `shared` is that
    matrix, or None if the model is not tied.
    """
    model = unwrap_model(wrapped)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if shared is None or all(type(end) in (nn.Embedding, nn.Linear) for end in ends):
        return
    for module in ends[1].modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter is shared:
                setattr(module, name, nn.Parameter(shared.detach().clone(), requires_grad=False))


def cast_parameters(model: Any, dtype: torch.dtype) -> Any:
    """Cast a model's weights, and no buffer, to `dtype` in place; returns the model.

    `model.to(dtype)` rounds the frequencies of rotary positions too, which every loaded model has in float32:
    logits would be off by a percent in half precision.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def retie_or_mark(merged: Any, shared: nn.Parameter | None) -> None:
    """Tie embeddings and head again if merging left them equal; else mark the configuration as untied."""
    embeddings, head = merged.get_input_embeddings(), merged.get_output_embeddings()
    if shared is None:
        return
    tied = torch.equal(embeddings.weight, head.weight)
    if tied:
        head.weight = embeddings.weight
    for config in (merged.config, merged.config.get_text_config()):
        if hasattr(config, "tie_word_embeddings"):
            config.tie_word_embeddings = tied
