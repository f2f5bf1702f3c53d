"""Refuse a config.json that describes an impossible model, before anything is built from it.

A configuration is not trusted: heads that do not divide the width, millions of layers or lists in place of
sections would end in tracebacks or never end. The ranges are wide: they exclude mistakes and attacks, but no
existing model.
"""

import copy
from pathlib import Path
from typing import Any

import torch
import transformers

from reverse.errors import CheckpointError
from reverse.model_building import building_alone
from reverse.models.checkpoints.settings_files import (
    OBJECT,
    Rule,
    check_fields,
    is_whole,
    number_above,
    refuse,
    shorten,
    whole_number,
)
from reverse.models.families import Family

MAX_LAYERS = 1024  # of one decoder or tower; the deepest public decoder has 126
_DTYPES = ("float32", "float16", "bfloat16", "float64", "auto")
_SECTIONS = ("text_config", "vision_config")
_SIZES = {
    name: whole_number(1, most)
    for name, most in {
        "hidden_size": 1 << 17,
        "out_hidden_size": 1 << 17,
        "intermediate_size": 1 << 20,
        "num_hidden_layers": MAX_LAYERS,
        "depth": MAX_LAYERS,
        "num_attention_heads": 4096,
        "num_heads": 4096,
        "num_key_value_heads": 4096,
        "head_dim": 8192,
        "vocab_size": 1 << 24,
        "max_position_embeddings": 1 << 28,
        "image_size": 8192,
        "patch_size": 1024,
        "temporal_patch_size": 64,
        "spatial_merge_size": 64,
        "window_size": 1 << 16,
        "num_channels": 16,
        "in_channels": 16,
        "in_chans": 16,
        "projection_dim": 1 << 17,
        "image_seq_length": 1 << 20,
    }.items()
}
_DTYPE = Rule(
    lambda value: isinstance(value, str) and value.removeprefix("torch.") in _DTYPES,
    "be float32, bfloat16, float16 or float64",
)
_FIELDS = {
    "dtype": _DTYPE,
    "torch_dtype": _DTYPE,
    **_SIZES,
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "rope_theta"), number_above(0)),
}


def check_config_values(file: Path | str, config: dict[str, Any], family: Family) -> None:
    """Raise CheckpointError, with file, field and value, for values of config.json that no model can have."""
    check_fields(file, config, dict.fromkeys((*_SECTIONS, "quantization_config"), OBJECT))
    sections = {f"{name}.": config[name] for name in _SECTIONS if config.get(name) is not None}
    sections = {"": config, **sections}
    _refuse_foreign_files(file, config, sections)
    for prefix, section in sections.items():
        check_fields(file, section, _FIELDS, prefix)
    _check_decoder(file, built := build_config(file, config, family), family)
    _check_tower(file, built)


def build_config(file: Path | str, config: dict[str, Any], family: Family) -> Any:
    """Build the configuration object of `config`, with the defaults of its class.

    Raises CheckpointError if its class refuses it.
    """
    config_class = getattr(transformers, family.model_class).config_class
    return _build(file, family.name, lambda: config_class.from_dict(dict(config)))


def build_section(file: Path | str, config_class: Any, values: dict[str, Any]) -> Any:
    """Build the configuration object of a decoder or a vision tower.

    Raises CheckpointError if `values` do not fit it.
    """
    check_fields(file, values, _SIZES)
    return _build(file, "model", lambda: config_class.from_dict(values))


def build_empty(file: Path | str, config: Any, family: Family) -> Any:
    """Build the model of a configuration object without memory for its weights: names and shapes only.

    Raises CheckpointError if none can be built. Call `check_depth` first: it bounds what is built.
    """
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"  # a config may name one that is not installed here
    with building_alone(), torch.device("meta"):
        return _build(file, family.name, lambda: getattr(transformers, family.model_class)(config))


def check_depth(file: Path | str, config: Any, tensors: int) -> None:
    """Raise CheckpointError for more layers than the weight files have tensors: building them might never
    end.
    """
    layers = int(config.get_text_config().num_hidden_layers) + _tower_depth(config)
    if layers > tensors:
        raise CheckpointError(
            f"{file} asks for {layers} layers, and the weights hold {tensors} tensors: they are not of one "
            "model; fetch or save the checkpoint again"
        )


