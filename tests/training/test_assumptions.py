"""What training relies on of transformers, peft and accelerate is checked; the error names the versions."""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from transformers import Trainer

from experiments.scene_dataset import SceneDataset
from experiments.tiny_models import build_tiny_llava
from reverse.compatibility import IncompatibleLibraryError, format_supported_range
from reverse.models import window_attention
from reverse.tokens import add_tokens
from reverse.training import assumptions
from reverse.training.data.encoding import Encoder
from reverse.training.data.packing import row_positions
from reverse.training.loss_record import LossRecord
from reverse.training.optim import token_rows
from reverse.training.optim.parallel import set_fsdp_precision
from reverse.training.optim.trainable_weights import Tuning, disable_lora_input_cast, select_trained
from reverse.training.sft import SFTConfig, train

RANGE = f"supported is transformers {format_supported_range('transformers')}"
PEFT = f"supported is peft {format_supported_range('peft')}"


@pytest.fixture
def step(tmp_path):
    """`step(**settings)`: a training of one step."""

    def run(**settings):
        model, processor = build_tiny_llava(seed=0)
        add_tokens(model, processor)
        config = SFTConfig(str(tmp_path / "out"), **{"steps": 1, "batch": 1, "quiet": True} | settings)
        return train(model, processor, SceneDataset(Encoder(processor), pictures=4), config)

    return run


@pytest.mark.parametrize(
    "base, message",
    [
        ({"get_batch_samples": None}, "Trainer.get_batch_samples is gone"),
        (
            {"compute_loss": lambda self, model, inputs, return_outputs=False: 0},
            "no argument num_items_in_batch",
        ),
    ],
)
def test_a_trainer_with_other_methods_is_an_error(base, message):
    """It would not call ours: the loss would be divided by something else, in silence."""
    methods = {name: getattr(Trainer, name) for name in assumptions._OVERRIDDEN}
    assumptions.check_trainer(type("Same", (), methods))
    with pytest.raises(IncompatibleLibraryError, match=f"{message}.*{RANGE}"):
        assumptions.check_trainer(type("Changed", (), methods | base))


def test_a_trainer_without_its_attributes_is_an_error():
    """A switch that we set would switch nothing."""
    methods = {name: getattr(Trainer, name) for name in assumptions._OVERRIDDEN}
    bare = type("Bare", (), methods)()
    with pytest.raises(IncompatibleLibraryError, match="no attribute model_accepts_loss_kwargs"):
        assumptions.check_trainer(bare)


def test_a_loss_that_is_divided_once_more_is_an_error(step, monkeypatch):
    """A step cut into more batches would move the weights by less, and nothing would say so."""
    backward = Accelerator.backward
    monkeypatch.setattr(
        Accelerator, "backward", lambda self, loss, **kwargs: backward(self, loss / 2, **kwargs)
    )
    with pytest.raises(IncompatibleLibraryError, match=f"multiplies the loss of a batch by 0.5.*{RANGE}"):
        step()


def test_a_step_whose_targets_are_not_counted_is_an_error(step, monkeypatch):
    """The loss would be a sum, and the rate wrong by a factor of hundreds."""
    training_step = Trainer.training_step
    monkeypatch.setattr(
        Trainer, "training_step", lambda self, model, inputs, count=None: training_step(self, model, inputs)
    )
    with pytest.raises(IncompatibleLibraryError, match="does not say what the targets of a step weigh"):
        step()


def test_a_checkpoint_that_is_not_found_again_is_an_error(tmp_path):
    """A run that is stopped would start over, though it has saved for days."""
    saved = tmp_path / "checkpoint-3"
    saved.mkdir()
    record = LossRecord(tmp_path, 1e-3)
    (saved / "trainer_state.json").write_text(json.dumps({"global_step": 3}))
    with pytest.raises(IncompatibleLibraryError, match=f"checkpoint of step 3 lacks.*{RANGE}"):
        record.on_save(None, SimpleNamespace(global_step=3), None)
    (saved / "rng_state.pth").touch()
    record.on_save(None, SimpleNamespace(global_step=3), None)


