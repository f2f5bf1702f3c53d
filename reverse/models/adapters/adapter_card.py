"""The card that training writes beside an adapter, so that `reverse merge` can check the base against it.

The card (`CARD`, JSON) names the base, its vocabulary and the ids of the three tokens, and holds a
fingerprint of the base's weights.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from reverse.errors import CheckpointError
from reverse.files.atomic_write import write_json
from reverse.models.checkpoints.settings_files import read_settings
from reverse.models.families import stored_threshold
from reverse.tokens.vocabulary import find_token_ids

__all__ = [
    "CARD",
    "adapter_card",
    "base_fingerprint",
    "find_threshold",
    "plain_name",
    "read_card",
    "write_adapter_card",
]

CARD = "reverse_adapter.json"
_SAMPLES = 64  # values of each tensor that go into a fingerprint


def base_fingerprint(model: Any, kind: str | None = None, through: torch.dtype | None = None) -> str:
    """Compute a cheap hash of a base's weights: names, shapes, and 64 values of every tensor, rounded to
    bfloat16.

    It is the same for a base in float32 and bfloat16, and for a base under a LoRA that has not been merged,
    however long it was trained: the adapter's own tensors are left out. Take it before FSDP or ZeRO shards
    the model, and keep it for `write_adapter_card`.

    Args:
        model: a base, or a PeftModel around it.
        kind: "full", all tensors; or "plain", embeddings, norms and biases only, which a quantised base
            keeps. By default "full" if no weight is quantised.
        through: a dtype that the values are rounded to first; None keeps their own.

    Returns:
        "full-…" or "plain-…", a sha256 in hexadecimal.
    """
    tensors = {
        name: value for raw, value in model.named_parameters() if (name := plain_name(raw)) is not None
    }
    # Packed weights may have a floating type (bitsandbytes' quant_storage).
    packed = ("Params4bit", "Int8Params")
    quantised = any(not v.is_floating_point() or type(v).__name__ in packed for v in tensors.values())
    kind = kind or ("plain" if quantised else "full")
    embedding = model.get_input_embeddings()
    rows = getattr(embedding, "weight", None)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach()
        if kind == "plain" and value.dim() != 1 and not (rows is not None and value.shape == rows.shape):
            continue
        flat = value.reshape(-1)
        step = max(1, flat.numel() // _SAMPLES)
        sample = flat[::step][:_SAMPLES].to("cpu").to(through or flat.dtype).to(torch.bfloat16)
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return f"{kind}-{digest.hexdigest()}"


def adapter_card(
    model: Any,
    tokenizer: Any,
    *,
    base: str | os.PathLike = "",
    threshold: float | None = None,
    fingerprint: str | None = None,
    added_seed: int | None = None,
) -> dict[str, Any]:
    """Make the content of the card that `reverse merge` checks a base against.

    Args:
        model: the PeftModel, or its base; not sharded yet.
        tokenizer: of the base, or a processor that holds one; it knows the three tokens.
        base: path or id that the base was loaded from.
        threshold: becomes the merged checkpoint's own default.
        fingerprint: of the base, if `model` is sharded by now; by default it is taken from `model`.
        added_seed: of `add_tokens`, if the base has no tokens on disk.
    """
    card: dict[str, Any] = {
        "base": str(base),
        "model_type": model.config.model_type,
        "rows": model.get_input_embeddings().weight.shape[0],
        "tokens": list(find_token_ids(tokenizer)),
        "fingerprint": fingerprint or base_fingerprint(model),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    if threshold is not None:
        card["threshold"] = stored_threshold({"threshold": threshold})
    if added_seed is not None:
        card["added_seed"] = added_seed
    return card


def write_adapter_card(folder: str | os.PathLike, model: Any, tokenizer: Any, **settings: Any) -> Path:
    """Write `adapter_card(model, tokenizer, **settings)` into the adapter's folder."""
    path = Path(folder) / CARD
    write_json(path, adapter_card(model, tokenizer, **settings))
    return path


def plain_name(name: str) -> str | None:
    """Return a parameter's name in the base; None if it belongs to an adapter."""
    parts = name.split(".")
    if any(part.startswith(("lora_", "trainable_tokens_")) or part == "modules_to_save" for part in parts):
        return None
    if parts[:2] == ["base_model", "model"]:
        parts = parts[2:]
    wrappers = {"base_layer", "original_module", "token_adapter", "_fsdp_wrapped_module", "module"}
    return ".".join(part for part in parts if part not in wrappers)


def read_card(folder: Path) -> dict[str, Any]:
    """Read the card beside an adapter; empty if training wrote none."""
    return read_settings(folder / CARD) if (folder / CARD).is_file() else {}


def find_threshold(folder: Path, card: dict[str, Any]) -> float | None:
    """Return an adapter's default threshold, from its card or a config.json beside it; None without one."""
    try:
        if card.get("threshold") is not None:
            return stored_threshold({"threshold": card["threshold"]})
        if (folder / "config.json").is_file():
            return stored_threshold(read_settings(folder / "config.json").get("reverse"))
    except ValueError as error:
        raise CheckpointError(f"{str(folder)!r}: {error}") from error
    return None
