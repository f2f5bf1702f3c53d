"""Fingerprints of checkpoints: what decides the answers changes them, and nothing else does."""

import json
import os
import shutil

import pytest
from safetensors.torch import load_file, save_file

from reverse.models.checkpoints import fingerprint
from reverse.models.checkpoints.fingerprint import checkpoint_fingerprint
from reverse.models.checkpoints.loading import ASSETS

NAME = "model.safetensors"


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(ASSETS / "tiny-llava", tmp_path / "a")
    return tmp_path / "a"


def test_only_the_content_decides_the_fingerprint(folder, tmp_path):
    """A copy, or the same files fetched again, would be refused as another model."""
    found = checkpoint_fingerprint("tiny-llava")
    assert checkpoint_fingerprint(folder) == found and len(found) == 16
    os.utime(folder / NAME, (1, 1))
    (folder / "trainer_state.json").write_text("{}")
    (folder / "optimizer.pt").write_text("")
    assert checkpoint_fingerprint(folder.rename(tmp_path / "b")) == found


def test_a_default_threshold_does_not_change_the_fingerprint(folder):
    """`calibrate --write` would make its own answers those of another model."""
    found = checkpoint_fingerprint(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"reverse": {"threshold": 0.25}}))
    assert checkpoint_fingerprint(folder) == found
    (folder / "config.json").write_text(json.dumps(config | {"image_token_index": 7}))
    assert checkpoint_fingerprint(folder) != found


def test_sources_of_a_tokenizer_do_not_change_the_fingerprint(folder):
    """A cache that gained them later would refuse to resume what was begun with the same model."""
    found = checkpoint_fingerprint(folder)
    for name in ("vocab.json", "merges.txt", "tokenizer.model"):
        (folder / name).write_text("{}")
    assert checkpoint_fingerprint(folder) == found
    (folder / "tokenizer.json").unlink()
    without = checkpoint_fingerprint(folder)
    (folder / "merges.txt").write_text("a b")
    assert checkpoint_fingerprint(folder) != without


@pytest.mark.parametrize("name", ["chat_template.jinja", "processor_config.json", "tokenizer_config.json"])
def test_text_and_picture_settings_change_the_fingerprint(folder, name):
    """Another template or picture size gives other answers from the same weights."""
    found = checkpoint_fingerprint(folder)
    file = folder / name
    file.write_text(file.read_text().rstrip("}\n") + " }")
    assert checkpoint_fingerprint(folder) != found


def test_large_weights_are_sampled_where_training_shows(folder, monkeypatch):
    """Gigabytes would be read twice, or a model whose three tokens alone were trained pass for the base."""
    monkeypatch.setattr(fingerprint, "WHOLE", 1 << 10)
    monkeypatch.setattr(fingerprint, "STRIDE", 1 << 16)
    monkeypatch.setattr(fingerprint, "BLOCK", 1 << 8)
    monkeypatch.setattr(fingerprint, "TAIL", 1 << 12)
    weights = load_file(folder / NAME)
    name = next(name for name in weights if "embed_tokens" in name)
    monkeypatch.setattr(fingerprint, "VOCABULARY", weights[name].shape[0])
    found = checkpoint_fingerprint(folder)
    read = sum(map(len, fingerprint._read_parts(folder / NAME)))
    assert read < (folder / NAME).stat().st_size / 10

    def changed(change):
        mine = {key: value.clone() for key, value in weights.items()}
        change(mine)
        save_file(mine, folder / NAME, {"format": "pt"})
        return checkpoint_fingerprint(folder)

    assert changed(lambda mine: None) == found
    assert changed(lambda mine: mine[name][-3].fill_(9)) != found
    assert changed(lambda mine: mine.update({k: v * 1.01 for k, v in mine.items()})) != found
