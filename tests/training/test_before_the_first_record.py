"""What can be refused early is refused early; `--dry-run` says what a run would do and writes nothing."""

import json
import shutil
import threading
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from reverse.cli import app
from reverse.data.scenes import write_scenes
from reverse.files.file_lock import output_lock
from reverse.training import training_run
from reverse.training.dry_run import dry_run
from reverse.training.recipes import settings_check
from reverse.training.recipes.recipe import load_recipe
from reverse.training.recipes.settings_check import check_kernel, check_settings, check_size
from reverse.training.sft import SFTConfig
from reverse.training.training_run import run_recipe


@pytest.fixture(scope="module")
def given(tiny, tmp_path_factory):
    """A recipe for a tiny model and a folder of scenes, in a folder of its own."""
    folder = tmp_path_factory.mktemp("training")
    model, processor = tiny("llava", init_std=0.02)
    model.save_pretrained(folder / "base")
    processor.save_pretrained(folder / "base")
    write_scenes(folder / "scenes", "train", 2, 0)
    settings = {
        "model": str(folder / "base"),
        "output": str(folder / "out"),
        "data": {
            "records": str(folder / "scenes/instruct.json"),
            "images": str(folder / "scenes"),
            "workers": 0,
        },
        "tune": {"method": "lora", "rank": 2, "alpha": 4},
        "optim": {"lr": 1e-3, "global_batch": 4, "batch": 2},
        "log": {"steps": 1, "save_steps": 1},
    }
    (folder / "recipe.yaml").write_text(json.dumps(settings))
    return folder


def recipe_of(folder, *settings):
    return load_recipe(str(folder / "recipe.yaml"), settings)


@pytest.fixture
def unloaded(monkeypatch):
    """No model may be loaded and no record be read."""

    def touch(*_, **__):
        raise AssertionError("the model was loaded, or a record looked at")

    monkeypatch.setattr(training_run, "load", touch)
    monkeypatch.setattr(training_run, "open_parts", touch)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (["optim.batch=3"], "global_batch 4 is not a multiple of batch 3"),
        (["loss.kernel=liger"], "liger"),
        (["loss.kernel=fused"], r"loss\.kernel must be one of"),
        (["loss.confidence_weight=0"], "confidence_weight must be positive"),
        (["compute.precision=float8"], "precision must be one of"),
        (["compute.save_dtype=int8", "tune.method=full"], "save_dtype must be one of"),
        (["compute.packing=true", "compute.group_by_length=true"], "choose one of them"),
        (["log.report_to=comet"], "report_to must be one of"),
        (["compute.parallel=ddp"], "torchrun"),
        (["tune.method=loar"], r"tune\.method"),
        (["compute.attention=flex"], "sdpa"),
        (["data.images=nowhere"], r"data\.images"),
    ],
)
@pytest.mark.parametrize("dry", [False, True])
def test_settings_come_before_the_model(given, unloaded, settings, match, dry):
    """Hours of loading and looking at records would pass before a setting is refused."""
    start = dry_run if dry else run_recipe
    with pytest.raises((ValueError, OSError), match=match):
        start(recipe_of(given, *settings))


def test_a_precision_that_the_device_lacks(monkeypatch, tmp_path):
    """The Trainer would refuse it after all records were looked at."""
    device = SimpleNamespace(
        is_available=lambda: True, is_bf16_supported=lambda: False, get_device_name=lambda: "an old GPU"
    )
    monkeypatch.setattr(settings_check.torch, "cuda", device)
    with pytest.raises(ValueError, match="an old GPU cannot compute in"):
        check_settings(SFTConfig(str(tmp_path)))


def test_an_output_that_cannot_be_written(given, unloaded, monkeypatch):
    """The model would be trained, and then have nowhere to go."""
    monkeypatch.setattr(settings_check.os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=r"output: .* may not write to"):
        run_recipe(recipe_of(given))


def test_two_trainings_of_one_output(given, unloaded):
    """Both would end well, and one model silently replace the other."""
    said = []

    def start():
        for each in (run_recipe, dry_run):
            with pytest.raises(ValueError) as caught:
                each(recipe_of(given))
            said.append(str(caught.value))

    with output_lock(given / "out"):
        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
    assert len(said) == 2 and all("is being written by another process" in each for each in said)


