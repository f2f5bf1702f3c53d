"""The CLIP tower of a checkpoint: its configuration, and how training prepared pictures for it.

`image_aspect_ratio: pad` means that a picture is padded to a square with the mean colour before it is scaled.
transformers' `LlavaImageProcessor` does that (`do_pad`), and says so in the processor's configuration, so
every engine that reads it pads as training did.
"""

from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig

from reverse.errors import CheckpointError, MissingFileError
from reverse.models.checkpoints.config_checks import build_section
from reverse.models.checkpoints.settings_files import check_settings, read_settings
from reverse.models.conversion.original_llava.llava_layout import TOWER, Layout, plain_name
from reverse.models.processors.picture_processors import pil_image_processor

# the tower of every published checkpoint of this layout, recognised by name and shapes together
_KNOWN_NAME = "openai/clip-vit-large-patch14-336"
_KNOWN = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
_SETTINGS = ("size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor")


def tower_config(layout: Layout, tower: Path | None) -> CLIPVisionConfig:
    """Return the configuration of the CLIP tower in `tower`, or of the one in the checkpoint.

    Raises:
        MissingFileError: there is no tower, or no configuration of it.
        CheckpointError: it is not a CLIP, or not the one that the projector was trained on.
    """
    named = layout.config.get("mm_vision_tower") or layout.config.get("vision_tower")
    if tower is None and not layout.has_tower:
        raise MissingFileError(
            f"{str(layout.folder)!r} does not hold its vision tower, {named!r}: fetch it and name its folder "
            "with --vision TOWER (vision=)"
        )
    config = _read_config(tower) if tower is not None else _known_config(layout, named)
    wanted = layout.config.get("mm_hidden_size", config.hidden_size)
    if config.hidden_size != wanted:
        raise CheckpointError(
            f"the vision tower {str(tower)!r} has features of {config.hidden_size}, and the projector takes "
            f"{wanted}: name the tower it was trained on, {named!r}"
        )
    depth, layer = config.num_hidden_layers, layout.config.get("mm_vision_select_layer", -2)
    if not -depth - 1 <= layer <= depth:
        raise CheckpointError(
            f"mm_vision_select_layer is {layer}, and the vision tower has {depth} layers: name the tower it "
            f"was trained on, {named!r}"
        )
    return config


def image_processor(layout: Layout, tower: Path | None, config: CLIPVisionConfig) -> Any:
    """Make the image processor of training: the tower's settings, with padding if the checkpoint says so."""
    found = {}
    if tower is not None:
        for name in ("preprocessor_config.json", "processor_config.json"):
            if (tower / name).is_file():
                saved = check_settings({name: tower / name})[name]
                found = saved.get("image_processor", saved)
                break
    settings: dict[str, Any] = {
        "size": {"shortest_edge": config.image_size},
        "crop_size": {"height": config.image_size, "width": config.image_size},
    }
    for key in _SETTINGS:
        if found.get(key) is not None:
            settings[key] = _as_sizes(key, found[key])
    if layout.config.get("image_aspect_ratio") == "pad":
        return pil_image_processor("LlavaImageProcessor", do_pad=True, **settings)
    return pil_image_processor("CLIPImageProcessor", **settings)


def _as_sizes(key: str, value: Any) -> Any:
    """Turn sizes into objects: early CLIP checkpoints saved plain numbers."""
    if isinstance(value, int) and key == "size":
        return {"shortest_edge": value}
    if isinstance(value, int) and key == "crop_size":
        return {"height": value, "width": value}
    return value


def _read_config(tower: Path) -> CLIPVisionConfig:
    if not (tower / "config.json").is_file():
        raise MissingFileError(
            f"the vision tower {str(tower)!r} has no config.json: name the folder of a CLIP"
        )
    config = read_settings(tower / "config.json")
    kind = config.get("model_type")
    if kind == "clip" and isinstance(config.get("vision_config"), dict):
        config = config["vision_config"]
    elif kind != "clip_vision_model":
        raise CheckpointError(
            f"the vision tower {str(tower)!r} is a {kind!r}; known are 'clip' and 'clip_vision_model': name "
            "the CLIP that the checkpoint was trained on"
        )
    known = CLIPVisionConfig().to_dict().keys() - {"model_type"}
    values = {key: value for key, value in config.items() if key in known and value is not None}
    return build_section(tower / "config.json", CLIPVisionConfig, values)


def _known_config(layout: Layout, named: Any) -> CLIPVisionConfig:
    """Return the known configuration of a tower whose weights are in the checkpoint.

    (Shapes do not give the number of heads.)
    """
    source = layout.weights if layout.weights is not None else layout.rest
    shapes = {plain_name(name): name for name in source or ()}
    patch = shapes.get(f"{TOWER}vision_model.embeddings.patch_embedding.weight")
    shape = source.shape(patch) if source is not None and patch else ()
    side = _KNOWN["patch_size"]
    if named == _KNOWN_NAME and shape == (_KNOWN["hidden_size"], 3, side, side):
        return CLIPVisionConfig(**_KNOWN)
    raise MissingFileError(
        f"{str(layout.folder)!r} holds the weights of its vision tower, {named!r} with patches {shape}, but "
        "not its configuration: name a folder that has it with --vision TOWER (vision=)"
    )
