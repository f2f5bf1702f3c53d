"""Refuse a config.json that describes no model that can be built, before anything is built of it.

A configuration is a stranger's file: heads that do not divide the width, layers by the million and sections
that are lists end in tracebacks, or never end. Ranges are wide: they exclude mistakes and attacks, no model
that anyone has.
"""

import copy
from pathlib import Path
from typing import Any

import torch
import transformers

from reverse.errors import CheckpointError
from reverse.models.checkpoints.settings_files import is_number, is_whole, refused, shorten
from reverse.models.families import Family

MAX_LAYERS = 1024  # of one decoder or tower; the deepest public decoder has 126
_DTYPES = ("float32", "float16", "bfloat16", "float64", "auto", None)
_SECTIONS = ("text_config", "vision_config")
_WHOLE = {  # the least and the most of each
    "hidden_size": (1, 1 << 17),
    "out_hidden_size": (1, 1 << 17),
    "intermediate_size": (1, 1 << 20),
    "num_hidden_layers": (1, MAX_LAYERS),
    "depth": (1, MAX_LAYERS),
    "num_attention_heads": (1, 4096),
    "num_heads": (1, 4096),
    "num_key_value_heads": (1, 4096),
    "head_dim": (1, 8192),
    "vocab_size": (1, 1 << 24),
    "max_position_embeddings": (1, 1 << 28),
    "image_size": (1, 8192),
    "patch_size": (1, 1024),
    "temporal_patch_size": (1, 64),
    "spatial_merge_size": (1, 64),
    "window_size": (1, 1 << 16),
    "num_channels": (1, 16),
    "in_channels": (1, 16),
    "in_chans": (1, 16),
    "projection_dim": (1, 1 << 17),
    "image_seq_length": (1, 1 << 20),
}
_POSITIVE = ("rms_norm_eps", "layer_norm_eps", "rope_theta")


def check_config_values(file: Path | str, config: dict[str, Any], family: Family) -> None:
    """Refuse values of config.json that no model of `family` has.

    Raises ValueError, naming file, field and value.
    """
    for name in _SECTIONS:
        if name in config and config[name] is not None and not isinstance(config[name], dict):
            raise CheckpointError(refused(file, name, config[name], "must be an object"))
    _check_what_runs(file, config)
    for where, section in _sections(config):
        for name in ("dtype", "torch_dtype"):
            value = section.get(name)
            known = value is None or (isinstance(value, str) and value.removeprefix("torch.") in _DTYPES)
            if not known:
                rule = "must be float32, bfloat16, float16 or float64"
                raise CheckpointError(refused(file, where + name, value, rule))
        for name in _WHOLE:
            _check_whole(file, where, name, section.get(name))
        for name in _POSITIVE:
            if section.get(name) is not None and not is_number(section[name], 0, 1e12):
                raise CheckpointError(refused(file, where + name, section[name], "must be a number above 0"))
    built = build_config(file, config, family)
    _check_built(file, built, family)


def build_config(file: Path | str, config: dict[str, Any], family: Family) -> Any:
    """The configuration object of `config`, with the defaults of its class.

    Raises ValueError where its class refuses it.
    """
    config_class = getattr(transformers, family.model_class).config_class
    try:
        return config_class.from_dict(dict(config))
    except Exception as error:  # whatever values of the wrong type and kind raise in there
        raise CheckpointError(_not_buildable(file, family, error)) from error


def build_section(file: Path | str, config_class: Any, values: dict[str, Any]) -> Any:
    """A decoder's or tower's configuration object. Raises ValueError where `values` are none of it."""
    for name, value in values.items():
        _check_whole(file, "", name, value)
    try:
        return config_class.from_dict(values)
    except Exception as error:  # whatever values of the wrong type and kind raise in there
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise CheckpointError(
            f"{file} describes no model that can be built ({reason}): fetch or save the checkpoint again"
        ) from error


def build_empty(file: Path | str, config: Any, family: Family) -> Any:
    """The model of a configuration object without memory for its weights: names and shapes only.

    Raises ValueError where none can be built. `check_depth` comes first: it bounds what is built.
    """
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"  # a config may name one that is not installed here
    try:
        with torch.device("meta"):
            return getattr(transformers, family.model_class)(config)
    except Exception as error:  # whatever values of the wrong type and kind raise in there
        raise CheckpointError(_not_buildable(file, family, error)) from error


def check_depth(file: Path | str, config: Any, tensors: int) -> None:
    """Refuse more layers than the weight files have tensors: building them might never end."""
    text, vision = config.get_text_config(), config.vision_config
    tower = getattr(vision, "depth", None) or getattr(vision, "num_hidden_layers", None) or 0
    layers = int(text.num_hidden_layers) + int(tower)
    if layers > tensors:
        raise CheckpointError(
            f"{file} asks for {layers} layers, and the weights hold {tensors} tensors: they are not of one "
            "model; fetch or save the checkpoint again"
        )


