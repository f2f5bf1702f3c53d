"""A user's whole way: tokens, a LoRA recipe, merging, a checkpoint that needs nothing of this library."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

import reverse
from experiments.tiny_models import build_tiny_llava, build_tiny_qwen
from reverse.data.records.importer import import_records
from reverse.data.scenes import write_scenes
from reverse.models import add_tokens_to_checkpoint
from reverse.models.adapters.merging import merge_adapter
from reverse.tokens import add_tokens, find_token_ids
from reverse.training.recipes.recipe import load_recipe
from reverse.training.training_run import run_recipe

SETTINGS = {
    "tune": {"method": "lora", "rank": 4, "alpha": 8, "dropout": 0.0},
    "optim": {"lr": 0.01, "steps": 2, "batch": 2, "global_batch": 2},
    "compute": {"precision": "float32", "weights": "float32"},
    "log": {"steps": 1, "save_steps": 0},
}


def write_base(folder, build, seed=0):
    model, processor = build(seed=seed)
    model.save_pretrained(folder / "plain")
    processor.save_pretrained(folder / "plain")
    add_tokens_to_checkpoint(folder / "plain", folder / "base")


def write_recipe(folder, base, records):
    recipe = {"model": str(base), "output": str(folder / "adapter"), **SETTINGS}
    recipe["data"] = {"records": str(records), "images": str(folder / "scenes"), "workers": 0}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return str(path)


@pytest.mark.parametrize("build", [build_tiny_llava, build_tiny_qwen], ids=["llava", "qwen"])
def test_a_recipe_ends_in_a_plain_checkpoint(build, tmp_path):
    """Training and merging would not agree on what an adapter holds, or on which base is its own."""
    write_base(tmp_path, build)
    write_scenes(tmp_path / "scenes", "train", 6, 0)
    import_records(tmp_path / "scenes/instruct.json", tmp_path / "imported")
    recipe = write_recipe(tmp_path, tmp_path / "base", tmp_path / "imported")
    manifest = run_recipe(load_recipe(recipe, []), quiet=True)
    assert manifest["data"]["count"] == len(json.loads((tmp_path / "scenes/instruct.json").read_text()))

    merged = merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert merged.checked and merged.rows and merged.layers and merged.modules
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    base, processor = reverse.load(tmp_path / "base")
    with torch.no_grad():
        untrained = base(input_ids=torch.tensor([[5, 9]])).logits
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids = torch.tensor([[5, 9, *find_token_ids(processor.tokenizer), 7]])
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits
        assert torch.allclose(plain(input_ids=ids).logits, expected, atol=1e-5 * expected.abs().max().item())
        assert (plain(input_ids=ids[:, :2]).logits - untrained).abs().max() > 1e-3
    loaded, processor = reverse.load(tmp_path / "merged")
    scene = next((tmp_path / "scenes/images").glob("*.png"))
    assert reverse.generate(loaded, processor, str(scene), max_new_tokens=4).usage.kept

    (tmp_path / "other").mkdir()
    write_base(tmp_path / "other", build, seed=1)
    with pytest.raises(ValueError, match=r"other weights|fingerprint"):
        merge_adapter(tmp_path / "adapter", tmp_path / "wrong", base=tmp_path / "other/base")


@pytest.mark.parametrize("build", [build_tiny_llava, build_tiny_qwen], ids=["llava", "qwen"])
def test_a_base_without_tokens_gets_them_on_the_way(build, tmp_path):
    """The published bases have no tokens: their adapters would belong to a base that stands nowhere."""
    model, processor = build()
    model.save_pretrained(tmp_path / "plain")
    processor.save_pretrained(tmp_path / "plain")
    write_scenes(tmp_path / "scenes", "train", 4, 0)
    run_recipe(load_recipe(write_recipe(tmp_path, tmp_path / "plain", tmp_path / "scenes"), []), quiet=True)
    merged = merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert merged.checked and merged.rows
    loaded, processor = reverse.load(tmp_path / "merged")
    base, other = reverse.load(tmp_path / "plain", require_tokens=False)
    ids = list(add_tokens(base, other, seed=0))
    assert ids == list(find_token_ids(processor.tokenizer))
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    shown = torch.tensor([[5, 9, *ids, 7]])
    with torch.no_grad():
        expected = adapted(input_ids=shown).logits
        assert torch.allclose(
            loaded(input_ids=shown).logits, expected, atol=1e-5 * expected.abs().max().item()
        )


def test_what_stands_at_the_output_is_kept(tmp_path):
    """A folder of other runs, or the run itself, would be lost at the end of one with its name."""
    write_base(tmp_path, build_tiny_llava)
    write_scenes(tmp_path / "scenes", "train", 3, 0)
    recipe = write_recipe(tmp_path, tmp_path / "base", tmp_path / "scenes")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/notes.txt").write_text("mine")
    for resume in (True, False):
        with pytest.raises(FileExistsError, match="files that are not of a training run"):
            run_recipe(load_recipe(recipe, []), quiet=True, resume=resume)
    assert (tmp_path / "adapter/notes.txt").read_text() == "mine"
    (tmp_path / "adapter/notes.txt").unlink()
    first = run_recipe(load_recipe(recipe, []), quiet=True)
    before = (tmp_path / "adapter/training.json").stat().st_mtime_ns
    assert run_recipe(load_recipe(recipe, []), quiet=True) == json.loads(json.dumps(first))
    assert (tmp_path / "adapter/training.json").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match=r"another recipe.*--restart"):
        run_recipe(load_recipe(recipe, ["optim.lr=0.02"]), quiet=True)
    assert run_recipe(load_recipe(recipe, ["optim.lr=0.02"]), quiet=True, resume=False)["steps"] == 2


def test_generation_must_stop_where_turns_end(tmp_path):
    """A trained model would end its turn, and generate() would go on to the length limit."""
    write_base(tmp_path, build_tiny_llava)
    write_scenes(tmp_path / "scenes", "train", 3, 0)
    path = tmp_path / "base/generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [0, 1]}))
    recipe = write_recipe(tmp_path, tmp_path / "base", tmp_path / "scenes")
    with pytest.raises(ValueError, match=r"ends a turn with '</s>' \(id 2\).*\"eos_token_id\": \[0, 1, 2\]"):
        run_recipe(load_recipe(recipe, []), quiet=True)
