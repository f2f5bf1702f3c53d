"""LoRA: what moves, what does not, and that it survives saving, loading and merging."""

import json

import pytest
import torch
from peft import PeftModel

from experiments.scene_dataset import SceneDataset
from reverse.models import family_of
from reverse.models.adapters.adapter_card import base_fingerprint
from reverse.tokens import find_token_ids
from reverse.training.data.encoding import Encoder
from reverse.training.optim.token_rows import TokenRows
from reverse.training.optim.trainable_weights import Tuning, select_trained
from reverse.training.sft import SFTConfig, train
from reverse.training.trainer_setup import checkpoint_activations

SMALL = {"rank": 4, "alpha": 8.0, "dropout": 0.1}


def run(model, processor, output, tuning, **settings):
    adapted = select_trained(model, processor, tuning).train()
    settings = {"steps": 3, "batch": 2, "lr": 5e-3, "quiet": True, "log_steps": 1} | settings
    config = SFTConfig(str(output), **settings)
    manifest = train(adapted, processor, SceneDataset(Encoder(processor), pictures=50), config)
    return adapted.eval(), manifest


def answer(model, processor, picture):
    """Logits of a prompt with a picture and all three tokens."""
    from reverse.models import prepare_inputs

    inputs = prepare_inputs(
        processor, [picture()], ["Is <SPAN>a dog</CN> or <SPAN>a cup</UN> here?"], family_of(model)
    )
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize(("family", "tied"), [("llava", False), ("qwen", True)])
def test_lora_moves_what_it_should_and_nothing_else(tiny, picture, tmp_path, family, tied):
    """Frozen token rows (as in the released code), rows of the head forgotten, or a base that drifts."""
    model, processor = tiny(family, tied=tied)
    ids = list(find_token_ids(processor.tokenizer))
    base = {name: value.clone() for name, value in model.state_dict().items()}
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    adapted, manifest = run(model, processor, tmp_path / "out", Tuning(method="lora", **SMALL))
    kind = family_of(adapted)

    # Below the adapter not a bit has changed.
    plain = {name.replace("base_layer.", "").replace("original_module.", "").replace("token_adapter.", ""):
    value
             for name, value in adapted.get_base_model().state_dict().items()}  # fmt: skip
    for name, value in base.items():
        assert torch.equal(plain[name], value), name

    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    rows = {name for name in trained if "trainable_tokens_delta" in name}
    lora = {name for name in trained if "lora_" in name}
    projector = {name for name in trained if "modules_to_save" in name}
    assert trained == rows | lora | projector and projector
    assert len(rows) == (1 if tied else 2)
    wanted = {n for n in linears if n.startswith(kind.language_model + ".")}
    assert {n.split(".lora_")[0].removeprefix("base_model.model.") for n in lora} == wanted
    assert all(adapted.get_parameter(n).abs().max() > 0 for n in lora)  # B starts at zero
    assert manifest["trained_parameters"] == sum(p.numel() for p in adapted.parameters() if p.requires_grad)

    logits = answer(adapted, processor, picture)
    merged = adapted.merge_and_unload()
    after = merged.state_dict()
    assert after.keys() == base.keys()
    moved = {name for name in base if not torch.equal(base[name], after[name])}
    tables = {n for n in base if n.endswith(("embed_tokens.weight", "lm_head.weight"))}
    own = {n for n in base if n.startswith(kind.projector + ".")}
    assert moved == {f"{name}.weight" for name in wanted} | own | tables
    for name in tables:
        changed = (base[name] != after[name]).any(dim=1).nonzero().flatten().tolist()
        assert changed == sorted(ids), name
    assert (merged.get_input_embeddings().weight is merged.get_output_embeddings().weight) == tied
    assert (answer(merged, processor, picture) - logits).abs().max() < 1e-5 * logits.abs().max()


