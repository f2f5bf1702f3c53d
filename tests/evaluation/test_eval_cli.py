"""`reverse eval`: what it writes, says and refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reverse.cli import app
from reverse.evaluation.reading.answers import read_run_answers
from reverse.evaluation.runs.answers_files import remove_timing
from reverse.evaluation.runs.benchmark_run import Decoding, ProcessPlace
from reverse.evaluation.runs.evaluation import Plan, evaluate
from reverse.models.checkpoints.loading import ASSETS

ROOT = Path(__file__).resolve().parents[2]
SCENES = ("--data", "scenes", "--scenes", "12")


def run(*arguments):
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def rows(path):
    return [remove_timing(row) for row in read_run_answers(path, complete=True).rows]


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """All benchmarks about two scenes, and what the command said."""
    out = tmp_path_factory.mktemp("answered")
    result = run(
        "all", "--model", "tiny-llava", *SCENES, "--out", out, "--limit", "2", "--max-new-tokens", 48
    )
    assert result.exit_code == 0, result.output
    return out, result


def test_every_benchmark_from_one_command(answered):
    """The seven benchmarks could not be tried offline with one command."""
    out, result = answered
    names = [
        "chair",
        "amber-g",
        "amber-d",
        "pope",
        "pope-aokvqa",
        "pope-gqa",
        "mme-hall",
        "mmhal",
        "haloquest",
    ]
    assert sorted(p.stem for p in out.glob("*.jsonl")) == sorted(names)
    lines = result.stdout.splitlines()
    assert [Path(line.split(":")[0]).stem for line in lines[: len(names)]] == names
    assert lines[len(names)] == "next:"
    for name, line in zip(names, lines[len(names) + 1 :], strict=True):
        files = f"{out}/{name}.jsonl --truth {out}/data --save {out}/{name}.json"
        assert line == f"  reverse score {files} --partial"
    for name in names:
        answers = read_run_answers(out / f"{name}.jsonl", benchmark=name, complete=True)
        config = answers.run["config"]
        assert config["yes_no"] == (config["threshold"] == 0.5)
        assert config["open_ended"] == (name in ("mmhal", "haloquest"))
        assert config["model"] == "tiny-llava" and config["weights"].startswith("full-")


def test_answers_are_those_of_generate(answered):
    """What is measured would be another decoder than users have."""
    import reverse
    from reverse.evaluation.runs.benchmark_run import question_seed

    out, _ = answered
    model, processor = reverse.load("tiny-llava")
    for row in rows(out / "chair.jsonl"):
        alone = reverse.generate(
            model,
            processor,
            images=str(out / "data/images" / row["image_id"]),
            prompt=row["prompt"],
            max_new_tokens=48,
            seed=question_seed(0, row["question_id"]),
        )
        assert row["text"] == alone.text and row["resolved"] == alone.resolved
        assert [p["text"] for p in row["phrases"]] == [p.text for p in alone.phrases]
        for ours, theirs in zip(row["phrases"], alone.phrases, strict=True):
            assert ours["p_un"] == pytest.approx(theirs.p_un, rel=1e-3)
        assert row["generation_history"] == [entry.phrase for entry in alone.trace]
        assert row["usage"]["discarded"] == alone.usage.discarded


def plan(out, data, *names, **changes):
    settings = {"hints": 5, "on_exhausted": "best", "candidates": 1}
    decoding = Decoding(max_new_tokens=48, settings=settings)
    return Plan("tiny-llava", names, str(out), str(data), decoding, **({"limit": 2} | changes))


def test_two_processes_and_an_interrupted_run_give_the_same_bits(answered, tmp_path, monkeypatch):
    """Several GPUs, or a run that was stopped, would give other answers where the batch shows in them."""
    from reverse.evaluation.runs import benchmark_run

    data = answered[0] / "data"
    shape = {"max_sequences": 3, "window": 5, "limit": 5}
    (whole,) = evaluate(plan(tmp_path / "whole", data, "mme-hall", **shape))
    (first,) = evaluate(plan(tmp_path / "two", data, "mme-hall", **shape), ProcessPlace(0, 2))
    assert not first.complete and first.done == 5
    (second,) = evaluate(plan(tmp_path / "two", data, "mme-hall", **shape), ProcessPlace(1, 2))
    assert second.complete and rows(second.path) == rows(whole.path)

    asking = benchmark_run._make_ask

    def interrupted(*arguments):
        def ask(questions):
            for number, result in enumerate(asking(*arguments)(questions)):
                if number == 2:
                    raise KeyboardInterrupt
                yield result

        return ask

    monkeypatch.setattr(benchmark_run, "_make_ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(plan(tmp_path / "broken", data, "mme-hall", **shape))
    monkeypatch.undo()
    assert len(read_run_answers(tmp_path / "broken/mme-hall.jsonl").rows) == 2
    (again,) = evaluate(plan(tmp_path / "broken", data, "mme-hall", **shape))
    assert rows(again.path) == rows(whole.path)


def test_other_batches_change_last_digits_only(answered, tmp_path):
    """A larger batch would be another decoder."""
    out, _ = answered
    (outcome,) = evaluate(plan(tmp_path, out / "data", "chair", max_sequences=1, window=1))
    ours, theirs = rows(outcome.path), rows(out / "chair.jsonl")
    for row in (*ours, *theirs):
        for phrase in (*row["phrases"], *row["attempts"]):
            phrase["p_un"] = pytest.approx(phrase["p_un"], rel=1e-3)
    assert ours == theirs


def test_again_and_with_other_settings(answered):
    """A finished run would be paid for again, or be overwritten by another one."""
    out, _ = answered
    before = (out / "chair.jsonl").read_bytes()
    common = ("chair", "--model", "tiny-llava", *SCENES, "--out", out, "--limit", "2")
    assert run(*common, "--max-new-tokens", 48, "--max-sequences", "1").exit_code == 0
    assert (out / "chair.jsonl").read_bytes() == before
    result = run(*common, "--max-new-tokens", 47)
    assert result.exit_code == 2 and "max_new_tokens: 48 there, 47 now" in result.stderr
    assert (out / "chair.jsonl").read_bytes() == before


def test_plain_mode_and_decoding_seeds(answered, tmp_path):
    """The baseline would be corrected too, and what sampling adds could not be measured."""
    out, _ = answered
    common = ("mme-hall", "--model", "tiny-llava", "--data", out / "data", "--limit", "2")
    result = run(*common, "--out", tmp_path / "plain", "--mode", "plain")
    assert result.exit_code == 0, result.output
    answers = read_run_answers(tmp_path / "plain/mme-hall.jsonl")
    assert all(row["attempts"] == [] and row["resolved"] is None for row in answers.rows)
    assert "threshold" not in answers.run["config"]
    result = run(*common, "--out", tmp_path, "--decode-seeds", "2", "--do-sample", "--seed", "5")
    assert result.exit_code == 0, result.output
    runs = [
        read_run_answers(tmp_path / name).run["config"] for name in ("mme-hall.jsonl", "mme-hall.seed6.jsonl")
    ]
    assert [run["seed"] for run in runs] == [5, 6] and runs[0]["temperature"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("name a benchmark",)),
        (("chair",), ("--model is missing",)),
        (("chair", "--model", "tiny-llava"), ("--out is missing",)),
        (("chairs", "--model", "tiny-llava", "--out", "OUT"), ("no benchmark 'chairs'", "known are")),
        (
            ("chair", "--model", "tiny-llava", "--out", "OUT", "--data", "nowhere"),
            ("no folder nowhere", "scenes"),
        ),
        (
            ("chair", "--model", "tiny-llava", "--out", "OUT", "--mode", "x"),
            ("--mode must be one of resample",),
        ),
        (("chair", "--model", "tiny-llava", "--out", "OUT", "--temperature", "1"), ("--do-sample",)),
        (
            ("chair", "--model", "tiny-llava", "--out", "OUT", *SCENES, "--split", "x"),
            ("split must be one of",),
        ),
    ],
)
def test_refusals_are_one_line(tmp_path, arguments, words):
    """A misspelt option would show a traceback, or start an evaluation of hours."""
    result = run(*[str(tmp_path / "out") if a == "OUT" else a for a in arguments])
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("error: ")
    assert all(word in result.stderr for word in words)


def test_missing_files_are_said_before_the_model_is_loaded(tmp_path):
    """An hour of loading and answering would come before the word that a file is missing."""
    result = run("pope", "--model", "no-such-model", "--out", tmp_path / "out", "--data", tmp_path)
    assert result.exit_code == 2 and "pope/llava_pope_test.jsonl" in result.stderr
    assert "--where pope" in result.stderr


def test_where(tmp_path):
    """Nobody would know what to put where."""
    result = run("--where", "chair", "--data", tmp_path)
    assert result.exit_code == 0, result.output
    assert "chair_mscoco/chair-500.jsonl" in result.stdout and "ready to run: none" in result.stdout


def test_stopped_by_ctrl_c(answered, tmp_path, monkeypatch):
    """Ctrl-C would show a traceback and leave it open whether anything was kept."""
    from reverse.evaluation.runs import evaluation

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "run", stop)
    out, _ = answered
    result = run("chair", "--model", "tiny-llava", "--data", out / "data", "--out", tmp_path)
    assert result.exit_code == 130 and "the same command goes on" in result.stderr


def test_rank_beyond_world_is_refused(monkeypatch):
    """A leftover RANK of a shell would answer a part of the questions in silence."""
    from reverse.evaluation.runs.benchmark_run import find_place

    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="must lie below WORLD_SIZE=2"):
        find_place()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match="whole numbers"):
        find_place()


def test_ray_is_asked_for_by_name(tmp_path, monkeypatch):
    """Without the extra, --ray would end in an ImportError of ours."""
    monkeypatch.setitem(sys.modules, "ray", None)
    result = run("chair", "--model", "tiny-llava", *SCENES, "--out", tmp_path, "--ray", "2")
    assert result.exit_code == 2 and "pip install 'reverse-vlm[ray]'" in result.stderr


@pytest.mark.slow
def test_two_ray_workers_write_the_file_of_one(answered, tmp_path):
    """Answers made on several machines would differ, or stay in shards."""
    pytest.importorskip("ray")
    from reverse.evaluation.runs.evaluation import evaluate_on_ray

    data = answered[0] / "data"
    shape = {"max_sequences": 3, "window": 2}
    (whole,) = evaluate(plan(tmp_path / "whole", data, "mme-hall", **shape))
    (spread,) = evaluate_on_ray(plan(tmp_path / "spread", data, "mme-hall", **shape), 2)
    assert spread.complete and rows(spread.path) == rows(whole.path)
    assert not list((tmp_path / "spread").glob("*.shard-*"))


@pytest.mark.parametrize(
    "script", ["chair", "chair_mscoco", "amber_g", "amber_d", "pope", "mme", "mmhal", "haloquest"]
)
def test_scripts_run_what_they_are_named_after(tmp_path, script):
    """The entry points that users know would start another benchmark, or none."""
    seen = tmp_path / "python"
    seen.write_text('#!/bin/sh\nfor a in "$@"; do echo "$a"; done\n')
    seen.chmod(0o755)
    said = subprocess.run(
        ["bash", f"scripts/eval/{script}.sh", "my-model", "my-out", "--limit", "3"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHON": str(seen)}, check=True,
    )  # fmt: skip
    words = said.stdout.split()
    assert words[:3] == ["-m", "reverse", "eval"]
    chosen = words[3 : words.index("--model")]
    expected = {
        "amber_g": ["amber-g"], "amber_d": ["amber-d"], "mme": ["mme-hall"],
        "pope": ["pope"], "chair_mscoco": ["chair"],
    }  # fmt: skip
    assert chosen == expected.get(script, [script])
    assert words[words.index("--model") + 1] == "my-model" and words[words.index("--out") + 1] == "my-out"
    assert words[-2:] == ["--limit", "3"]


def test_answers_are_plain_json(answered):
    """Other tools could not read a line by itself."""
    out, _ = answered
    for line in (out / "pope.jsonl").read_text(encoding="utf-8").split("\n")[:-1]:
        assert json.loads(line)["metadata"]["label"] in ("yes", "no")


def test_another_checkpoint_in_the_same_folder_is_refused(answered, tmp_path):
    """A folder that was trained or converted anew would go on with the answers of the one before."""
    folder = tmp_path / "model"
    shutil.copytree(ASSETS / "tiny-llava", folder)
    data = answered[0] / "data"
    common = ("mme-hall", "--model", folder, "--data", data, "--limit", "1", "--out", tmp_path)
    assert run(*common).exit_code == 0
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "\n")
    result = run(*common)
    assert result.exit_code == 2 and "other settings (checkpoint: " in result.stderr