def test_logits_that_are_not_the_heads_are_an_error(tiny_any, monkeypatch):
    """The loss is computed from the last hidden state: it would be another model's."""
    model, _ = tiny_any
    assumptions.check_decoder(model, packed=True)
    forward = type(model).forward

    def capped(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits.tanh()
        return output

    monkeypatch.setattr(type(model), "forward", capped)
    with pytest.raises(
        IncompatibleLibraryError, match=f"are not its head's of the last hidden state.*{RANGE}"
    ):
        assumptions.check_decoder(model, packed=False)


def test_packed_rows_that_see_each_other_are_an_error(tiny_any, monkeypatch):
    """Every row of a batch but the first would be trained on text that stands before it by chance."""
    model, _ = tiny_any
    inner = model.model
    forward = type(inner).forward

    def counted_on(self, *args, position_ids, **kwargs):
        positions = torch.arange(position_ids.shape[-1]).expand_as(position_ids)
        return forward(self, *args, position_ids=positions, **kwargs)

    monkeypatch.setattr(type(inner), "forward", counted_on)
    assumptions.check_decoder(model, packed=False)
    with pytest.raises(IncompatibleLibraryError, match=f"lets packed rows see each other.*{RANGE}"):
        assumptions.check_decoder(model, packed=True)


def test_the_probe_changes_nothing(tiny_llava):
    """Modules that were in eval mode would be trained with dropout, or seeds decide otherwise."""
    model, _ = tiny_llava
    before, state = [m.training for m in model.modules()], torch.get_rng_state()
    assumptions.check_decoder(model, packed=True)
    token_rows.check_token_rows.cache_clear()
    token_rows.check_token_rows(token_rows.view_token_rows)
    assert before == [m.training for m in model.modules()] and torch.equal(state, torch.get_rng_state())


def test_row_layers_that_compute_otherwise_are_an_error():
    """The model that is trained would be another than the one that peft saves and loads."""
    token_rows.check_token_rows(token_rows.view_token_rows)
    with pytest.raises(
        IncompatibleLibraryError, match=f"TrainableTokensLayer computes something else.*{PEFT}"
    ):
        token_rows.check_token_rows(lambda layer: lambda x: layer(x) + 1)

    def of_old(layer):
        return layer.tokens_of_an_older_release

    with pytest.raises(IncompatibleLibraryError, match=f"TrainableTokensLayer was changed.*{PEFT}"):
        token_rows.check_token_rows(of_old)


def test_lora_without_its_switch_is_an_error(tiny, monkeypatch):
    """Inputs would be turned into float32 and back, and training in bfloat16 cost twice the time."""
    model, processor = tiny("llava")
    adapted = select_trained(model, processor, Tuning(method="lora", rank=2))
    with disable_lora_input_cast(adapted):
        pass
    with pytest.raises(IncompatibleLibraryError, match=f"cast_input_dtype_enabled.*{PEFT}"):
        with disable_lora_input_cast(model.get_input_embeddings()):
            pass


def test_fsdp_without_its_policy_is_an_error():
    """Gradients would be summed in bfloat16 over all devices."""
    trainer = SimpleNamespace(accelerator=SimpleNamespace(state=SimpleNamespace(fsdp_plugin=object())))
    with pytest.raises(
        IncompatibleLibraryError, match=r"accelerate .*no fsdp_plugin\.mixed_precision_policy"
    ):
        set_fsdp_precision(trainer, torch.bfloat16)


def test_rope_with_other_arguments_is_an_error(tiny_qwen, monkeypatch):
    """A TypeError would come out of a worker and say nothing of versions."""
    model, processor = tiny_qwen
    monkeypatch.setattr(model.model, "get_rope_index", lambda input_ids: None)
    with pytest.raises(IncompatibleLibraryError, match=f"get_rope_index was changed.*{RANGE}"):
        row_positions(model, processor)(torch.tensor([[1, 2]]), {"image_grid_thw": torch.tensor([[1, 2, 2]])})


def test_windows_without_their_lengths_are_an_error():
    """All windows of a picture would be one, and features another model's."""
    query = torch.zeros(1, 1, 4, 8)
    with pytest.raises(IncompatibleLibraryError, match=f"hands no cu_seq_lens_q to attention.*{RANGE}"):
        window_attention._attend(None, query, query, query)
