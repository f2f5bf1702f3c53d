"""The disk is full at the n-th file that a run writes: a clear error, and nothing good is lost."""

import builtins
import copy
import errno
import io
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reverse.files import atomic_write
from reverse.training.checkpoints.full_disk import DiskFullError, is_full_disk
from reverse.training.checkpoints.resuming import last_checkpoint
from reverse.training.recipes.recipe import load_recipe
from reverse.training.sft import train
from reverse.training.training_run import check_before_loading, prepare, run_recipe

FULL = OSError(errno.ENOSPC, "No space left on device")


class Disk:
    """Has room for `room` files under `folder`; None: for any number. `written`: those that were opened."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.room, self.written = Path(folder), None, []
        opened = io.open

        def open_counted(file, mode="r", *rest, **named):
            if any(letter in mode for letter in "wxa+"):
                self.take(file)
            return opened(file, mode, *rest, **named)

        monkeypatch.setattr(builtins, "open", open_counted)
        monkeypatch.setattr(io, "open", open_counted)
        self._count(monkeypatch, "torch.save", 1)
        self._count(monkeypatch, "transformers.modeling_utils.safe_save_file", 1)
        self._count(monkeypatch, "peft.peft_model.safe_save_file", 1)

    def _count(self, monkeypatch, name, place):
        """Writers that open files in C++ and Rust."""
        module, _, function = name.rpartition(".")
        import importlib

        original = getattr(importlib.import_module(module), function)

        def write(*arguments, **named):
            target = arguments[place] if len(arguments) > place else named.get("filename", named.get("f"))
            if isinstance(target, (str, Path)):
                self.take(target)
            return original(*arguments, **named)

        monkeypatch.setattr(name, write)

    def take(self, file):
        if not isinstance(file, (str, Path)) or self.folder not in Path(file).absolute().parents:
            return
        if self.room is not None and len(self.written) >= self.room:
            raise FULL
        self.written.append(str(file))


@pytest.fixture
def recipe(tiny, tmp_path):
    model, processor = tiny("llava", init_std=0.02)
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    said = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi"}]
    records = [{"id": str(k), "conversations": said} for k in range(3)]
    (tmp_path / "records.json").write_text(json.dumps(records))
    settings = {
        "model": str(tmp_path / "base"),
        "output": str(tmp_path / "runs" / "out"),
        "data": {"records": str(tmp_path / "records.json"), "images": str(tmp_path), "workers": 0},
        "tune": {"method": "lora", "rank": 2, "alpha": 4},
        "optim": {"lr": 1e-3, "steps": 2, "global_batch": 1, "batch": 1},
        "log": {"steps": 1, "save_steps": 1},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(settings))
    return load_recipe(str(tmp_path / "recipe.yaml"))


def test_at_every_file_that_is_written(recipe, tmp_path, monkeypatch):
    """Half a checkpoint would be gone on from, the good one be lost, or the error be a traceback of torch."""
    runs = tmp_path / "runs"
    config = check_before_loading(recipe, quiet=True)
    ready = prepare(recipe, config, tmp_path / "found", quiet=True)

    def start():
        torch.manual_seed(0)
        train(copy.deepcopy(ready.model), ready.processor, ready.dataset, config)

    disk = Disk(runs, monkeypatch)
    start()
    assert len(disk.written) > 12, disk.written
    weights = load_file(runs / "out" / "adapter_model.safetensors")
    (runs / "out").rename(tmp_path / "whole")
    steps = []
    while 2 not in steps:
        disk.room, disk.written = len(steps) + 1, []  # the first file is the lock
        # Each goes on from what the one before left.
        with pytest.raises(DiskFullError) as caught:
            start()
        disk.room = None
        said = str(caught.value)
        assert not (runs / "out").exists() and not (runs / "out.partial").exists()
        good = last_checkpoint(runs / "out.checkpoints")
        for left in (runs / "out.checkpoints").glob("checkpoint-*"):
            assert (left / "trainer_state.json").is_file(), left  # no half of one takes the room
        assert said.startswith(f"the disk of {runs / 'out'} is full"), said
        assert (good in said and "resumes from it" in said) if good else "there is no good checkpoint" in said
        assert not list(runs.glob("**/.*.lock")) and not list(runs.glob("**/*.tmp"))
        steps.append(0 if good is None else int(good.rpartition("-")[2]))
        assert len(steps) < 30
    assert steps == sorted(steps) and set(steps) == {0, 1, 2}  # what was good stays
    start()
    after = load_file(runs / "out" / "adapter_model.safetensors")
    assert weights.keys() == after.keys() and all(bool((weights[k] == after[k]).all()) for k in weights)


def test_from_the_command_on(recipe, tmp_path, monkeypatch):
    """Before the first step the error would be a bare number."""
    disk = Disk(tmp_path / "runs", monkeypatch)
    disk.room = 1
    with pytest.raises(DiskFullError, match=r"is full.*checked\.json.*make room and start again"):
        run_recipe(recipe, quiet=True)


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (FULL, True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed"), True),
        (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (ValueError("the loss is nan"), False),
    ],
)  # fmt: skip
def test_what_a_full_disk_looks_like(error, full):
    """Writers in C++ and Rust say it in other words."""
    assert is_full_disk(error) is full
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = error
    assert is_full_disk(wrapped) is full


def test_a_file_that_finds_no_room_is_named(tmp_path, monkeypatch):
    """ "No space left on device" alone does not say on which disk."""
    monkeypatch.setattr(atomic_write.os, "fsync", lambda descriptor: (_ for _ in ()).throw(FULL))
    with pytest.raises(OSError, match=r"out\.json"):
        atomic_write.write_json(tmp_path / "out.json", {})
    assert list(tmp_path.iterdir()) == []
