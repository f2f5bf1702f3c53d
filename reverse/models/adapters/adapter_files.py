"""Read a LoRA adapter from disk, and refuse settings that its matrices contradict.

peft allocates matrices of the rank in adapter_config.json before it compares them with the files, so a rank
of 10 million would use all memory.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reverse.errors import CheckpointError, MissingFileError
from reverse.models.adapters.adapter_card import read_card
from reverse.models.adapters.loose_weights import ADAPTER_WEIGHTS, find_loose_weights
from reverse.models.checkpoints.settings_files import (
    OBJECT,
    Rule,
    check_fields,
    is_number,
    is_whole,
    read_settings,
)
from reverse.models.checkpoints.tensor_files import Tensors, open_tensors

_CONFIG = "adapter_config.json"
_RANKED = ("lora_A", "lora_embedding_A")
_MODEST = 512  # a rank that costs little memory whatever the matrices are


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter on disk."""

    folder: Path
    settings: dict[str, Any]  # adapter_config.json
    card: dict[str, Any]  # `reverse.models.adapters.adapter_card`; empty if training left none
    state: dict[str, torch.Tensor]
    loose: Tensors  # weights beside the LoRA matrices


def read_adapter(path: str | os.PathLike) -> Adapter:
    """Read the adapter in the folder `path`, or in its only subfolder that holds one.

    Raises:
        MissingFileError: there is no adapter, or it has no weights.
        CheckpointError: there are several; it is not LoRA; its files are damaged or contradict each other.
    """
    folder = _find_folder(path)
    settings = read_settings(folder / _CONFIG)
    if str(settings.get("peft_type", "")).upper() != "LORA":
        raise CheckpointError(
            f"{folder / _CONFIG} is of type {settings.get('peft_type')!r}: only LoRA adapters can be merged"
        )
    loose = find_loose_weights(folder, given=Path(path))
    state = dict(open_tensors(folder, ADAPTER_WEIGHTS))
    _check_ranks(folder / _CONFIG, settings, state)
    return Adapter(folder, settings, read_card(folder), state, loose)


def _find_folder(path: str | os.PathLike) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise MissingFileError(f"there is no folder {str(folder)!r}: name the folder of an adapter")
    if (folder / _CONFIG).is_file():
        return folder
    below = sorted(file.parent for file in folder.glob(f"*/{_CONFIG}"))
    if len(below) > 1:
        names = ", ".join(repr(one.name) for one in below)
        raise CheckpointError(
            f"{str(folder)!r} holds {len(below)} adapters ({names}): name the folder of one"
        )
    if below:
        return below[0]
    found = sorted(file.name for file in folder.iterdir())[:5]
    raise MissingFileError(
        f"{str(folder)!r} has no {_CONFIG} (it holds {', '.join(found) or 'nothing'}): name the folder that "
        "peft's save_pretrained wrote"
    )


def _check_ranks(file: Path, settings: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> None:
    """Raise CheckpointError for ranks far above those of the matrices in `state`, or scaling factors that are
    not numbers.
    """
    ranks = [int(value.shape[0]) for name, value in state.items() if any(part in name for part in _RANKED)]
    highest = max(ranks, default=0)
    most = max(highest, _MODEST)
    rank = Rule(
        lambda value: is_whole(value, 1, most),
        f"be a whole number from 1 to {most} (its matrices have {highest})",
    )
    factor = Rule(lambda value: is_number(value, -1e9, 1e9), "be a number")
    for name, pattern, rule in (("r", "rank_pattern", rank), ("lora_alpha", "alpha_pattern", factor)):
        check_fields(file, settings, {name: rule, pattern: OBJECT})
        values = {key[:60]: value for key, value in (settings.get(pattern) or {}).items()}
        check_fields(file, values, dict.fromkeys(values, rule), f"{pattern}.")
