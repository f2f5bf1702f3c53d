"""Value heads: saved, read again, refused where they do not fit, and trained on the steps of drafts."""

import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import reverse
from reverse.cli import app
from reverse.data.drafts.draft_files import write_drafts
from reverse.data.drafts.draft_record import DraftRecord, DraftSegment, RecordedDraft
from reverse.data.drafts.tree_values import find_tree_values
from reverse.errors import CheckpointError, DataError, MissingFileError, RequestError
from reverse.models.value_head import (
    ValueHead,
    attach_value_head,
    find_value_head,
    hidden_size_of,
    load_value_head,
    save_value_head,
)
from reverse.training.data.encoding import Encoder, Turn
from reverse.training.optim.trainable_weights import Tuning, select_trained
from reverse.training.value_training import ValueConfig, find_chains_with_values, train_value_head


def random_head(width=16, seed=0):
    torch.manual_seed(seed)
    head = ValueHead(width)
    torch.nn.init.normal_(head.linear.weight)
    return head


def test_a_head_comes_back_as_it_was(tmp_path):
    """A tree would be searched by another head than was trained."""
    head, hidden = random_head(), torch.randn(3, 5, 16)
    save_value_head(head, tmp_path, notes={"loss": 0.1})
    save_value_head(random_head(seed=1), tmp_path, "other")
    found = load_value_head(tmp_path)
    assert torch.equal(found(hidden), head(hidden)) and found(hidden).shape == (3, 5)
    assert not torch.equal(load_value_head(tmp_path, "other")(hidden), head(hidden))
    assert ((found(hidden * 100) >= 0) & (found(hidden * 100) <= 1)).all()
    assert json.loads((tmp_path / "value_head.json").read_text())["notes"] == {"loss": 0.1}


