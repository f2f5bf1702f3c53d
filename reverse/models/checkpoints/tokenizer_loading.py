"""Load a tokenizer without a model, of any architecture. Its files have the same size limits as a model's.

tokenizer = load_tokenizer("tiny-llava")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from reverse.errors import CheckpointError, MissingFileError
from reverse.models.checkpoints.loading import BUNDLED, resolve_path
from reverse.models.checkpoints.settings_files import find_settings, read_settings

__all__ = ["load_tokenizer"]


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer of a folder, a hub id or a bundled name; its model may be of any architecture.

    Its settings are bounded in size and depth, and no code beside them is run. Its chat template is neither
    checked nor used.

    Raises MissingFileError if there is no such folder, CheckpointError for damaged files or a class that
    transformers does not know.
    """
    if name in BUNDLED:
        name = resolve_path(name)
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise MissingFileError(
            f"there is no folder {name!r}: name a checkpoint folder, or a hub id (owner/name)"
        )
    try:
        files = find_settings(name, {})
    except (OSError, ValueError) as error:  # of the hub
        raise _unreadable(name, error) from error
    for file in files.values():  # transformers reads the same files without limits
        read_settings(file)
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except MemoryError:
        raise
    except Exception as error:  # tokenizers and transformers raise anything for damaged files
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return CheckpointError(
        f"{name!r} holds no tokenizer that can be read ({reason}): name a checkpoint folder or a hub id"
    )
