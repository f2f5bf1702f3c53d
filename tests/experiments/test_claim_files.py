"""Claims of several measurements in one file, and what modes change in captions."""

import numpy as np
import pytest

from experiments.caption_modes import compare_modes, main
from experiments.claim_files import add_claims
from experiments.reasoning.pooled_seeds import keep_others
from reverse.errors import MissingFileError
from reverse.evaluation.stats.scored_tables import Table, ratio, save_scored
from reverse.files.text_reading import read_json

METRICS = [
    ratio("chair_i", "wrong", "mentions", better="low"),
    ratio("recall", "found", "present", better="high"),
]


def save_run(path, wrong, found):
    """A scored run over 20 pictures with 4 phrases and 4 objects each."""
    columns = {"wrong": wrong, "found": found, "mentions": 4, "present": 4}
    arrays = {name: np.full(20, value, dtype=float) for name, value in columns.items()}
    pictures = [f"{number}.png" for number in range(20)]
    save_scored(path, Table("chair", pictures, arrays, keys=pictures), METRICS)


@pytest.fixture
def folder(tmp_path):
    for name, wrong, found in (("plain", 2, 4), ("resample", 1, 4), ("select", 0, 3), ("auto", 1, 4)):
        save_run(tmp_path / f"chair.{name}.json", wrong, found)
    return tmp_path


def test_changes_are_of_each_mode_against_the_one_before(folder):
    """A loss would be shown as a gain, or a mode be compared with the wrong one."""
    claims = compare_modes(folder, rounds=50)
    assert claims["caption_resample_chair_change"][0] == -0.25 and claims["caption_chair_change"][0] == -0.25
    assert claims["caption_recall_change"][0] == -0.25 and claims["caption_auto_chair_change"][0] == 0
    assert claims["caption_chair"] == 0 and claims["caption_resample_chair"] == 0.25


def test_a_mode_that_was_not_scored_is_named(folder):
    """The claims of an older run would stay beside new ones."""
    (folder / "chair.auto.json").unlink()
    with pytest.raises(MissingFileError, match=r"chair\.auto"):
        compare_modes(folder, rounds=50)


def test_claims_of_other_measurements_stay(folder):
    """A measurement of one thing would delete the figures of another."""
    results = folder / "modes.json"
    add_claims(results, ("qwen", "shift"), {"base_accuracy": [0.7, 0.6, 0.8]}, {"first": {"a": 1}})
    main([str(folder), "--name", "qwen", "--split", "shift", "--out", str(results)])
    content = read_json(results)
    assert content["claims"]["qwen"]["shift"]["base_accuracy"] == [0.7, 0.6, 0.8]
    assert set(content["parts"]) == {"first", "captions_qwen_shift"}
    kept = keep_others(content, "qwen", "shift")
    assert "caption_chair_change" in kept and "base_accuracy" not in kept
    assert keep_others(content, "llava", "test") == {}