def test_heads_that_do_not_fit_are_refused(tmp_path, tiny_llava):
    """Values would be those of noise, or torch's error would speak of shapes."""
    model, _ = tiny_llava
    with pytest.raises(MissingFileError, match="has no value head 'value'"):
        load_value_head(tmp_path)
    save_value_head(random_head(), tmp_path)
    with pytest.raises(CheckpointError, match="hidden states of size 16"):
        load_value_head(tmp_path, model=model)
    with pytest.raises(CheckpointError, match="hidden states of size 16"):
        attach_value_head(model, random_head())
    for name in ("../value", "", "a/b", "x" * 65, None):
        with pytest.raises(RequestError, match="the name of a value head"):
            save_value_head(random_head(), tmp_path, name)
    settings = tmp_path / "value_head.json"
    good = json.loads(settings.read_text())
    for change in ({"width": 1 << 40}, {"width": "16"}, {"format": 2}, {"kind": "x"}):
        settings.write_text(json.dumps(good | change))
        with pytest.raises(CheckpointError):
            load_value_head(tmp_path)
    settings.write_text(json.dumps(good | {"width": 8}))
    with pytest.raises(CheckpointError, match="holds tensors"):
        load_value_head(tmp_path)
    settings.write_text(json.dumps(good))
    broken = random_head()
    broken.linear.weight.data[0, 0] = float("nan")
    save_value_head(broken, tmp_path)
    with pytest.raises(CheckpointError, match="not finite"):
        load_value_head(tmp_path)
    (tmp_path / "value_head.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="damaged"):
        load_value_head(tmp_path)


def test_a_checkpoint_is_loaded_with_its_head(tmp_path, tiny):
    """`reverse generate --mode tree` could not use the head that stands beside the weights."""
    model, processor = tiny("llava")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert find_value_head(reverse.load(tmp_path)[0]) is None
    save_value_head(random_head(hidden_size_of(model)), tmp_path)
    loaded, _ = reverse.load(tmp_path)
    head = find_value_head(loaded)
    assert head is not None and head.width == hidden_size_of(model)
    loaded.save_pretrained(tmp_path / "again")  # the head is not a part of the model
    assert not list((tmp_path / "again").glob("value*"))


def test_values_stand_at_the_ends_of_steps(tiny_any):
    """The head would be trained on the hidden state of another place."""
    _, processor = tiny_any
    text = "Step 1: there are 3 dogs. Answer: 3"
    phrase = DraftSegment(start=17, end=24, verdict="right")
    right = RecordedDraft(text=text, verdict="right", segments=(phrase,))
    wrong = RecordedDraft(text="Step 1: there are 3 dogs. Answer: 9", verdict="wrong", segments=(phrase,))
    record = DraftRecord(id="1", question="How many?", drafts=(right, wrong))
    values = {each.text: each.value for each in find_tree_values(record)}
    assert sorted(values.values()) == [0.0, 0.5, 1.0] or len(values) == 3
    first, second = find_chains_with_values(record)
    assert first.text == "Step 1: there are<SPAN> 3 dogs</CN>. Answer: 3"
    assert [first.text[:at] for at, _ in first.ends] == ["Step 1: there are<SPAN> 3 dogs</CN>.", first.text]
    assert [value for _, value in first.ends] == [0.5, 1.0] and len(second.ends) == 1
    encoder = Encoder(processor)
    turn = Turn("How many?", first.text)
    row = encoder.row([turn], None)
    for at, _ in first.ends:
        place = encoder.last_place(turn, row, at)
        read = processor.tokenizer.decode(row.ids[: place + 1])
        assert read.endswith(first.text[:at])
    untagged = find_chains_with_values(record, tagged=False)[0]
    assert untagged.text == text
    inside = DraftSegment(start=17, end=35, verdict="right")  # the step ends inside of this phrase
    other = RecordedDraft(text=text, verdict="right", segments=(inside,))
    (chain,) = find_chains_with_values(record.model_copy(update={"drafts": (other,)}))
    assert [value for _, value in chain.ends] == [1.0]


def make_drafts(count):
    """Questions whose right chain says yes and whose wrong one says no."""
    records = []
    for i in range(count):
        texts = [(f"The cup {i} is red. Yes.", "right"), (f"The cup {i} is red. No.", "wrong")]
        drafts = tuple(RecordedDraft(text=text, verdict=verdict) for text, verdict in texts)
        records.append(DraftRecord(id=str(i), question="Is it?", images=("a.png",), drafts=drafts))
    return records


@pytest.fixture
def pictures(tmp_path, picture):
    Image.Image.save(picture(), tmp_path / "a.png")
    return tmp_path


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_a_head_learns_values(tiny, pictures, family):
    """A head would be saved that knows no more than the mean."""
    model, processor = tiny(family, init_std=0.05)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = ValueConfig(epochs=150, lr=0.02, held_out=0.3)
    head, report = train_value_head(model, processor, make_drafts(24), pictures, config)
    assert report["held_out_loss"] < report["held_out_loss_of_mean"] - 0.05, report
    assert report["backbone"] == "frozen" and report["steps"] > 20
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    again, _ = train_value_head(model, processor, make_drafts(24), pictures, config)
    assert torch.equal(head.linear.weight, again.linear.weight)  # seeded


def test_a_lora_backbone_is_trained_too(tiny, pictures):
    """Only the head would learn, although the adapter was asked for."""
    model, processor = tiny("llava", init_std=0.05)
    adapted = select_trained(model, processor, Tuning(method="lora", rank=2))
    before = {n: p.detach().clone() for n, p in adapted.named_parameters()}
    config = ValueConfig(epochs=2, train_backbone=True, backbone_lr=1e-3, held_out=0.0)
    _, report = train_value_head(adapted, processor, make_drafts(4), pictures, config)
    changed = {n for n, p in adapted.named_parameters() if not torch.equal(p, before[n])}
    assert report["backbone"] == "trained" and any("lora" in name for name in changed)
    assert all(dict(adapted.named_parameters())[name].requires_grad for name in changed)


def test_what_cannot_be_trained_is_named(tiny_llava, pictures):
    """A head would be trained on nothing, or a frozen backbone without a word."""
    model, processor = tiny_llava
    with pytest.raises(DataError, match="no answer has a value"):
        train_value_head(model, processor, [DraftRecord(id="1", question="Q?")], pictures)
    lost = make_drafts(1)[0].model_copy(update={"images": ("none.png",)})
    with pytest.raises(DataError, match="record '0'"):
        train_value_head(model, processor, [lost], pictures)
    for options, match in (({"epochs": 0}, "epochs"), ({"lr": 0.0}, "lr"), ({"held_out": 1.0}, "held_out")):
        with pytest.raises(RequestError, match=match):
            ValueConfig(**options)


def test_the_command_writes_a_head_beside_the_checkpoint(tmp_path, pictures, tiny):
    """The command would train a head that no mode finds."""
    model, processor = tiny("llava")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    write_drafts(tmp_path / "d.jsonl", make_drafts(6))
    given = [str(tmp_path / "model"), str(tmp_path / "d.jsonl"), "--images", str(pictures), "--epochs", "2"]
    done = CliRunner().invoke(app, ["value-head", *given, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "steps, loss" in done.output
    assert find_value_head(reverse.load(tmp_path / "model")[0]) is not None
    missing = CliRunner().invoke(app, ["value-head", str(tmp_path / "none"), str(tmp_path / "d.jsonl")])
    assert missing.exit_code == 2 and "no such folder" in missing.output
