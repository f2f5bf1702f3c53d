"""The differences between model families: one frozen record per family, and nothing elsewhere.

    >>> from reverse.models import family_of
    >>> family_of(model).threshold
    0.003

A family is found by the `model_type` of the configuration, never by the name of a folder. A further family
is a further record in `FAMILIES`: see docs/contributing/add_a_family.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from numbers import Real
from typing import Any

from reverse.errors import CheckpointError
from reverse.models.processors.chat_templates import LLAVA_CHAT, QWEN2_5_VL_CHAT
from reverse.models.unwrapping import unwrap_model


@dataclass(frozen=True)
class Family:
    """Everything that decoding, loading and training must know about one kind of model."""

    name: str  # as messages and docs show it
    model_types: tuple[str, ...]  # values of `config.model_type` that belong to the family
    model_class: str  # class of transformers with a language-model head
    processor_class: str  # class of transformers
    threshold: float  # probability of </UN> above which a phrase is rejected (paper, section 4)
    image_token: str  # stands for a picture in the prompt
    image_token_field: str  # field of the configuration that holds the id of `image_token`
    tower: str  # path of the module that encodes pictures
    projector: str  # path of the module that turns picture features into embeddings
    language_model: str  # path of the decoder below the head
    chat_template: str  # for checkpoints that are built here; published ones bring their own
    placeholders_per_image: int = 1  # image tokens that the template writes for a picture
    grid_field: str | None = None  # output of the processor: patches of each picture (time, height, width)
    joined_features: bool = False  # `forward` takes the features of all pictures as one tensor, not a list
    video: bool = False  # the processor of transformers also takes a video processor (and needs torchvision)
    # Fields of the processor, or of a part of it, and the field of the configuration that decides each.
    processor_fields: tuple[tuple[str, str], ...] = ()
    # Spellings of tensor names in files of transformers 4.36 to 5: patterns and what replaces them.
    tensor_spellings: tuple[tuple[str, str], ...] = ()
    default_mrope_section: tuple[int, ...] | None = None  # what transformers takes if the config has none

    def vision_tower(self, model: Any) -> Any:
        """The module that encodes pictures; one call of it is one encoding (count with a forward hook)."""
        return self._module(model, self.tower)

    def image_projector(self, model: Any) -> Any:
        """The module between tower and decoder, which the published recipes train in full."""
        return self._module(model, self.projector)

    def decoder(self, model: Any) -> Any:
        """The language model below the head."""
        return self._module(model, self.language_model)

    def image_token_id(self, config: Any) -> int:
        """The id that stands for a picture's features in `input_ids`."""
        return getattr(config, self.image_token_field)

    def context_length(self, config: Any) -> int:
        """The most tokens that a prompt and its answer may have, pictures included."""
        return config.get_text_config().max_position_embeddings

    def split_pictures(self, inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Split the output of a processor into the tensors of each picture, in order."""
        pixels = inputs.get("pixel_values")
        if pixels is None:
            return []
        if self.grid_field is None:
            return [{"pixel_values": pixels[i : i + 1]} for i in range(len(pixels))]
        grids = inputs[self.grid_field]
        parts = pixels.split(grids.prod(dim=-1).tolist())
        return [{"pixel_values": part, self.grid_field: grids[i : i + 1]} for i, part in enumerate(parts)]

    def merge_size(self, config: Any) -> int:
        """Return how many patches an image token covers along one side."""
        return getattr(config.vision_config, "spatial_merge_size", 1)

    def messages(self, prompt: str, images: Sequence[Any], system: str | None = None) -> list[dict]:
        """Return one user turn as a chat message list: the pictures, then the prompt."""
        content = [{"type": "image", "image": image} for image in images]
        turns = [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]
        if system is not None:
            turns.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        return turns

    def _module(self, model: Any, path: str) -> Any:
        """Return the submodule at `path` of the model inside its wrappers."""
        return reduce(getattr, path.split("."), unwrap_model(model))


LLAVA = Family(
    name="LLaVA",
    model_types=("llava",),
    model_class="LlavaForConditionalGeneration",
    processor_class="LlavaProcessor",
    threshold=0.003,
    image_token="<image>",
    image_token_field="image_token_index",
    tower="model.vision_tower",
    projector="model.multi_modal_projector",
    language_model="model.language_model",
    chat_template=LLAVA_CHAT,
    processor_fields=(
        ("patch_size", "vision_config.patch_size"),
        ("vision_feature_select_strategy", "vision_feature_select_strategy"),
    ),
    tensor_spellings=(
        (r"^model\.(?=language_model\.|vision_tower\.|multi_modal_projector\.)", ""),
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^language_model\.model\.", "language_model."),
        (r"^vision_tower\.vision_model\.", "vision_tower."),
    ),
)

QWEN2_5_VL = Family(
    name="Qwen2.5-VL",
    model_types=("qwen2_5_vl",),
    model_class="Qwen2_5_VLForConditionalGeneration",
    processor_class="Qwen2_5_VLProcessor",
    threshold=0.01,
    image_token="<|image_pad|>",
    image_token_field="image_token_id",
    tower="model.visual",
    projector="model.visual.merger",
    language_model="model.language_model",
    chat_template=QWEN2_5_VL_CHAT,
    grid_field="image_grid_thw",
    video=True,
    processor_fields=(
        ("image_processor.patch_size", "vision_config.patch_size"),
        ("image_processor.temporal_patch_size", "vision_config.temporal_patch_size"),
        ("image_processor.merge_size", "vision_config.spatial_merge_size"),
    ),
    tensor_spellings=(
        (r"^model\.(?=visual\.)", ""),
        (r"^model\.language_model\.", "model."),
    ),
    default_mrope_section=(16, 24, 24),
)

FAMILIES = [LLAVA, QWEN2_5_VL]  # further records may be appended


def family_of(model_or_config: Any) -> Family:
    """Return the family of a model, which may be wrapped, or of a configuration.

    Raises CheckpointError for an architecture that is not known.
    """
    config = _config_of(model_or_config)
    return family_named(getattr(config, "model_type", None), type(model_or_config).__name__)


def _config_of(model_or_config: Any) -> Any:
    model_or_config = unwrap_model(model_or_config)
    return getattr(model_or_config, "config", model_or_config)


def family_named(model_type: Any, owner: str) -> Family:
    """Return the family of a `model_type`; the error names the `owner` of that type.

    Raises CheckpointError for an architecture that is not known.
    """
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(f"{family.name} ({', '.join(family.model_types)})" for family in FAMILIES)
    raise CheckpointError(
        f"{owner} has the unknown architecture {model_type!r}: known are {known}; an original LLaVA "
        "checkpoint (model_type 'llava_llama') must first be converted (`reverse convert SRC OUT`), and a "
        "LoRA adapter merged into its base (`reverse merge ADAPTER OUT`)"
    )


def default_threshold(model_or_config: Any) -> float:
    """Return the checkpoint's own threshold (`"reverse": {"threshold": …}` in its config.json), else its
    family's.

    Raises CheckpointError for an unknown architecture, or a stored threshold outside (0, 1].
    """
    config = _config_of(model_or_config)
    stored = stored_threshold(getattr(config, "reverse", None))
    return family_of(config).threshold if stored is None else stored


def stored_threshold(section: Any) -> float | None:
    """Return the threshold in the section "reverse" of config.json; None if there is none.

    Raises CheckpointError if it is not a number in (0, 1], or if the section is not a mapping.
    """
    if section is None:
        return None
    if not isinstance(section, Mapping):
        raise CheckpointError(
            f'config.json has "reverse": {section!r}, which must be an object, {{"threshold": 0.003}}, or '
            "left out"
        )
    stored = section.get("threshold")
    if stored is not None and not _is_probability(stored):
        raise CheckpointError(
            f"config.json gives the threshold {stored!r}, which must be a number in (0, 1]: it is a "
            "probability of </UN>; leave it out to use the family's"
        )
    return None if stored is None else float(stored)


def set_default_threshold(model: Any, threshold: float) -> None:
    """Make `threshold` the model's own default; `save_pretrained` keeps it in config.json.

    Raises CheckpointError if `threshold` lies outside (0, 1].
    """
    if not _is_probability(threshold):
        raise CheckpointError(
            f"threshold must be a number in (0, 1], got {threshold!r}: it is a probability of </UN>, try "
            "0.003"
        )
    config = _config_of(model)
    config.reverse = {**(getattr(config, "reverse", None) or {}), "threshold": float(threshold)}


def _is_probability(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) <= 1
