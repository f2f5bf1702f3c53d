"""Weights on disk, tensor by tensor: read safetensors and restricted pickles, write safetensors shards.

    >>> tensors = open_tensors("reverse_llava_v15")
    >>> tensors.read("model.mm_projector.0.weight").shape
    torch.Size([4096, 1024])

Nothing here holds a whole checkpoint. Safetensors and zipped `.bin` files are memory-mapped; the writer holds
at most one shard (2 GB). Pickles go through torch's restricted loader (`weights_only=True`) and no other;
file names from an index never leave the folder.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from reverse.errors import CheckpointError, MissingFileError
from reverse.models.checkpoints.settings_files import read_settings, shorten
from reverse.models.checkpoints.weight_files import is_plain_name

SHARD_BYTES = 2_000_000_000
HUB_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.safetensors", "*.bin", "LICENSE*", "*.md"]

Progress = Callable[[int, int, str], None]  # tensors done, tensors in all, the one at work

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLES = ("model.safetensors", "pytorch_model.bin")


class Tensors:
    """The tensors of one or several files, read one at a time and in the order of the files."""

    def __init__(self, files: dict[Path, list[str]]):
        self._files = files
        self._file_of = {name: path for path, names in files.items() for name in names}
        self._open: tuple[Path, Any] | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def file_of(self, name: str) -> str:
        """The name of the file that holds tensor `name`."""
        return self._file_of[name].name

    def read(self, name: str) -> torch.Tensor:
        """Tensor `name`, memory-mapped where the file allows it. Raises ValueError where it is damaged."""
        file = self._at(self._file_of[name])
        try:
            return file[name] if isinstance(file, dict) else file.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(_damaged(self._file_of[name], error)) from error

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of tensor `name`, without reading it."""
        file = self._at(self._file_of[name])
        return tuple(file[name].shape if isinstance(file, dict) else file.get_slice(name).get_shape())

    def close(self) -> None:
        """Let go of the file that is open."""
        self._open = None

    def _at(self, path: Path) -> Any:
        """The open file `path`; only one is open at a time."""
        if self._open is None or self._open[0] != path:
            self._open = None  # the file before goes first
            self._open = (path, _open_file(path))
        return self._open[1]


def open_tensors(folder: str | os.PathLike, names: tuple[str, ...] = ()) -> Tensors:
    """The weights of a checkpoint folder; safetensors where there are both kinds.

    Args:
        folder: holds `model.safetensors`, `pytorch_model.bin`, or one of their indexes and its shards.
        names: other file names to take instead, the first that exists.

    Raises:
        FileNotFoundError: no weights, or a shard that the index names is missing.
        ValueError: a damaged file; an index that names a file outside of the folder; a pickle that holds
            anything but tensors.
    """
    folder = Path(folder)
    if names:
        single = next((folder / name for name in names if (folder / name).is_file()), None)
        if single is None:
            raise MissingFileError(f"{str(folder)!r} has no {' or '.join(names)}")
        return Tensors({single: _names_in(single)})
    for index, whole in zip(_INDEXES, _SINGLES, strict=True):
        if (folder / index).is_file():
            return Tensors(_read_index(folder, index))
        if (folder / whole).is_file():
            return Tensors({folder / whole: _names_in(folder / whole)})
    raise MissingFileError(
        f"{str(folder)!r} has no weights ({', '.join(_SINGLES)} or an index of shards): fetch it again, or "
        f"name "
        "the folder that holds them"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, of bounded size and depth. Raises ValueError where the file holds none."""
    if not path.exists():
        raise MissingFileError(f"there is no {path}: fetch the checkpoint again")
    return read_settings(path)


def find_folder(path_or_id: str | os.PathLike) -> Path:
    """A folder as it is; what can only be a hub id (owner/name) is fetched, without code.

    Raises FileNotFoundError where it is neither, or the hub does not answer.
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
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:  # the hub's own, and those of the network below it
        raise MissingFileError(
            f"there is no folder {name!r}, and it cannot be fetched as a hub id ({error!s:.200}): "
            "check the name and the connection"
        ) from error


def _read_index(folder: Path, index: str) -> dict[Path, list[str]]:
    weight_map = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / index} has no weight_map: fetch it again")
    files: dict[Path, list[str]] = {}
    for name, file in weight_map.items():
        if not is_plain_name(file):
            raise CheckpointError(
                f"{folder / index} says that {shorten(name)} lies in {shorten(file)}, which is no file of "
                "that folder: shards lie beside their index"
            )
        files.setdefault(folder / file, []).append(name)
    missing = sorted(path.name for path in files if not path.is_file())
    if missing:
        raise MissingFileError(
            f"{str(folder)!r} lacks {len(missing)} of {len(files)} shards ({', '.join(missing[:3])}): fetch "
            f"the "
            "checkpoint again"
        )
    for path, names in files.items():
        absent = set(names) - set(_names_in(path))
        if absent:
            raise CheckpointError(
                f"{path} lacks {sorted(absent)[0]!r}, which {index} says it holds: fetch it again"
            )
    return files