def _not_buildable(file: Path | str, family: Family, error: Exception) -> str:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return (
        f"{file} describes no {family.name} that can be built ({reason}): fetch or save the checkpoint again"
    )


def _check_what_runs(file: Path | str, config: dict[str, Any]) -> None:
    """Refuse fields that name files or code to be fetched from elsewhere."""
    if config.get("transformers_weights") is not None:
        raise CheckpointError(
            f"{file} names its weights itself "
            f"(transformers_weights={shorten(config['transformers_weights'])}): only model.safetensors or "
            f"its shards are read; take the field out and rename the file"
        )
    quantized = config.get("quantization_config")
    if quantized is not None and not isinstance(quantized, dict):
        raise CheckpointError(refused(file, "quantization_config", quantized, "must be an object"))
    for where, section in _sections(config):
        for name, value in section.items():
            if "attn_implementation" in name and isinstance(value, str) and "/" in value:
                raise CheckpointError(
                    f"{file} has {where}{name}={shorten(value)}, which would fetch and run code of a hub: "
                    "take the field out"
                )


def _check_whole(file: Path | str, where: str, name: str, value: Any) -> None:
    least, most = _WHOLE.get(name, (0, 0))
    if most and value is not None and not is_whole(value, least, most):
        rule = f"must be a whole number from {least} to {most}"
        raise CheckpointError(refused(file, where + name, value, rule))


def _sections(config: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The object itself and its sections, each with the prefix of its fields in messages."""
    found = [(f"{name}.", config[name]) for name in _SECTIONS if isinstance(config.get(name), dict)]
    return [("", config), *found]


def _check_built(file: Path | str, config: Any, family: Family) -> None:
    """What holds between fields, defaults included."""
    text, vision = config.get_text_config(), config.vision_config
    heads, width = text.num_attention_heads, text.hidden_size
    if getattr(text, "head_dim", None) is None and width % heads:
        raise CheckpointError(_odd(file, "num_attention_heads", heads, f"divide hidden_size={width}"))
    shared = getattr(text, "num_key_value_heads", None) or heads
    if heads % shared:
        raise CheckpointError(
            _odd(file, "num_key_value_heads", shared, f"divide num_attention_heads={heads}")
        )
    rope = getattr(text, "rope_parameters", None)
    parts = rope.get("mrope_section") if isinstance(rope, dict) else None
    if parts is None and config.model_type == "qwen2_5_vl":
        parts = [16, 24, 24]  # what transformers takes where the configuration has none
    half = (getattr(text, "head_dim", None) or width // heads) // 2
    if parts is not None and not (
        isinstance(parts, (list, tuple))
        and all(is_whole(one, 1, half) for one in parts)
        and sum(parts) == half
    ):
        raise CheckpointError(_odd(file, "mrope_section", parts, f"be numbers that add up to {half}"))
    field = "num_heads" if hasattr(vision, "depth") else "num_attention_heads"
    towers = getattr(vision, field, None)
    if is_whole(towers, 1, 4096) and vision.hidden_size % towers:
        raise CheckpointError(
            _odd(
                file,
                f"vision_config.{field}",
                towers,
                f"divide vision_config.hidden_size={vision.hidden_size}",
            )
        )
    side: Any = getattr(vision, "image_size", None)
    patch: Any = getattr(vision, "patch_size", None)
    if is_whole(side, 1, 8192) and is_whole(patch, 1, 8192):
        if patch > side:
            raise CheckpointError(
                _odd(file, "vision_config.patch_size", patch, f"be at most image_size={side}")
            )
        if (side // patch) ** 2 > 1 << 17:
            raise CheckpointError(
                _odd(file, "vision_config.patch_size", patch, f"leave fewer patches of image_size={side}")
            )
    depth = int(getattr(vision, "depth", None) or getattr(vision, "num_hidden_layers", None) or 0)
    _check_feature_layers(file, config, depth)
    image = family.image_token_id(config)
    if not is_whole(image, 0, text.vocab_size - 1):
        raise CheckpointError(
            _odd(file, family.image_token_field, image, f"be the id of a token, below {text.vocab_size}")
        )


def _check_feature_layers(file: Path | str, config: Any, depth: int) -> None:
    layer = getattr(config, "vision_feature_layer", None)
    layers = layer if isinstance(layer, (list, tuple)) else [layer]
    if layer is not None and not (layers and all(is_whole(one, -depth - 1, depth) for one in layers)):
        raise CheckpointError(
            _odd(file, "vision_feature_layer", layer, f"name a layer of the tower, {-depth - 1} to {depth}")
        )
    blocks = getattr(config.vision_config, "fullatt_block_indexes", None)
    if blocks is not None and not all(is_whole(one, 0, MAX_LAYERS) for one in blocks):
        raise CheckpointError(
            _odd(file, "vision_config.fullatt_block_indexes", blocks, "name blocks of the tower")
        )


def _odd(file: Path | str, name: str, value: Any, rule: str) -> str:
    return refused(file, name, value, f"must {rule}")
