"""Complete a processor from its model's configuration, and refuse one that belongs to another model.

What is missing and follows from the configuration is filled in: patch size, the kind of picture features, the
class token, the pad token. What is there and contradicts the model is refused, because nobody can tell which
of the two is right; left alone it ends in an error of transformers at the first picture, or in wrong rows.
"""

from typing import Any

from PIL import Image

from reverse.errors import CheckpointError
from reverse.models.checkpoints.settings_files import shorten
from reverse.models.families import FAMILIES, Family
from reverse.models.processors.template_checks import check_template
from reverse.tokens.spans import TAGS

# tokens before the patches in what the tower gives, by the tower's model_type
_CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}
_MODEST_PIXELS = 1 << 22
_QWEN_FIELDS = {  # of the image processor, and of the vision configuration
    "patch_size": "patch_size",
    "temporal_patch_size": "temporal_patch_size",
    "merge_size": "spatial_merge_size",
}


def complete_processor(
    place: str, processor: Any, config: Any, family: Family, settings: dict[str, dict[str, Any]]
) -> None:
    """Make `processor` fit the model of `config`, in place.

    Args:
        place: the checkpoint, for messages.
        processor: of `family`.
        config: of the model.
        family: of the model.
        settings: the settings files that the processor was loaded from, by name (`check_settings`).

    Raises:
        ValueError: it contradicts the model, or lacks what cannot be known; with the remedy.
    """
    _fill_pad_token(place, processor.tokenizer, config, settings, family)
    _check_image_token(place, processor, config, family)
    if family.video:
        _fit_grid(place, processor.image_processor, config.vision_config, settings)
        _check_grid(place, processor)
    else:
        _fit_patches(place, processor, config, settings)
        _check_count(place, processor, config)
    check_template(place, processor, family)


def check_usable(processor: Any, family: Family) -> None:
    """Refuse a processor that no batch can be made with, whoever made it; `load` completes its own.

    Raises ValueError, with the remedy.
    """
    name = type(processor).__name__
    if any(name == other.processor_class for other in FAMILIES if other is not family):
        raise CheckpointError(
            f"the processor is a {name}, and the model is of {family.name}, which takes a "
            f"{family.processor_class}: take both from one reverse.load(…)"
        )
    missing = []
    if not getattr(processor, "chat_template", None):
        missing.append(
            ("chat template", "processor.chat_template = …, chat_template.jinja of its checkpoint")
        )
    if processor.tokenizer.pad_token_id is None:
        missing.append(("pad token", "processor.tokenizer.pad_token = processor.tokenizer.eos_token"))
    if not family.video:
        for name in ("patch_size", "vision_feature_select_strategy"):
            if getattr(processor, name, 0) is None:
                missing.append((name, f"processor.{name} = … of model.config"))
    if missing:
        raise CheckpointError(
            f"the {type(processor).__name__} has no {missing[0][0]}: take the processor that "
            f"reverse.load(…) returns, or set it, `{missing[0][1]}`"
        )


def _fill_pad_token(
    place: str, tokenizer: Any, config: Any, settings: dict[str, dict[str, Any]], family: Family
) -> None:
    """Rows of a batch are filled up with a token that attention leaves out."""
    if tokenizer.pad_token_id is not None:
        return
    sources = (
        settings.get("generation_config.json", {}).get("pad_token_id"),
        getattr(config.get_text_config(), "pad_token_id", None),
        getattr(config, "pad_token_id", None),
    )
    for pad in sources:
        if isinstance(pad, int) and 0 <= pad < len(tokenizer):
            token = tokenizer.convert_ids_to_tokens(pad)
            if token is not None and token not in (*TAGS, family.image_token):
                tokenizer.pad_token = token
                return
    raise CheckpointError(
        f"the tokenizer of {place!r} has no pad token, and neither config.json nor generation_config.json "
        f"names "
        f'one: write "pad_token": "{tokenizer.eos_token or "</s>"}" into its tokenizer_config.json (padding '
        f"is "
        "masked, so the end-of-sequence token will do)"
    )


def _check_image_token(place: str, processor: Any, config: Any, family: Family) -> None:
    wanted = family.image_token_id(config)
    vocabulary = processor.tokenizer.get_vocab()
    token = getattr(processor, "image_token", family.image_token)
    if token != family.image_token:
        raise CheckpointError(
            f"the processor of {place!r} marks pictures by {shorten(token)}, and {family.name} by "
            f'{family.image_token!r}: write "image_token": "{family.image_token}" into processor_config.json'
        )
    found = vocabulary.get(family.image_token)
    if found is None:
        raise CheckpointError(
            f"the tokenizer of {place!r} does not know {family.image_token!r}, which stands for a picture "
            f"(id {wanted} by config.json): take tokenizer.json and tokenizer_config.json of the checkpoint "
            f"that it was made from"
        )
    if found != wanted:
        raise CheckpointError(
            f"the tokenizer of {place!r} gives {family.image_token!r} the id {found}, and config.json says "
            f"{family.image_token_field}={wanted}: tokenizer and model are not of one checkpoint; take both "
            "from the same one"
        )


