"""The flags of published curation commands, which `scripts/curate` takes."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from reverse.data.scenes import make_scene, render_scene
from scripts.curate.published_commands import main

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = ["eval_answer", "eval_reflection", "eval_extract_description", "assign_value_tree"]


def write_lines(path, *items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items))


def read_lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("REVERSE_LLM_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", os.environ.copy())  # the commands set variables
    (tmp_path / "pictures").mkdir()
    Image.fromarray(render_scene(make_scene("test", 0))).save("pictures/a.png")
    items = [{"query": f"How many are {n}?", "image": "a.png", "answer": str(n)} for n in range(4)]
    write_lines(tmp_path / "questions.jsonl", *items)
    return tmp_path


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_run_what_they_are_named_after(tmp_path, script):
    """The entry points that users know would start another command, or lose a flag."""
    seen = tmp_path / "python"
    seen.write_text('#!/bin/sh\nfor a in "$@"; do echo "$a"; done\n')
    seen.chmod(0o755)
    said = subprocess.run(
        ["bash", f"scripts/curate/{script}.sh", "--input_path", "a file.jsonl"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHON": str(seen)}, check=True,
    )  # fmt: skip
    wanted = ["-m", "scripts.curate.published_commands", script, "--input_path", "a file.jsonl"]
    assert said.stdout.splitlines() == wanted


def test_answers_are_sorted_into_published_files(world, chat_server, capsys):
    """The published command would not run, its files hold other fields, or unknown answers as wrong."""

    def respond(handler, body):
        number = int(body["messages"][1]["content"][-1]["text"].split()[-1].rstrip("?"))
        said = ["0", "7", "I cannot tell.", "3"][number]
        handler.give(f"<think>I look.</think>\n<answer>{said}</answer>")

    server = chat_server(respond)
    os.environ |= {"ENDPOINT_URL": server.url.removesuffix("/v1"), "DEPLOYMENT_NAME": "d", "API_KEY": "k",
                   "API_VERSION": "2024-10-21"}  # fmt: skip
    flags = ["--input_path", "questions.jsonl", "--image_dir", "pictures", "--platform", "Azure",
             "--batch_size", "4", "--checkpoint_interval", "5", "--concurrent_tasks", "2"]  # fmt: skip
    assert main(["eval_answer", *flags]) == 0
    wrong = {
        "query": "How many are 1?",
        "image": "a.png",
        "standard_answer": "1",
        "cot": "I look.",
        "answer": "7",
    }
    assert read_lines("incorrect_answers.jsonl") == [wrong]
    assert [item["answer"] for item in read_lines("correct_answers.jsonl")] == ["0", "3"]
    said = capsys.readouterr().err
    line = next(line for line in said.splitlines() if line.startswith("without effect"))
    assert "--checkpoint_interval" in line and "--batch_size" in line and "--concurrent_tasks (" not in line
    assert server.paths == {"/openai/deployments/d/chat/completions?api-version=2024-10-21"}
    assert server.most <= 2 and server.keys == {"k"}
    assert main(["eval_answer", *flags]) == 0 and len(server.bodies) == 4  # nothing is paid for twice


def test_reflections_are_written_as_the_cold_start(world, chat_server, capsys):
    """What LLaMA-Factory reads would lack the reflection, or end with the wrong answer."""
    server = chat_server(lambda handler, body: handler.give('{"reflection": "Count again."}'))
    os.environ |= {"ENDPOINT_URL": server.url, "API_KEY": "k"}
    answer = {
        "query": "How many?",
        "image": "a.png",
        "standard_answer": "3",
        "cot": "I see 4.",
        "answer": "4",
    }
    write_lines(world / "in.jsonl", answer)
    write_lines(world / "d.jsonl", {"image": "a.png", "description": "Three dogs."})
    flags = ["--input_path", "in.jsonl", "--model", "m", "--image_description_path", "d.jsonl"]
    assert main(["eval_reflection", *flags, "--upload_image", "False", "--output_path", "sft.jsonl"]) == 0
    (item,) = read_lines("sft.jsonl")
    told = item["messages"][-1]["content"]
    assert "<think>I see 4.</think>" in told and "<reflection>Count again.</reflection>" in told
    assert told.rstrip().endswith("<answer>3</answer>") and item["images"] == ["a.png"]
    assert "Three dogs." in json.dumps(server.bodies[0])
    capsys.readouterr()
    assert main(["eval_reflection", *flags, "--upload_image", "--reflection_final", "o.jsonl"]) == 2
    assert "--image-url" in capsys.readouterr().err


def test_a_checkpoint_answers_with_the_published_flags(world):
    """--model_type local would fail, as the published one does."""
    flags = ["--model_type", "local", "--model", "tiny-llava", "--image_dir", "pictures", "--batch_size", "2"]
    assert main(["eval_answer", "--input_path", "questions.jsonl", *flags]) == 0
    made = read_lines("correct_answers.jsonl.drafts.jsonl")
    assert len(made) == 4 and all(record["drafts"][0]["made_by"] == "tiny-llava" for record in made)


def test_descriptions_are_extracted_from_any_key(world):
    """Texts of LLaVA-CoT-100k stand in conversations, those of Mulberry under another key."""
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "<CAPTION>Two dogs.</CAPTION>"}]
    write_lines(world / "cot.jsonl", {"image": "a.png", "conversations": turns})
    flags = ["--input_path", "cot.jsonl", "--output_path", "d.jsonl"]
    assert main(["eval_extract_description", *flags, "--content_key", "conversations"]) == 0
    assert read_lines("d.jsonl") == [{"image": "a.png", "description": "Two dogs."}]
    assert main(["eval_extract_description", *flags[:3], "e.jsonl"]) == 2  # no key "content"


def test_values_of_a_tree_are_written(world):
    """The worked case of the published rule: a clean chain of k steps has the values 1/k to 1."""
    chain = {"value": "It is red. So it stops. Final Answer: A", "score": 0.5, "correct": True}
    beam = {"data_id": "1", "question": "?", "answer_choices": ["a", "b"], "answer_label": 1,
            "answer_str": "a", "result": [chain], "image_path": "a.png"}  # fmt: skip
    write_lines(world / "beam.jsonl", beam)
    assert main(["assign_value_tree", "--input", "beam.jsonl", "--output", "values.json"]) == 0
    values = [item["value"] for item in json.loads((world / "values.json").read_text())]
    assert [round(value, 3) for value in values] == [0.333, 0.667, 1.0]
