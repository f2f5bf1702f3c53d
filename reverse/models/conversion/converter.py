"""Published checkpoints as plain ones of transformers: found by what is in them, never by their names.

    reverse convert reverse_llava_v15 OUT --vision clip-vit-large-patch14-336
    reverse convert reverse_qwen25_vl OUT

| found | by | becomes |
|---|---|---|
| original LLaVA, full or LoRA | `mm_*` fields, `model.mm_projector.*` | `LlavaForConditionalGeneration` |
| Qwen2.5-VL of transformers 4 | `model_type` qwen2_5_vl | the same class, settings of today, ordinary tags |
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlavaConfig

from reverse.errors import CheckpointError, MissingFileError
from reverse.files.atomic_write import atomic_write_dir, check_new
from reverse.models.checkpoints.config_checks import (
    build_config,
    build_empty,
    check_config_values,
    check_depth,
)
from reverse.models.checkpoints.loading import load_fitting_processor
from reverse.models.checkpoints.shards import (
    Progress,
    ShardWriter,
    Tensors,
    find_folder,
    open_tensors,
    read_json,
)
from reverse.models.checkpoints.tensor_names import compare_tensors, refuse_foreign_prefixes
from reverse.models.conversion.original_llava import convert_original_llava
from reverse.models.conversion.original_llava.llava_layout import is_original
from reverse.models.families import QWEN2_5_VL
from reverse.tokens.spans import TokenIds
from reverse.tokens.vocabulary import find_token_ids

_KNOWN = "an original LLaVA (LlavaLlamaForCausalLM, mm_* fields), full or LoRA, and Qwen2.5-VL"


@dataclass(frozen=True)
class Converted:
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
) -> Converted:
    """Write the checkpoint `src` to the folder `out` so that `reverse.load` and `from_pretrained` take it.

    `out` is complete or not there. Memory: one output shard (2 GB) and a few tensors, never the checkpoint.

    Args:
        src: folder or hub id.
        out: folder to write; must not exist or be empty.
        vision: folder or hub id of the CLIP tower, for an original LLaVA that does not hold it.
        base: folder or hub id of the base, for a LoRA folder; by default the one that it names.
        dtype: of the weights; by default as they were saved.
        progress: called after every tensor with how many are done, how many there are, and its name.

    Raises:
        FileExistsError: `out` is not empty.
        FileNotFoundError: a part is missing; the message says what to name.
        ValueError: the layout is not known; a part does not fit; damaged files; pickles that run code.
    """
    out = Path(out)
    check_new(out)
    folder = find_folder(src)
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise CheckpointError(
                f"{str(src)!r} is a LoRA adapter of peft: run `reverse merge ADAPTER OUT --base BASE`"
            )
        raise MissingFileError(f"{str(src)!r} has no config.json: known are {_KNOWN}")
    config = read_json(folder / "config.json")
    _refuse_code(folder, config)
    kind = _kind(folder, config)
    if kind != "original LLaVA" and (vision is not None or base is not None):
        raise CheckpointError(
            f"{str(src)!r} is {kind}, which needs neither --vision nor --base: leave them out"
        )
    with atomic_write_dir(out) as whole:
        if kind == "original LLaVA":
            parts = convert_original_llava(
                folder, whole, vision=_text(vision), base=_text(base), dtype=dtype, progress=progress
            )
            tokenizer = parts.processor.tokenizer
            if (folder / "adapter_config.json").is_file():
                kind = "original LLaVA, LoRA"
        else:
            tokenizer = _convert_qwen(folder, whole, config, dtype, progress).tokenizer
        for licence in folder.glob("LICENSE*"):
            shutil.copyfile(licence, whole / licence.name)
    known = "<SPAN>" in tokenizer.get_vocab()
    return Converted(str(out), kind, find_token_ids(tokenizer) if known else None)


def _text(path: str | os.PathLike | None) -> str | None:
    return None if path is None else os.fspath(path)


def _refuse_code(folder: Path, config: dict[str, Any]) -> None:
    if "auto_map" in config:
        raise CheckpointError(
            f"{str(folder)!r} wants to run its own code (auto_map in config.json: {config['auto_map']}): no "
            f"code is "
            "run from a checkpoint; take auto_map out if you trust the rest"
        )


def _kind(folder: Path, config: dict[str, Any]) -> str:
    if is_original(folder, config):
        return "original LLaVA"
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{str(folder)!r} is a LoRA adapter of peft: run `reverse merge ADAPTER OUT --base BASE`"
        )
    model_type = config.get("model_type")
    if model_type in QWEN2_5_VL.model_types:
        return QWEN2_5_VL.name
    if model_type == LlavaConfig.model_type:
        raise CheckpointError(f"{str(folder)!r} is a LLaVA of transformers already: load it as it is")
    raise CheckpointError(
        f"{str(folder)!r} is a {model_type!r} ({config.get('architectures')}): known are {_KNOWN}"
    )


def _convert_qwen(
    src: Path, whole: Path, config: dict[str, Any], dtype: torch.dtype | None, progress: Progress | None
) -> Any:
    """Qwen2.5-VL: the names that every version of transformers reads, settings of today, ordinary tags."""
    file = src / "config.json"
    check_config_values(file, config, QWEN2_5_VL)
    tensors = open_tensors(src)
    refuse_foreign_prefixes(str(src), tensors)
    settings = build_config(file, config, QWEN2_5_VL)
    names = {_qwen_name(name): name for name in tensors}
    embedding = names.get("model.embed_tokens.weight")
    if embedding is None:
        raise CheckpointError(f"{str(src)!r} has no model.embed_tokens.weight: the checkpoint is not whole")
    _drop_tied_head(src, settings, tensors, names)
    settings.text_config.vocab_size = tensors.shape(embedding)[0]
    settings.dtype = dtype or tensors.read(embedding).dtype
    settings.architectures = [QWEN2_5_VL.model_class]
    _check_qwen(src, settings, tensors, names)
    processor = load_fitting_processor(str(src), QWEN2_5_VL)

    writer = ShardWriter(whole)
    for done, (name, old) in enumerate(
        sorted(names.items(), key=lambda pair: tensors.file_of(pair[1])), start=1
    ):
        writer.add(name, tensors.read(old).to(settings.dtype))
        if progress is not None:
            progress(done, len(names), name)
    writer.close()
    settings.save_pretrained(whole)
    if (src / "generation_config.json").is_file():
        GenerationConfig.from_pretrained(str(src)).save_pretrained(whole)
    processor.save_pretrained(whole)
    return processor


def _qwen_name(name: str) -> str:
    """The name in files, for the layouts of transformers 4.49 to 5."""
    for inner in ("language_model.", "visual."):
        if name.startswith(f"model.{inner}"):
            rest = name.removeprefix(f"model.{inner}")
            return f"model.{rest}" if inner == "language_model." else f"visual.{rest}"
    return name


def _drop_tied_head(src: Path, settings: Any, tensors: Tensors, names: dict[str, str]) -> None:
    """A head that the config ties is a copy, which some trainers save; one that differs is refused."""
    if not settings.tie_word_embeddings or "lm_head.weight" not in names:
        return
    head = tensors.read(names.pop("lm_head.weight"))
    if not torch.equal(head, tensors.read(names["model.embed_tokens.weight"])):
        raise CheckpointError(
            f"{str(src)!r} ties head and embeddings in its config, but its lm_head.weight differs from "
            "model.embed_tokens.weight: set tie_word_embeddings to false if the head was trained apart"
        )


def _check_qwen(src: Path, settings: Any, tensors: Tensors, names: dict[str, str]) -> None:
    """Names and shapes must be those of a model built from `settings`, before an hour of copying."""
    shapes = {name: tensors.shape(old) for name, old in names.items()}
    check_depth(src / "config.json", settings, len(shapes))
    empty = build_empty(src / "config.json", settings, QWEN2_5_VL)
    compare_tensors(str(src), shapes, empty, QWEN2_5_VL)