def _fit_patches(place: str, processor: Any, config: Any, settings: dict[str, dict[str, Any]]) -> None:
    """LLaVA: how many tokens a picture takes follows from patches, class token and strategy."""
    vision = config.vision_config
    wanted = {
        "patch_size": getattr(vision, "patch_size", None),
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": _CLASS_TOKENS.get(vision.model_type),
    }
    stated = settings.get("processor_config.json", {})
    for name, value in wanted.items():
        there = getattr(processor, name, None)
        if value is None or there == value:
            continue
        if stated.get(name) is None:
            setattr(processor, name, value)
            continue
        raise CheckpointError(_contradiction(place, "processor_config.json", name, there, value))


def _fit_grid(place: str, pictures: Any, vision: Any, settings: dict[str, dict[str, Any]]) -> None:
    """Qwen2.5-VL: patches, frames and merging must be those of the tower."""
    name = "processor_config.json"
    stated = settings.get(name, {}).get("image_processor")
    if stated is None:
        name = "preprocessor_config.json"
        stated = settings.get(name, {})
    for field, of_tower in _QWEN_FIELDS.items():
        there, value = getattr(pictures, field, None), getattr(vision, of_tower, None)
        if value is None or there == value:
            continue
        if stated.get(field) is not None:
            raise CheckpointError(_contradiction(place, name, field, there, value))
        setattr(pictures, field, value)


def _check_grid(place: str, processor: Any) -> None:
    """Qwen2.5-VL: limits of the size are in order, and a picture has as many tokens as its grid says."""
    size = dict(processor.image_processor.size)
    least, most = size.get("shortest_edge"), size.get("longest_edge")
    if least is None or most is None or least > most:
        raise CheckpointError(
            f"the processor of {place!r} gives pictures at least {least} and at most {most} pixels (size."
            "shortest_edge, size.longest_edge): set both in processor_config.json, 3136 and 12845056 for one"
        )
    if least > _MODEST_PIXELS:  # trying would take a second and much memory
        return
    inputs = _prepare_one(place, processor)
    wanted = int(inputs["image_grid_thw"].prod()) // processor.image_processor.merge_size**2
    found = int((inputs["input_ids"] == processor.image_token_id).sum())
    if found != wanted:
        raise CheckpointError(
            f"the processor of {place!r} writes {found} image tokens for a picture of {wanted} features: "
            f"take the processor of the checkpoint that the model was made from"
        )


def _check_count(place: str, processor: Any, config: Any) -> None:
    """LLaVA: a picture must have as many placeholders as the tower gives features."""
    vision = config.vision_config
    side, patch, extra = vision.image_size, vision.patch_size, _CLASS_TOKENS.get(vision.model_type)
    if extra is None or not isinstance(side, int) or not isinstance(patch, int):
        return
    wanted = (side // patch) ** 2 + extra - (config.vision_feature_select_strategy == "default")
    sizes = (
        getattr(processor.image_processor, "size", None),
        getattr(processor.image_processor, "crop_size", None),
    )
    largest = max((value for size in sizes if size for value in dict(size).values() if value), default=side)
    if largest > 2 * side:
        raise CheckpointError(_wrong_pictures(place, f"scales pictures to {largest} pixels a side", side))
    inputs = _prepare_one(place, processor)
    height, width = inputs["pixel_values"].shape[-2:]
    if (height, width) != (side, side):
        raise CheckpointError(_wrong_pictures(place, f"makes pictures of {width}x{height} pixels", side))
    found = int((inputs["input_ids"] == processor.image_token_id).sum())
    if found != wanted:
        raise CheckpointError(
            f"the processor of {place!r} writes {found} image tokens a picture, and the model has {wanted} "
            "features: set patch_size, vision_feature_select_strategy and num_additional_image_tokens in "
            "processor_config.json as config.json has them"
        )


def _prepare_one(place: str, processor: Any) -> Any:
    """What the processor makes of one small picture.

    Raises ValueError where it makes nothing of it.
    """
    try:
        return processor(
            images=[Image.new("RGB", (64, 48))], text=[processor.image_token], return_tensors="pt"
        )
    except Exception as error:  # settings that contradict one another
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(
            f"the processor of {place!r} cannot prepare a picture ({reason}): take processor_config.json and "
            "preprocessor_config.json of the checkpoint that it was made from"
        ) from error


def _contradiction(place: str, file: str, name: str, there: Any, value: Any) -> str:
    shown = f'"{value}"' if isinstance(value, str) else value
    return (
        f"the processor of {place!r} has {name}={shorten(there)}, and its model needs {value!r}: the number "
        f"of "
        f'image tokens would be wrong; write "{name}": {shown} into {file} if the model is right, or take '
        f"the "
        "processor of the checkpoint that the model was made from"
    )


def _wrong_pictures(place: str, what: str, side: int) -> str:
    return (
        f"the processor of {place!r} {what}, and the model's vision tower takes {side}x{side}: set size and "
        f"crop_size to {side} in processor_config.json (or preprocessor_config.json), or take the processor "
        f"of the checkpoint that the model was made from"
    )
