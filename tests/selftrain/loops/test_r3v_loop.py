"""A loop of R3V with a tiny model, from its questions to its report."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from reverse.cli import app
from reverse.data.drafts.draft_files import read_drafts, write_drafts
from reverse.errors import DataError, MissingFileError, RequestError
from reverse.selftrain.loops.bodies.pool_body import link_newest
from reverse.selftrain.loops.loop_manifest import read_manifest
from reverse.selftrain.loops.loop_systems import (
    SYSTEMS,
    count_processes,
    load_system_recipe,
    plan_loop,
    run_system_loop,
)
from tests.selftrain.loops.compared_loops import files_of_loop
from tests.selftrain.loops.tiny_world import make_record, tiny_settings, write_tiny_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_tiny_world(folder)
    return folder


def run(settings, **options):
    recipe = load_system_recipe("r3v", "r3v_tiny", settings)
    return run_system_loop(recipe, plan_loop("r3v", recipe), quiet=True, processes=1, **options)


def test_r3v_runs_from_questions_to_a_report(world, tmp_path):
    """One of the stages would not fit the one before it, after hours on eight GPUs."""
    out = tmp_path / "out"
    run(tiny_settings(world, out))
    report = json.loads((out / "report/report.json").read_text())
    told = {stage["stage"]: stage for stage in report["stages"]}
    assert list(told)[-5:] == ["sample-1", "pool-1", "rows-1", "train-1", "measure-1"]
    pool = told["pool-1"]["pool"]
    assert pool["questions"] == 8 and sum(pool.get(name, 0) for name in ("right", "wrong", "unknown")) == 24
    assert pool["right"] >= 1, "the tiny model has learnt nothing, so nothing is tested"
    measured = told["measure-1"]["runs"]
    assert set(measured) == {"greedy", "select", "refine"}
    assert {"accuracy", "vote@3", "oracle@3", "gain"} <= set(measured["select"])
    assert measured["select"]["oracle@3"][0] >= measured["select"]["vote@3"][0]
    assert measured["select"]["tokens"] > measured["greedy"]["tokens"] > 0
    for record in read_drafts(out / "pool-1/pool.jsonl"):
        assert all(draft.iteration == 1 and draft.seconds is None for draft in record.drafts)
    trained = json.loads((out / "train-1/training.json").read_text())
    assert trained["recipe"]["model"] == str(world / "base"), "each iteration begins with the base"
    assert trained["data"]["parts"][0]["records"] == "rows-1/warmup.jsonl"
    status = {stage["name"]: stage["status"] for stage in read_manifest(out)["stages"]}
    assert status["train-0"] == "removed" and status["train-1"] == "done"
    assert not (out / "train-0/model").exists() and (out / "train-1/model/model.safetensors").exists()
    assert str(tmp_path) not in (out / "loop.json").read_text()

    shown = CliRunner().invoke(app, ["selftrain", "status", str(out)])
    assert shown.exit_code == 0 and "train-0        removed" in shown.output
    again = CliRunner().invoke(app, ["selftrain", "r3v", str(out), "--quiet"])
    assert again.exit_code == 0, again.output
    assert "10 of 10 stages are done" in again.output and "oracle@3" in again.output

    # What is gone is made again, and is the same.
    before = files_of_loop(out)
    for name in ("rows-1", "measure-1"):
        shutil.rmtree(out / name)
    moved = tmp_path / "moved"
    shutil.move(out, moved)
    run(tiny_settings(world, moved))
    assert files_of_loop(moved) == before


def test_a_loop_begins_without_a_warm_up(world):
    """The Qwen2-VL experiments of the paper have none: the base samples first."""
    settings = tiny_settings(world, "out", **{"questions.warmup": "none", "iterations": 2})
    plan = plan_loop("r3v", load_system_recipe("r3v", "r3v_tiny", settings))
    names = [stage.name for stage in plan.stages]
    assert names[:4] == ["questions", "measure-0", "sample-1", "pool-1"] and names[-1] == "report"
    assert "model" not in plan.stage("sample-1").inputs and plan.stage("pool-2").inputs["pool"] == "pool-1"
    assert plan.stage("sample-2").inputs["model"] == "train-1" and plan.results == ("train-2",)
    assert "model" not in plan.stage("train-2").inputs
    alone = [*settings, "refine=false", "select=false"]
    star = plan_loop("r3v", load_system_recipe("r3v", "r3v_tiny", alone))
    assert [part["name"] for part in star.stage("rows-1").settings["parts"]] == ["solve"]


def test_published_recipes_are_read(world):
    """A key that was renamed would end the published run at its start."""
    for system in SYSTEMS:
        for name in (system, f"{system}_tiny"):
            recipe = load_system_recipe(system, name)
            assert recipe.output == f"out/{name.replace('_', '-')}"
            again = load_system_recipe(system, name, tiny_settings(world, "out"))
            assert again.questions.train == str(world / "train.jsonl") and plan_loop(system, again).stages


def test_wrong_recipes_are_refused(world, tmp_path):
    """The first error would come after the warm-up."""
    with pytest.raises(RequestError, match=r"unknown key 'iteration'.*did you mean iterations"):
        load_system_recipe("r3v", "r3v_tiny", ["iteration=2"])
    with pytest.raises(RequestError, match=r"iterations must be at least 1, got 0"):
        load_system_recipe("r3v", "r3v_tiny", ["iterations=0"])
    with pytest.raises(MissingFileError, match=r"no recipe 'r4v'.*r3v, r3v_tiny"):
        load_system_recipe("r3v", "r4v")
    with pytest.raises(RequestError, match="a system must be one of r3v"):
        load_system_recipe("star", "r3v")
    with pytest.raises(MissingFileError, match=r"questions.train: no such file: nowhere.jsonl"):
        gone = tiny_settings(world, "o", **{"questions.train": "nowhere.jsonl"})
        plan_loop("r3v", load_system_recipe("r3v", "r3v_tiny", gone))
    same = tiny_settings(world, tmp_path / "o", **{"questions.test": world / "train.jsonl"})
    with pytest.raises(DataError, match="questions that were trained on"):
        run(same)


def test_nothing_right_is_an_error_that_says_so(world, tmp_path):
    """The trainer would be called with empty files, and name a batch size."""
    settings = tiny_settings(
        world, tmp_path / "out", **{"questions.warmup": "none", "questions.test_limit": 1}
    )
    with pytest.raises(DataError, match=r"stage rows-1: there is nothing to train on.*begin with a warm-up"):
        run(settings)


def test_a_loop_starts_its_processes_itself(monkeypatch):
    """Under torchrun eight loops would write to one folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RequestError, match="run it without torchrun"):
        count_processes()
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("REVERSE_PROCESSES", "3")
    assert count_processes() == 3


