"""A checkpoint of the original LLaVA layout as transformers' LLaVA.

    reverse convert reverse_llava_v15 OUT --vision clip-vit-large-patch14-336

The tags keep their ids; `<image>` comes after them. Peak memory: the output shard that is being filled (2
GB), the largest tensor, its product where a LoRA is merged, and whole `.bin` shards only where they are of
the old format that cannot be memory-mapped.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
)

from reverse.errors import CheckpointError, MissingFileError
from reverse.models.checkpoints.config_checks import (
    build_empty,
    build_section,
    check_config_values,
    check_depth,
)
from reverse.models.checkpoints.shards import (
    Progress,
    ShardWriter,
    Tensors,
    find_folder,
    open_tensors,
    read_json,
)
from reverse.models.conversion.original_llava.llava_layout import Layout, is_original, read_layout
from reverse.models.conversion.original_llava.llava_tokenizer import (
    TOKENIZERS,
    chat_template,
    end_ids,
    read_tokenizer,
)
from reverse.models.conversion.original_llava.llava_tower import image_processor, tower_config
from reverse.models.conversion.original_llava.llava_weights import ROWS, Entry, collect, grow, in_order
from reverse.models.families import LLAVA

_STRATEGY = {"patch": "default", "cls_patch": "full"}  # without and with the class token
_LLAMA_FIELDS = (
    "attention_bias",
    "attention_dropout",
    "bos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "mlp_bias",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
)


@dataclass(frozen=True)
class Parts:
    """All that a converted checkpoint is made of; nothing is read or written yet."""

    entries: dict[str, Entry]
    config: LlavaConfig
    generation: GenerationConfig
    processor: LlavaProcessor
    rows: int  # of the embeddings, `<image>` included
    fill: tuple[int, ...]  # rows below `rows` that nobody trained
    dtype: torch.dtype


def convert_original_llava(
    src: Path,
    whole: Path,
    *,
    vision: str | Path | None = None,
    base: str | Path | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Parts:
    """Write the folder `src`, of the original layout, to the folder `whole` as transformers' LLaVA.

    Args:
        src: full checkpoint or LoRA folder.
        whole: an empty folder.
        vision: folder or hub id of the CLIP tower, where the checkpoint does not hold it.
        base: of a LoRA folder, a Llama or an original LLaVA with the tokens; by default the one it names.
        dtype: of the weights; by default that of the embeddings.
        progress: called after every tensor.

    Raises:
        FileNotFoundError: a tower, a base, a tokenizer or weights are missing.
        ValueError: anything whose meaning is not known, or that does not fit.
    """
    parts = prepare(src, vision=vision, base=base, dtype=dtype)
    writer = ShardWriter(whole)
    for done, entry in enumerate(in_order(parts.entries), start=1):
        tensor = entry.read().to(parts.dtype)
        if entry.name in ROWS:
            tensor = grow(tensor, parts.rows, list(parts.fill))
        writer.add(entry.name, tensor)
        if progress is not None:
            progress(done, len(parts.entries), entry.name)
    writer.close()
    parts.config.save_pretrained(whole)
    parts.generation.save_pretrained(whole)
    parts.processor.save_pretrained(whole)
    return parts


def prepare(
    src: Path, *, vision: str | Path | None, base: str | Path | None, dtype: torch.dtype | None
) -> Parts:
    """Everything that can be found wrong without reading the weights. Raises as `convert_original_llava`."""
    layout = read_layout(src)
    base_folder, base_layout, base_weights = _open_base(layout, base)
    carrier = base_layout if base_layout is not None and base_layout.has_tower else layout
    tower = find_folder(vision) if vision is not None else None
    vision_config = tower_config(carrier, tower)
    in_weights = carrier.has_tower
    entries = collect(
        layout, base_weights, open_tensors(tower) if tower is not None and not in_weights else None
    )

    has_tokenizer = any((src / name).is_file() for name in TOKENIZERS)
    tokenizer, own = read_tokenizer(src if has_tokenizer or base_folder is None else base_folder)
    if ROWS[0] not in entries:
        raise CheckpointError(
            f"{str(src)!r} and its base have no model.embed_tokens.weight: the checkpoint is not whole"
        )
    rows_now = entries[ROWS[0]].shape[0]
    image_id = tokenizer.convert_tokens_to_ids(LLAVA.image_token)
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= rows_now and i != image_id}
    if beyond:
        token = min(beyond, key=beyond.__getitem__)
        raise CheckpointError(
            f"the tokenizer gives {token!r} the id {beyond[token]}, and the weights have {rows_now} "
            f"embedding rows: "
            "tokenizer, weights and base are not of one checkpoint"
        )
    rows = max(rows_now, image_id + 1)
    config = _config(layout, vision_config, tokenizer, image_id, rows, ROWS[1] not in entries)
    _check_whole(src, config, entries, rows)
    kind = dtype or entries[ROWS[0]].read().dtype
    config.dtype = kind
    processor = LlavaProcessor(
        image_processor=image_processor(layout, tower, vision_config),
        tokenizer=tokenizer,
        patch_size=vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,  # the class token
        image_token=LLAVA.image_token,
        chat_template=chat_template(tokenizer, own),
    )
    ends = end_ids(tokenizer)
    generation = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends[0] if len(ends) == 1 else ends,
        pad_token_id=tokenizer.pad_token_id,
    )
    fill = (image_id,) if image_id < rows_now else ()
    return Parts(entries, config, generation, processor, rows, fill, kind)


def _open_base(layout: Layout, base: str | Path | None) -> tuple[Path | None, Layout | None, Tensors | None]:
    """The base of a LoRA folder: its folder, its layout if it is an original LLaVA itself, its weights."""
    if layout.lora is None:
        if base is not None:
            raise CheckpointError(
                f"{str(layout.folder)!r} is a full checkpoint: leave --base out, it needs none"
            )
        return None, None, None
    named = base or layout.lora_config.get("base_model_name_or_path")
    if not named:
        raise MissingFileError(
            f"{str(layout.folder)!r} does not say which base it belongs to: name it with --base BASE (base=)"
        )
    try:
        folder = find_folder(named)
    except FileNotFoundError as error:
        raise MissingFileError(
            f"the base of {str(layout.folder)!r}: {error}; --base BASE names it"
        ) from error
    config = read_json(folder / "config.json")
    if is_original(folder, config):
        original = read_layout(folder)
        if original.weights is None:
            raise CheckpointError(
                f"the base {str(folder)!r} is a LoRA folder itself: name the full checkpoint below it"
            )
        return folder, original, original.weights
    if config.get("model_type") != "llama":
        raise CheckpointError(
            f"the base {str(folder)!r} is a {config.get('model_type')!r}; known are 'llama' and an original "
            f"LLaVA: "
            "name the one that was trained"
        )
    return folder, None, open_tensors(folder)


def _config(
    layout: Layout, vision: Any, tokenizer: Any, image_id: int, rows: int, headless: bool
) -> LlavaConfig:
    source = layout.config
    text: Mapping[str, Any] = {key: source[key] for key in _LLAMA_FIELDS if source.get(key) is not None}
    if headless and not text.get("tie_word_embeddings"):
        raise CheckpointError(
            f"{str(layout.folder)!r} has no lm_head.weight, and its config does not tie it: the checkpoint "
            f"is not whole"
        )
    ends = end_ids(tokenizer)
    return LlavaConfig(
        vision_config=vision,
        text_config=build_section(
            layout.folder / "config.json",
            LlamaConfig,
            {
                **text,
                "vocab_size": rows,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": ends[0] if len(ends) == 1 else ends,
                "pad_token_id": tokenizer.pad_token_id,
            },
        ),
        image_token_index=image_id,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        projector_hidden_act="gelu",
        vision_feature_layer=source.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy=_STRATEGY[source.get("mm_vision_select_feature", "patch")],
        tie_word_embeddings=bool(text.get("tie_word_embeddings", False)),
        architectures=["LlavaForConditionalGeneration"],
    )


def _check_whole(src: Path, config: LlavaConfig, entries: dict[str, Entry], rows: int) -> None:
    """Names and shapes must be those of a model built from `config`, before an hour of copying."""
    file = src / "config.json"
    check_config_values(file, config.to_dict(), LLAVA)
    check_depth(file, config, len(entries))
    model = build_empty(file, config, LLAVA)
    wanted = {_as_saved(name): tuple(value.shape) for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        wanted.pop(ROWS[1], None)
        entries.pop(ROWS[1], None)
    found = {
        name: (rows, *entry.shape[1:]) if name in ROWS else entry.shape for name, entry in entries.items()
    }
    for words, names in (
        ("lacks", sorted(wanted.keys() - found.keys())),
        ("has beyond what its config says", sorted(found.keys() - wanted.keys())),
        (
            "has other shapes than its config says:",
            sorted(n for n in wanted if found.get(n, wanted[n]) != wanted[n]),
        ),
    ):
        if names:
            sizes = f", {found[names[0]]} and not {wanted[names[0]]}" if "shapes" in words else ""
            raise CheckpointError(
                f"{str(src)!r} (with its base and tower) {words} {names[0]}{sizes}; {len(names)} tensors in "
                f"all: the "
                "checkpoint is not whole, or its parts do not belong together"
            )


def _as_saved(name: str) -> str:
    """A parameter's name in memory as it stands in files, with the tower's prefix that all versions read."""
    for now, then in (
        ("model.language_model.", "language_model.model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("lm_head.", "language_model.lm_head."),
    ):
        if name.startswith(now):
            return then + name.removeprefix(now)
    rest = name.removeprefix("model.vision_tower.").removeprefix("vision_model.")
    return f"vision_tower.vision_model.{rest}"
