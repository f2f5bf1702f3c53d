"""Read weights from safetensors and restricted pickles, and write safetensors shards, tensor by tensor.

    >>> tensors = open_tensors("reverse_llava_v15")
    >>> tensors.read("model.mm_projector.0.weight").shape
    torch.Size([4096, 1024])

The module never holds a whole checkpoint. Safetensors and zipped `.bin` files are memory-mapped; the writer
holds at most one shard (2 GB). Pickles are read by torch's restricted loader (`weights_only=True`) only.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from reverse.errors import CheckpointError, MissingFileError
from reverse.models.checkpoints.weight_files import INDEX, SINGLE, check_shards, read_weight_map

SHARD_BYTES = 2_000_000_000

Progress = Callable[[int, int, str], None]  # tensors done, tensors in all, the name of the one at work

_SOURCES = ((INDEX, SINGLE), ("pytorch_model.bin.index.json", "pytorch_model.bin"))


class Tensors(Mapping[str, torch.Tensor]):
    """The tensors of one or several files by name, in the order of the files. They are read on demand.

    `files` are the names of the tensors in each file.
    """

    def __init__(self, files: Mapping[Path, Iterable[str]]):
        self._file_of = {name: path for path, names in files.items() for name in names}
        self._open: tuple[Path, Any] | None = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    def __getitem__(self, name: str) -> torch.Tensor:
        """Read tensor `name`, memory-mapped if the file allows it.

        Raises CheckpointError if it is damaged.
        """
        file = self._opened(self._file_of[name])
        try:
            return file[name] if isinstance(file, dict) else file.get_tensor(name)
        except SafetensorError as error:
            raise _damaged(self._file_of[name], error) from error

    def file_of(self, name: str) -> str:
        """Return the name of the file that holds tensor `name`."""
        return self._file_of[name].name

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of tensor `name`, without reading it."""
        file = self._opened(self._file_of[name])
        return tuple(file[name].shape if isinstance(file, dict) else file.get_slice(name).get_shape())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all tensors, from the headers of the files."""
        return {name: self.shape(name) for name in self}

    def _opened(self, path: Path) -> Any:
        """Return the open file `path`; only one file is open at a time."""
        if self._open is None or self._open[0] != path:
            self._open = None  # close the file before
            self._open = (path, _open_file(path))
        return self._open[1]


def open_files(files: Iterable[Path]) -> Tensors:
    """Open all tensors of `files`.

    Raises CheckpointError if one is damaged, or two hold a tensor of one name.
    """
    names: dict[Path, list[str]] = {}
    seen: set[str] = set()
    for file in files:
        names[file] = list(_open_file(file).keys())
        if twice := sorted(seen.intersection(names[file])):
            raise CheckpointError(
                f"{str(file)!r} holds {len(twice)} tensors that another shard holds too ({twice[0]}): fetch "
                "or save the checkpoint again"
            )
        seen.update(names[file])
    return Tensors(names)


def open_tensors(folder: str | os.PathLike, names: tuple[str, ...] = ()) -> Tensors:
    """Open the weights of a checkpoint folder; safetensors take precedence over pickles.

    Args:
        folder: holds `model.safetensors`, `pytorch_model.bin`, or one of their indexes and its shards.
        names: other file names to take instead; the first that exists is read.

    Raises:
        MissingFileError: no weights, or a shard that the index names is missing.
        CheckpointError: a damaged file; an index that names a file outside of the folder; a pickle that holds
            anything but tensors.
    """
    folder = Path(folder)
    for index, single in ((None, name) for name in names) if names else _SOURCES:
        if index is not None and (folder / index).is_file():
            return Tensors(_read_index(folder / index))
        if (folder / single).is_file():
            return open_files([folder / single])
    if names:
        raise MissingFileError(
            f"{str(folder)!r} has no {' or '.join(names)}: it is not complete, fetch or save it again"
        )
    raise MissingFileError(
        f"{str(folder)!r} has no weights ({SINGLE}, pytorch_model.bin or an index of shards): fetch it "
        "again, or name the folder that holds them"
    )


def _read_index(index: Path) -> dict[Path, list[str]]:
    """Return the names of the tensors in each shard, from the index, checked against the shards."""
    weight_map = read_weight_map(index)
    check_shards(index, weight_map.values())
    files: dict[Path, list[str]] = {}
    for name, file in weight_map.items():
        files.setdefault(index.with_name(file), []).append(name)
    for path, names in files.items():
        if absent := sorted(set(names) - set(_open_file(path).keys())):
            raise CheckpointError(
                f"{path} lacks {absent[0]!r}, which {index.name} says it holds: fetch it again"
            )
    return files


def _open_file(path: Path) -> Any:
    """Open a file as a safetensors handle, or as the dict of tensors of a pickle."""
    if path.suffix != ".safetensors":
        return _load_pickle(path)
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _load_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a `.bin` file by torch's restricted loader.

    Raises CheckpointError for a file that holds anything but named tensors, or that wants to run something.
    """
    try:
        # mmap needs the zipped format that torch writes since 1.6; older files are read into memory
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise UnpicklingError, EOFError, RuntimeError and others
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{path} is refused: it holds something other than tensors, or is damaged ({reason}); pickles "
            "are read by torch's restricted loader only, convert the file where you trust it to safetensors"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(
            f"{path} holds no named tensors but {type(state).__name__}: it is not a file of weights"
        )
    return state


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the weights in {str(path)!r} are damaged or cut off ({str(error)[:200]}): fetch them again"
    )


class ShardWriter:
    """Writes tensors one after the other into safetensors shards of at most `limit` bytes, and their index.

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
        """Add a tensor, which must not be changed afterwards."""
        size = tensor.numel() * tensor.element_size()
        if self._shard and self._bytes + size > self.limit:
            self._flush()
        self._shard[name] = tensor.contiguous()
        self._bytes += size
        self.total += size

    def close(self) -> None:
        """Write the remaining tensors, give the shards their final names, and write the index."""
        self._flush()
        count = len(self._written)
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._written, start=1):
            final = SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            self._part(number).replace(self.folder / final)
            weight_map |= dict.fromkeys(names, final)
        if count > 1:
            index = {"metadata": {"total_size": self.total}, "weight_map": dict(sorted(weight_map.items()))}
            (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _flush(self) -> None:
        if self._shard:
            self._written.append(list(self._shard))
            save_file(self._shard, self._part(len(self._written)), metadata={"format": "pt"})
        self._shard, self._bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self.folder / f"model-{number:05d}.part.safetensors"
