"""Convert published checkpoints to plain ones of transformers. Their content decides, not their names.

    reverse convert reverse_llava_v15 OUT --vision clip-vit-large-patch14-336
    reverse convert reverse_qwen25_vl OUT

| found | by | becomes |
|---|---|---|
| original LLaVA, full or LoRA | `mm_*` fields, `model.mm_projector.*` | `LlavaForConditionalGeneration` |
| Qwen2.5-VL of transformers 4 | `model_type` qwen2_5_vl | the same class, current settings, ordinary tags |
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from reverse.errors import CheckpointError, MissingFileError
from reverse.files.atomic_write import atomic_write_dir, check_new
from reverse.models.checkpoints.config_checks import (
    build_config,
    build_empty,
    check_config_values,
    check_depth,
)
from reverse.models.checkpoints.loading import check_no_code, check_tied_head, load_fitting_processor
from reverse.models.checkpoints.settings_files import read_settings
from reverse.models.checkpoints.tensor_files import Progress, ShardWriter, open_tensors
from reverse.models.checkpoints.tensor_names import canonical_name, compare_tensors, refuse_foreign_prefixes
from reverse.models.checkpoints.weight_files import find_folder
from reverse.models.conversion.original_llava.llava_converter import convert_original_llava
from reverse.models.conversion.original_llava.llava_layout import is_original
from reverse.models.families import LLAVA, QWEN2_5_VL
from reverse.tokens.spans import TokenIds
from reverse.tokens.vocabulary import find_token_ids

_ORIGINAL = "original LLaVA"
_KNOWN = "an original LLaVA (LlavaLlamaForCausalLM, mm_* fields), full or LoRA, and Qwen2.5-VL"


@dataclass(frozen=True)
class ConversionReport:
    """What `convert` wrote."""

    out: str
    found: str  # the layout
    tokens: TokenIds | None  # None: a base that does not know the three tokens yet


def convert(
    src: str | os.PathLike,
    out: str | os.PathLike,
    *,
    vision: str | os.PathLike | None = None,
    base: str | os.PathLike | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> ConversionReport:
    """Write the checkpoint `src` to the folder `out` so that `reverse.load` and `from_pretrained` read it.

    `out` is complete or does not exist. Memory: one output shard (2 GB) and a few tensors, never the
    checkpoint.

    Args:
        src: folder or hub id.
        out: folder to write; must not exist or be empty.
        vision: folder or hub id of the CLIP tower, for an original LLaVA that does not hold it.
        base: folder or hub id of the base, for a LoRA folder; by default the one that it names.
        dtype: of the weights; by default as they were saved.
        progress: called after every tensor with how many are done, how many there are, and its name.

    Raises:
        OutputExistsError: `out` is not empty.
        MissingFileError: a part is missing; the message says what to name.
        CheckpointError: the layout is not known; a part does not fit; damaged files; pickles that run code.
    """
    out = Path(out)
    check_new(out)
    folder = find_folder(src)
    has_adapter = (folder / "adapter_config.json").is_file()
    config = _read_config(folder, has_adapter)
    kind = _find_kind(folder, config)
    if kind != _ORIGINAL and has_adapter:
        raise _adapter_error(folder)
    if kind != _ORIGINAL and (vision is not None or base is not None):
        raise CheckpointError(
            f"{str(src)!r} is {kind}, which needs neither --vision nor --base: leave them out"
        )
    with atomic_write_dir(out) as temporary:
        if kind == _ORIGINAL:
            vision, base = (None if path is None else os.fspath(path) for path in (vision, base))
            processor = convert_original_llava(
                folder, temporary, vision=vision, base=base, dtype=dtype, progress=progress
            )
            kind = f"{kind}, LoRA" if has_adapter else kind
        else:
            processor = _convert_qwen(folder, temporary, config, dtype, progress)
        for licence in folder.glob("LICENSE*"):
            shutil.copyfile(licence, temporary / licence.name)
    known = "<SPAN>" in processor.tokenizer.get_vocab()
    return ConversionReport(str(out), kind, find_token_ids(processor) if known else None)


def _read_config(folder: Path, has_adapter: bool) -> dict[str, Any]:
    """Read config.json. Raises as `convert` if there is none, or if it names code."""
    if not (folder / "config.json").is_file():
        if has_adapter:
            raise _adapter_error(folder)
        raise MissingFileError(f"{str(folder)!r} has no config.json: known are {_KNOWN}")
    config = read_settings(folder / "config.json")
    check_no_code(folder, config)
    return config


def _adapter_error(folder: Path) -> CheckpointError:
    return CheckpointError(
        f"{str(folder)!r} is a LoRA adapter of peft: run `reverse merge ADAPTER OUT --base BASE`"
    )


def _find_kind(folder: Path, config: dict[str, Any]) -> str:
    """Find the layout of a checkpoint. Raises CheckpointError if it is unknown or needs no conversion."""
    model_type = config.get("model_type")
    if is_original(config):
        return _ORIGINAL
    if model_type in QWEN2_5_VL.model_types:
        return QWEN2_5_VL.name
    if model_type in LLAVA.model_types:
        raise CheckpointError(f"{str(folder)!r} is a LLaVA of transformers already: load it as it is")
    raise CheckpointError(
        f"{str(folder)!r} is a {model_type!r} ({config.get('architectures')}): known are {_KNOWN}"
    )


def _convert_qwen(
    src: Path, out: Path, config: dict[str, Any], dtype: torch.dtype | None, progress: Progress | None
) -> Any:
    """Write a Qwen2.5-VL with tensor names that every version reads, current settings and ordinary tags."""
    file = src / "config.json"
    check_config_values(file, config, QWEN2_5_VL)
    tensors = open_tensors(src)
    refuse_foreign_prefixes(str(src), tensors)
    settings = build_config(file, config, QWEN2_5_VL)
    names = {canonical_name(name, QWEN2_5_VL): name for name in tensors}
    embedding = names.get("model.embed_tokens.weight")
    if embedding is None:
        raise CheckpointError(
            f"{str(src)!r} has no model.embed_tokens.weight: the checkpoint is not complete"
        )
    if settings.tie_word_embeddings and "lm_head.weight" in names:  # some trainers save a copy
        check_tied_head(src, tensors, names.pop("lm_head.weight"), embedding)
    settings.text_config.vocab_size = tensors.shape(embedding)[0]
    settings.dtype = dtype or tensors[embedding].dtype
    settings.architectures = [QWEN2_5_VL.model_class]
    shapes = {name: tensors.shape(old) for name, old in names.items()}
    check_depth(file, settings, len(shapes))
    compare_tensors(str(src), shapes, build_empty(file, settings, QWEN2_5_VL), QWEN2_5_VL)
    processor = load_fitting_processor(str(src), QWEN2_5_VL)

    writer = ShardWriter(out)
    in_order = sorted(names.items(), key=lambda pair: tensors.file_of(pair[1]))  # each file is opened once
    for done, (name, old) in enumerate(in_order, start=1):
        writer.add(name, tensors[old].to(settings.dtype))
        if progress is not None:
            progress(done, len(names), name)
    writer.close()
    settings.save_pretrained(out)
    if (src / "generation_config.json").is_file():
        GenerationConfig.from_pretrained(str(src)).save_pretrained(out)
    processor.save_pretrained(out)
    return processor
