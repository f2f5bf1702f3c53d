"""The scenes recipe in miniature: its three stages, end to end."""

import json
from dataclasses import replace

import pytest

from experiments.scene_models import SceneRecipe, build_base, main, run
from reverse.models import load
from reverse.tokens import TAGS, add_tokens


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    recipe = SceneRecipe(out=str(tmp_path_factory.mktemp("scenes")), base_lr=5e-3, base_steps=10).smoke()
    return recipe, run(recipe, quiet=True)


def test_stages_learn_and_can_be_loaded(smoke, tmp_path):
    """The shipped model could not be made."""
    recipe, manifests = smoke
    for stage, manifest in manifests.items():
        losses = [loss for _, loss in manifest["losses"]]
        assert losses[-1] < losses[0], stage
        _, processor = load(f"{recipe.out}/{stage}", require_tokens=stage == "tags")
        known = [tag in processor.tokenizer.get_vocab() for tag in TAGS]
        assert all(known) if stage == "tags" else not any(known)
    assert manifests["tags"]["rows"] == 2 * manifests["twin"]["rows"]
    assert manifests["tags"]["steps"] == manifests["twin"]["steps"] == recipe.tags_steps


def test_finished_stages_are_not_repeated(smoke, capsys):
    """A restart would train for ten minutes what is there already, or keep what other settings made."""
    recipe, manifests = smoke
    run(recipe)
    assert capsys.readouterr().out.count("finished before") == 3
    changed = replace(recipe, tags_lr=1e-5, stages="twin")
    assert run(changed, quiet=True)["twin"]["final_loss"] != manifests["twin"]["final_loss"]


def test_both_models_fit(tmp_path):
    """The wheel would outgrow 12 MB for both models."""
    total = 0
    for family in ("llava", "qwen"):
        model, processor = build_base(SceneRecipe(family=family, tokenizer_scenes=100))
        add_tokens(model, processor)
        assert len(processor.tokenizer) <= 640
        total += 2 * sum(p.numel() for p in model.parameters())
    assert total <= 11_750_000  # bytes in bfloat16; tokenizers and configurations take 0.1 MB


def test_qwen_learns_too(tmp_path):
    """The recipe would be LLaVA's alone."""
    recipe = SceneRecipe(
        family="qwen", out=str(tmp_path), base_lr=5e-3, base_steps=10, stages="base,tags"
    ).smoke()
    for stage, manifest in run(recipe, quiet=True).items():
        losses = [loss for _, loss in manifest["losses"]]
        assert losses[-1] < losses[0], stage
    model, _ = load(tmp_path / "tags")
    assert model.config.model_type == "qwen2_5_vl"
    with pytest.raises(ValueError, match="llava, qwen"):
        SceneRecipe(family="blip")


def test_command_line(tmp_path, capsys):
    """The command in the documentation would not run."""
    main(["--out", str(tmp_path), "--smoke", "--stages", "base", "--base-steps", "2"])
    assert json.loads((tmp_path / "base" / "training.json").read_text())["steps"] == 2
    assert "parameters" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="base"):
        main(["--out", str(tmp_path / "none"), "--smoke", "--stages", "tags"])
    with pytest.raises(ValueError, match="stages"):
        main(["--out", str(tmp_path), "--stages", "bse"])
