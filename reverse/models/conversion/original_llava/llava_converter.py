"""Write a checkpoint of the original LLaVA layout as transformers' LLaVA.

    reverse convert reverse_llava_v15 OUT --vision clip-vit-large-patch14-336

The tags keep their ids; `<image>` comes after them. Peak memory: the output shard that is being filled (2
GB), the largest tensor, its product if a LoRA is merged, and whole `.bin` shards only if they are of the old
format that cannot be memory-mapped.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlamaConfig, LlavaConfig, LlavaProcessor

from reverse.errors import CheckpointError, MissingFileError
from reverse.models.checkpoints.config_checks import (
    build_empty,
    build_section,
    check_config_values,
    check_depth,
)
from reverse.models.checkpoints.settings_files import read_settings
from reverse.models.checkpoints.tensor_files import Progress, ShardWriter, Tensors, open_tensors
from reverse.models.checkpoints.tensor_names import compare_tensors
from reverse.models.checkpoints.weight_files import find_folder
from reverse.models.conversion.original_llava.llava_layout import Layout, is_original, read_layout
from reverse.models.conversion.original_llava.llava_tokenizer import (
    TOKENIZERS,
    chat_template,
    read_tokenizer,
    special_ids,
)
from reverse.models.conversion.original_llava.llava_tower import image_processor, tower_config
from reverse.models.conversion.original_llava.llava_weights import (
    EMBEDDINGS,
    HEAD,
    TensorEntry,
    collect_entries,
    grow_rows,
)
from reverse.models.families import LLAVA

_STRATEGY = {"patch": "default", "cls_patch": "full"}  # without and with the class token
_LLAMA_FIELDS = (
    "attention_bias", "attention_dropout", "bos_token_id", "head_dim", "hidden_act", "hidden_size",
    "initializer_range", "intermediate_size", "max_position_embeddings", "mlp_bias", "num_attention_heads",
    "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "rope_parameters", "rope_scaling",
    "rope_theta", "tie_word_embeddings",
)  # fmt: skip


@dataclass(frozen=True)
class _Parts:
    """All parts of a converted checkpoint, before weights are read or written."""

    entries: dict[str, TensorEntry]
    config: LlavaConfig
    generation: GenerationConfig
    processor: LlavaProcessor


def convert_original_llava(
    src: Path,
    out: Path,
    *,
    vision: str | Path | None = None,
    base: str | Path | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Any:
    """Write the folder `src`, of the original layout, to the folder `out` as transformers' LLaVA.

    Args:
        src: full checkpoint or LoRA folder.
        out: an empty folder.
        vision: folder or hub id of the CLIP tower, if the checkpoint does not hold it.
        base: of a LoRA folder, a Llama or an original LLaVA with the tokens; by default the one it names.
        dtype: of the weights; by default that of the embeddings.
        progress: called after every tensor.

    Returns:
        The processor.

    Raises:
        MissingFileError: a tower, a base, a tokenizer or weights are missing.
        CheckpointError: a part is not known here, or does not fit.
    """
    parts = _prepare(src, vision=vision, base=base, dtype=dtype)
    writer = ShardWriter(out)
    in_order = sorted(parts.entries.values(), key=lambda entry: entry.place)  # each file is opened once
    for done, entry in enumerate(in_order, start=1):
        writer.add(entry.name, entry.read().to(parts.config.dtype))
        if progress is not None:
            progress(done, len(in_order), entry.name)
    writer.close()
    for part in (parts.config, parts.generation, parts.processor):
        part.save_pretrained(out)
    return parts.processor


def _prepare(
    src: Path, *, vision: str | Path | None, base: str | Path | None, dtype: torch.dtype | None
) -> _Parts:
    """Collect the parts of the result, and find all errors that can be found without reading weights.

    Raises what `convert_original_llava` raises.
    """
    layout = read_layout(src)
    base_folder, base_layout, base_weights = _open_base(layout, base)
    with_tower = base_layout if base_layout is not None and base_layout.has_tower else layout
    tower = find_folder(vision) if vision is not None else None
    vision_config = tower_config(with_tower, tower)
    entries = collect_entries(
        layout, base_weights, open_tensors(tower) if tower is not None and not with_tower.has_tower else None
    )

    has_tokenizer = any((src / name).is_file() for name in TOKENIZERS)
    tokenizer, own = read_tokenizer(src if has_tokenizer or base_folder is None else base_folder)
    image_id = tokenizer.convert_tokens_to_ids(LLAVA.image_token)
    dtype = _grow_vocabulary(src, entries, tokenizer, image_id, dtype)
    config = _build_config(layout, vision_config, entries, tokenizer, image_id)
    config.dtype = dtype
    if config.tie_word_embeddings:
        entries.pop(HEAD, None)
    _check_tensors(src, config, entries)
    processor = LlavaProcessor(
        image_processor=image_processor(layout, tower, vision_config),
        tokenizer=tokenizer,
        patch_size=vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,  # the class token
        image_token=LLAVA.image_token,
        chat_template=chat_template(tokenizer, own),
    )
    return _Parts(entries, config, GenerationConfig(**special_ids(tokenizer)), processor)


def _open_base(layout: Layout, base: str | Path | None) -> tuple[Path | None, Layout | None, Tensors | None]:
    """Open the base of a LoRA folder; return its folder, its layout if it is an original LLaVA, and its
    weights.
    """
    place = str(layout.folder)
    if layout.lora is None:
        if base is not None:
            raise CheckpointError(f"{place!r} is a full checkpoint: leave --base out, it needs none")
        return None, None, None
    named = base or layout.lora_config.get("base_model_name_or_path")
    if not named:
        raise MissingFileError(
            f"{place!r} does not say which base it belongs to: name it with --base BASE (base=)"
        )
    try:
        folder = find_folder(named)
    except FileNotFoundError as error:
        raise MissingFileError(f"the base of {place!r}: {error}; name it with --base BASE") from error
    config = read_settings(folder / "config.json")
    if is_original(config):
        original = read_layout(folder)
        if original.weights is None:
            raise CheckpointError(
                f"the base {str(folder)!r} is a LoRA folder itself: name the full checkpoint below it"
            )
        return folder, original, original.weights
    if config.get("model_type") != LlamaConfig.model_type:
        raise CheckpointError(
            f"the base {str(folder)!r} is a {config.get('model_type')!r}; known are 'llama' and an original "
            "LLaVA: name the one that was trained"
        )
    return folder, None, open_tensors(folder)


def _grow_vocabulary(
    src: Path, entries: dict[str, TensorEntry], tokenizer: Any, image_id: int, dtype: torch.dtype | None
) -> torch.dtype:
    """Give embeddings and head a row for `<image>`; return the dtype of the checkpoint."""
    if EMBEDDINGS not in entries:
        raise CheckpointError(
            f"{str(src)!r} and its base have no model.embed_tokens.weight: the checkpoint is not complete"
        )
    rows_now = entries[EMBEDDINGS].shape[0]
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= rows_now and i != image_id}
    if beyond:
        token = min(beyond, key=beyond.__getitem__)
        raise CheckpointError(
            f"the tokenizer gives {token!r} the id {beyond[token]}, and the weights have {rows_now} "
            "embedding rows: tokenizer, weights and base do not belong to one checkpoint"
        )
    kind = dtype or entries[EMBEDDINGS].read().dtype
    rows, untrained = max(rows_now, image_id + 1), [image_id] if image_id < rows_now else []

    def grow(entry: TensorEntry) -> TensorEntry:
        return replace(
            entry,
            shape=(rows, *entry.shape[1:]),
            read=lambda: grow_rows(entry.read().to(kind), rows, untrained),
        )

    entries.update({name: grow(entries[name]) for name in (EMBEDDINGS, HEAD) if name in entries})
    return kind


def _build_config(
    layout: Layout, vision: Any, entries: dict[str, TensorEntry], tokenizer: Any, image_id: int
) -> LlavaConfig:
    source, file = layout.config, layout.folder / "config.json"
    text = {key: source[key] for key in _LLAMA_FIELDS if source.get(key) is not None}
    text |= {"vocab_size": entries[EMBEDDINGS].shape[0], **special_ids(tokenizer)}
    tied = bool(text.get("tie_word_embeddings", False))
    if HEAD not in entries and not tied:
        raise CheckpointError(
            f"{str(layout.folder)!r} has no lm_head.weight, and its config does not tie it: the checkpoint "
            "is not complete"
        )
    return LlavaConfig(
        vision_config=vision,
        text_config=build_section(file, LlamaConfig, text),
        image_token_index=image_id,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        projector_hidden_act="gelu",
        vision_feature_layer=source.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy=_STRATEGY[source.get("mm_vision_select_feature", "patch")],
        tie_word_embeddings=tied,
        architectures=[LLAVA.model_class],
    )


def _check_tensors(src: Path, config: LlavaConfig, entries: dict[str, TensorEntry]) -> None:
    """Check names and shapes against a model built from `config`, before an hour of copying."""
    file = src / "config.json"
    check_config_values(file, config.to_dict(), LLAVA)
    check_depth(file, config, len(entries))
    shapes = {name: entry.shape for name, entry in entries.items()}
    compare_tensors(f"{src} with its base and tower", shapes, build_empty(file, config, LLAVA), LLAVA)
