"""Write numpy arrays, and lists of texts, to a safetensors file, replaced at once.

`safetensors.numpy` writes other values than those of a sliced or transposed array, without an error
(safetensors 0.8.0), so arrays are made contiguous here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from reverse.files.atomic_write import atomic_write

__all__ = ["join_texts", "save_arrays", "split_texts"]


def save_arrays(arrays: Mapping[str, npt.NDArray[np.generic]], path: Path) -> None:
    """Write the arrays; their folder is created."""
    with atomic_write(path) as stream:
        stream.write(save({name: np.ascontiguousarray(each) for name, each in arrays.items()}))


def join_texts(texts: Iterable[str]) -> npt.NDArray[np.uint8]:
    """Texts as one array of bytes; a zero in a text becomes a space."""
    return np.frombuffer("\0".join(text.replace("\0", " ") for text in texts).encode(), np.uint8)


def split_texts(array: npt.NDArray[np.uint8]) -> list[str]:
    """The texts of `join_texts`."""
    return array.tobytes().decode().split("\0")
