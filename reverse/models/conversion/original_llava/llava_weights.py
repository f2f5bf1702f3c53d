"""Tensors of the original layout under the names that transformers' LLaVA is saved with, one at a time.

    model.layers.0.mlp.up_proj.weight      → language_model.model.layers.0.mlp.up_proj.weight
    model.mm_projector.2.bias              → multi_modal_projector.linear_2.bias
    model.vision_tower.vision_tower.…      → vision_tower.…

LoRA: W + (alpha / r) B A, in float32, rounded once (Hu et al., https://arxiv.org/abs/2106.09685, section
4.1).
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from reverse.errors import CheckpointError
from reverse.models.checkpoints.tensor_files import Tensors
from reverse.models.checkpoints.tensor_names import is_computed
from reverse.models.conversion.original_llava.llava_layout import TOWER, Layout, plain_name

_RENAMED = (
    (re.compile(r"^model\.mm_projector\.0\."), "multi_modal_projector.linear_1."),
    (re.compile(r"^model\.mm_projector\.2\."), "multi_modal_projector.linear_2."),
    (re.compile(r"^" + re.escape(TOWER)), "vision_tower."),
    (re.compile(r"^model\."), "language_model.model."),
    (re.compile(r"^lm_head\."), "language_model.lm_head."),
)
_LORA = re.compile(r"^(?P<module>.+)\.lora_(?P<half>[AB])(\.default)?\.weight$")
EMBEDDINGS, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"


@dataclass(frozen=True)
class TensorEntry:
    """One tensor to write: its name, its shape and how to make it."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]
    place: str  # the file it comes from: sorted by it, files are read one after the other


def _converted_name(name: str) -> str:
    """Return the name of a tensor in transformers' LLaVA for its plain name in the original layout."""
    for pattern, replacement in _RENAMED:
        if pattern.search(name):
            return pattern.sub(replacement, name)
    raise CheckpointError(f"tensor {name!r} has no place in transformers' LLaVA")


def collect_entries(layout: Layout, base: Tensors | None, tower: Tensors | None) -> dict[str, TensorEntry]:
    """Collect every tensor of the converted checkpoint by its new name, without reading it.

    Tensors that were trained in full replace the base's, LoRA matrices are added to it, and the checkpoint's
    own tower takes precedence over `tower`.

    Raises CheckpointError for a LoRA that fits no tensor of the base, or not its shape.
    """
    entries: dict[str, TensorEntry] = {}
    if tower is not None:
        entries |= {entry.name: entry for entry in _tower_entries(tower)}
    for source in (base, layout.weights, layout.rest):
        for name in source or ():
            if source is not None and not is_computed(name):
                entry = _entry(source, name, _converted_name(plain_name(name)))
                entries[entry.name] = entry
    if layout.lora is not None:
        _add_lora(entries, layout.lora, layout.lora_config)
    return entries


def grow_rows(tensor: torch.Tensor, rows: int, untrained: list[int]) -> torch.Tensor:
    """Extend `tensor` of shape (fewer rows, hidden) to `rows` rows.

    The rows `untrained` and all new ones are the mean of the others, so that their logits are like the rest.
    """
    known = [row for row in range(tensor.shape[0]) if row not in untrained]
    mean = tensor[known].float().mean(dim=0).to(tensor.dtype)
    grown = mean.repeat(rows, 1)  # (rows, hidden)
    grown[: tensor.shape[0]] = tensor
    grown[untrained] = mean
    return grown


def _entry(source: Tensors, name: str, new: str) -> TensorEntry:
    return TensorEntry(new, source.shape(name), lambda: source[name], f"{id(source)} {source.file_of(name)}")


def _tower_entries(tower: Tensors) -> Iterator[TensorEntry]:
    """Yield the tensors of the vision half of a CLIP, saved with or without its text half and its prefix."""
    prefix = next(
        (p for p in ("vision_model.", "") if f"{p}embeddings.patch_embedding.weight" in tower), None
    )
    if prefix is None:
        raise CheckpointError(
            "the vision tower has no vision_model.embeddings.patch_embedding.weight, but "
            f"{next(iter(tower), 'nothing')} and so on: name the folder of a CLIP"
        )
    parts = prefix or ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")
    for name in tower:
        if name.startswith(parts) and not is_computed(name):
            yield _entry(tower, name, f"vision_tower.vision_model.{name.removeprefix(prefix)}")


def _add_lora(entries: dict[str, TensorEntry], lora: Tensors, settings: dict[str, Any]) -> None:
    halves: dict[str, dict[str, str]] = {}
    for name in lora:
        match = _LORA.match(name)
        if match is None:
            raise CheckpointError(
                f"the LoRA holds {name!r}, which is neither lora_A nor lora_B: it is not known here"
            )
        halves.setdefault(plain_name(f"{match['module']}.weight"), {})[match["half"]] = name
    for target, pair in halves.items():
        new = _converted_name(target)
        if set(pair) != {"A", "B"} or new not in entries:
            raise CheckpointError(
                f"the LoRA has {' and '.join(f'lora_{half}' for half in sorted(pair))} for {target!r}, which "
                f"{'is not in the base' if new not in entries else 'is one half'}: it is not this base's, or "
                "not complete"
            )
        entries[new] = _with_lora(entries[new], lora, pair["A"], pair["B"], settings)


def _with_lora(entry: TensorEntry, lora: Tensors, a: str, b: str, settings: dict[str, Any]) -> TensorEntry:
    (rank, inner), (outer, also) = lora.shape(a), lora.shape(b)
    if rank != also or (outer, inner) != entry.shape:
        raise CheckpointError(
            f"the LoRA of {entry.name!r} is {(outer, also)} times {(rank, inner)}, and the base's tensor is "
            f"{entry.shape}: it is another base's"
        )
    scale = float(settings["lora_alpha"]) / (math.sqrt(rank) if settings.get("use_rslora") else rank)

    def read() -> torch.Tensor:
        weight = entry.read()
        product = lora[b].float() @ lora[a].float()  # (out, in)
        return (weight.float() + scale * product).to(weight.dtype)

    return TensorEntry(entry.name, entry.shape, read, entry.place)
