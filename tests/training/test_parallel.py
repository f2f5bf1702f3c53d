"""Several processes: the same losses and weights as one, and refusals that name the mend."""

import json

import pytest

from reverse.data.scenes import write_scenes
from reverse.models import load
from reverse.training.optim import parallel
from reverse.training.optim.parallel import check_parallel
from reverse.training.recipes.recipe import load_recipe
from reverse.training.training_run import run_recipe
from tests.training.two import on_torchrun, on_two


@pytest.fixture
def recipe(tiny, tmp_path):
    """A recipe over scenes, whose last record has no picture."""
    model, processor = tiny("llava", init_std=0.02)
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    write_scenes(tmp_path / "scenes", "train", 3, 0)
    path = tmp_path / "scenes" / "instruct.json"
    records = json.loads(path.read_text())[:15]
    said = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi"}]
    path.write_text(json.dumps([*records, {"id": "text", "conversations": said}]))
    settings = {
        "model": str(tmp_path / "base"),
        "output": str(tmp_path / "out"),
        "data": {"records": str(path), "images": str(tmp_path / "scenes"), "workers": 0},
        "optim": {"lr": 1e-3, "epochs": 2, "global_batch": 4, "batch": 1},
        "compute": {"save_dtype": None},
        "log": {"steps": 1, "save_steps": 0},
    }
    written = tmp_path / "recipe.yaml"
    written.write_text(json.dumps(settings))
    return written


def launch_two(recipe, output, *settings, launch=on_two):
    given = (f"output={output}", "compute.parallel=ddp", *settings)
    changed = (part for setting in given for part in ("--set", setting))
    return launch("-m", "reverse", "train", recipe, *changed)


def test_two_processes_do_what_one_does(recipe, tmp_path):
    """Batches seen twice, gradients summed for averaged, a hang at a text without a picture, two writers."""
    one = run_recipe(load_recipe(str(recipe), [f"output={tmp_path / 'one'}"]), quiet=True)
    done = launch_two(recipe, tmp_path / "two", launch=on_torchrun)
    assert done.returncode == 0, done.stderr[-2000:]
    two, shown = json.loads((tmp_path / "two/training.json").read_text()), done.stdout
    assert two["processes"] == 2 and two["steps"] == one["steps"] == 8
    assert [loss for _, loss in two["losses"]] == pytest.approx([loss for _, loss in one["losses"]], abs=1e-4)
    assert shown.count("100%") == 1  # the first process alone shows
    single, _ = load(tmp_path / "one")
    double, _ = load(tmp_path / "two")
    for (name, mine), other in zip(single.named_parameters(), double.parameters(), strict=True):
        assert (mine - other).abs().max() < 1e-4, name


def test_two_processes_that_diverge_stop_together(recipe, tmp_path):
    """One would raise and the other wait for it, or a model of NaN be written by the first."""
    done = launch_two(
        recipe, tmp_path / "out", "optim.lr=1e30", "optim.clip=0", "log.steps=50", "log.save_steps=3"
    )
    assert done.returncode != 0 and "lower lr (optim.lr in a recipe), now 1e+30" in done.stderr
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "out.checkpoints").glob("checkpoint-*"))


PARTS = """
import os
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from accelerate import PartialState
from reverse.training.optim.parallel import check_shared, exchange, rank
from reverse.training.loss_record import LossRecord


def exchanged():
    said = exchange([rank(), list(range(1_000_000, 2_100_000)), "ü"])  # 10 MiB
    assert [one[0] for one in said] == [0, 1]
    assert all(len(one[1]) == 1_100_000 and one[2] == "ü" for one in said)
    assert exchange(rank()) == [0, 1]


def apart():
    folder = Path(os.environ["FOLDER"])
    check_shared(folder / "common/out")
    assert exchange("done") == ["done", "done"] and not list((folder / "common").iterdir())
    try:
        check_shared(folder / os.environ["RANK"] / "out", patience=1.0)
    except ValueError as error:
        print(f"refused: {error}\\n", end="", flush=True)
    assert exchange("end") == ["end", "end"]


def spoilt():
    PartialState(cpu=True)
    mesh = init_device_mesh("cpu", (2,))
    layer = fully_shard(torch.nn.Linear(4, 1), mesh=mesh)  # the second holds no weight
    record, state = LossRecord(Path("none"), 1e-3), SimpleNamespace(global_step=2, log_history=[])
    for step in (1, 2):
        for share in (0.25, 0.5):  # batches
            record.add(step, torch.tensor(share * step + rank()))
    record.on_train_end(None, state, None, model=layer)
    assert record.losses(state) == [[1, 1.75], [2, 2.5]], state.log_history
    if rank() == 0:
        layer.weight.to_local().data[0, 2] = float("inf")
    try:
        record.on_train_end(None, state, None, model=layer)
    except ValueError as error:
        print(f"refused: {error}\\n", end="", flush=True)


for part in (exchanged, apart, spoilt):
    part()
    print(f"{part.__name__} done\\n", end="", flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """What two processes said that went through `PARTS`, and their folder: one start for three tests."""
    folder = tmp_path_factory.mktemp("parts")
    for name in ("0", "1"):
        (folder / name).mkdir()
    script = folder / "parts.py"
    script.write_text(PARTS)
    return on_torchrun(script, FOLDER=str(folder)), folder


def test_what_is_exchanged_may_be_large(parts):
    """The launcher's store breaks off above 8 MiB: a million bad records ended a run without names."""
    done, _ = parts
    assert done.stdout.count("exchanged done") == 2, done.stderr[-2000:]


