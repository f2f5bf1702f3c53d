"""Fingerprint a checkpoint in 16 digits, to see whether a folder still holds the same model.

    checkpoint_fingerprint("tiny-llava")               # of the files, whatever their place and age

Small files are hashed in full: configuration, tokenizer, chat template, image processor. Of weights above 64
MiB it takes the size, the header (names, shapes, types), 4 KiB of every MiB, and the last 4 MiB of each
matrix with as many rows as a vocabulary, where new tokens stand: under a hundredth of what loading reads.
Training changes the fingerprint; a change of a few values by hand may not. Two things are left out:
vocabulary files beside a tokenizer.json that was made from them, which loading does not read and a cache may
gain later; and the section "reverse" of config.json, because its default threshold decides nothing when one
is given.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from transformers.utils import cached_file

from reverse.errors import CheckpointError, MissingFileError
from reverse.models.checkpoints.loading import find_checkpoint

__all__ = ["checkpoint_fingerprint"]

WHOLE = 64 << 20  # bytes up to which all of a file is hashed
STRIDE, BLOCK = 1 << 20, 4 << 10  # of larger ones: a block of every stride
TAIL, VOCABULARY = 4 << 20, 30_000  # the last bytes of a matrix with so many rows
MAX_HEADER = 100_000_000  # bytes, as safetensors has it
_HASHED = (
    "config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json",
    "tokenizer*.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "chat_template.*", "*.safetensors", "*.safetensors.index.json",
)  # fmt: skip
_SOURCES = {"tokenizer.model", "vocab.json", "merges.txt"}  # what a tokenizer.json is made from


def checkpoint_fingerprint(path_or_id: str | os.PathLike) -> str:
    """Return 16 hexadecimal digits over the files of a checkpoint that decide its answers.

    `path_or_id` is that of `reverse.load`; of a hub id the files in the cache are read. Raises what `load`
    raises.
    """
    place, _ = find_checkpoint(path_or_id)
    config = cached_file(place, "config.json")
    if config is None:
        raise MissingFileError(f"{place!r} has no config.json: name the folder of a checkpoint")
    folder = Path(config).parent
    digest = hashlib.sha256()
    files = {found for name in _HASHED for found in folder.glob(name) if found.is_file()}
    if folder / "tokenizer.json" in files:
        files = {file for file in files if file.name not in _SOURCES}
    for file in sorted(files):
        digest.update(f"{file.name}\0".encode())
        for part in _read_config(file) if file.name == "config.json" else _read_parts(file):
            digest.update(part)
    return digest.hexdigest()[:16]


def _read_config(file: Path) -> Iterator[bytes]:
    content = json.loads(file.read_text(encoding="utf-8"))
    yield json.dumps({k: v for k, v in content.items() if k != "reverse"}, sort_keys=True).encode()


def _read_parts(file: Path) -> Iterator[bytes]:
    """Read all of a small file; of a large one its size, header and blocks."""
    size = file.stat().st_size
    yield f"{size}\0".encode()
    with file.open("rb") as stream:
        if size <= WHOLE:
            while piece := stream.read(STRIDE):
                yield piece
            return
        if file.suffix == ".safetensors":
            yield from _read_header_and_tails(stream)
        for start in range(0, size, STRIDE):
            stream.seek(start)
            yield stream.read(BLOCK)


def _read_header_and_tails(stream: BinaryIO) -> Iterator[bytes]:
    """Read the header of a safetensors file, and the last rows of matrices as long as a vocabulary."""
    length = int.from_bytes(stream.read(8), "little")
    if length > MAX_HEADER:
        raise CheckpointError(
            f"the weights in {stream.name!r} say that they have a header of {length:,} bytes: they are "
            "damaged, fetch them again"
        )
    header = stream.read(length)
    yield header
    for name, tensor in sorted(json.loads(header).items()):
        if name != "__metadata__" and len(tensor["shape"]) == 2 and tensor["shape"][0] >= VOCABULARY:
            begin, end = tensor["data_offsets"]
            start = max(begin, end - TAIL)
            stream.seek(8 + length + start)
            yield stream.read(end - start)
