"""Runs of DPO and GRPO on TRL's trainers: tiny models, rows of the reasoning world, merged adapters."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import reverse
from experiments.tiny_models import build_tiny_llava, build_tiny_qwen
from reverse.cli import app
from reverse.errors import OutputExistsError, RequestError
from reverse.models import family_of
from reverse.models.adapters.merging import merge_adapter
from reverse.tokens import find_token_ids
from reverse.training.recipes.rl_sections import Rewards
from reverse.training.rl import rl_callbacks
from reverse.training.rl.decoder_rollout import make_decoder_rollout
from reverse.training.rl.rl_rows import read_rows
from reverse.training.rl.rl_run import run_rl_recipe
from reverse.training.rl.trl_inputs import check_same_ids, copy_for_trl
from reverse.training.rl.trl_setup import find_trainer
from tests.training.rl.rl_fixtures import make_recipe, write_base, write_rows
from tests.training.two import on_two

BUILDS = {"llava": build_tiny_llava, "qwen": build_tiny_qwen}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return {name: write_base(tmp_path_factory.mktemp(name), build) for name, build in BUILDS.items()}


@pytest.mark.parametrize("family", BUILDS)
@pytest.mark.parametrize("kind", ["dpo", "grpo"])
def test_a_run_ends_in_an_adapter_that_merges(kind, family, rows, bases, tmp_path):
    """TRL would not take our rows, train what is frozen, or leave an adapter that cannot be used."""
    recipe = make_recipe(kind, bases[family], rows, tmp_path / "out")
    manifest = run_rl_recipe(recipe, quiet=True)
    assert manifest["steps"] == 3 and len(manifest["log"]) == 3
    assert all(math.isfinite(each["loss"]) and math.isfinite(each["grad_norm"]) for each in manifest["log"])
    names = load_file(tmp_path / "out/adapter_model.safetensors")
    assert names and all("lora_" in name and "language_model" in name for name in names)
    if kind == "dpo":
        # The reference is the model itself, so that the first loss is ln 2 whatever the rows are.
        assert manifest["log"][0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert manifest["log"][-1]["loss"] < math.log(2)
        assert any(value.abs().max() > 0 for name, value in names.items() if "lora_B" in name)
        merged = merge_adapter(tmp_path / "out", tmp_path / "merged")
        assert merged.checked and merged.layers and not merged.rows
        model, processor = reverse.load(tmp_path / "merged")
        picture = next((rows / "world/images").glob("*.png"))
        assert reverse.generate(model, processor, str(picture), max_new_tokens=3).usage.kept
    else:
        for each in manifest["log"]:
            shares = [value for name, value in each.items() if name.startswith("outcome/")]
            assert len(shares) == 6 and sum(shares) == pytest.approx(1.0)
            parts = ("format", "first_answer", "final_answer", "reflection", "length")
            assert each["reward"] == pytest.approx(
                sum(each[f"rewards/{name}/mean"] for name in parts), abs=1e-5
            )
    assert not (tmp_path / "out.checkpoints").exists()
    assert run_rl_recipe(recipe, quiet=True) == json.loads(json.dumps(manifest))  # it is at its end
    with pytest.raises(OutputExistsError, match="another recipe"):
        run_rl_recipe(make_recipe(kind, bases[family], rows, tmp_path / "out", "optim.lr=0.02"), quiet=True)


def test_rewards_move_the_model(rows, bases, tmp_path):
    """A reward would be logged and not trained: the advantage must reach the weights."""
    recipe = make_recipe(
        "grpo", bases["qwen"], rows, tmp_path / "out", "optim.steps=2", "grpo.generations=8",
        "grpo.beta=0.04", "optim.batch=16", "grpo.max_new_tokens=4", "grpo.rewards=plain", "optim.lr=0.05",
    )  # fmt: skip
    # Questions that some completions of an untrained model answer by chance.
    said = [json.loads(line) for line in (rows / "questions.jsonl").read_text().splitlines()]
    yes_no = [each for each in said if each["kind"] in ("yes_no", "number")]
    lucky = tmp_path / "lucky.jsonl"
    answers = [str(number) for number in range(21)]
    lucky.write_text(
        "".join(json.dumps(each | {"kind": "number", "answers": answers}) + "\n" for each in yes_no)
    )
    recipe.data.records = str(lucky)
    manifest = run_rl_recipe(recipe, quiet=True)
    rewarded = [each for each in manifest["log"] if each["reward_std"] > 0]
    assert all(each["grad_norm"] > 0 for each in rewarded)
    adapter = load_file(tmp_path / "out/adapter_model.safetensors")
    moved = any(value.abs().max() > 0 for name, value in adapter.items() if "lora_B" in name)
    assert moved == bool(rewarded)
    assert not (tmp_path / "out/ref").exists()


def test_all_weights_can_be_trained_by_rewards(rows, bases, tmp_path):
    """The published recipe trains the language model in full; tower and merger would move along."""
    recipe = make_recipe(
        "grpo", bases["qwen"], rows, tmp_path / "out", "tune.method=full", "optim.steps=1",
        "optim.weight_decay=0.1", "compute.save_dtype=none",
    )  # fmt: skip
    run_rl_recipe(recipe, quiet=True)
    trained, _ = reverse.load(tmp_path / "out")
    before, _ = reverse.load(bases["qwen"])
    moved = {
        name.split(".")[1]
        for (name, mine), other in zip(trained.named_parameters(), before.parameters(), strict=True)
        if not torch.equal(mine, other)
    }
    assert "visual" not in moved and "language_model" in moved


class _Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("dpo", ("log.save_steps=2", "log.steps=3")),
        ("grpo", ("log.save_steps=2", "log.steps=3", "optim.lr=0.05")),
        ("grpo", ("log.save_steps=1", "grpo.iterations=2", "optim.lr=0.05")),
    ],
    ids=["dpo", "grpo", "grpo, two updates on the same completions"],
)
def test_a_stopped_run_goes_on(kind, settings, rows, bases, tmp_path, monkeypatch):
    """A killed run would begin anew, or end with other weights or another log than an unbroken one."""
    settings = ("optim.steps=6", *settings)  # two passes over six rows

    def make(name, *more):
        return make_recipe(kind, bases["llava"], rows, tmp_path / name, *settings, *more)

    whole = run_rl_recipe(make("whole"), quiet=True)
    recipe = make("out")

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise _Stop

    monkeypatch.setattr(rl_callbacks.FiniteCheck, "on_step_begin", stop)
    with pytest.raises(_Stop):
        run_rl_recipe(recipe, quiet=True)
    monkeypatch.undo()
    assert not (tmp_path / "out").exists() and (tmp_path / "out.checkpoints/checkpoint-4").exists()
    with pytest.raises(ValueError, match="other settings"):
        run_rl_recipe(make("out", "optim.lr=0.02"), quiet=True)
    resumed = run_rl_recipe(recipe, quiet=True)
    assert resumed["steps"] == 6
    logs = [json.dumps([_drop_seconds(each) for each in run["log"]]) for run in (resumed, whole)]
    assert logs[0] == logs[1]  # the order of names too
    mine, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("out", "whole"))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def _drop_seconds(entry):
    return {name: value for name, value in entry.items() if "time" not in name}


def test_a_loss_that_is_not_finite_ends_the_run(rows, bases, tmp_path):
    """A folder of NaN would be written as if it were a model."""
    recipe = make_recipe(
        "dpo", bases["llava"], rows, tmp_path / "out", "optim.lr=1e30", "optim.clip=0", "optim.steps=4"
    )
    with pytest.raises(
        ValueError, match=r"(loss|grad_norm) is (nan|inf) at step \d: lower optim\.lr|not finite"
    ):
        run_rl_recipe(recipe, quiet=True)
    assert not (tmp_path / "out").exists()


def test_ids_that_decoding_would_not_see_are_refused(rows, bases):
    """TRL leaves out the first token of LLaVA's prompts: pairs would be trained without <s>."""
    model, processor = reverse.load(bases["llava"])
    family = family_of(model)
    pairs = read_rows(rows / "pairs.jsonl", rows / "world", kind="dpo", image_token=family.image_token)
    check_same_ids("dpo", copy_for_trl(processor), processor, family, pairs)
    with pytest.raises(RequestError, match="tokenises the chosen answer of row 1"):
        check_same_ids("dpo", processor, processor, family, pairs)
    assert "bos_token" not in processor.chat_template
    other = copy_for_trl(processor)
    other.chat_template = other.chat_template.replace("ASSISTANT", "AI")
    with pytest.raises(RequestError, match="tokenises the prompt of row 1"):
        check_same_ids("grpo", other, processor, family, pairs)


