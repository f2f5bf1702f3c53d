"""Write numpy arrays to a safetensors file, replaced at once.

`safetensors.numpy` writes other values than those of a sliced or transposed array, without an error
(safetensors 0.8.0), so arrays are made contiguous here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from reverse.files.atomic_write import atomic_write

__all__ = ["save_arrays"]


def save_arrays(arrays: Mapping[str, npt.NDArray[np.generic]], path: Path) -> None:
    """Write the arrays; their folder is created."""
    with atomic_write(path) as stream:
        stream.write(save({name: np.ascontiguousarray(each) for name, each in arrays.items()}))
