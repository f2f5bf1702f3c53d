"""Weights that a fine-tuning left beside its LoRA matrices: the projector, the tower, embeddings, heads.

    loose = find_loose_weights(folder)          # before the base is read
    apply_loose_weights(model, loose, family)   # before LoRA is added to it

Codebases give them many names (`non_lora_trainables`, `non_lora_state_dict`, `mm_projector`, `vit`,
`value_head`), so the name does not decide: every file of weights beside an adapter must fit the base, and
replaces its tensors, or is refused. Only a Trainer's files for resuming (optimizer, random state) are
skipped. Pickles are refused by name; convert those that you trust.
"""

import fnmatch
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from reverse.errors import CheckpointError
from reverse.models.checkpoints.tensor_files import Tensors, open_files
from reverse.models.checkpoints.tensor_names import canonical_name
from reverse.models.families import Family

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_COMPLETE = ("model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin", "pytorch_model-*-of-*.bin")
_TRAINERS = (  # what a Trainer resumes from, which says nothing of the model
    "training_args.bin", "optimizer*.pt", "optimizer*.bin", "optimizer*.safetensors", "scheduler*.pt",
    "scheduler*.bin", "scaler*.pt", "rng_state*.pth", "random_states*.pkl", "sampler*.bin",
    "custom_checkpoint_*.pkl",
)  # fmt: skip
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_WRAPPERS = ("base_model.model.", "_orig_mod.", "module.", "base_layer.", "modules_to_save.default.")


def find_loose_weights(folder: Path, *, given: Path | None = None) -> Tensors:
    """Find the weights beside an adapter, without reading them.

    Args:
        folder: holds the adapter.
        given: the folder that the user named, if the adapter lies in a folder below it.

    Raises CheckpointError for pickles, for complete weights of a model beside the adapter, and for damaged
    files.
    """
    found = list_loose_weights(folder)
    complete = [file.name for file in found if _matches(file.name, _COMPLETE)]
    if complete:
        raise CheckpointError(
            f"{str(folder)!r} holds an adapter and complete weights ({', '.join(complete[:3])}): if the "
            "adapter is merged into them already, load the folder as it is; else give the adapter a folder "
            "of its own"
        )
    if given is not None and given != folder:
        found += [file for file in list_loose_weights(given) if not _matches(file.name, _COMPLETE)]
    pickles = [file for file in found if file.suffix in _PICKLES]
    if pickles:
        _refuse_pickles(folder, pickles)
    return open_files(found)


def apply_loose_weights(model: Any, loose: Tensors, family: Family) -> None:
    """Put the tensors of `loose` into the base `model`, in place.

    Raises CheckpointError if a tensor does not fit, or holds values that are not finite; the model is
    unchanged then.
    """
    places = {canonical_name(name, family): value for name, value in model.state_dict(keep_vars=True).items()}
    where = f"the weights {', '.join(dict.fromkeys(map(loose.file_of, loose)))} beside the adapter"
    changes: list[tuple[torch.Tensor, torch.Tensor]] = []
    for name, shape in loose.shapes().items():
        target = places.get(canonical_name(_remove_wrappers(name), family))
        if target is None or "lora_" in name:
            raise CheckpointError(
                f"{where} hold {name[:120]!r}, which is not a tensor of the base, {type(model).__name__}: "
                "merge into the base that was trained, or move the file away if answers do not need it (a "
                "value head's, for one)"
            )
        if tuple(target.shape) != shape:
            raise CheckpointError(
                f"{where} hold {name[:120]!r} of shape {shape}, and the base has {tuple(target.shape)}: "
                "merge into the base that was trained"
            )
        value = loose[name]
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{where} hold values that are not finite ({name[:120]}): train again")
        changes.append((target, value))
    with torch.no_grad():
        for target, value in changes:
            target.copy_(value)


def list_loose_weights(folder: Path, known: Iterable[str] = ()) -> list[Path]:
    """List the files of weights in `folder` beside its adapter, except those named in `known`."""
    skipped = (*ADAPTER_WEIGHTS, *_TRAINERS, *known)
    return [
        file
        for file in sorted(folder.iterdir())
        if file.suffix in (".safetensors", *_PICKLES) and not _matches(file.name, skipped)
    ]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _remove_wrappers(name: str) -> str:
    """Return a tensor's name in the base, without the parts that peft and other wrappers add."""
    for wrapper in _WRAPPERS:
        name = name.replace(f".{wrapper}", ".").removeprefix(wrapper)
    return name


def _refuse_pickles(folder: Path, pickles: list[Path]) -> None:
    first = pickles[0].name
    original = (
        "merge a LoRA folder of the original LLaVA layout with `reverse convert SRC OUT --base BASE "
        "--vision TOWER`; otherwise "
        if first == "non_lora_trainables.bin" and (folder / "config.json").is_file()
        else ""
    )
    raise CheckpointError(
        f"{str(folder)!r} holds weights beside the adapter as pickles "
        f"({', '.join(p.name for p in pickles[:3])}), which can run code when read: {original}if you "
        "trust them, convert them with `from safetensors.torch import save_file; "
        f"save_file(torch.load({first!r}, weights_only=True), "
        f"{pickles[0].with_suffix('.safetensors').name!r})`, then delete {first}"
    )
