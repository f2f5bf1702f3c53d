"""A run that is killed outright and started again: bit for bit the run that was not."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file

from reverse.data.scenes import write_scenes
from reverse.training.checkpoints.resuming import last_checkpoint
from reverse.training.recipes.recipe import load_recipe
from reverse.training.training_run import run_recipe
from tests.warm_python import start_python


def start(recipe, output, lines):
    """A process that trains and writes its lines to a named pipe."""
    os.mkfifo(lines)
    # As many threads as here: sums in another order end in other bits.
    threads = str(torch.get_num_threads())
    words = ("train", recipe, "--set", f"output={output}")
    return start_python("-m", "reverse", *words, stdout=lines, OMP_NUM_THREADS=threads)


@pytest.fixture
def recipe(tiny, tmp_path):
    model, processor = tiny("llava", init_std=0.02)
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    write_scenes(tmp_path / "scenes", "train", 2, 0)
    settings = {
        "model": str(tmp_path / "base"),
        "output": str(tmp_path / "out"),
        "data": {
            "records": str(tmp_path / "scenes/instruct.json"),
            "images": str(tmp_path / "scenes"),
            "workers": 0,
        },
        "tune": {"method": "lora", "rank": 4, "alpha": 8, "dropout": 0.1},
        "optim": {"lr": 1e-3, "steps": 10, "global_batch": 4, "batch": 2, "projector_lr": 1e-4},
        "compute": {"group_by_length": True},
        "log": {"steps": 1, "save_steps": 3},
    }
    written = tmp_path / "recipe.yaml"
    written.write_text(json.dumps(settings))
    return written


def test_killed_run_goes_on_bit_for_bit(recipe, tmp_path, capsys):
    """Data seen twice, dropout drawn anew, an optimizer that forgot: another model after every power cut."""
    run_recipe(load_recipe(str(recipe), [f"output={tmp_path / 'whole'}"]), quiet=True)
    process = start(recipe, tmp_path / "killed", tmp_path / "lines")
    with (tmp_path / "lines").open() as lines:
        for line in lines:  # in the middle of an interval
            if "step 7 " in line:
                break
        process.kill()
        process.join()
    folder = tmp_path / "killed.checkpoints"
    assert not (tmp_path / "killed").exists()
    saved = int(last_checkpoint(folder).rpartition("-")[2])
    assert saved in (6, 9)  # one interval is lost at most
    # A newer checkpoint that the kill cut off must not be taken for one.
    (folder / "checkpoint-99").mkdir()
    (folder / "checkpoint-99" / "trainer_state.json").write_text('{"global_st')
    run_recipe(load_recipe(str(recipe), [f"output={tmp_path / 'killed'}"]))
    shown = capsys.readouterr().out
    assert f"step {saved + 1} " in shown and f"step {saved} " not in shown
    whole, resumed = (
        json.loads((tmp_path / name / "training.json").read_text()) for name in ("whole", "killed")
    )
    losses = dict(map(tuple, whole["losses"]))
    assert len(losses) == 10
    assert dict(map(tuple, resumed["losses"])) == losses
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "killed"))
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)
    assert not folder.exists()
    for name in ("recipe.yaml", "training.json", "processor_config.json", "reverse_adapter.json"):
        assert (tmp_path / "killed" / name).is_file()
    assert whole["data"]["count"] == len(json.loads((tmp_path / "scenes/instruct.json").read_text()))
    assert len(whole["data"]["sha256"]) == 64 and whole["versions"]["peft"] and whole["recipe"]["seed"] == 0


def test_part_of_a_checkpoint_is_none(tmp_path):
    """A checkpoint without the random state of every process would be continued with other dropout."""
    for step in (3, 6):
        path = tmp_path / f"checkpoint-{step}"
        path.mkdir()
        (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        (path / "rng_state_0.pth").touch()
    (tmp_path / "checkpoint-3" / "rng_state_1.pth").touch()
    assert last_checkpoint(tmp_path, 2) == str(tmp_path / "checkpoint-3")
    assert last_checkpoint(tmp_path, 1) is None
    assert last_checkpoint(tmp_path / "none") is None
