"""Every long command says how far it is where there is no terminal, and checks before it loads."""

import json
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from reverse import progress
from reverse.cli import app
from reverse.commands.eval_command import _show_bars
from reverse.training.recipes.recipe import load_recipe
from reverse.training.training_run import run_recipe


@pytest.fixture
def hurried(monkeypatch):
    """Lines are due at once, not after 30 seconds."""
    monkeypatch.setattr(progress, "EVERY", 0.0)


@pytest.fixture
def records(tmp_path):
    said = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "There is <SPAN>a dog</CN>."}]
    path = tmp_path / "records.json"
    path.write_text(json.dumps([{"id": str(k), "conversations": said} for k in range(4)]))
    return path


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (("data", "scenes", "{tmp}/s", "--count", "2"), "scenes: 2 of 2 (100%)"),
        (("data", "import", "{records}", "{tmp}/set"), "bytes read: "),
        (("data", "check", "{records}"), "checked: "),
        (("data", "subsample", "{records}", "{tmp}/part.json", "--n", "2"), "read: "),
        (("data", "view", "{records}", "--n", "1"), "read: "),
        (("data", "negatives", "{records}", "{tmp}/wrong.json"), "records: 4"),
    ],
)
def test_lines_of_commands(hurried, tmp_path, records, command, line):
    """A batch job would be silent for hours."""
    said = CliRunner().invoke(app, [word.format(tmp=tmp_path, records=records) for word in command])
    assert said.exit_code == 0, said.output
    assert any(each.startswith(line) for each in said.stderr.splitlines()), said.stderr
    assert line not in said.stdout


def test_lines_of_a_training(hurried, tiny, tmp_path, records, capsys):
    """Neither the look at all records nor the steps would say how long they take."""
    model, processor = tiny("llava", init_std=0.02)
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    settings = {
        "model": f"{tmp_path}/base", "output": f"{tmp_path}/out",
        "data": {"records": str(records), "images": str(tmp_path), "workers": 0},
        "optim": {"steps": 2, "global_batch": 1, "batch": 1}, "log": {"save_steps": 0},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(settings))
    run_recipe(load_recipe(f"{tmp_path}/recipe.yaml"))
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("records checked: 0 of 4") for line in lines), lines
    assert any(line.startswith("out: steps: 2 of 2 (100%)") for line in lines), lines


def test_lines_of_an_evaluation(hurried, capsys):
    """Hours of answering would leave an empty log, or one line a process."""
    bench = SimpleNamespace(name="pope", title="POPE")
    with _show_bars(True) as watch:
        watch(bench, 0, 3, 10)
        watch(bench, 1, 4, 10)
    with _show_bars(False) as watch:
        watch(bench, 0, 5, 10)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        "POPE: 3 of 10 (30%)",
        "POPE",
    ]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("eval", "chair", "--model", "m", "--out", "{tmp}/o", "--threshold", "2"), ("threshold must lie",)),
        (("eval", "chair", "--model", "m", "--out", "{tmp}/o", "--candidates", "0"), ("candidates",)),
        (("eval", "chair", "--model", "m", "--out", "{tmp}/o", "--mode", "x"), ("mode must be one of",)),
        (("eval", "chair", "--model", "m", "--out", "{tmp}/o", "--on-exhausted", "x"), ("on_exhausted",)),
        (("sweep", "--model", "m", "--out", "{tmp}/o", "--split", "x"), ("'x'", "test")),
        (("sweep", "--model", "m", "--out", "{tmp}/o", "--decode", "3"), ("threshold must lie",)),
    ],
)
def test_checks_come_before_the_model(tmp_path, monkeypatch, command, words):
    """A model would be loaded for minutes to refuse an option."""

    def load(*_, **__):
        raise AssertionError("a model was loaded")

    for name in ("reverse.models.load", "reverse.load", "reverse.evaluation.runs.evaluation.load"):
        monkeypatch.setattr(name, load, raising=False)
    said = CliRunner().invoke(app, [word.format(tmp=tmp_path) for word in command])
    assert said.exit_code == 2, (said.output, said.exception)
    assert all(word in said.stderr for word in words), said.stderr