def test_the_newest_wrong_and_right_answers_are_linked():
    """R3V trains on the newest ones; a right answer with a wrong step is no target."""
    drafts = [
        {"text": text, "role": "sample", "verdict": verdict, "segments": segments}
        for text, verdict, segments in (
            ("a", "wrong", []),
            ("b", "right", []),
            ("c", "wrong", []),
            ("d", "right", [{"start": 0, "end": 1, "verdict": "wrong"}]),
        )
    ]
    record = make_record("train", 0).model_copy(update={"drafts": ()})
    record = type(record).model_validate({**dict(record), "drafts": drafts})
    (link,) = link_newest(record).links
    assert (link.kind, link.drafts) == ("refine", (2, 1))
    assert link_newest(record.model_copy(update={"drafts": record.drafts[:1]})).links == ()


def test_two_processes_share_the_work(world, tmp_path):
    """With several GPUs all but one would idle, or answers be asked twice."""
    settings = tiny_settings(world, tmp_path / "out", **{"questions.warmup": "none"})
    recipe = load_system_recipe("r3v", "r3v_tiny", settings)
    plan = plan_loop("r3v", recipe)
    run_system_loop(recipe, plan, only="questions", quiet=True, processes=1)
    run_system_loop(recipe, plan, only="sample-1", quiet=True, processes=2)
    records = list(read_drafts(tmp_path / "out/sample-1/samples.drafts.jsonl"))
    assert [record.id for record in records] == [f"train-{k}" for k in range(8)]
    assert not list((tmp_path / "out/sample-1").glob(".*"))


def test_questions_need_answers_and_pictures(world, tmp_path):
    """Nothing could be verified."""
    record = make_record("train", 0).model_copy(update={"gold": None})
    write_drafts(tmp_path / "bad.jsonl", [record])
    with pytest.raises(DataError, match="has no right answer"):
        run(tiny_settings(world, tmp_path / "out", **{"questions.train": tmp_path / "bad.jsonl"}))
