"""Find the files that hold the weights of a checkpoint.

Only files that transformers would read are considered, in its order: `model.safetensors`, else the shards
that `model.safetensors.index.json` names. Shards are safetensors files beside their index. In the cache of a
hub they are links to its blobs, which is allowed; a pickle, a path that leads elsewhere, a pipe or a device
is not.
"""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from reverse.errors import CheckpointError, MissingFileError
from reverse.models.checkpoints.settings_files import read_settings, shorten

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_HUB_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.safetensors", "*.bin", "LICENSE*", "*.md"]
_MAX_TENSORS = 1 << 18


def check_weight_files(place: str, hub: dict[str, Any], variant: str | None = None) -> list[Path] | None:
    """Return the weight files of a folder; None for a hub id, whose files may have to be fetched first.

    `variant` is that of `from_pretrained`: "fp16" reads `model.fp16.safetensors`.

    Raises:
        MissingFileError: there are no weights, or shards are missing.
        CheckpointError: there are pickled weights only; an index is damaged, or names no shard of its folder.
    """
    folder = Path(place)
    if not folder.is_dir():
        return None
    folder = folder / hub.get("subfolder", "")
    single, index = _file_names(variant)
    if (folder / single).is_file():
        return [folder / single]
    if (folder / index).exists():
        names = shard_names(folder / index)
        check_shards(folder / index, names)
        return [folder / name for name in names]
    if any((folder / name).exists() for name in ADAPTER):
        raise CheckpointError(
            f"{place!r} holds a LoRA adapter and no weights of its base: merge it first, "
            "`reverse merge ADAPTER OUT --base BASE`"
        )
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{place!r} holds pickled weights only ({', '.join(pickles[:3])}), which can run code when read: "
            "load them where you trust them and save them with save_pretrained, which writes safetensors"
        )
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    named = f" (it has {', '.join(others[:3])}: rename a complete one to {single})" if others else ""
    raise MissingFileError(
        f"{place!r} has no *.safetensors that is read, {single} or {index}{named}: the checkpoint is not "
        "complete, fetch or save it again"
    )


def fetch_weight_files(place: str, hub: dict[str, Any], variant: str | None = None) -> list[Path]:
    """Return the weight files of a folder or a hub id, fetched if they are not in the cache.

    Raises what `check_weight_files` raises.
    """
    here = check_weight_files(place, hub, variant)
    if here is not None:
        return here
    single, index = (
        cached_file(place, name, _raise_exceptions_for_missing_entries=False, **hub)
        for name in _file_names(variant)
    )
    if single is not None:
        return [Path(single)]
    if index is None:
        raise MissingFileError(
            f"{place!r} has neither {' nor '.join(_file_names(variant))}: pickled weights are not read; name "
            "a checkpoint with safetensors, or convert it where you trust it"
        )
    return [Path(str(cached_file(place, name, **hub))) for name in shard_names(Path(index))]


def _file_names(variant: str | None) -> tuple[str, str]:
    """Return the names of the single weight file and of the index of a variant, as in transformers."""
    if variant is None:
        return SINGLE, INDEX
    if not _is_plain_name(variant):
        raise CheckpointError(
            f"variant={shorten(variant)} is not a part of a file's name: try 'fp16', or leave it out"
        )
    return f"model.{variant}.safetensors", f"model.safetensors.index.{variant}.json"


def shard_names(index: Path) -> list[str]:
    """Return the safetensors files that an index names, all of them in its own folder.

    Raises CheckpointError if the index is damaged or names something else.
    """
    weight_map = read_weight_map(index, with_metadata=True)
    for tensor, name in weight_map.items():
        if not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{index} says that {shorten(tensor)} lies in {shorten(name)}, which is not a safetensors "
                "file: pickles can run code when they are read; save the checkpoint with save_pretrained, "
                "which writes safetensors"
            )
    return sorted(set(weight_map.values()))


def read_weight_map(index: Path, *, with_metadata: bool = False) -> dict[str, str]:
    """Return the file name of each tensor in an index of shards; metadata may be required too.

    Raises CheckpointError if the index is damaged, or names a file outside of its folder.
    """
    content = read_settings(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or len(weight_map) > _MAX_TENSORS:
        raise CheckpointError(f"{index} has no weight_map of tensors: fetch or save the checkpoint again")
    if with_metadata and not isinstance(content.get("metadata"), dict):
        raise CheckpointError(
            f'{index} has no metadata, which transformers asks for: write "metadata": {{}} into it'
        )
    for tensor, name in weight_map.items():
        if not _is_plain_name(name):
            raise CheckpointError(
                f"{index} says that {shorten(tensor)} lies in {shorten(name)}, which is not a file of that "
                "folder: shards lie beside their index; fetch or save the checkpoint again"
            )
    return weight_map


def check_shards(index: Path, names: Iterable[str]) -> None:
    """Raise MissingFileError if a shard that `index` names is not beside it."""
    names = set(names)
    missing = sorted(name for name in names if not index.with_name(name).is_file())
    if missing:
        raise MissingFileError(
            f"{index} names {len(names)} shards, and {len(missing)} are not there "
            f"({', '.join(missing[:3])}): fetch the checkpoint again"
        )


def find_folder(path_or_id: str | os.PathLike) -> Path:
    """Return the folder of a path, or of a hub id (owner/name), which is fetched without code.

    Raises MissingFileError if there is no such folder and the hub does not have it.
    """
    name = os.fspath(path_or_id)
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or Path(name).exists():
        raise MissingFileError(
            f"there is no folder {name!r}: name a checkpoint folder or a hub id (owner/name)"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub's own errors, and those of the network below it
        raise MissingFileError(
            f"there is no folder {name!r}, and it cannot be fetched as a hub id ({error!s:.200}): "
            "check the name and the connection"
        ) from error


def link_without_adapter(folder: Path, files: list[Path]) -> Path:
    """Make a temporary folder of links to the files of `folder` without those of adapters.

    transformers before 5.21 always applies an adapter_config.json of a local folder. The caller removes the
    folder when the model is freed, because weights on disk may be read through it until then.
    """
    view = Path(tempfile.mkdtemp(prefix="reverse-weights-"))
    beside = [folder / "config.json", folder / "generation_config.json", *folder.glob("*.index*.json")]
    for file in [*files, *(file for file in beside if file.exists())]:
        if not (view / file.name).exists():
            (view / file.name).symlink_to(file.absolute())
    return view


def unused_weights(folder: Path, used: list[Path]) -> list[str]:
    """Return the names of adapter files and other weights in `folder` that are not among `used`."""
    found = {name for name in ADAPTER if (folder / name).exists()}
    patterns = ("*.safetensors", "non_lora_*.bin", "mm_projector.bin", "projector.bin")
    found |= {file.name for pattern in patterns for file in folder.glob(pattern)}
    return sorted(found - {file.name for file in used})


def _is_plain_name(name: Any) -> bool:
    """Whether `name` is the name of a file in the same folder, and no path."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0:")
