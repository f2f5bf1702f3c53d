"""Refuse the settings of a LoRA adapter that its matrices contradict, before peft builds anything of them.

peft makes matrices of the rank that adapter_config.json names, and only then compares them with the files: a
rank of 10 million takes all memory first.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reverse.errors import CheckpointError
from reverse.models.checkpoints.settings_files import is_number, is_whole, refused

_RANKED = ("lora_A", "lora_embedding_A")
_MODEST = 512  # a rank that costs little memory, whatever it is for


def check_ranks(folder: Path, settings: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Refuse ranks far above those of the matrices in `state`, and factors that are no numbers.

    Args:
        folder: of the adapter, for messages.
        settings: what adapter_config.json holds.
        state: the adapter's tensors by name.

    Raises ValueError, naming field and value.
    """
    file = folder / "adapter_config.json"
    highest = max(
        (int(value.shape[0]) for name, value in state.items() if any(part in name for part in _RANKED)),
        default=0,
    )
    most = max(highest, _MODEST)
    ranks = {"r": settings.get("r"), **_pattern(file, settings, "rank_pattern")}
    for name, rank in ranks.items():
        if rank is not None and not is_whole(rank, 1, most):
            rule = f"must be a whole number from 1 to {most} (its matrices have {highest})"
            raise CheckpointError(refused(file, name, rank, rule))
    factors = {"lora_alpha": settings.get("lora_alpha"), **_pattern(file, settings, "alpha_pattern")}
    for name, factor in factors.items():
        if factor is not None and not is_number(factor, -1e9, 1e9):
            raise CheckpointError(refused(file, name, factor, "must be a number"))


def _pattern(file: Path, settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = settings.get(name) or {}
    if not isinstance(found, dict):
        raise CheckpointError(refused(file, name, found, "must be an object"))
    return {f"{name}.{key[:60]}": value for key, value in found.items()}