@pytest.mark.parametrize("family", ["llava"])
def test_adapter_survives_saving_and_loading(tiny, picture, tmp_path, family):
    """Rows or projector left out of the folder: the merged model would not be the trained one."""
    model, processor = tiny(family)
    adapted, _ = run(model, processor, tmp_path / "out", Tuning(method="lora", **SMALL), steps=2)
    fresh, _ = tiny(family)
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "out").eval()
    want = answer(adapted, processor, picture)
    assert torch.allclose(answer(loaded, processor, picture), want, atol=1e-6 * want.abs().max().item())
    assert (tmp_path / "out" / "processor_config.json").is_file()
    card = json.loads((tmp_path / "out" / "reverse_adapter.json").read_text())
    assert card["tokens"] == list(find_token_ids(processor.tokenizer)) and "base" in card
    assert card["fingerprint"] == base_fingerprint(fresh)
    assert not list((tmp_path / "out").glob("*.bin"))


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_cheap_rows_are_pefts_rows(tiny, monkeypatch, family):
    """The shorter way through embeddings and head would be another model than the one that is saved."""
    model, processor = tiny(family)
    adapted = select_trained(model, processor, Tuning(method="lora", **SMALL)).eval()
    layers = [module for module in adapted.modules() if isinstance(module, TokenRows)]
    found = []
    for layer in layers:
        torch.nn.init.normal_(layer.trainable_tokens_delta["default"])
    ids = torch.tensor([[5, *find_token_ids(processor.tokenizer), 9]])
    for shortened in (True, False):
        if not shortened:
            monkeypatch.delattr(TokenRows, "forward_adapters")
        logits = adapted(input_ids=ids).logits
        logits.square().mean().backward()
        found.append(
            (logits.detach(), [layer.trainable_tokens_delta["default"].grad.clone() for layer in layers])
        )
        adapted.zero_grad()
    assert len(layers) == 2
    assert torch.allclose(found[0][0], found[1][0], atol=1e-6)
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_full_leaves_the_tower_alone(tiny, tmp_path, family):
    """The published recipe freezes what sees; a merger inside the tower would be frozen with it."""
    model, processor = tiny(family)
    base = {name: value.clone() for name, value in model.state_dict().items()}
    trained, _ = run(model, processor, tmp_path / "out", Tuning(method="full"), weight_decay=0.1)
    kind = family_of(trained)
    moved = {name for name, value in trained.state_dict().items() if not torch.equal(base[name], value)}
    frozen = {n for n in base if n.startswith(kind.tower + ".") and not n.startswith(kind.projector + ".")}
    assert moved == base.keys() - frozen


def test_projector_has_its_own_rate(tiny, tmp_path):
    """The projector, trained at the rate of LoRA, ten times its own, would forget what it saw."""
    rates = {}

    class Rates(torch.optim.AdamW):
        def step(self, *args, **kwargs):
            for group in self.param_groups:
                rates.setdefault((group["initial_lr"], group["weight_decay"]), group["params"])
            return super().step(*args, **kwargs)

    model, processor = tiny("llava")
    original = torch.optim.AdamW
    torch.optim.AdamW = Rates
    try:
        adapted, _ = run(
            model, processor, tmp_path / "out", Tuning(method="lora", **SMALL), projector_lr=1e-5,
            weight_decay=0.1, steps=1,
        )  # fmt: skip
    finally:
        torch.optim.AdamW = original
    names = {id(p): name for name, p in adapted.named_parameters()}
    found = {key: {names[id(p)] for p in group} for key, group in rates.items()}
    assert set(found) == {(5e-3, 0.1), (5e-3, 0.0), (1e-5, 0.1), (1e-5, 0.0)}
    assert all("trainable_tokens" in name for name in found[5e-3, 0.0])
    assert all("multi_modal_projector" in n for rate in (0.1, 0.0) for n in found[1e-5, rate])


def test_impossible_tunings_are_refused(tiny, tmp_path, monkeypatch):
    """A setting would be ignored, or fail after an hour of loading."""
    from reverse.training.optim import trainable_weights

    model, processor = tiny("llava")
    wrong = [
        ({"method": "lorra"}, "lorra"),
        ({"quantize": "nf4"}, "lora"),
        ({"quantize": "int3"}, "nf4"),
        ({"method": "lora", "vision": True}, "vision"),
        ({"method": "lora", "rank": 0}, "rank"),
    ]
    for settings, match in wrong:
        with pytest.raises(ValueError, match=match):
            select_trained(model, processor, Tuning(**settings))
    monkeypatch.setattr(trainable_weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="bitsandbytes"):
        trainable_weights.quantization(Tuning(method="lora", quantize="nf4"), "tiny-llava", torch.bfloat16)


@pytest.mark.parametrize(("family", "method"), [("llava", "lora"), ("qwen", "lora"), ("qwen", "full")])
def test_checkpoints_leave_a_frozen_tower_alone(tiny, tmp_path, family, method):
    """Its input made to require a gradient: all that it computes kept, and a backward pass for nothing."""
    losses, asked = [], []
    for checkpointed in (False, True):
        model, processor = tiny(family)
        tower = family_of(model).vision_tower(model)
        blocks = [module for module in tower.modules() if hasattr(module, "layer_norm1")]
        blocks = blocks or list(tower.blocks)
        for block in blocks:
            block.register_forward_hook(lambda *call: asked.append(call[2].requires_grad))
        torch.manual_seed(0)  # what the matrices start at
        tuning = Tuning(method=method, **SMALL)
        out = tmp_path / str(checkpointed)
        _, manifest = run(model, processor, out, tuning, checkpoint_activations=checkpointed)
        losses.append(manifest["losses"])
        layers = family_of(model).decoder(model).layers
        assert all(layer.gradient_checkpointing is checkpointed for layer in layers)
    assert asked and not any(asked)
    assert losses[0] == losses[1]


def test_reentrant_checkpoints_see_an_input_with_a_gradient(tiny):
    """Without one they would leave the matrices in them untrained."""
    model, processor = tiny("llava")
    adapted = select_trained(model, processor, Tuning(method="lora", tokens=False, **SMALL))
    checkpoint_activations(adapted, "zero3")
    assert adapted.get_input_embeddings()(torch.tensor([[1]])).requires_grad
