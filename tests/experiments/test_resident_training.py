"""Packs, training from them, and the grid's cells."""

import numpy as np
import pytest
import torch
from safetensors import safe_open

from experiments.batch_shapes import Shape
from experiments.resident_training import ResidentConfig, _assemble, train_resident
from experiments.scene_dataset import SceneDataset
from experiments.scene_models import SceneRecipe, build_base
from experiments.scene_packs import read_shard, shard_path, write_shard
from experiments.training_grid import prepare_processors, row_settings_of
from reverse.data.scenes import make_scene, render_scene
from reverse.tokens import find_token_ids
from reverse.training.data.encoding import Encoder

SMALL = {
    "vision_layers": 1, "vision_hidden": 32, "vision_inner": 32, "vision_heads": 2, "text_layers": 1,
    "text_hidden": 32, "text_inner": 32, "text_heads": 2, "patch": 14, "tokenizer_scenes": 60,
    "several_share": 0.3, "text_share": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module", params=["llava", "qwen"])
def packed(request, tmp_path_factory):
    """(family, recipe, folder of packs, kinds of rows): two shards of twenty scenes, tagged and twin."""
    work = tmp_path_factory.mktemp(request.param)
    recipe = SceneRecipe(family=request.param, hinted_prejudice=0.0, **SMALL)
    prepare_processors(work, {request.param: recipe})
    _, kinds = row_settings_of(work, ["main", "hints_0"], {request.param: recipe})
    for number in range(2):
        write_shard(work / "packs", number, kinds, count=20)
    return request.param, recipe, work / "packs", kinds


def model_of(recipe, kinds, family, name):
    """A model for the processor of one kind of rows."""
    from reverse.models.families import family_named
    from reverse.models.processors.picture_processors import load_processor

    model_type = {"llava": "llava", "qwen": "qwen2_5_vl"}[family]
    processor = load_processor(kinds[f"{family}.{name}"].processor, family_named(model_type, ""))
    model, _ = build_base(recipe, processor.tokenizer)
    return model, processor


def test_a_shard_holds_what_the_dataset_gives(packed):
    """Training from packs would see other pictures or answers than training from the data set."""
    family, recipe, folder, kinds = packed
    name = f"{family}.main"
    _, processor = model_of(recipe, kinds, family, "main")
    dataset = SceneDataset(Encoder(processor), **kinds[name].settings)
    shard = read_shard(shard_path(folder, 1), [name])
    rows = shard.rows[name]
    for k in range(20):
        item = dataset[20 + k]
        mine = range(rows.begins[k], rows.begins[k + 1])
        assert len(mine) == len(item.rows)
        for at, row in zip(mine, item.rows, strict=True):
            length = rows.lengths[at]
            assert rows.ids[at, :length].tolist() == row.ids.tolist()
            assert rows.labels[at, :length].tolist() == row.labels.tolist()
            assert bool(rows.pictured[at]) == (item.picture is not None)
        assert np.array_equal(shard.pictures[k].numpy(), render_scene(make_scene("train", 20 + k)))
    assert 0 < rows.pictured.mean() < 1 and 0.4 < rows.negative.mean() < 0.6
    assert (rows.ids[rows.pictured > 0] == processor.image_token_id).sum(axis=1).tolist() == [
        rows.count
    ] * int(rows.pictured.sum())


def test_training_learns_and_can_be_loaded(packed, tmp_path):
    """Nothing would be learnt, or the outcome could not be decoded with."""
    from reverse.models import load

    family, recipe, folder, kinds = packed
    model, processor = model_of(recipe, kinds, family, "main")
    config = ResidentConfig(
        str(tmp_path / "tags"),
        f"{family}.main",
        steps=20,
        batch=8,
        lr=5e-3,
        log_steps=4,
        save_dtype="bfloat16",
    )
    paths = [shard_path(folder, k) for k in range(2)]
    manifest = train_resident(model, processor, paths, config)
    losses = [loss for _, loss in manifest["losses"]]
    assert losses[-1] < 0.8 * losses[0]
    assert manifest["steps"] == 20 and manifest["items"] == 160
    loaded, _ = load(tmp_path / "tags")
    assert loaded.dtype == torch.float32  # a batch's answers would else depend on its rows
    with safe_open(tmp_path / "tags" / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118


def test_padding_changes_no_loss(packed):
    """A compiled step, whose batches are of one shape, would train another objective."""
    from experiments.uniform_passes import UniformPass

    family, recipe, folder, kinds = packed
    model, processor = model_of(recipe, kinds, family, "main")
    shard = read_shard(shard_path(folder, 0), [f"{family}.main"])
    rows = shard.rows[f"{family}.main"]
    passes = UniformPass(model, processor, side=112, first=rows.first, count=rows.count)
    features = passes.see(shard.pictures)
    config = ResidentConfig("x", "x", batch=10)
    shape = Shape.of(rows, 10, rows.first + rows.count + 1)
    assert shape.rows == 20  # a positive and its negative each: no row is computed for nothing
    for chosen in (torch.arange(10), torch.arange(8, 18)):
        batch = _assemble(rows, chosen, config, passes, model.device)
        padded = shape.pad(batch)
        assert padded[0].shape == (shape.rows, shape.length) and len(padded[2]) == shape.targets
        losses = [passes.loss(features[chosen], *each) for each in (batch, padded)]
        assert torch.allclose(*losses, atol=1e-5)
    assert Shape(shape.rows, 8, shape.targets).pad(batch) is None


def test_frozen_rows_stay_and_others_move(packed, tmp_path):
    """The ablation of frozen token rows would train them after all, by weight decay if not by gradient."""
    family, recipe, folder, kinds = packed
    model, processor = model_of(recipe, kinds, family, "main")
    ids = list(find_token_ids(processor.tokenizer))
    weights = {"in": model.get_input_embeddings().weight, "out": model.get_output_embeddings().weight}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    config = ResidentConfig(str(tmp_path / "x"), f"{family}.main", steps=3, batch=8, frozen_rows=True)
    train_resident(model, processor, [shard_path(folder, 0)], config)
    for name, weight in weights.items():
        assert torch.equal(weight[ids], before[name][ids]), name
        assert not torch.equal(weight[:50], before[name][:50]), name


def test_share_of_negatives(packed, tmp_path):
    """The ablation of negatives would show them all."""
    family, recipe, folder, kinds = packed
    rows = {}
    for share in (1.0, 0.0):
        model, processor = model_of(recipe, kinds, family, "main")
        config = ResidentConfig(
            str(tmp_path / "x"), f"{family}.main", steps=4, batch=10, negative_share=share
        )
        rows[share] = train_resident(model, processor, [shard_path(folder, 0)], config)["rows"]
    assert rows[1.0] == 2 * rows[0.0]


def test_hints_can_be_left_out_and_nothing_else(packed):
    """The ablation of hints would compare answers, too."""
    family, _, folder, _ = packed
    names = [f"{family}.main", f"{family}.hints_0"]
    rows = read_shard(shard_path(folder, 0), names).rows
    with_hints, without = (rows[name] for name in names)
    assert (with_hints.lengths > without.lengths).any()
    for a, b in zip(with_hints.labels, without.labels, strict=True):
        assert a[a >= 0].tolist() == b[b >= 0].tolist()


def test_pictures_at_different_places_are_refused(packed, tmp_path):
    """Features would be put over the words of a prompt."""
    from experiments.scene_packs import _arrays
    from reverse.training.data.encoding import Row

    family, recipe, _, kinds = packed
    _, processor = model_of(recipe, kinds, family, "main")
    encoder = Encoder(processor)
    made = [[Row(np.array([1] * k + [encoder.image_id]), np.array([1] * (k + 1)))] for k in (2, 3)]
    with pytest.raises(ValueError, match="one system prompt"):
        _arrays("x", made, encoder, 1)


def test_a_shard_that_does_not_come_is_an_error(packed, tmp_path, monkeypatch):
    """A training whose renderer died would wait for ever."""
    from experiments import resident_training

    family, recipe, _, kinds = packed
    model, processor = model_of(recipe, kinds, family, "main")
    monkeypatch.setattr(resident_training, "PATIENCE", 0.1)
    config = ResidentConfig(str(tmp_path / "x"), f"{family}.main", steps=1)
    with pytest.raises(TimeoutError, match="renderer"):
        train_resident(model, processor, [tmp_path / "none"], config)
    with pytest.raises(ValueError, match="end"):
        train_resident(model, processor, [], ResidentConfig(str(tmp_path / "x"), "d"))


def test_jitter_leaves_some_pictures_and_moves_the_others_as_it_says(tiny_llava):
    """Places would no longer be where the caption says, or no picture would look as those it is tested on."""
    from experiments.resident_training import jittered
    from experiments.uniform_passes import UniformPass

    warp = jittered(np.random.default_rng(0), 200, 0.5)
    same = (warp == torch.eye(2, 3)).all(dim=2).all(dim=1)
    assert 0.4 < same.float().mean() < 0.6
    zoom = 1 / torch.linalg.det(warp[:, :, :2]).sqrt()
    assert zoom.min() > 0.79 and zoom.max() < 1.16
    passes = UniformPass(*tiny_llava, side=112, first=1, count=49)
    passes.sight = lambda pixels: pixels
    white = torch.zeros(1, 112, 112, 3, dtype=torch.uint8)
    white[:, 10:14, 54:58] = 255  # at the top, in the middle
    half = torch.tensor([[[2.0, 0, 0], [0, 2.0, 0]]])  # zoomed out by two
    seen = passes.see(white, half)[0, 0]
    row = (seen - seen.min()).sum(dim=1)[28:84].argmax() + 28
    assert abs(int(row) - 34) <= 1  # 44 pixels above the middle became 22
    assert torch.allclose(passes.see(white, torch.eye(2, 3)[None]), passes.see(white), atol=1e-4)


def test_weights_that_come_late_are_trained_from(packed, tmp_path):
    """A tagged model would be trained from the random weights that its step was compiled with."""
    family, recipe, folder, kinds = packed
    shards = [shard_path(folder, 0), shard_path(folder, 1)]
    found = {}
    for when in ("early", "late"):
        model, processor = model_of(recipe, kinds, family, "main")
        base = {name: tensor * 1.5 for name, tensor in model.state_dict().items()}
        if when == "early":
            model.load_state_dict(base)
        config = ResidentConfig(str(tmp_path / when), f"{family}.main", steps=3, batch=8, frozen_rows=True)
        take = None if when == "early" else lambda model, base=base: model.load_state_dict(base)
        train_resident(model, processor, shards, config, late=take)
        found[when] = model.state_dict()
    for name, tensor in found["early"].items():
        assert torch.equal(tensor, found["late"][name]), name


def test_patience_counts_only_while_a_training_waits(packed, tmp_path, monkeypatch):
    """A run that waits for its base would die of a shard that came in the meantime."""
    import shutil
    import time
    from threading import Timer

    from experiments import resident_training

    family, recipe, folder, kinds = packed
    model, processor = model_of(recipe, kinds, family, "main")
    monkeypatch.setattr(resident_training, "PATIENCE", 0.3)
    second = tmp_path / "second.safetensors"
    Timer(0.8, shutil.copy, [shard_path(folder, 1), tmp_path / "partial"]).start()
    Timer(0.9, lambda: (tmp_path / "partial").replace(second)).start()
    config = ResidentConfig(str(tmp_path / "x"), f"{family}.main", steps=4, batch=8)  # two of each shard
    paths = [shard_path(folder, 0), second]
    manifest = train_resident(model, processor, paths, config, late=lambda model: time.sleep(1.5))
    assert manifest["steps"] == 4
