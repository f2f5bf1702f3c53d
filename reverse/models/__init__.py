"""Models: the two families, loading, inputs, and tiny ones for tests and for the embedded world."""

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


def __getattr__(name: str) -> Any:
    """Import what needs torch and transformers only when it is asked for."""
    if name == "add_tokens_to_checkpoint":
        from reverse.models.checkpoints.token_adding import add_tokens_to_checkpoint

        return add_tokens_to_checkpoint
    if name == "load":
        from reverse.models.checkpoints.loading import load

        return load
    if name == "prepare_inputs":
        from reverse.models.inputs.prompt_inputs import prepare_inputs

        return prepare_inputs
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
