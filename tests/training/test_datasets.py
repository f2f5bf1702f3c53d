"""Records as training items: found in every form of file; their hints are false and unsaid."""

import json
import pickle
import random

import pytest

from reverse.training.data.encoding import Encoder
from reverse.training.data.training_hints import choose_hints, said
from reverse.training.data.training_sets import RecordDataset


@pytest.fixture(scope="module")
def encoder(tiny_llava):
    return Encoder(tiny_llava[1])


def test_said_ignores_what_is_closed_by_un():
    """The phrase of a negative would count as said, and never be hinted."""
    assert said("Two  cups", "There are <SPAN>two cups</CN>.")
    assert said("a dog", "I see <SPAN>a dog</CN> and <SPAN>a cat</UN>")
    assert not said("a cat", "I see <SPAN>a dog</CN> and <SPAN>a cat</UN>")
    assert not said("a do", "I see <SPAN>a dog</CN>")


def test_own_hint_comes_first():
    """The one phrase that the record knows to be tempting would be left to chance."""
    rng = random.Random(0)
    for _ in range(50):
        pool = ["a cup", "a dog", "a cat", "a bus", "a car", "a bed"]
        chosen = choose_hints(rng, "A dog.", own=["A Fork"], pool=pool)
        assert "a fork" in chosen and "a dog" not in chosen and 1 <= len(chosen) <= 5
        assert len(set(chosen)) == len(chosen)
    assert choose_hints(rng, "A dog.", own=["a dog"]) == ()


def record(i, **changes):
    said = {"from": "gpt", "value": "I see <SPAN>a café</CN>.", "A_type": "general_answer", "hint": "A Fork"}
    turns = [{"from": "human", "value": "<image>\nWhat is it? ✓"}, said | changes]
    return {"id": str(i), "image": "a.png", "conversations": turns}


@pytest.mark.parametrize("form", ["list", "indented", "jsonl", "ascii"])
def test_records_are_found_in_every_form(encoder, tmp_path, picture, form):
    """Offsets counted in characters would cut records after the first letter that is not ASCII."""
    records = [record(i) for i in range(5)]
    text = {
        "list": json.dumps(records, ensure_ascii=False),
        "indented": "\n " + json.dumps(records, ensure_ascii=False, indent=2) + "\n",
        "jsonl": "\n".join(json.dumps(r, ensure_ascii=False) for r in records) + "\n\n",
        "ascii": json.dumps(records),
    }[form]
    (tmp_path / "data.json").write_text(text, encoding="utf-8")
    picture(size=(60, 40)).save(tmp_path / "a.png")
    dataset = RecordDataset(tmp_path / "data.json", tmp_path, encoder, hint_share=1.0)
    dataset = pickle.loads(pickle.dumps(dataset))
    assert [dataset.record(i) for i in range(len(dataset))] == records
    item = dataset[3]
    shown = encoder.tokenizer.decode([i for i in item.rows[0].ids if i != encoder.image_id])
    assert "(Hint: potential incorrect phrases -> a fork)" in shown
    assert item.picture["pixel_values"].shape == (1, 3, 112, 112)


@pytest.mark.parametrize(
    "changes",
    [{"A_type": "yes_no"}, {"hint": None}, {"value": "I see <SPAN>a cat</UN>"}, {"value": "A fork."}],
)
def test_which_records_get_no_hint(encoder, tmp_path, picture, changes):
    """Hints belong to positive general answers that do not say them."""
    (tmp_path / "data.json").write_text(json.dumps([record(0, **changes)]), encoding="utf-8")
    picture().save(tmp_path / "a.png")
    item = RecordDataset(tmp_path / "data.json", tmp_path, encoder, hint_share=1.0)[0]
    assert "Hint" not in encoder.tokenizer.decode(item.rows[0].ids)


def test_broken_files_are_refused(encoder, tmp_path):
    """A file that was cut off would train on half of the data in silence."""
    (tmp_path / "cut.json").write_text(json.dumps([record(0), record(1)])[:-30], encoding="utf-8")
    (tmp_path / "empty.json").write_text("[]", encoding="utf-8")
    for name in ("cut.json", "empty.json"):
        with pytest.raises(ValueError, match=name):
            RecordDataset(tmp_path / name, tmp_path, encoder)
    with pytest.raises(FileNotFoundError):
        RecordDataset(tmp_path / "none.json", tmp_path, encoder)