def _names_in(path: Path) -> list[str]:
    file = _open_file(path)
    return list(file.keys())


def _open_file(path: Path) -> Any:
    """A safetensors handle, or the dict of tensors of a pickle."""
    if path.suffix == ".safetensors":
        try:
            return safe_open(path, framework="pt")
        except SafetensorError as error:
            raise CheckpointError(_damaged(path, error)) from error
    return load_pickle(path)


def load_pickle(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.bin` file, through torch's restricted loader.

    Raises ValueError for a file that holds anything but named tensors, or wants to run something.
    """
    try:
        # mmap wants the zipped format that torch writes since 1.6; older files are read whole
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, EOFError, RuntimeError, …: whatever damaged bytes raise
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{path} is refused: it holds something other than tensors, or is damaged ({reason}); pickles "
            f"are read "
            "by torch's restricted loader only, convert the file where you trust it to safetensors"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(
            f"{path} holds no named tensors but {type(state).__name__}: it is no file of weights"
        )
    return state


def _damaged(path: Path, error: Exception) -> str:
    return f"{path} is damaged or cut off ({error}): fetch it again"


class ShardWriter:
    """Write tensors one after the other into safetensors shards of at most `limit` bytes and their index.

    Shards are flushed to the disk as they fill, under names that `close` replaces by the final ones
    (`model.safetensors`, or `model-00001-of-00007.safetensors` and an index).
    """

    def __init__(self, folder: Path, limit: int = SHARD_BYTES):
        self.folder = folder
        self.limit = limit
        self._shard: dict[str, torch.Tensor] = {}
        self._bytes = 0
        self._written: list[list[str]] = []
        self.total = 0  # bytes

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take `tensor` over; it must not be changed afterwards."""
        size = tensor.numel() * tensor.element_size()
        if self._shard and self._bytes + size > self.limit:
            self._flush()
        self._shard[name] = tensor.contiguous()
        self._bytes += size
        self.total += size

    def close(self) -> None:
        """Write what is left, give the shards their names, and write the index."""
        self._flush()
        count = len(self._written)
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._written, start=1):
            final = "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            (self.folder / _part(number)).replace(self.folder / final)
            weight_map |= dict.fromkeys(names, final)
        if count > 1:
            index = {"metadata": {"total_size": self.total}, "weight_map": dict(sorted(weight_map.items()))}
            (self.folder / _INDEXES[0]).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _flush(self) -> None:
        if self._shard:
            self._written.append(list(self._shard))
            save_file(self._shard, self.folder / _part(len(self._written)), metadata={"format": "pt"})
        self._shard, self._bytes = {}, 0


def _part(number: int) -> str:
    return f"model-{number:05d}.part.safetensors"
