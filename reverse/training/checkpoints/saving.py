"""Save a finished run: its folder is complete or does not exist.

Model or adapter, processor and manifest are written to `OUTPUT.partial`, which is flushed to the disk (some
disks report only then that they are full) and renamed to `OUTPUT`. All processes take part in gathering the
weights; the first one writes.
"""

from __future__ import annotations

import copy
import json
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import Trainer

from reverse.files.atomic_write import sync_files
from reverse.training.optim.parallel import is_sharded
from reverse.training.optim.trainable_weights import is_adapted

__all__ = ["MANIFEST", "save_run", "versions"]

MANIFEST = "training.json"


def versions() -> dict[str, str]:
    """Return the versions of the libraries of a run, for its manifest."""
    from reverse import __version__

    return {
        "reverse": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def save_run(
    trainer: Trainer,
    model: Any,
    processor: Any,
    output: Path,
    manifest: Mapping[str, Any],
    *,
    parallel: str = "none",
    dtype: torch.dtype | None = None,
    files: Mapping[str, str] | None = None,
) -> None:
    """Write the trained model to `output`; called by every process.

    Args:
        trainer: the trainer of the run, which gathers the weights.
        model: as it was given to the trainer.
        processor: of the model.
        output: folder; replaced if it exists.
        manifest: JSON.
        parallel: how the weights are distributed over devices.
        dtype: of the weights on disk, None: as they are.
        files: further texts beside the weights, by their names.
    """
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if is_sharded(parallel) else None
    if trainer.is_world_process_zero():
        _write(model, processor, output, manifest, state, dtype, files or {})
    trainer.accelerator.wait_for_everyone()


def _write(
    model: Any,
    processor: Any,
    output: Path,
    manifest: Mapping[str, Any],
    state: dict[str, torch.Tensor] | None,
    dtype: torch.dtype | None,
    files: Mapping[str, str],
) -> None:
    partial = output.with_name(output.name + ".partial")
    replaced = output.with_name(output.name + ".replaced")
    if replaced.exists() and not output.exists():  # killed between the two renames below
        replaced.rename(output)
    for leftover in (partial, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    if state is not None and dtype is not None:
        state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
    elif dtype is not None and model.dtype != dtype:
        model = copy.deepcopy(model).to(dtype)
    options: dict[str, Any] = {} if state is None else {"state_dict": state}
    if is_adapted(model):
        options["save_embedding_layers"] = (
            False  # the rows of the tokens are in it, whole matrices need not be
        )
    model.save_pretrained(partial, **options)
    processor.save_pretrained(partial)
    for name, text in files.items():
        (partial / name).write_text(text, encoding="utf-8")
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    sync_files(partial)
    if output.exists():
        output.rename(replaced)
    partial.rename(output)
    shutil.rmtree(replaced, ignore_errors=True)
