"""Prepare the runtime of a command: quiet libraries, and the device and dtype of its options."""

from __future__ import annotations

import os
import sys
import warnings
from typing import TYPE_CHECKING

from reverse.errors import RequestError

if TYPE_CHECKING:
    import torch

__all__ = ["resolve_placement", "silence_libraries"]


def silence_libraries() -> None:
    """Turn off progress bars and warnings of other libraries; call it before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    from transformers.utils import logging

    logging.disable_progress_bar()


def resolve_placement(device: str | None, dtype: str | None) -> tuple[str, torch.dtype | None]:
    """Return the device and the dtype that the options name. Default: the default device, and None.

    Raises RequestError for a name that torch does not know, or a device that does not exist.
    """
    import torch

    from reverse.models.devices import check_device, default_device

    device = device or default_device()
    check_device(device)
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype is not None and dtype not in known:
        raise RequestError(f"dtype must be one of {', '.join(known)}, got {dtype!r}")
    return device, known.get(dtype or "")
