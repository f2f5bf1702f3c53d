"""Training runs: schedule, budget, seeds, resuming, what is written."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

from experiments.scene_dataset import SceneDataset
from experiments.tiny_models import build_tiny_llava
from reverse.models import load
from reverse.tokens import add_tokens
from reverse.training.data.encoding import Encoder
from reverse.training.loss_record import LossRecord
from reverse.training.optim import schedule
from reverse.training.optim.schedule import Schedule
from reverse.training.sft import SFTConfig, train


def tiny():
    model, processor = build_tiny_llava(seed=0)
    add_tokens(model, processor)
    return model, processor


def run(output, resume=True, callbacks=(), **settings):
    model, processor = tiny()
    settings = {"steps": 6, "batch": 2, "log_steps": 1, "quiet": True, "weight_decay": 0.1} | settings
    dataset = SceneDataset(Encoder(processor), pictures=100)
    config = SFTConfig(str(output), **settings)
    manifest = train(model, processor, dataset, config, resume=resume, callbacks=callbacks)
    return model, manifest


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt

    def on_train_end(self, args, state, control, **kwargs):
        if self.step is None:
            raise KeyboardInterrupt


class Poison(TrainerCallback):
    """After `step` steps a weight is NaN, before or after that of the last one is saved."""

    def __init__(self, when, step):
        setattr(self, when, self.spoil)
        self.step = step

    def spoil(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            next(p for p in model.parameters() if p.requires_grad).data.fill_(float("nan"))


class Rates(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, lr_scheduler=None, **kwargs):
        self.seen.append(lr_scheduler.get_last_lr()[0])


@pytest.fixture
def ticking(monkeypatch):
    """A clock that goes on by four seconds whenever it is read: a busy machine changes nothing."""
    now = itertools.count(step=4)
    monkeypatch.setattr(schedule, "time", SimpleNamespace(monotonic=lambda: float(next(now))))


def test_schedule_follows_whichever_is_further():
    """A run on a slow machine would be cut off at a high learning rate."""
    factor = Schedule(steps=1000, seconds=100, warmup=0.1)
    assert factor(0) > 0
    assert factor(100) == pytest.approx(1)
    factor.spent = 55
    assert factor(100) == pytest.approx(0.5)
    assert factor(900) == pytest.approx(Schedule(1000, warmup=0.1)(900))
    factor.spent = 101
    assert factor(3) == pytest.approx(0)
    assert all(0 <= Schedule(steps)(step) <= 1 for steps in (1, 2, 50) for step in range(steps + 1))
    for bad in ({"steps": 0}, {"steps": 1, "seconds": 0.0}, {"steps": 1, "warmup": 1.0}):
        with pytest.raises(ValueError, match="steps"):
            Schedule(**bad)


def test_a_budget_of_seconds_ends_the_run_near_zero(tmp_path, ticking):
    """A run with a budget would go on to its last step, or end in the middle of its schedule."""
    rates = Rates()
    _, manifest = run(tmp_path / "out", steps=1000, seconds=100.0, callbacks=[rates])
    assert manifest["steps"] < 1000 and 95 < manifest["seconds"] < 110
    assert rates.seen[-1] < 0.05 * max(rates.seen)


def test_loss_falls_and_seeds_decide(tmp_path):
    """Nothing would be learnt, or the same seed would give two models."""
    first, manifest = run(tmp_path / "a", steps=12, lr=3e-3)
    losses = [loss for _, loss in manifest["losses"]]
    assert losses[-1] < losses[0] - 0.3
    second, _ = run(tmp_path / "b", steps=12, lr=3e-3)
    assert torch.equal(weights(first), weights(second))


def test_resumed_equals_unbroken(tmp_path):
    """A run that was stopped would repeat data, forget its optimizer, or start its schedule over."""
    unbroken, _ = run(tmp_path / "unbroken", save_steps=2)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", save_steps=2, callbacks=[StopAt(3)])
    assert not (tmp_path / "broken").exists()
    resumed, manifest = run(tmp_path / "broken", save_steps=2)
    assert torch.equal(weights(unbroken), weights(resumed))
    assert manifest["steps"] == 6 and (tmp_path / "broken" / "model.safetensors").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "unbroken"]


RESUMED = {"steps": 8, "batch": 1, "accumulate": 2}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Weights and manifest of a run of `RESUMED` that is not stopped."""
    model, manifest = run(tmp_path_factory.mktemp("unbroken") / "out", log_steps=3, **RESUMED)
    return weights(model), manifest


