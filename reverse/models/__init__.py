"""Models: a record per family, loading and checking of checkpoints, inputs, adapters and conversion."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from reverse.models.families import FAMILIES, Family, default_threshold, family_of, set_default_threshold

if TYPE_CHECKING:
    from reverse.models.checkpoints.loading import load
    from reverse.models.checkpoints.token_adding import add_tokens_to_checkpoint
    from reverse.models.inputs.prompt_inputs import prepare_inputs

__all__ = [
    "FAMILIES",
    "Family",
    "add_tokens_to_checkpoint",
    "default_threshold",
    "family_of",
    "load",
    "prepare_inputs",
    "set_default_threshold",
]

_MODULES = {
    "add_tokens_to_checkpoint": "checkpoints.token_adding",
    "load": "checkpoints.loading",
    "prepare_inputs": "inputs.prompt_inputs",
}


def __getattr__(name: str) -> Any:
    """Import on first use: these functions need torch and transformers."""
    if name in _MODULES:
        return getattr(import_module(f"reverse.models.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
