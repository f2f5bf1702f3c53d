"""What is wrong with the model or its settings is said first, and what says nothing new is not refused."""

import json

import pytest
from typer.testing import CliRunner

from reverse.cli import app
from reverse.commands.option_checks import check_decoding
from reverse.models.checkpoints.loading import ASSETS


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_model_that_is_not_there_is_refused_before_scenes_are_made(tmp_path, monkeypatch):
    """A typing mistake in --model cost the making of 500 scenes."""
    monkeypatch.setattr(
        "reverse.data.scenes.benchmark_files.write_benchmarks",
        lambda *_, **__: pytest.fail("scenes were made"),
    )
    result = run("eval", "chair", "--model", "tiny-lava", "--data", "scenes", "--out", tmp_path / "out")
    assert result.exit_code == 2 and "there is no folder 'tiny-lava'" in result.stderr


def test_a_temperature_of_zero_is_greedy():
    """`--temperature 0`, as greedy decoding is often asked for, was refused; `generate()` takes it."""
    check_decoding(temperature=0.0)
    for temperature in (0.7, 1.0):  # meant for sampling, and ignored without a word
        with pytest.raises(ValueError, match=rf"--temperature {temperature:g} does nothing without --do-"):
            check_decoding(temperature=temperature)


def test_greedy_runs_are_one_configuration(tmp_path, monkeypatch):
    """A run with `--temperature 0` would not go on with answers made without it."""
    plans = []
    monkeypatch.setattr(
        "reverse.evaluation.runs.evaluation.evaluate", lambda plan, *_: plans.append(plan) or []
    )
    for more in ((), ("--temperature", "0")):
        options = ("--model", "tiny-llava", "--data", "scenes", "--out", tmp_path / "out", *more)
        assert run("eval", "chair", *options).exit_code == 0
    assert plans[0].decoding == plans[1].decoding


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_is_read_within_bounds(tmp_path, name):
    """JSON that is nested deep ended in a traceback where `reverse.load` refuses it."""
    folder, records = tmp_path / "model", tmp_path / "records.json"
    folder.mkdir()
    for each in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / each).write_bytes((ASSETS / "tiny-llava" / each).read_bytes())
    said = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi"}]
    records.write_text(json.dumps([{"id": "1", "conversations": said}]))
    result = run("data", "check", records, "--tokenizer", folder)
    assert "tokens" in result.stdout and not result.exception, result.output
    (folder / name).write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    result = run("data", "check", records, "--tokenizer", folder)
    assert result.exit_code == 2 and f"{folder / name} is damaged" in result.stderr
