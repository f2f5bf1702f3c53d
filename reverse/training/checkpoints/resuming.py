"""Checkpoints of a run, and how a stopped run resumes from them.

`OUTPUT.checkpoints/run.json` describes the run of the checkpoints beside it: its settings and the number of
processes. `OUTPUT.checkpoints/checkpoint-N` is the Trainer's own. A process that is killed while it writes
one leaves part of it; `trainer_state.json` comes last, and a checkpoint without it, or without the random
state of every process, is ignored. The one before it is still there (two are kept), so one save interval
is lost at most.
"""

from __future__ import annotations

import copy
import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from reverse.errors import DataError
from reverse.files.text_reading import read_json
from reverse.models.families import family_of

__all__ = [
    "check_same_run",
    "last_checkpoint",
    "load_weights",
    "names_not_missed",
    "prepare_folder",
    "remove_torn",
    "with_later_keys",
]

_STATE = "trainer_state.json"


def check_same_run(folder: Path, settings: Mapping[str, Any], found: Sequence[str] = ("cut",)) -> None:
    """Raise ValueError for checkpoints in `folder` that a run with other settings wrote.

    Args:
        settings: of the run that is to resume.
        found: names under `notes.data` that are not compared: results of checking the records.
            (Cuts follow from the other settings; older runs did not count them.)

    Raises:
        ValueError: the checkpoints there have other settings.
    """
    if last_checkpoint(folder) is None:
        return
    run = folder / "run.json"
    before = read_json(run) if run.is_file() else {}
    before, now = with_later_keys(before), with_later_keys(json.loads(json.dumps(settings)))
    for one in (before, now):
        for name in found:
            one.get("notes", {}).get("data", {}).pop(name, None)
    if before != now:
        changed = [name for name in sorted(now.keys() | before.keys()) if before.get(name) != now.get(name)]
        raise DataError(
            f"{folder} holds checkpoints of a run with other settings ({', '.join(changed)}): remove the "
            "folder, or pass resume=False (--restart) to start over"
        )


def prepare_folder(folder: Path, settings: Mapping[str, Any], resume: bool) -> None:
    """Prepare `folder` for a run with `settings`; called by one process, before any reads checkpoints.

    Raises:
        ValueError: it holds checkpoints of a run with other settings, and `resume` is set.
    """
    run = folder / "run.json"
    if resume and last_checkpoint(folder) is not None:
        check_same_run(folder, settings)
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    written = folder / "run.json.partial"
    written.write_text(json.dumps(settings) + "\n", encoding="utf-8")
    written.rename(run)


_LATER: tuple[tuple[tuple[str, ...], Any], ...] = (
    (("recipe", "data", "skip_bad"), False),
    (("recipe", "optim", "schedule"), "cosine"),
    (("data", "left_out"), {"count": 0, "records": []}),
)


def with_later_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Add the defaults of newer keys to the settings or the manifest of an older run."""
    filled: dict[str, Any] = copy.deepcopy(dict(settings))
    if "warmup" in filled:  # of checkpoints
        filled.setdefault("schedule", "cosine")
    for path, default in _LATER:
        place: Any = filled.get("notes", filled)
        for name in path[:-1]:
            place = place.get(name) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place.setdefault(path[-1], default)
    return filled


def last_checkpoint(folder: Path, processes: int | None = None, before: int | None = None) -> str | None:
    """Return the newest complete checkpoint in `folder`, or None.

    Args:
        folder: `OUTPUT.checkpoints`; need not exist.
        processes: number of processes whose random state must exist; None: it is not checked.
        before: only checkpoints of earlier steps; None: of any step.
    """
    found = [(int(name[1]), path) for path in folder.glob("checkpoint-*") if (name := _NAME.match(path.name))]
    for step, path in sorted(found, reverse=True):
        if (before is None or step < before) and _is_whole(path, step, processes):
            return str(path)
    return None


def remove_torn(folder: Path) -> None:
    """Remove incomplete checkpoints from `folder`."""
    for path in folder.glob("checkpoint-*"):
        name = _NAME.match(path.name)
        if name and not _is_whole(path, int(name[1]), None):
            shutil.rmtree(path, ignore_errors=True)


_NAME = re.compile(r"checkpoint-(\d+)$")


def _is_whole(path: Path, step: int, processes: int | None) -> bool:
    try:
        state = read_json(path / _STATE)
    except (OSError, ValueError):
        return False
    if processes is None:
        names = []
    elif processes == 1:
        names = ["rng_state.pth"]
    else:
        names = [f"rng_state_{rank}.pth" for rank in range(processes)]
    return state.get("global_step") == step and all((path / name).is_file() for name in names)


def load_weights(model: Any, checkpoint: str) -> None:
    """Load a checkpoint's weights into `model`, because the Trainer does not find them.

    `save_pretrained` writes LLaVA's weights under the names of published checkpoints, and the Trainer looks
    for the module's names. It finds none, warns, and continues with the given weights (transformers 5.23). It
    does load peft adapters.

    Raises ValueError where the checkpoint does not hold exactly the model's tensors.
    """
    if not isinstance(model, PreTrainedModel):
        return
    from reverse.models.checkpoints.loading import load_weights as read_weights

    saved = read_weights(checkpoint, family_of(model), dtype=model.dtype)
    model.load_state_dict(saved.state_dict())


@contextmanager
def names_not_missed() -> Iterator[None]:
    """Silence the Trainer's warnings about tensor names that it does not find (see `load_weights`)."""
    logger = logging.getLogger("transformers.trainer")
    logger.addFilter(_is_other_warning)
    try:
        yield
    finally:
        logger.removeFilter(_is_other_warning)


def _is_other_warning(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(("There were missing keys", "There were unexpected keys"))