def test_the_checked_decoder_rolls_out(rows, bases, tmp_path):
    """Rewards under checking could not be measured, or would be trained on against what the docs say."""
    recipe = make_recipe(
        "grpo", bases["qwen"], rows, tmp_path / "out", "grpo.rollout=checked", "optim.lr=0", "optim.steps=1"
    )
    manifest = run_rl_recipe(recipe, quiet=True)
    assert 1 <= manifest["log"][0]["completions/max_length"] <= 12
    adapter = PeftModel.from_pretrained(reverse.load(bases["qwen"])[0], tmp_path / "out")
    assert all(p.abs().max() == 0 for name, p in adapter.named_parameters() if "lora_B" in name)


def test_verdicts_stay_out_of_the_loss(rows, bases, tmp_path):
    """GRPO would teach a tagged model to say </UN> no more, whatever its phrases say."""
    model, processor = reverse.load(bases["llava"])
    tags = find_token_ids(processor)
    with torch.no_grad():  # a model that opens and rejects phrases all the time
        head = model.get_output_embeddings().weight
        bias = torch.nn.Parameter(torch.zeros(head.shape[0]))
        bias[tags.un], bias[tags.cn], bias[tags.span] = 9.0, 7.0, 8.0
    model.get_output_embeddings().bias = bias
    settings = Rewards(rollout="keep_phrases", generations=2, max_new_tokens=12)
    place = SimpleNamespace(unwrap_model=lambda model: model, num_processes=2, process_index=1)
    trainer = SimpleNamespace(
        accelerator=place, model_wrapped=model, state=SimpleNamespace(global_step=3),
        args=SimpleNamespace(seed=0, per_device_train_batch_size=2),
    )  # fmt: skip
    picture = Image.new("RGB", (32, 32))
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "How many?"}]
    given = make_decoder_rollout(processor, settings)([[{"role": "user", "content": content}]] * 2, trainer)
    for ids, mask in zip(given["completion_ids"], given["env_mask"], strict=True):
        assert tags.un not in ids and tags.cn in ids
        assert [each == tags.cn for each in ids] == [not each for each in mask]
    assert given["completion_ids"][0] != given["completion_ids"][1]
    recipe = make_recipe("grpo", bases["llava"], rows, tmp_path / "out", "grpo.rollout=keep_phrases")
    manifest = run_rl_recipe(recipe, quiet=True)
    assert all(math.isfinite(each["grad_norm"]) for each in manifest["log"])