def test_checkpoints_of_another_run(given, unloaded):
    """All records would be looked at before the run is told from the one that was stopped."""
    folder = given / "out.checkpoints"
    (folder / "checkpoint-1").mkdir(parents=True)
    (folder / "checkpoint-1" / "trainer_state.json").write_text('{"global_step": 1}')
    (folder / "run.json").write_text(json.dumps({"notes": {"data": {"count": 7}}}))
    try:
        with pytest.raises(ValueError, match="other settings"):
            run_recipe(recipe_of(given))
    finally:
        shutil.rmtree(folder)


def test_too_few_records_are_said_before_they_are_looked_at(given, monkeypatch):
    """A long look at all records would end in "make it smaller"."""
    monkeypatch.setattr(training_run, "check_parts", lambda *_, **__: pytest.fail("looked at"))
    with pytest.raises(ValueError, match="the data hold 3 items, a batch takes 4"):
        run_recipe(recipe_of(given, "data.limit=3"), quiet=True)


def test_a_head_that_the_kernel_cannot_read():
    """The first step would end in an error of the loss."""
    config = SFTConfig("out", loss_kernel="liger")
    model = SimpleNamespace(get_output_embeddings=lambda: torch.nn.Embedding(2, 2))
    with pytest.raises(ValueError, match=r"take loss\.kernel=auto"):
        check_kernel(config, model)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["lr", "epochs", "seconds", "warmup", "clip", "beta2", "weight_decay"])
def test_numbers_are_finite(name, value, tmp_path):
    """A rate of NaN would make a model of NaN, a clip of NaN no step at all."""
    with pytest.raises(ValueError, match=f"{name} must be a finite number"):
        check_settings(SFTConfig(str(tmp_path), **{name: value}))


@pytest.mark.parametrize(
    "settings",
    [{"batch": 0}, {"lr": -1.0}, {"steps": 0}, {"log_steps": 0}, {"save_steps": 0}, {"beta2": 1.0}],
)
def test_numbers_are_in_range(settings, tmp_path):
    """A zero would be a division by zero in the Trainer."""
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
        check_settings(SFTConfig(str(tmp_path), **settings))


def test_absurdly_many_steps(tmp_path):
    """The number would overflow somewhere in the Trainer."""
    with pytest.raises(ValueError, match="steps are more than"):
        check_size(SFTConfig(str(tmp_path), epochs=1e300), 1, 64)


def test_dry_run_says_what_the_run_does(given):
    """It would promise other steps than the run takes, or leave folders behind."""
    before = sorted(given.rglob("*"))
    settings = ["--set", "data.limit=9", "--set", "optim.epochs=1"]
    said = CliRunner().invoke(app, ["train", str(given / "recipe.yaml"), *settings, "--dry-run", "--quiet"])
    assert said.exit_code == 0, said.output
    assert sorted(given.rglob("*")) == before
    assert "steps     2 of 4 samples: 2 batches of 2 on 1 process\n" in said.stdout
    assert "records   9; left out 0, cut 0" in said.stdout and "nothing was written" in said.stdout
    manifest = run_recipe(recipe_of(given, "data.limit=9"), quiet=True)
    assert manifest["steps"] == 2
    assert f"{manifest['trained_parameters']:,} of {manifest['parameters']:,}" in said.stdout
    again = CliRunner().invoke(app, ["train", str(given / "recipe.yaml"), *settings, "--dry-run", "--quiet"])
    assert again.exit_code == 0 and "at its end, after 2 steps" in again.stdout


def test_dry_run_counts_all_ids(given):
    """The estimate of a long run would rest on something else than what training sees."""
    recipe = recipe_of(given, "data.limit=6", f"output={given}/other")
    plan = dry_run(recipe, quiet=True)
    ready = training_run.prepare(
        recipe, training_run.check_before_loading(recipe), given / "found", quiet=True
    )
    lengths = [len(row.ids) for k in range(6) for row in ready.dataset[k].rows]
    assert plan["tokens"]["each_pass"] == sum(lengths) and plan["tokens"]["exact"]
    assert plan["tokens"]["longest"] == max(lengths)
    assert plan["memory"]["gib"] >= plan["memory"]["weights"] >= 0
    (given / "found.checked.json").unlink()
