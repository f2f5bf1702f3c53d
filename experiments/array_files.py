"""Write numpy arrays to a safetensors file, replaced at once.

`safetensors.numpy.save_file` writes other values than those of a sliced or transposed array, without a word
(safetensors 0.8.0), so arrays are made contiguous here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

__all__ = ["save_arrays"]


def save_arrays(
    arrays: Mapping[str, npt.NDArray[np.generic]], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write the arrays; their folder is created. A file of that name is replaced when all is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    save_file({name: np.ascontiguousarray(each) for name, each in arrays.items()}, partial, metadata)
    partial.replace(path)
