"""Loops of LLaVA-SCo, TSST and SRPO with a tiny model, from their questions to their reports."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from reverse.data.drafts.draft_files import read_drafts
from reverse.errors import DataError, MissingPackageError, RequestError, ReverseError
from reverse.selftrain.loops.bodies.train_body import TRAIN
from reverse.selftrain.loops.loop_systems import load_system_recipe, plan_loop, run_system_loop
from tests.selftrain.loops.tiny_world import tiny_settings, write_tiny_world

FEW = {"questions.test_limit": 4}
MIX = {"mix": 8, "share_right": 0.9}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_tiny_world(folder)
    return folder


def run(system, settings, **options):
    recipe = load_system_recipe(system, f"{system}_tiny", settings)
    run_system_loop(recipe, plan_loop(system, recipe), quiet=True, processes=1, **options)
    report = json.loads((Path(recipe.output) / "report/report.json").read_text())
    return {stage["stage"]: stage for stage in report["stages"]}


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_sco_runs_from_questions_to_a_report(world, tmp_path):
    """The second turn would be trained on corrections that nobody has verified."""
    out = tmp_path / "out"
    told = run("sco", tiny_settings(world, out, **FEW))
    pairs = told["correct-1"]["pairs"]
    assert 1 <= sum(pairs.values()) <= 8 and all(kind.endswith("to right") for kind in pairs)
    for record in read_drafts(out / "correct-1/pairs.jsonl"):
        first, second = record.drafts
        assert (second.parent, second.judged_by, first.role) == (0, "grading", "first")
    (row, *_) = rows_of(out / "rows-1/correct.jsonl")
    assert len(row["conversations"]) == 4 and row["conversations"][1]["targets"] == "none"
    assert {"accuracy", "gain", "wrong_to_right"} <= set(told["measure-1"]["runs"]["self-correct"])


def test_later_rounds_of_sco_correct_by_themselves(world, tmp_path):
    """A loop with a teacher in every round is no self-training."""
    settings = tiny_settings(world, tmp_path / "out", rounds=2, later="model")
    plan = plan_loop("sco", load_system_recipe("sco", "sco_tiny", settings))
    assert plan.stage("sample-2").settings["runs"][0]["mode"] == "self_correct"
    assert plan.stage("correct-2").settings["by"] == "model"
    assert plan.stage("pool-2").settings["chains"] and "pool" not in plan.stage("pool-2").inputs
    assert plan.stage("train-2").inputs["rows-2"] == "rows-2" and "model" not in plan.stage("train-2").inputs


def test_tsst_runs_from_questions_to_a_report(world, tmp_path):
    """The search would not be guided by the head that was trained for its model."""
    out = tmp_path / "out"
    told = run("tsst", tiny_settings(world, out, **FEW))
    assert told["value-0"]["value"]["steps"] >= 1 and told["value-1"]["value"]["backbone"] == "frozen"
    assert (out / "value-1/value_head.safetensors").exists()
    assert set(told["measure-1"]["runs"]) == {"greedy", "tree-top", "tree-vote"}
    chains = [draft for record in read_drafts(out / "pool-1/pool.jsonl") for draft in record.drafts]
    assert {draft.role for draft in chains} == {"chain"} and len(chains) >= 8
    assert told["rows-1"]["rows"]["solve"]["rows"] >= 1
    none = tiny_settings(world, out, **{"questions.warmup": "none"})
    with pytest.raises(RequestError, match="begin with it"):
        plan_loop("tsst", load_system_recipe("tsst", "tsst_tiny", none))


def check_cold_start(told, out, thinks):
    assert sum(told["mix-1"]["mix"][kind] for kind in ("right", "wrong")) <= 8
    (row, *_) = rows_of(out / "rows-1/reflect.jsonl")
    answer = row["conversations"][1]["value"]
    assert answer.count("<think>") == (2 if thinks else 1) and answer.count("<answer>") == 2
    assert answer.count("<reflection>") == 1 and "reflect" in told["measure-1"]["runs"]


def test_the_published_cold_start_of_srpo_learns_to_reflect(world, tmp_path):
    """Training data and reward would have other grammars, as the released ones have."""
    more = {"with_grpo": "false", "second_thinking": "false", **MIX}
    out = tmp_path / "out"
    check_cold_start(run("srpo", tiny_settings(world, out, **FEW, **more)), out, thinks=False)


@pytest.mark.skipif(find_spec("trl") is None, reason="needs the extra rl")
def test_srpo_ends_with_grpo(world, tmp_path):
    """The stage after the cold start would be faked, or begin with another model or grammar."""
    out = tmp_path / "out"
    small = {
        **MIX,
        "second_thinking": "true",
        "grpo_optim.steps": 1,
        "grpo_optim.global_batch": 2,
        "grpo_optim.batch": 4,
        "grpo.max_new_tokens": 12,
    }
    told = run("srpo", tiny_settings(world, out, **FEW, **small, attempts=2))
    check_cold_start(told, out, thinks=True)
    assert told["train-2"]["steps"] == 1 and "reflect" in told["measure-2"]["runs"]
    trained = json.loads((out / "train-2/training.json").read_text())
    assert trained["kind"] == "grpo" and trained["recipe"]["model"] == "train-1/model"
    assert (out / "train-2/model/model.safetensors").exists()


@pytest.mark.parametrize(
    ("system", "more", "error", "reason"),
    [
        (
            "srpo",
            {},
            MissingPackageError,
            "stage train-2: kind is grpo but trl is not installed",
        ),
        ("srpo", {"compute.parallel": "zero3"}, RequestError, "needs a launcher"),
        ("srpo", {"grpo_tune.projector": "true"}, RequestError, "stage train-2: tune.projector=true"),
        ("srpo", {"grpo_optim.global_batch": 3}, RequestError, "stage train-2: global_batch 12 is not a"),
        ("sco", {"corrections": "endpoint"}, DataError, "stage correct-1: REVERSE_LLM_BASE_URL"),
        ("sco", {"corrections": "no/such/model"}, ReverseError, "stage correct-1: .*no/such/model"),
        ("tsst", {"engine.device": "cuda:99"}, RequestError, "stage value-0: device 'cuda:99'"),
    ],
)
def test_what_cannot_run_is_refused_at_once(system, more, error, reason, world, tmp_path, monkeypatch):
    """A loop would train and sample for days before it said what it lacks."""
    monkeypatch.delenv("REVERSE_LLM_BASE_URL", raising=False)
    if error is MissingPackageError:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    elif system == "srpo" and find_spec("trl") is None:
        pytest.skip("needs the extra rl")
    out = tmp_path / "out"
    settings = {**MIX, **more} if system == "srpo" else more
    with pytest.raises(error, match=reason):
        run(system, tiny_settings(world, out, **settings))
    assert not out.exists()


def test_grpo_needs_whole_weights_in_every_process(world):
    """GRPO with sharded weights would fail at its first completion, after the cold start."""
    settings = tiny_settings(world, "out", **MIX, **{"compute.parallel": "fsdp"})
    stage = plan_loop("srpo", load_system_recipe("srpo", "srpo_tiny", settings)).stage("train-2")
    if find_spec("trl") is None:
        pytest.skip("needs the extra rl")
    with pytest.raises(RequestError, match="take ddp or zero2"):
        TRAIN.check(stage, 2)


def test_grpo_alone_begins_with_the_base(world, tmp_path):
    """There would be nothing to compare the cold start with."""
    settings = tiny_settings(world, tmp_path / "out", plain_grpo="true", **{"questions.warmup": "none"})
    plan = plan_loop("srpo", load_system_recipe("srpo", "srpo_tiny", settings))
    names = [stage.name for stage in plan.stages]
    assert names == ["questions", "measure-0", "rows-2", "train-2", "measure-2", "report"]
    assert "model" not in plan.stage("train-2").inputs and plan.results == ("train-2",)