@pytest.mark.parametrize(
    ("log_steps", "save_steps", "stopped"), [(3, 2, 5), (2, 3, 7), (50, 4, 6), (1, 2, 3), (3, 2, None)]
)
def test_losses_of_a_resumed_run_are_those_of_an_unbroken_one(
    log_steps, save_steps, stopped, unbroken, tmp_path
):
    """What was summed up for the next line would be lost with the process, or a step trained twice."""
    settings = RESUMED | {"save_steps": save_steps}
    with pytest.raises(KeyboardInterrupt):  # None: the run is over, and not yet written
        run(tmp_path / "broken", log_steps=log_steps, callbacks=[StopAt(stopped)], **settings)
    model, resumed = run(tmp_path / "broken", log_steps=1, **settings)
    expected, whole = unbroken
    assert [step for step, _ in whole["losses"]] == list(range(1, 9))
    assert resumed["losses"] == whole["losses"] and resumed["final_loss"] == whole["final_loss"]
    assert resumed["steps"] == 8 and torch.equal(expected, weights(model))


def test_a_step_in_parts_has_the_loss_of_the_whole(tmp_path):
    """The record would hold a part of a step's loss, that of its last batch say."""
    _, whole = run(tmp_path / "whole", steps=3, batch=4, log_steps=2)
    _, parts = run(tmp_path / "parts", steps=3, batch=1, accumulate=4, log_steps=2)
    for (step, loss), (same, of_parts) in zip(whole["losses"], parts["losses"], strict=True):
        assert step == same and of_parts == pytest.approx(loss, abs=1e-4)


def test_the_last_step_has_its_line(tmp_path, capsys):
    """What was shown last would be the first step's loss."""
    run(tmp_path / "out", steps=5, log_steps=3, quiet=False)
    shown = capsys.readouterr().out
    assert [step for step in range(1, 6) if f"step {step} " in shown] == [1, 3, 5]