def _tower_depth(config: Any) -> int:
    vision = config.vision_config
    return int(getattr(vision, "depth", None) or getattr(vision, "num_hidden_layers", None) or 0)


def _build(file: Path | str, what: str, build: Any) -> Any:
    try:
        return build()
    except Exception as error:  # transformers raises anything for values of the wrong type and kind
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise CheckpointError(
            f"{file} describes no {what} that can be built ({reason}): fetch or save the checkpoint again"
        ) from error


def _refuse_foreign_files(file: Path | str, config: dict[str, Any], sections: dict[str, Any]) -> None:
    """Raise CheckpointError for fields that name weights or code to be fetched from elsewhere."""
    if config.get("transformers_weights") is not None:
        raise CheckpointError(
            f"{file} names its weights itself "
            f"(transformers_weights={shorten(config['transformers_weights'])}): only model.safetensors or "
            "its shards are read; take the field out and rename the file"
        )
    for prefix, section in sections.items():
        for name, value in section.items():
            if "attn_implementation" in name and isinstance(value, str) and "/" in value:
                raise CheckpointError(
                    f"{file} has {prefix}{name}={shorten(value)}, which would fetch and run code of a hub: "
                    "take the field out"
                )


def _check_decoder(file: Path | str, config: Any, family: Family) -> None:
    """Check what must hold between the fields of the decoder, defaults included."""
    text = config.get_text_config()
    heads, width = text.num_attention_heads, text.hidden_size
    head_dim = getattr(text, "head_dim", None)
    if head_dim is None and width % heads:
        refuse(file, "num_attention_heads", heads, f"divide hidden_size={width}")
    shared = getattr(text, "num_key_value_heads", None) or heads
    if heads % shared:
        refuse(file, "num_key_value_heads", shared, f"divide num_attention_heads={heads}")
    rope = getattr(text, "rope_parameters", None)
    parts = rope.get("mrope_section") if isinstance(rope, dict) else None
    parts = family.default_mrope_section if parts is None else parts
    half = (head_dim or width // heads) // 2
    if parts is not None:
        numbers = isinstance(parts, (list, tuple)) and all(is_whole(one, 1, half) for one in parts)
        if not numbers or sum(parts) != half:
            refuse(file, "mrope_section", parts, f"be numbers that add up to {half}")
    image = family.image_token_id(config)
    if not is_whole(image, 0, text.vocab_size - 1):
        refuse(file, family.image_token_field, image, f"be the id of a token, below {text.vocab_size}")


def _check_tower(file: Path | str, config: Any) -> None:
    """Check what must hold between the fields of the vision tower, defaults included."""
    vision, depth = config.vision_config, _tower_depth(config)
    field = "num_heads" if hasattr(vision, "depth") else "num_attention_heads"
    heads = getattr(vision, field, None)
    if is_whole(heads, 1, 4096) and vision.hidden_size % heads:
        refuse(
            file, f"vision_config.{field}", heads, f"divide vision_config.hidden_size={vision.hidden_size}"
        )
    side: Any = getattr(vision, "image_size", None)
    patch: Any = getattr(vision, "patch_size", None)
    if is_whole(side, 1, 8192) and is_whole(patch, 1, 8192):
        if patch > side:
            refuse(file, "vision_config.patch_size", patch, f"be at most image_size={side}")
        if (side // patch) ** 2 > 1 << 17:
            refuse(file, "vision_config.patch_size", patch, f"leave fewer patches of image_size={side}")
    layer = getattr(config, "vision_feature_layer", None)
    layers = layer if isinstance(layer, (list, tuple)) else [layer]
    if layer is not None and not (layers and all(is_whole(one, -depth - 1, depth) for one in layers)):
        refuse(file, "vision_feature_layer", layer, f"name a layer of the tower, {-depth - 1} to {depth}")
    blocks = getattr(vision, "fullatt_block_indexes", None)
    if blocks is not None and not all(is_whole(one, 0, MAX_LAYERS) for one in blocks):
        refuse(file, "vision_config.fullatt_block_indexes", blocks, "name blocks of the tower")
