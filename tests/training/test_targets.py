"""Targets of a row: which ids are trained and what they weigh, from a record to the loss."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from reverse.data.records.schema import make_record
from reverse.data.records.set_check import check_set
from reverse.data.records.target_rules import find_target_problems
from reverse.tokens import find_token_ids
from reverse.training.data.collator import Collator
from reverse.training.data.encoding import Encoder, Turn
from reverse.training.data.labels import IGNORE, LabelledPart, join
from reverse.training.data.packing import row_positions
from reverse.training.data.record_check import find_bad
from reverse.training.data.training_sets import RecordDataset
from reverse.training.optim import loss as loss_module
from reverse.training.optim.loss import LossConfig, loss_in_forward
from reverse.training.sft import SFTConfig, train

SPAN, CN, UN = 1, 2, 3
TAGS = {"span_id": SPAN, "cn_id": CN, "un_id": UN}
ANSWER = "There is <SPAN>a dog</CN> and <SPAN>two cups</UN> here."


def label_slowly(ids, targets, start):
    """One id after the other, as the definition says."""
    fed, labels, opened = [], [], None
    for i, token in enumerate(ids):
        is_closing = token in (CN, UN)
        fed.append(CN if targets == "closing" and is_closing else token)
        trained = {"all": True, "content": not is_closing, "closing": is_closing, "none": False}[targets]
        labels.append(token if trained and i >= start else IGNORE)
        if token == UN and targets in ("all", "content"):
            labels[opened + 1 : i] = [IGNORE] * (i - opened - 1)
        opened = i if token == SPAN else None if is_closing else opened
    return fed, labels


@st.composite
def tagged(draw):
    """Ids whose every `</UN>` closes a phrase."""
    ids, opened = [], False
    for token in draw(st.lists(st.integers(0, 7), max_size=30)):
        if token != UN or opened:
            ids.append(token)
        opened = token == SPAN or (opened and token not in (CN, UN))
    return ids


@given(tagged(), st.sampled_from(["all", "content", "closing", "none"]), st.integers(0, 31))
def test_targets_are_what_the_definition_says(ids, targets, start):
    """A judge row would train words, or a solve row the verdicts of an annotator who does not know them."""
    end = LabelledPart([9], True)  # so that there is a target
    fed, labels = join([LabelledPart(ids, True, targets, start), end], **TAGS)
    want = label_slowly(ids, targets, start)
    assert (fed[:-1].tolist(), labels[:-1].tolist()) == want


def test_a_judge_row_is_fed_confident_tags(tiny_any):
    """The judge would see the verdict on a phrase in what comes after it."""
    _, processor = tiny_any
    encoder, tags = Encoder(processor), find_token_ids(processor.tokenizer)
    plain = encoder.row([Turn("Q?", ANSWER)], 4)
    judge = encoder.row([Turn("Q?", ANSWER, targets="closing")], 4)
    assert judge.labels[judge.labels != IGNORE].tolist() == [tags.cn, tags.un]
    assert (judge.ids == tags.cn).sum() == 2 and not (judge.ids == tags.un).any()
    assert np.array_equal(judge.ids, np.where(plain.ids == tags.un, tags.cn, plain.ids))
    content = encoder.row([Turn("Q?", ANSWER, targets="content")], 4)
    assert np.array_equal(content.ids, plain.ids)
    assert set(plain.labels) - set(content.labels) == {tags.cn, tags.un}
    assert (content.labels != IGNORE).sum() == (plain.labels != IGNORE).sum() - 2


def test_given_characters_are_input(tiny_any):
    """The wrong half of a reflection would be trained, or the right half would not."""
    _, processor = tiny_any
    encoder, answer = Encoder(processor), "There is a dog and two cups here."
    whole = encoder.row([Turn("Q?", answer)], None)
    for start in range(1, len(answer)):
        row = encoder.row([Turn("Q?", answer, given=start)], None)
        assert np.array_equal(row.ids, whole.ids)
        first = int(np.flatnonzero(row.labels != IGNORE)[0])
        assert np.array_equal(row.labels[first:], whole.labels[first:])
        trained = processor.tokenizer.decode(whole.ids[first:], skip_special_tokens=True)
        assert trained.endswith(answer[start:].lstrip())
        assert len(trained) <= len(answer) - start + 6  # at most the word that stands across


def test_first_answer_of_a_correction_is_input(tiny_any):
    """A wrong answer would be trained."""
    _, processor = tiny_any
    encoder = Encoder(processor)
    turns = [Turn("Q?", "There are 3 cups.", targets="none"), Turn("Check it.", "There are 2 cups.")]
    row, plain = encoder.row(turns, None), encoder.row([Turn(t.question, t.answer) for t in turns], None)
    assert np.array_equal(row.ids, plain.ids)
    shown = processor.tokenizer.decode(row.labels[row.labels != IGNORE])
    assert "2 cups" in shown and "3 cups" not in shown


BAD = {
    "must be one of all, content, closing, none": {"targets": "tags"},
    '"targets" 3': {"targets": 3},
    "no closing tag to train": {"value": "A dog.", "targets": "closing"},
    "teaches nothing": {"targets": "none"},
    "from 0 to below": {"given": 500},
    '"given" True': {"given": True},
}
GOOD = [{"targets": "content"}, {"targets": "closing"}, {"targets": None}, {"given": 8}, {"targets": "all"}]


def write(folder, changes, weights=()):
    records = []
    for change in changes:
        record = make_record(str(len(records)), None, "What is there?", ANSWER)
        record["conversations"][1] |= change
        records.append(record)
    records += [make_record(f"w{w}", None, "Q?", ANSWER) | {"weight": w} for w in weights]
    path = folder / "records.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def test_bad_targets_are_named_before_training(tiny_llava, tmp_path):
    """A misspelt choice would be trained as all."""
    weights = [0, -1, 1001, "2", True]
    path = write(tmp_path, [*BAD.values(), *GOOD], [*weights, 0.5, None])
    dataset = RecordDataset(path, tmp_path, Encoder(tiny_llava[1]))
    found = {bad.number: bad.reason for bad in find_bad(dataset)}
    first = len(BAD) + len(GOOD)
    assert list(found) == [*range(len(BAD)), *range(first, first + len(weights))]
    for number, words in enumerate(BAD):
        assert words in found[number]
    assert all("at most 1000" in found[number] for number in range(first, first + len(weights)))
    assert check_set(path).malformed["bad_targets"]["count"] == len(found)
    with pytest.raises(ValueError, match="must be one of"):
        dataset[0]


def test_a_question_has_no_targets():
    """`targets` written on the wrong turn would do nothing."""
    record = make_record("1", None, "Q?", "A dog.")
    record["conversations"][0]["targets"] = "none"
    assert "write it on gpt" in next(find_target_problems(record)).message


def test_records_without_the_keys_give_the_same_rows(tiny_any, tmp_path):
    """Old recipes would train another model."""
    plain = RecordDataset(write(tmp_path, [{}]), tmp_path, Encoder(tiny_any[1]))[0].rows[0]
    said = RecordDataset(write(tmp_path, [{"targets": "all"}]), tmp_path, Encoder(tiny_any[1]))[0].rows[0]
    assert np.array_equal(plain.ids, said.ids) and np.array_equal(plain.labels, said.labels)
    assert plain.weight == said.weight == 1
    dataset = RecordDataset(tmp_path / "records.json", tmp_path, Encoder(tiny_any[1]))
    assert "weights" not in Collator(tiny_any[1])([dataset[0]])


@pytest.mark.parametrize("family", ["llava", "qwen"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("confidence", [1.0, 3.0])
def test_weighted_loss_is_that_of_all_logits(tiny, tmp_path, monkeypatch, family, packed, confidence):
    """A weight of one row would fall on its neighbour, or on half of its targets."""
    model, processor = tiny(family, dtype=torch.float64)
    tags = find_token_ids(processor.tokenizer)
    path = write(tmp_path, [*GOOD, {}], [4, 0.25, 4])
    dataset = RecordDataset(path, tmp_path, Encoder(processor))
    items = [dataset[k] for k in range(len(dataset))]
    expected = total = torch.zeros((), dtype=torch.float64)
    classes = torch.ones(model.get_output_embeddings().out_features, dtype=torch.float64)
    classes[[tags.cn, tags.un]] = confidence
    for item in items:  # each row alone, all logits, transformers' own forward
        row = item.rows[0]
        ids, labels = torch.from_numpy(row.ids)[None], torch.from_numpy(row.labels)
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        expected = expected + row.weight * F.cross_entropy(
            logits, labels[1:], weight=classes, reduction="sum", ignore_index=IGNORE
        )
        total = total + row.weight * classes[labels[labels != IGNORE]].sum()
    expected.backward()
    want = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    positions = row_positions(model, processor) if packed else None
    batch = Collator(processor, packed=packed, positions=positions)(items)
    monkeypatch.setattr(loss_module, "ROOM", 600 * 5)  # several parts
    config = LossConfig((tags.cn, tags.un), confidence)
    with loss_in_forward(model, config):
        loss = model(**batch)["loss"]
        loss.backward()
    assert torch.allclose(loss.double(), expected, rtol=1e-6)
    targets = batch["labels"].flatten()[batch["places"] + 1]
    assert torch.allclose(config.weight_of(targets, batch["weights"]), total)
    scale = max(gradient.abs().max() for gradient in want.values())
    for name, parameter in model.named_parameters():
        if name in want:
            assert (parameter.grad - want[name]).abs().max() <= 1e-6 * scale, name


def test_liger_takes_weights_in_groups(monkeypatch):
    """Its kernel gives sums: weights would be dropped."""
    import sys
    import types

    class Fused:
        def __init__(self, ce_weight, ignore_index, reduction, accum_dtype):
            self.weight = ce_weight

        def __call__(self, weight, hidden, targets, bias):
            return F.cross_entropy(hidden @ weight.T, targets, weight=self.weight, reduction="sum")

    fake = types.ModuleType("liger_kernel.transformers")
    fake.LigerFusedLinearCrossEntropyLoss = Fused
    monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", fake)
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(8, 20, bias=False), torch.randn(30, 8)
    targets, factors = torch.randint(0, 20, (30,)), torch.tensor([1.0, 4.0, 0.5]).repeat(10)
    want = (F.cross_entropy(head(hidden), targets, reduction="none") * factors).sum()
    assert torch.allclose(loss_module._liger_loss(head, hidden, targets, None, factors), want)


def test_a_step_is_the_mean_by_weight(tiny, tmp_path):
    """The loss of a step would depend on how its rows fall into batches."""
    found = []
    for batch in (4, 1):
        model, processor = tiny("llava", init_std=0.02)
        path = write(tmp_path, [{"targets": "closing"}, {}], [4, 0.5])
        dataset = RecordDataset(path, tmp_path, Encoder(processor))
        config = SFTConfig(
            str(tmp_path / str(batch)), steps=2, batch=batch, accumulate=4 // batch, log_steps=1, quiet=True,
            lr=1e-3, shuffle=False,
        )  # fmt: skip
        found.append([loss for _, loss in train(model, processor, dataset, config)["losses"]])
    assert found[0] == pytest.approx(found[1], abs=1e-4)