def test_a_run_that_diverges_is_stopped_and_not_written(tmp_path):
    """A model of NaN would be saved as trained, with the loss of step 1."""
    with pytest.raises(ValueError, match=r"loss of step [2-8] is (nan|inf): lower lr .*optim\.lr.*1e\+30"):
        run(tmp_path / "out", steps=8, log_steps=10, lr=1e30, clip=0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["out.checkpoints"]
    assert [path.name for path in (tmp_path / "out.checkpoints").iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("when", "step", "save_steps", "said", "left"),
    [
        ("on_step_begin", 5, 2, "the loss of step 6 is nan.*good checkpoint is .*checkpoint-4$", [2, 4]),
        ("on_step_begin", 4, 2, "the loss of step 5 is nan.*good checkpoint is .*checkpoint-2$", [2, 4]),
        ("on_step_end", 6, 2, "not finite after step 6.*good checkpoint is .*checkpoint-4$", [2, 4]),
        ("on_step_end", 8, None, "not finite after step 8.*there is no good checkpoint", []),
        ("on_step_begin", 0, 2, "loss of step 1 is nan, before any weight was changed.*float32", []),
    ],
)
def test_checkpoints_that_are_good_stay(when, step, save_steps, said, left, tmp_path):
    """Newer ones of NaN would displace them, or be named as those to go on from."""
    with pytest.raises(ValueError, match=said):
        run(tmp_path / "out", steps=8, log_steps=50, save_steps=save_steps, callbacks=[Poison(when, step)])
    assert not (tmp_path / "out").exists()
    found = (tmp_path / "out.checkpoints").glob("checkpoint-*")
    assert sorted(path.name for path in found) == [f"checkpoint-{saved}" for saved in left]


def test_padding_of_shares_is_no_weight():
    """ZeRO-3 leaves what was in memory behind the end of the last share: a good run would be stopped."""
    model = torch.nn.Linear(3, 1, bias=False)
    model.weight.ds_tensor = torch.tensor([1.0, 2.0, 3.0, float("nan")])
    model.weight.ds_numel = 3
    record = LossRecord(Path("none"), 1e-3)
    record._check_weights(SimpleNamespace(global_step=2), model)
    model.weight.ds_tensor[2] = float("inf")
    with pytest.raises(ValueError, match="not finite after step 2"):
        record._check_weights(SimpleNamespace(global_step=2), model)


def test_losses_are_fetched_where_the_run_logs(tmp_path, monkeypatch):
    """Every step would wait for the device."""
    fetched = []
    whole = LossRecord._fetch
    monkeypatch.setattr(
        LossRecord, "_fetch", lambda self, state: (fetched.append(len(self._waiting)), whole(self, state))
    )
    run(tmp_path / "out", steps=8, log_steps=3)
    assert fetched == [1, 2, 3, 2, 0]


def test_checkpoints_of_another_run_are_not_continued(tmp_path):
    """A changed learning rate would be mixed with the old one in silence."""
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", save_steps=1, callbacks=[StopAt(2)])
    with pytest.raises(ValueError, match="lr"):
        run(tmp_path / "out", save_steps=1, lr=1e-4)
    _, manifest = run(tmp_path / "out", save_steps=1, lr=1e-4, resume=False)
    assert manifest["steps"] == 6


def test_time_spent_is_resumed(tmp_path, ticking):
    """A run of 180 seconds that was stopped would take its whole time again."""
    _, unbroken = run(tmp_path / "unbroken", steps=1000, seconds=100.0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", steps=1000, seconds=100.0, save_steps=1, callbacks=[StopAt(8)])
    rates = Rates()
    _, manifest = run(tmp_path / "out", steps=1000, seconds=100.0, save_steps=500, callbacks=[rates])
    assert abs(manifest["steps"] - unbroken["steps"]) <= 1 and 95 < manifest["seconds"] < 110
    assert len(rates.seen) == manifest["steps"] - 7  # stopped in step 8, before that was saved


def test_what_is_written(tmp_path):
    """A model that cannot be loaded, in the wrong dtype, or with its cache off for ever."""
    model, manifest = run(tmp_path / "out", steps=2, save_dtype="bfloat16")
    assert model.dtype == torch.float32  # the one trained stays as it is
    loaded, processor = load(tmp_path / "out")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(weights(model).bfloat16(), weights(loaded))
    assert loaded.config.get_text_config().use_cache
    written = json.loads((tmp_path / "out" / "training.json").read_text())
    assert written == json.loads(json.dumps(manifest))
    assert written["config"]["seed"] == 0 and written["rows"] == 2 * 2 * 2 and written["seconds"] > 0
    assert processor.tokenizer.decode(processor.tokenizer("<SPAN>")["input_ids"]).endswith("<SPAN>")


def test_workers_give_the_same_model(tmp_path):
    """Data prepared in worker processes would differ, or not arrive."""
    alone, _ = run(tmp_path / "a", steps=3)
    shared, _ = run(tmp_path / "b", steps=3, workers=2)
    assert torch.equal(weights(alone), weights(shared))


def test_nothing_to_train_is_an_error(tmp_path):
    """A frozen model would be saved as trained."""
    model, processor = tiny()
    model.requires_grad_(False)
    dataset = SceneDataset(Encoder(processor), pictures=2)
    with pytest.raises(ValueError, match="gradient"):
        train(model, processor, dataset, SFTConfig(str(tmp_path / "out"), steps=1, batch=1))
    with pytest.raises(ValueError, match="batch"):
        train(model, processor, dataset, SFTConfig(str(tmp_path / "out")))
