"""Complete a processor from its model's configuration, and refuse one that belongs to another model.

Missing settings that follow from the configuration are filled in: patch size, the kind of picture features,
the class token, the pad token. Settings that contradict the model are refused, because nobody can tell which
of the two is right; otherwise transformers fails at the first picture, or uses wrong rows.
"""

from functools import reduce
from typing import Any

from PIL import Image

from reverse.errors import CheckpointError
from reverse.models.checkpoints.settings_files import shorten
from reverse.models.families import FAMILIES, Family
from reverse.models.processors.template_checks import check_template
from reverse.tokens.spans import TAGS

# tokens before the patches in the output of the tower, by the tower's model_type
_CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}
_MODEST_PIXELS = 1 << 22

SettingsFiles = dict[str, dict[str, Any]]


def complete_processor(
    place: str, processor: Any, config: Any, family: Family, settings: SettingsFiles
) -> None:
    """Make `processor` fit the model of `config`, in place.

    Args:
        place: the checkpoint, for messages.
        processor: of `family`.
        config: of the model.
        family: of the model.
        settings: the settings files that the processor was loaded from, by name (`check_settings`).

    Raises CheckpointError, with the remedy, if it contradicts the model or lacks what cannot be known.
    """
    _fill_pad_token(place, processor.tokenizer, config, settings, family)
    _check_image_token(place, processor, config, family)
    for name, source in family.processor_fields:
        wanted = reduce(lambda owner, part: getattr(owner, part, None), source.split("."), config)
        _fit_field(place, processor, name, wanted, settings)
    if family.grid_field is not None:
        _check_grid(place, processor, family.grid_field)
    else:
        class_tokens = _CLASS_TOKENS.get(config.vision_config.model_type)
        _fit_field(place, processor, "num_additional_image_tokens", class_tokens, settings)
        _check_count(place, processor, config, class_tokens)
    check_template(place, processor, family)


def check_usable(processor: Any, family: Family) -> None:
    """Raise CheckpointError, with the remedy, for a processor that cannot prepare a batch."""
    name = type(processor).__name__
    if name != family.processor_class and any(name == other.processor_class for other in FAMILIES):
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
    for field, source in family.processor_fields:
        if reduce(lambda owner, name: getattr(owner, name, 0), field.split("."), processor) is None:
            missing.append((field, f"processor.{field} = model.config.{source}"))
    if missing:
        raise CheckpointError(
            f"the {name} has no {missing[0][0]}: take the processor that reverse.load(…) returns, or set it, "
            f"`{missing[0][1]}`"
        )


def _fill_pad_token(place: str, tokenizer: Any, config: Any, settings: SettingsFiles, family: Family) -> None:
    """Give the tokenizer a pad token: rows of a batch are filled up with it, and attention leaves it out."""
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
        f'names one: write "pad_token": "{tokenizer.eos_token or "</s>"}" into its tokenizer_config.json '
        "(padding is masked, so the end-of-sequence token will do)"
    )


def _check_image_token(place: str, processor: Any, config: Any, family: Family) -> None:
    wanted = family.image_token_id(config)
    token = getattr(processor, "image_token", family.image_token)
    if token != family.image_token:
        raise CheckpointError(
            f"the processor of {place!r} marks pictures by {shorten(token)}, and {family.name} by "
            f'{family.image_token!r}: write "image_token": "{family.image_token}" into processor_config.json'
        )
    found = processor.tokenizer.get_vocab().get(family.image_token)
    if found is None:
        raise CheckpointError(
            f"the tokenizer of {place!r} does not know {family.image_token!r}, which stands for a picture "
            f"(id {wanted} by config.json): take tokenizer.json and tokenizer_config.json of the checkpoint "
            "that it was made from"
        )
    if found != wanted:
        raise CheckpointError(
            f"the tokenizer of {place!r} gives {family.image_token!r} the id {found}, and config.json says "
            f"{family.image_token_field}={wanted}: tokenizer and model do not belong to one checkpoint; "
            "take both from the same one"
        )


