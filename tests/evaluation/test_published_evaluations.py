"""The YAML keys of TSST's evaluation and the flags of LLaVA-SCo's inference, which `scripts/eval` takes."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from scripts.eval.published_evaluation import main, read_plans
from tests.evaluation.graded.published import WRITERS

ROOT = Path(__file__).resolve().parents[2]
MODEL = {"policy_model": "tiny-llava", "value_model": "v", "tag": "one", "run_flag": True}
BEAM = {
    "num_beams": 2, "max_length": 256, "do_sample": True, "temperature": 0.7, "num_return_sequences": 1,
    "task": "multiple_choice_steps_beam", "use_value": True, "dataset_name": "scienceqa", "seed": 3,
    "sample_size": None, "branch": 3, "n_consistency": 4, "batch_size": 1, "models": [MODEL],
}  # fmt: skip


def write_yaml(folder, **changes):
    (folder / "config.yaml").write_text(yaml.safe_dump(BEAM | changes))
    return folder / "config.yaml"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("run_eval_scienceqa", ["run_eval", "scienceqa"]),
        ("run_eval_vcr", ["run_eval", "vcr"]),
        ("inference", ["inference"]),
    ],
)
def test_scripts_run_what_they_are_named_after(tmp_path, script, words):
    """The entry points that users know would answer another benchmark."""
    seen = tmp_path / "python"
    seen.write_text('#!/bin/sh\nfor a in "$@"; do echo "$a"; done\n')
    seen.chmod(0o755)
    said = subprocess.run(
        ["bash", f"scripts/eval/{script}.sh", "--yaml_path", "a b"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHON": str(seen)}, check=True,
    )  # fmt: skip
    assert said.stdout.splitlines() == [
        "-m",
        "scripts.eval.published_evaluation",
        *words,
        "--yaml_path",
        "a b",
    ]


def test_the_search_of_the_yaml_file_is_the_tree(tmp_path, capsys):
    """Beams and branches would be exchanged, or keys be dropped in silence."""
    (plan,) = read_plans(write_yaml(tmp_path), "scienceqa", tmp_path / "out")
    settings = plan.decoding.mode_settings
    assert plan.decoding.mode == "tree" and plan.out == str(tmp_path / "out" / "one")
    assert (settings["beams"], settings["branch"], settings["finished"], settings["seed"]) == (3, 2, 4, 3)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(key in said for key in ("num_return_sequences", "use_value", "dataset_name", "value_model"))


def test_direct_answers_are_sampled_as_the_yaml_file_says(tmp_path):
    """A greedy run would sample, or a sampled one be greedy."""
    path = write_yaml(tmp_path, task="multiple_choice")
    (plan,) = read_plans(path, "vcr", tmp_path)
    assert (plan.decoding.mode, plan.decoding.do_sample, plan.decoding.temperature) == ("plain", True, 0.7)
    assert plan.decoding.max_new_tokens == 256
    (plan,) = read_plans(write_yaml(tmp_path, task="qa", do_sample=False), "vcr", tmp_path)
    assert (plan.decoding.do_sample, plan.decoding.temperature) == (False, 1.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": [MODEL | {"run_flag": False}]}, "run_flag: true"),
        ({"models": [MODEL | {"policy_model": "gpt-4o"}]}, "reverse curate answer-eval"),
        ({"models": "x"}, "needs a list `models`"),
        ({"task": "dance"}, "task must be one of"),
        ({"branch": -1}, "branch must be a whole number"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"beam_size": 3}, "'beam_size'"),
    ],
)
def test_wrong_files_are_explained(tmp_path, capsys, changes, said):
    """A key that is misspelt, or no model that runs, would end in silence: nothing is evaluated."""
    assert main(["run_eval", "scienceqa", "--yaml_path", str(write_yaml(tmp_path, **changes))]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_the_search_answers_a_benchmark(tmp_path):
    """The settings would not be those that the mode takes."""
    WRITERS["scienceqa"](tmp_path / "data")
    path = write_yaml(tmp_path, dataset_root=str(tmp_path / "data"))
    assert main(["run_eval", "scienceqa", "--yaml_path", str(path), "--out", str(tmp_path / "out")]) == 0
    (line,) = (tmp_path / "out" / "one" / "scienceqa.jsonl").read_text().splitlines()
    assert {draft["role"] for draft in json.loads(line)["drafts"]} == {"chain"}


def test_inference_writes_the_published_file(tmp_path, capsys):
    """The second turn, which the published script lacks, would not be asked, or the file hold other keys."""
    WRITERS["mathvista"](tmp_path / "data")
    flags = ["--model_name", "tiny-llava", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert main(["inference", *flags, "--temperature", "0", "--gradio_ui"]) == 0
    assert "--gradio_ui" in capsys.readouterr().err
    rows = json.loads((tmp_path / "out" / "answer_for_detectiumfire_sft.json").read_text())
    assert [set(row) for row in rows] == [{"prompt", "answer", "ground_truth"}] * 2
    assert [row["ground_truth"] for row in rows] == ["1.2", "blue"] and all(row["answer"] for row in rows)
    answers = (tmp_path / "out" / "mathvista.jsonl").read_text().splitlines()
    roles = [draft["role"] for line in answers for draft in json.loads(line)["drafts"]]
    assert roles.count("first") == 2 and roles.count("correction") == 2
    assert main(["inference", "--finetuning_path", "x"]) == 2
    assert "reverse merge" in capsys.readouterr().err
