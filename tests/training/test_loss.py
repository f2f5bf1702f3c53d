"""The loss of targets alone: equal to cross entropy over all logits, and to itself however a step is cut."""

import pytest
import torch
import torch.nn.functional as F

from experiments.scene_dataset import SceneDataset
from reverse.tokens import find_token_ids
from reverse.training.data.collator import Collator, blank_item
from reverse.training.data.encoding import Encoder, TrainingItem, Turn
from reverse.training.data.labels import IGNORE
from reverse.training.data.packing import check_packing, row_positions
from reverse.training.optim import loss as loss_module
from reverse.training.optim.loss import LossConfig, loss_in_forward, summed_loss
from reverse.training.sft import SFTConfig, train


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def scenes(processor, **options):
    return SceneDataset(Encoder(processor), pictures=50, **options)


def plain(model, batch, weight=None):
    """The oracle: all logits of transformers' own forward, and torch's cross entropy."""
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "places")}
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    targets = batch["labels"][:, 1:]
    return F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), weight=weight, reduction="sum"
    )


@pytest.mark.parametrize("family", ["llava", "qwen"])
@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_loss_and_gradients_are_those_of_all_logits(tiny, monkeypatch, family, weight):
    """A target lost, shifted, or counted twice between two parts would train another model."""
    model, processor = tiny(family)
    tags = find_token_ids(processor.tokenizer)
    batch = Collator(processor)([scenes(processor)[0], scenes(processor)[1]])
    classes = torch.ones(model.get_output_embeddings().out_features)
    classes[[tags.cn, tags.un]] = weight
    want = plain(model, batch, classes)
    want.backward()
    expected = gradients(model)
    model.zero_grad()
    head = model.get_output_embeddings()
    attributes = set(vars(head))
    seen = []
    original = loss_module._part_loss
    monkeypatch.setattr(loss_module, "ROOM", 600 * 7)  # about 600 ids
    monkeypatch.setattr(
        loss_module, "_part_loss", lambda *given: seen.append(len(given[1])) or original(*given)
    )
    with loss_in_forward(model, LossConfig((tags.cn, tags.un), weight)):
        got = model(**batch)["loss"]
        got.backward()
    assert max(seen) <= 9 and len(seen) > 10  # never more logits than that at once
    assert torch.allclose(got, want, rtol=1e-6)
    scale = max(gradient.abs().max() for gradient in expected.values())
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-6 * scale, name
    assert model.get_output_embeddings() is head and vars(head).keys() == attributes  # as it was
    assert "forward" not in vars(model) and not model._forward_hooks and not model._forward_pre_hooks
    assert model(**{n: v for n, v in batch.items() if n != "places"}).logits.ndim == 3


def test_parts_of_any_size_give_the_same(tiny_llava):
    """The last part, shorter than the others, would be dropped."""
    torch.manual_seed(0)
    hidden = torch.randn(23, 16, dtype=torch.float64, requires_grad=True)
    head = torch.nn.Linear(16, 40, bias=False).double()
    targets = torch.randint(0, 40, (23,))
    want = F.cross_entropy(head(hidden), targets, reduction="sum")
    for part in (1, 5, 22, 23, 100):
        assert torch.allclose(summed_loss(head, hidden, targets, None, part), want, rtol=1e-12)


def test_a_step_is_the_same_however_it_is_cut(tiny, tmp_path):
    """Batches with few targets would weigh as much as batches with many (transformers #34191)."""
    trained, losses = [], []
    for batch, settings in ((4, {}), (1, {"accumulate": 4}), (2, {"global_batch": 4})):
        model, processor = tiny("llava", init_std=0.02)
        config = SFTConfig(
            str(tmp_path / str(batch)), steps=2, batch=batch, log_steps=1, quiet=True, confidence_weight=2.0,
            lr=1e-3, shuffle=False, **settings,
        )  # fmt: skip
        manifest = train(model, processor, scenes(processor), config)
        losses.append([loss for _, loss in manifest["losses"]])
        trained.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert manifest["items"] == 8
    for other, its in zip(trained[1:], losses[1:], strict=True):
        assert its == pytest.approx(losses[0], abs=1e-4)
        assert (other - trained[0]).abs().max() < 1e-4


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_packed_rows_do_not_see_each_other(tiny, family):
    """A row would read the one before it, or stand at its positions."""
    model, processor = tiny(family)
    dataset = scenes(processor)
    items = [dataset[k] for k in range(3)]
    found = []
    positions = row_positions(model, processor)
    for collator in (Collator(processor), Collator(processor, packed=True, positions=positions)):
        batch = collator(items)
        with loss_in_forward(model, LossConfig()):
            loss = model(**batch)["loss"]
            loss.backward()
        found.append((loss.item(), gradients(model)))
        model.zero_grad()
    assert batch["input_ids"].shape[0] == 1 and (batch["labels"] != IGNORE).sum() == len(batch["places"])
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    scale = max(gradient.abs().max() for gradient in found[0][1].values())
    for name, gradient in found[0][1].items():
        assert (found[1][1][name] - gradient).abs().max() <= 1e-5 * scale, name


def test_packing_is_refused_where_rows_would_mix(tiny):
    """An attention function that knows nothing of packed rows would mix them in silence."""
    model, _ = tiny("llava")
    model.model.language_model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="flex_attention"):
        check_packing(model)


def test_what_cannot_be_had_is_named(monkeypatch):
    """A kernel that is not installed would be replaced in silence, or fail in the middle of a run."""
    monkeypatch.setattr(loss_module, "_has_liger", lambda: False)
    for kernel, match in (("liger", "liger-kernel"), ("triton", "kernel")):
        with pytest.raises(ValueError, match=match):
            LossConfig(kernel=kernel)
    with pytest.raises(ValueError, match="positive"):
        LossConfig(confidence_weight=0)


def test_liger_is_not_asked_for_what_it_cannot_read(tiny, monkeypatch):
    """A kernel that was asked for by name would be left out in silence."""
    from reverse.training.optim.trainable_weights import Tuning, select_trained

    monkeypatch.setattr(loss_module, "_has_liger", lambda: True)
    model, processor = tiny("llava")
    adapted = select_trained(tiny("llava")[0], processor, Tuning(method="lora", rank=2))
    batch = Collator(processor)([scenes(processor)[0]])
    for made, match in (
        (model, "CUDA"),
        (adapted, "token rows"),
    ):
        with loss_in_forward(made, LossConfig(kernel="liger")), pytest.raises(ValueError, match=match):
            made(**batch)


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_blank_picture_counts_for_nothing(tiny, family):
    """What keeps the processes of a sharded run in step would be learnt from."""
    model, processor = tiny(family)
    encoder = Encoder(processor)
    items = [
        TrainingItem((encoder.row([Turn("Hello?", answer)], None),), None)
        for answer in ("Hi", "Yes, <SPAN>you</CN>")
    ]
    found = []
    for blank in (None, blank_item(processor)):
        batch = Collator(processor, blank=blank)(items)
        with loss_in_forward(model, LossConfig()):
            loss = model(**batch)["loss"]
            loss.backward()
        found.append((loss.item(), gradients(model)))
        model.zero_grad()
    assert "pixel_values" in batch and len(batch["input_ids"]) == 3
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert all(torch.allclose(found[1][1][n], g, atol=1e-4) for n, g in found[0][1].items())
    assert any("projector" in n or "merger" in n for n in found[1][1].keys() - found[0][1].keys())
    pictured = scenes(processor)[0]
    assert len(Collator(processor, blank=blank)([pictured])["input_ids"]) == len(pictured.rows)