def test_machines_without_a_common_disk_are_told(parts):
    """Each machine would look for checkpoints that only the first one has, and hang or start over."""
    done, folder = parts
    assert done.stdout.count("apart done") == 2, done.stderr[-2000:]
    assert done.stdout.count("refused: output: what process 0 on ") == 2
    assert done.stdout.count("is not seen by process 1 on ") == 2 and "disk that they share" in done.stdout
    assert not list((folder / "0").iterdir())


def test_what_one_process_holds_stops_all(parts):
    """With weights shared out, those of one process alone may be spoilt: the others would wait for it."""
    done, _ = parts
    assert done.stdout.count("spoilt done") == 2, done.stderr[-2000:]
    assert done.stdout.count("refused: weights are not finite after step 2") == 2, done.stderr[-2000:]


SHARDED = """
import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from tests.conftest import make_tiny
from reverse.models import family_of
from reverse.training.optim import loss as losses
from reverse.training.optim.trainable_weights import Tuning, select_trained
from reverse.training.data.collator import Collator
from experiments.scene_dataset import SceneDataset
from reverse.training.data.encoding import Encoder

dist.init_process_group("gloo")
rank, mesh = dist.get_rank(), init_device_mesh("cpu", (2,))
losses.ROOM = 600 * 7  # several parts


def made(name, method):
    torch.manual_seed(0)
    model, processor = make_tiny(name)
    tuning = Tuning(method=method, rank=4, alpha=8.0, dropout=0.0)
    return select_trained(model, processor, tuning).train(), processor


for name, method in (("llava", "lora"), ("qwen", "full")):
    (whole, processor), (model, _) = made(name, method), made(name, method)
    base = model.get_base_model() if method == "lora" else model
    base.gradient_checkpointing_enable({"use_reentrant": False})
    data, collate = SceneDataset(Encoder(processor), pictures=8), Collator(processor)
    batches = [collate([data[k]]) for k in range(2)]
    with losses.loss_in_forward(whole, losses.LossConfig()), losses.loss_in_forward(model,
    losses.LossConfig()):
        for batch in batches:
            (whole(**batch)["loss"] / 2).backward()
        decoder = family_of(model).decoder(model)
        for layer in decoder.layers:
            fully_shard(layer, mesh=mesh)
        ends = [base.get_input_embeddings(), base.get_output_embeddings()]
        if name == "llava":  # as accelerate does it: tied embeddings belong to the last group
            fully_shard(ends.pop(0), mesh=mesh)
        fully_shard([decoder.norm, *ends], mesh=mesh, reshard_after_forward=False)
        fully_shard(model, mesh=mesh)
        model(**batches[rank])["loss"].backward()
        compared = 0
        for (label, mine), other in zip(model.named_parameters(), whole.parameters(), strict=True):
            if other.grad is not None:
                gradient = mine.grad.full_tensor()
                assert (gradient - other.grad).abs().max() <= 1e-5 * other.grad.abs().max(), label
                compared += 1
    print(f"compared {compared}\\n", end="", flush=True)
os._exit(0)
"""


def test_sharded_gradients_are_those_of_the_whole(tmp_path):
    """The loss would read a head or token rows that this process holds a share of (FSDP2)."""
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    done = on_two(script)
    compared = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("compared")]
    assert len(compared) == 4 and min(compared) > 10, done.stderr[-2000:]


def test_modes_that_cannot_be_are_refused(monkeypatch):
    """Eight processes would train eight models, or a sharded run on CPUs would not be sharded."""
    with pytest.raises(ValueError, match="torchrun"):
        check_parallel("ddp")
    with pytest.raises(ValueError, match="must be one of"):
        check_parallel("zero1")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes"):
        check_parallel("none")
    monkeypatch.setattr(parallel.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs GPUs"):
        check_parallel("fsdp")
    monkeypatch.setattr(parallel.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(parallel.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"reverse-vlm\[deepspeed\]"):
        check_parallel("zero3")
