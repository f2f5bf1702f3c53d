"""Value heads by recipe: frozen backbones, LoRA, and what is refused."""

import json

import pytest
import torch
from peft import PeftModel
from typer.testing import CliRunner

import reverse
from experiments.tiny_models import build_tiny_llava
from reverse.cli import app
from reverse.errors import OutputExistsError, RequestError
from reverse.models.adapters.merging import merge_adapter
from reverse.models.value_head import load_value_head
from reverse.training.recipes.recipe import load_recipe
from reverse.training.value_run import run_value_recipe
from tests.training.rl.rl_fixtures import write_base, write_rows

LORA = {
    "tune": {"method": "lora", "rank": 4, "alpha": 8, "dropout": 0.0, "tokens": False, "projector": False},
    "optim": {"lr": 0.01, "epochs": 2, "batch": 4, "global_batch": 4, "schedule": "constant", "warmup": 0.0},
    "value": {"backbone": "lora", "head_lr": 0.01},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_rows(folder, 6)
    write_base(folder, build_tiny_llava)
    return folder


def make_recipe(world, output, *settings, **sections):
    given = {
        "kind": "value",
        "model": str(world / "base"),
        "output": str(output),
        "data": {"records": str(world / "world/drafts.jsonl"), "images": str(world / "world")},
        "optim": {"epochs": 2},
        "compute": {"precision": "float32", "weights": "float32"},
        **sections,
    }
    path = output.parent / "value.yaml"
    path.write_text(json.dumps(given))
    return load_recipe(str(path), settings)


def test_a_head_on_a_frozen_model(world, tmp_path):
    """`reverse train` would not know value heads, or change the model that decodes."""
    make_recipe(world, tmp_path / "out")
    done = CliRunner().invoke(app, ["train", str(tmp_path / "value.yaml"), "--quiet"])
    assert done.exit_code == 0, done.output
    model, _ = reverse.load(world / "base")
    head = load_value_head(tmp_path / "out", model=model)
    assert head.width == model.config.get_text_config().hidden_size
    assert torch.isfinite(head.linear.weight).all() and head.linear.weight.abs().max() > 0
    assert not (tmp_path / "out/adapter").exists() and not (tmp_path / "out.partial").exists()
    manifest = json.loads((tmp_path / "out/training.json").read_text())
    assert manifest["report"]["backbone"] == "frozen" and manifest["final_loss"] > 0
    assert run_value_recipe(make_recipe(world, tmp_path / "out"), quiet=True) == manifest
    with pytest.raises(OutputExistsError, match="another recipe"):
        run_value_recipe(make_recipe(world, tmp_path / "out", "value.head_lr=0.1"), quiet=True)


def test_a_head_with_lora_merges(world, tmp_path):
    """TSST's value model would leave an adapter that no base takes, or one that was not trained."""
    run_value_recipe(make_recipe(world, tmp_path / "out", **LORA), quiet=True)
    assert merge_adapter(tmp_path / "out/adapter", tmp_path / "merged").checked
    model, _ = reverse.load(tmp_path / "merged")
    load_value_head(tmp_path / "out", model=model)
    adapter = PeftModel.from_pretrained(reverse.load(world / "base")[0], tmp_path / "out/adapter")
    assert any(p.abs().max() > 0 for name, p in adapter.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("optim.steps=3", "whole passes"),
        ("optim.epochs=0.5", "whole passes"),
        ("optim.global_batch=8", r"set optim\.global_batch=4"),
        ("optim.schedule=cosine", r"optim\.schedule=constant"),
        ("tune.tokens=true", r"tune\.tokens=false"),
        ("compute.parallel=ddp", r"compute\.parallel=none"),
    ],
)
def test_settings_without_effect_are_refused(setting, reason, world, tmp_path):
    """A setting would be read, and silently not be done."""
    with pytest.raises(RequestError, match=reason):
        run_value_recipe(make_recipe(world, tmp_path / "out", setting, **LORA), quiet=True)
