"""Which files hold the weights of a checkpoint, and what they say they hold, without reading a weight.

Only what transformers would read is looked at, in its order: `model.safetensors`, else the shards that
`model.safetensors.index.json` names. Shards are safetensors files beside their index. In the cache of a hub
they are links to its blobs, which is fine; a pickle, a path that leads elsewhere, a pipe or a device is not.
"""

import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

from reverse.errors import CheckpointError, MissingFileError
from reverse.models.checkpoints.settings_files import read_settings, shorten

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_MAX_TENSORS = 1 << 18

Shapes = dict[str, tuple[int, ...]]


def check_weight_files(place: str, hub: dict[str, Any], variant: str | None = None) -> list[Path] | None:
    """The weight files of a folder; None for a hub id, whose files may have to be fetched first.

    `variant` is that of `from_pretrained`: "fp16" reads `model.fp16.safetensors`.

    Raises:
        FileNotFoundError: there are no weights, or shards are missing.
        ValueError: pickled weights only; an index that is damaged, or names what is no shard of its folder.
    """
    folder = Path(place)
    if not folder.is_dir():
        return None
    folder = folder / hub.get("subfolder", "")
    single, index = _names(variant)
    if (folder / single).is_file():
        return [folder / single]
    if (folder / index).exists():
        return [folder / name for name in shard_names(folder / index, folder)]
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
    """The weight files of a folder or a hub id, fetched where they are not here yet. Raises as
    `check_weight_files`.
    """
    here = check_weight_files(place, hub, variant)
    if here is not None:
        return here
    names = _names(variant)
    single = cached_file(place, names[0], _raise_exceptions_for_missing_entries=False, **hub)
    if single is not None:
        return [Path(single)]
    index = cached_file(place, names[1], _raise_exceptions_for_missing_entries=False, **hub)
    if index is None:
        raise MissingFileError(
            f"{place!r} has neither {names[0]} nor {names[1]}: pickled weights are not read; name a "
            f"checkpoint with safetensors, or convert it where you trust it"
        )
    return [Path(str(cached_file(place, name, **hub))) for name in shard_names(Path(index), None)]


def _names(variant: str | None) -> tuple[str, str]:
    """The one file and the index of a variant, as transformers names them."""
    if variant is None:
        return SINGLE, INDEX
    if not is_plain_name(variant):
        raise CheckpointError(
            f"variant={shorten(variant)} is no part of a file's name: try 'fp16', or leave it out"
        )
    return f"model.{variant}.safetensors", f"model.safetensors.index.{variant}.json"


def shard_names(index: Path, folder: Path | None) -> list[str]:
    """The files that an index names, all of them plain names of safetensors files (in `folder`, if given).

    Raises:
        FileNotFoundError: some are not there.
        ValueError: the index is damaged, or names something else.
    """
    content = read_settings(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or len(weight_map) > _MAX_TENSORS:
        raise CheckpointError(f"{index} has no weight_map of tensors: fetch or save the checkpoint again")
    if not isinstance(content.get("metadata"), dict):
        raise CheckpointError(
            f'{index} has no metadata, which transformers asks for: write "metadata": {{}} into it'
        )
    for tensor, name in weight_map.items():
        if not is_plain_name(name):
            raise CheckpointError(
                f"{index} says that {shorten(tensor)} lies in {shorten(name)}, which is no file of that "
                f"folder: shards lie beside their index; fetch or save the checkpoint again"
            )
        if not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{index} says that {shorten(tensor)} lies in {shorten(name)}, which is no safetensors file: "
                "pickles can run code when they are read; save the checkpoint with save_pretrained, which "
                "writes safetensors"
            )
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if folder is not None and not (folder / name).is_file()]
    if missing:
        raise MissingFileError(
            f"{index} names {len(names)} shards, and {len(missing)} are not there "
            f"({', '.join(missing[:3])}): fetch the checkpoint again"
        )
    return names


def is_plain_name(name: Any) -> bool:
    """Whether `name` is the name of a file in the same folder, and no path."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0:")


def read_shapes(files: list[Path]) -> Shapes:
    """The shapes of all tensors, from the headers of `files`.

    Raises ValueError where a file is damaged or cut off, or two files hold a tensor of one name.
    """
    shapes: Shapes = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                found = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"the weights in {str(file)!r} are damaged or cut off ({str(error)[:200]}): fetch them again"
            ) from error
        twice = sorted(found.keys() & shapes.keys())
        if twice:
            raise CheckpointError(
                f"{str(file)!r} holds {len(twice)} tensors that another shard holds too ({twice[0]}): fetch "
                f"or save the checkpoint again"
            )
        shapes |= found
    return shapes


def read_tensor(files: list[Path], name: str) -> Any:
    """Tensor `name`, from whichever of `files` holds it. Raises KeyError where none does."""
    for file in files:
        with safe_open(file, framework="pt") as opened:
            if name in opened.keys():  # noqa: SIM118
                return opened.get_tensor(name)
    raise KeyError(name)


def link_without_adapter(folder: Path, files: list[Path]) -> Path:
    """A temporary folder of links to what `from_pretrained` needs of `folder`, and to no adapter.

    transformers before 5.21 applies an adapter_config.json of a local folder whatever it is told. The caller
    removes the folder when the model is gone: weights on disk may be read through it until then.
    """
    view = Path(tempfile.mkdtemp(prefix="reverse-weights-"))
    beside = [folder / "config.json", folder / "generation_config.json", *folder.glob("*.index*.json")]
    for file in [*files, *(file for file in beside if file.exists())]:
        if not (view / file.name).exists():
            (view / file.name).symlink_to(file.absolute())
    return view


def stray_weights(folder: Path, used: list[Path]) -> list[str]:
    """Names of adapter files and of other weights in `folder` that `used` does not hold."""
    read = {file.name for file in used}
    found = {name for name in ADAPTER if (folder / name).exists()}
    patterns = ("*.safetensors", "non_lora_*.bin", "mm_projector.bin", "projector.bin")
    found |= {file.name for pattern in patterns for file in folder.glob(pattern)}
    return sorted(found - read)