def test_nothing_is_sent_to_a_server(monkeypatch):
    """TRL reports each trainer that is made to a server."""
    trainer = find_trainer("grpo")
    import trl.trainer.base_trainer as base_trainer

    monkeypatch.setattr(base_trainer, "send_telemetry", lambda **_: pytest.fail("sent"), raising=False)
    trainer._send_telemetry(object())


def test_the_command_trains_and_plans(rows, bases, tmp_path):
    """`reverse train` would take a recipe of preferences for one of records."""
    make_recipe("dpo", bases["qwen"], rows, tmp_path / "out", "optim.steps=1")
    call = CliRunner().invoke
    path = str(tmp_path / "out.yaml")
    planned = call(app, ["train", path, "--set", "optim.steps=1", "--dry-run"])
    assert planned.exit_code == 0, planned.output
    assert "nothing was written" in planned.output and not (tmp_path / "out").exists()
    done = call(app, ["train", path, "--set", "optim.steps=1", "--quiet"])
    assert done.exit_code == 0, done.output
    assert f"{tmp_path / 'out'}: 1 steps" in done.output.replace("\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dpo", "grpo"])
def test_two_processes_train_together(kind, rows, bases, tmp_path):
    """Pairs would be seen twice, groups be torn apart, or a process wait for ever."""
    recipe = make_recipe(kind, bases["llava"], rows, tmp_path / "one", "optim.steps=2")
    parts = ("output=" + str(tmp_path / "two"), "compute.parallel=ddp", "optim.batch=1", "optim.steps=2")
    settings = (word for part in parts for word in ("--set", part))
    done = on_two("-m", "reverse", "train", tmp_path / "one.yaml", *settings)
    assert done.returncode == 0, done.stderr[-2000:]
    two = json.loads((tmp_path / "two/training.json").read_text())
    assert two["processes"] == 2 and two["steps"] == 2
    if kind == "dpo":
        one = run_rl_recipe(recipe, quiet=True)
        losses = [each["loss"] for each in one["log"]]
        assert [each["loss"] for each in two["log"]] == pytest.approx(losses, abs=1e-4)