def _fit_field(place: str, processor: Any, name: str, wanted: Any, settings: SettingsFiles) -> None:
    """Set a field of the processor or of a part ("image_processor.merge_size") to the model's value.

    Raises CheckpointError if a settings file states another value.
    """
    part, _, field = name.rpartition(".")
    owner = getattr(processor, part) if part else processor
    found = getattr(owner, field, None)
    if wanted is None or found == wanted:
        return
    file, own = "processor_config.json", settings.get("processor_config.json", {})
    stated: dict[str, Any] | None = own.get(part) if part else own
    if stated is None:
        file, stated = "preprocessor_config.json", settings.get("preprocessor_config.json", {})
    if stated.get(field) is None:
        setattr(owner, field, wanted)
        return
    shown = f'"{wanted}"' if isinstance(wanted, str) else wanted
    raise CheckpointError(
        f"the processor of {place!r} has {field}={shorten(found)}, and its model needs {wanted!r}: the "
        f'number of image tokens would be wrong; write "{field}": {shown} into {file} if the model is right, '
        "or take the processor of the checkpoint that the model was made from"
    )


def _check_grid(place: str, processor: Any, grid_field: str) -> None:
    """Check a processor of pictures of any size: limits are in order, and the grid gives the number of
    tokens.
    """
    size = dict(processor.image_processor.size)
    least, most = size.get("shortest_edge"), size.get("longest_edge")
    if least is None or most is None or least > most:
        raise CheckpointError(
            f"the processor of {place!r} gives pictures at least {least} and at most {most} pixels (size."
            "shortest_edge, size.longest_edge): set both in processor_config.json, for example to 3136 "
            "and 12845056"
        )
    if least > _MODEST_PIXELS:  # trying would take a second and much memory
        return
    inputs = _prepare_one(place, processor)
    wanted = int(inputs[grid_field].prod()) // processor.image_processor.merge_size**2
    found = int((inputs["input_ids"] == processor.image_token_id).sum())
    if found != wanted:
        raise CheckpointError(
            f"the processor of {place!r} writes {found} image tokens for a picture of {wanted} features: "
            "take the processor of the checkpoint that the model was made from"
        )


def _check_count(place: str, processor: Any, config: Any, class_tokens: int | None) -> None:
    """Check a processor of pictures of one size: it writes as many placeholders as the tower has features."""
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    if class_tokens is None or not isinstance(side, int) or not isinstance(patch, int):
        return
    without_class = getattr(config, "vision_feature_select_strategy", "default") == "default"
    wanted = (side // patch) ** 2 + class_tokens - without_class
    sizes = [getattr(processor.image_processor, name, None) for name in ("size", "crop_size")]
    largest = max((value for size in sizes if size for value in dict(size).values() if value), default=side)
    if largest > 2 * side:
        raise _wrong_size(place, f"scales pictures to {largest} pixels a side", side)
    inputs = _prepare_one(place, processor)
    height, width = inputs["pixel_values"].shape[-2:]
    if (height, width) != (side, side):
        raise _wrong_size(place, f"makes pictures of {width}x{height} pixels", side)
    found = int((inputs["input_ids"] == processor.image_token_id).sum())
    if found != wanted:
        raise CheckpointError(
            f"the processor of {place!r} writes {found} image tokens per picture, and the model has {wanted} "
            "features: set patch_size, vision_feature_select_strategy and num_additional_image_tokens in "
            "processor_config.json as config.json has them"
        )


def _prepare_one(place: str, processor: Any) -> Any:
    """Prepare one small picture. Raises CheckpointError if it fails."""
    try:
        return processor(
            images=[Image.new("RGB", (64, 48))], text=[processor.image_token], return_tensors="pt"
        )
    except Exception as error:  # settings that contradict one another end in any error
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(
            f"the processor of {place!r} cannot prepare a picture ({reason}): take processor_config.json and "
            "preprocessor_config.json of the checkpoint that it was made from"
        ) from error


def _wrong_size(place: str, what: str, side: int) -> CheckpointError:
    return CheckpointError(
        f"the processor of {place!r} {what}, and the model's vision tower takes {side}x{side}: set size and "
        f"crop_size to {side} in processor_config.json (or preprocessor_config.json), or take the processor "
        "of the checkpoint that the model was made from"
    )
