"""Find the contents of a folder of the original LLaVA layout, from its configuration and tensor names.

The layout: a Llama's config.json with `mm_*` fields, its tensors under the Llama's own names, the projector
as `model.mm_projector.0` and `.2`, and the CLIP tower either elsewhere or as
`model.vision_tower.vision_tower`. A LoRA folder holds adapter_config.json, adapter_model.(safetensors|bin)
and non_lora_trainables.bin instead.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reverse.errors import CheckpointError
from reverse.models.adapters.loose_weights import ADAPTER_WEIGHTS, list_loose_weights
from reverse.models.checkpoints.settings_files import is_number, read_settings, refuse
from reverse.models.checkpoints.tensor_files import Tensors, open_tensors
from reverse.models.checkpoints.tensor_names import is_computed, refuse_foreign_prefixes

REST_FILES = ("non_lora_trainables.bin", "non_lora_trainables.safetensors")
TOWER = "model.vision_tower.vision_tower."

_KNOWN = re.compile(
    r"^(model\.(embed_tokens|norm)\.weight|lm_head\.weight|model\.layers\.\d+\..+"
    r"|model\.mm_projector\.(0|2)\.(weight|bias)|model\.vision_tower\.vision_tower\..+)$"
)

# the values of each field whose meaning is known; the first one is the default
_FIELDS: dict[str, tuple[Any, ...]] = {
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_vision_select_feature": ("patch", "cls_patch"),
    "mm_patch_merge_type": ("flat",),
    "image_aspect_ratio": ("square", "pad", None),
    "mm_use_im_start_end": (False, None),
    "s2": (False, None),
    "siglip": (False, None),
}
_LORA_VARIANTS = (
    "use_dora", "fan_in_fan_out", "alpha_pattern", "rank_pattern", "lora_bias", "modules_to_save",
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """A folder of the original layout; every tensor goes by its plain name (`model.layers.0.…`)."""

    folder: Path
    config: dict[str, Any]
    weights: Tensors | None  # None: a LoRA folder, whose base holds them
    lora: Tensors | None
    lora_config: dict[str, Any]
    rest: Tensors | None  # trained in full beside the LoRA: the projector

    @property
    def has_tower(self) -> bool:
        """Whether the weights include the CLIP tower."""
        return any(
            name.startswith(TOWER)
            for source in (self.weights, self.rest)
            if source
            for name in map(plain_name, source)
        )


def is_original(config: dict[str, Any]) -> bool:
    """Whether a config.json is one of the original layout; transformers' LLaVA has no `mm_*` fields."""
    kind = config.get("model_type")
    named = "LlavaLlamaForCausalLM" in (config.get("architectures") or ()) or kind == "llava_llama"
    return named or (kind in ("llava", "llama") and "mm_vision_tower" in config)


def read_layout(folder: Path) -> Layout:
    """Find the layout of a folder, without reading weights.

    Raises CheckpointError for a field or a tensor of unknown meaning and for a damaged file, MissingFileError
    for a missing one.
    """
    config = read_settings(folder / "config.json")
    _check_fields(folder, config)
    if not (folder / "adapter_config.json").is_file():
        weights = open_tensors(folder)
        _check_names(folder, weights)
        return Layout(folder, config, weights, None, {}, None)
    settings = read_settings(folder / "adapter_config.json")
    _check_lora(folder, settings)
    _check_beside(folder)
    rest = open_tensors(folder, REST_FILES)
    _check_names(folder, rest)
    return Layout(folder, config, None, open_tensors(folder, ADAPTER_WEIGHTS), settings, rest)


def plain_name(name: str) -> str:
    """Return a tensor's name without the prefixes of wrappers (`module.`, `base_model.model.`)."""
    name = name.removeprefix("module.").removeprefix("base_model.model.").removeprefix("module.")
    if name.startswith(("model.model.", "model.lm_head.")):
        name = name.removeprefix("model.")
    return name


def _check_fields(folder: Path, config: dict[str, Any]) -> None:
    for field, known in _FIELDS.items():
        value = config.get(field, known[0])
        if value not in known:
            raise CheckpointError(
                f"{folder / 'config.json'} has {field}={value!r}; known is "
                f"{' or '.join(repr(one) for one in known if one is not None)}: this kind of LLaVA cannot be "
                "converted"
            )
    layer = config.get("mm_vision_select_layer", -2)
    if not isinstance(layer, int) or isinstance(layer, bool):
        raise CheckpointError(
            f"{folder / 'config.json'} has mm_vision_select_layer={layer!r}, which must be one layer's "
            "number, -2"
        )


def _check_names(folder: Path, tensors: Tensors) -> None:
    unknown = [name for name in tensors if not is_computed(name) and not _KNOWN.match(plain_name(name))]
    if unknown:
        refuse_foreign_prefixes(str(folder), unknown)
        raise CheckpointError(
            f"{str(folder)!r} holds {len(unknown)} tensors of unknown meaning ({', '.join(unknown[:3])}); "
            "known are a Llama's, model.mm_projector.{0,2} and model.vision_tower.vision_tower: this kind of "
            "LLaVA cannot be converted"
        )


def _check_beside(folder: Path) -> None:
    """Raise CheckpointError for weights in a LoRA folder that the conversion would not read."""
    others = [file.name for file in list_loose_weights(folder, REST_FILES)]
    if others:
        raise CheckpointError(
            f"{str(folder)!r} holds weights beside its LoRA that have no place in this layout "
            f"({', '.join(others[:3])}): known are {', '.join(REST_FILES)}; load complete weights as they "
            "are, and move away what answers do not need"
        )
    if all((folder / name).is_file() for name in REST_FILES):
        raise CheckpointError(
            f"{str(folder)!r} holds both {' and '.join(REST_FILES)}: nobody can tell which were trained; "
            "delete one"
        )


def _check_lora(folder: Path, settings: dict[str, Any]) -> None:
    """Raise CheckpointError for variants of LoRA: their product would be computed differently."""
    file = folder / "adapter_config.json"
    kind = str(settings.get("peft_type", "")).upper()
    if kind != "LORA":
        raise CheckpointError(f"{file} is of type {kind!r}: only LoRA can be converted")
    if not is_number(settings.get("lora_alpha"), 0):
        refuse(file, "lora_alpha", settings.get("lora_alpha"), "be above 0")
    found = [name for name in _LORA_VARIANTS if settings.get(name)]
    if settings.get("bias", "none") != "none":
        found.append("bias")
    if found:
        shown = ", ".join(f"{name}={settings[name]!r}" for name in found)
        raise CheckpointError(f"{file} sets {shown}, which is not known in this layout")
