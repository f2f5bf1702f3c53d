"""Weights that a fine-tuning left beside its LoRA matrices: the projector, the tower, embeddings, heads.

    loose = find_loose_weights(folder)          # before the base is read
    apply_loose_weights(model, loose, family)   # before LoRA is added to it

Codebases give them many names (`non_lora_trainables`, `non_lora_state_dict`, `mm_projector`, `vit`,
`value_head`), so no name decides: every file of weights beside an adapter either fits the base, and takes the
place of its tensors, or is refused. Only what a Trainer keeps to go on (optimizer, random state) is passed
over. Pickles are refused by name: they are converted where they are trusted.
"""

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reverse.errors import CheckpointError
from reverse.models.checkpoints.tensor_names import canonical_name
from reverse.models.checkpoints.weight_files import read_shapes, read_tensor
from reverse.models.families import Family

_ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
_COMPLETE = ("model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin", "pytorch_model-*-of-*.bin")
_TRAINERS = (  # what training keeps to go on from, which says nothing of the model
    "training_args.bin", "optimizer*.pt", "optimizer*.bin", "optimizer*.safetensors", "scheduler*.pt",
    "scheduler*.bin", "scaler*.pt", "rng_state*.pth", "random_states*.pkl", "sampler*.bin",
    "custom_checkpoint_*.pkl",
)  # fmt: skip
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_WRAPPERS = ("base_model.model.", "_orig_mod.", "module.", "base_layer.", "modules_to_save.default.")


@dataclass(frozen=True)
class LooseWeights:
    """Files beside an adapter, and the shapes of their tensors by the names that stand there."""

    files: tuple[Path, ...]
    shapes: dict[str, tuple[int, ...]]

    @property
    def names(self) -> tuple[str, ...]:
        """The files' names."""
        return tuple(file.name for file in self.files)


def find_loose_weights(folder: Path, *, given: Path | None = None, known: Iterable[str] = ()) -> LooseWeights:
    """The weights beside an adapter, without reading them.

    Args:
        folder: holds the adapter.
        given: the folder that the user named, where the adapter lies in a folder below it.
        known: names of files that the caller reads itself.

    Raises:
        ValueError: pickles; complete weights of a model beside the adapter; damaged files.
    """
    found = list_loose_weights(folder, known)
    complete = [file.name for file in found if _matches(file.name, _COMPLETE)]
    if complete:
        raise CheckpointError(
            f"{str(folder)!r} holds an adapter and complete weights ({', '.join(complete[:3])}): if the "
            f"adapter is merged into them already, load the folder as it is; else give the adapter a folder "
            f"of its own"
        )
    if given is not None and given != folder:
        found += [file for file in list_loose_weights(given, known) if not _matches(file.name, _COMPLETE)]
    pickles = [file for file in found if file.suffix in _PICKLES]
    if pickles:
        raise CheckpointError(_pickle_refused(folder, pickles))
    return LooseWeights(tuple(found), read_shapes(found))


def apply_loose_weights(model: Any, loose: LooseWeights, family: Family) -> None:
    """Put the tensors of `loose` into the base `model`, in place.

    Raises:
        ValueError: a tensor fits nowhere, or holds values that are not finite. Nothing is changed then.
    """
    if not loose.shapes:
        return
    places = {canonical_name(name, family): value for name, value in model.state_dict(keep_vars=True).items()}
    targets: dict[str, torch.Tensor] = {}
    values: dict[str, torch.Tensor] = {}
    for name, shape in loose.shapes.items():
        target = places.get(canonical_name(_plain_name(name), family))
        where = f"the weights {', '.join(loose.names)} beside the adapter"
        if target is None or "lora_" in name:
            raise CheckpointError(
                f"{where} hold {name[:120]!r}, which is no tensor of the base, {type(model).__name__}: merge "
                "into the base that was trained, or move the file away if answers do not need it (a value "
                "head's, for one)"
            )
        if tuple(target.shape) != shape:
            raise CheckpointError(
                f"{where} hold {name[:120]!r} of shape {shape}, and the base has {tuple(target.shape)}: "
                f"merge into the base that was trained"
            )
        value = read_tensor(list(loose.files), name)
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{where} hold values that are not finite ({name[:120]}): train again")
        targets[name], values[name] = target, value
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(values[name])


def list_loose_weights(folder: Path, known: Iterable[str]) -> list[Path]:
    """The files of weights in `folder` beside its adapter, but for those named `known`."""
    passed_over = (*_ADAPTER, *_TRAINERS, *known)
    return [
        file
        for file in sorted(folder.iterdir())
        if file.suffix in (".safetensors", *_PICKLES) and not _matches(file.name, passed_over)
    ]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _plain_name(name: str) -> str:
    """A tensor's name in the base, without what peft and other wrappers put into it."""
    for wrapper in _WRAPPERS:
        name = name.replace(f".{wrapper}", ".").removeprefix(wrapper)
    return name


def _pickle_refused(folder: Path, pickles: list[Path]) -> str:
    first = pickles[0]
    whole = first.with_suffix(".safetensors").name
    if first.name == "non_lora_trainables.bin" and (folder / "config.json").is_file():
        original = (
            "a LoRA folder of the original LLaVA layout is merged by `reverse convert SRC OUT --base BASE "
            "--vision TOWER`; else "
        )
    else:
        original = ""
    return (
        f"{str(folder)!r} holds weights beside the adapter as pickles "
        f"({', '.join(p.name for p in pickles[:3])}), which can run code when read: {original}convert them "
        f"where you trust them, `from safetensors.torch import save_file; "
        f"save_file(torch.load({first.name!r}, weights_only=True), {whole!r})`, and delete {first.name}"
    )
