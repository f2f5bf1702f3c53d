"""`reverse score` and `reverse eval --score`: checked first, printed always, written where it can be."""

import json

import pytest
from typer.testing import CliRunner

from reverse.cli import app
from reverse.evaluation.stats.scored_tables import load_scored
from tests.evaluation.scoring.making import row, write_answers


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def pope(tmp_path):
    """A setting of POPE with two questions, and their answers."""
    asked = [
        {"question_id": n, "image": f"{n}.jpg", "text": f"Is it {n}?", "label": ("no", "yes")[n]}
        for n in (0, 1)
    ]
    (tmp_path / "coco_pope_random.json").write_text("".join(json.dumps(each) + "\n" for each in asked))
    rows = [row(n, ("No", "Yes")[n], f"{n}.jpg", f"Is it {n}?") for n in (0, 1)]
    return write_answers(tmp_path / "a.jsonl", rows), tmp_path


def test_saved_into_a_folder_that_is_not_there(pope):
    """Figures that took an hour would be lost to a folder that nobody made."""
    answers, folder = pope
    out = folder / "new" / "deep" / "table.json"
    result = run("score", answers, "--truth", folder, "--rounds", 0, "--save", out)
    assert result.exit_code == 0 and "accuracy" in result.stdout, result.stderr
    assert load_scored(out)[0].benchmark == "pope"
    assert sorted(path.name for path in out.parent.iterdir()) == ["table.json"]


def test_a_place_that_cannot_be_written_is_refused_first(pope, monkeypatch):
    """An answer file of thousands would be judged, and then there is nowhere to write."""
    answers, folder = pope
    monkeypatch.setattr("reverse.evaluation.runs.scoring.score_file", lambda *_, **__: pytest.fail("scored"))
    result = run("score", answers, "--truth", folder, "--save", folder)
    assert result.exit_code == 2 and "is a folder: name a file" in result.stderr
    result = run("score", answers, "--truth", folder, "--save", answers / "table.json")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1


def test_figures_are_printed_though_they_cannot_be_written(pope, monkeypatch):
    """A disk that is full by then would take the figures with it."""
    answers, folder = pope

    def full(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("reverse.evaluation.stats.scored_tables.save_scored", full)
    result = run("score", answers, "--truth", folder, "--rounds", 0, "--save", folder / "t.json")
    assert result.exit_code == 2 and "accuracy" in result.stdout and "Input/output error" in result.stderr


@pytest.fixture
def mmhal(tmp_path, monkeypatch, chat_server):
    """Ten answers and a judge that gives no verdict on the first `failing` of them."""
    items = [{"question": f"What is {n}?", "gt_answer": f"It is {n}."} for n in range(10)]
    (tmp_path / "response_template.json").write_text(json.dumps(items))

    def respond(handler, body):
        number = int(json.loads(body["messages"][1]["content"])["answer of the model"].split()[1])
        handler.give('{"rating": 4}' if number >= server.failing else "no idea")

    server = chat_server(respond)
    server.failing = 0
    monkeypatch.setenv("REVERSE_JUDGE_BASE_URL", server.url)
    monkeypatch.setenv("REVERSE_JUDGE_MODEL", "m")
    path = write_answers(tmp_path / "a.jsonl", [row(n, f"answer {n}") for n in range(10)])
    command = ("score", path, "--truth", tmp_path, "--benchmark", "mmhal", "--rounds", 0)
    return server, tmp_path, command


def test_a_judge_without_verdicts_is_no_score(mmhal):
    """A judge that never answers would give 0.00 with exit code 0, now and from the cache for ever."""
    server, folder, command = mmhal
    server.failing = 2
    result = run(*command, "--save", folder / "t.json")
    assert result.exit_code == 2 and "score (0 to 6)" in result.stdout
    said = result.stderr
    assert "2 of 10 answers got no verdict from m at http://127.0.0.1" in said and "2 garbage" in said
    assert f"{folder / 'a.jsonl.judge.jsonl'}" in said and "--fresh" in said
    assert load_scored(folder / "t.json")[0].notes["failed"] == 2
    server.failing = 0
    server.bodies.clear()
    result = run(*command, "--json")
    assert result.exit_code == 0 and len(server.bodies) == 2
    assert json.loads(result.stdout)["metrics"]["score"]["value"] == 4
    run(*command, "--fresh")
    assert len(server.bodies) == 12


def test_a_tenth_without_a_verdict_is_borne(mmhal):
    """One slip of the judge would cost a run of a hundred answers."""
    server, _, command = mmhal
    server.failing = 1
    result = run(*command)
    assert result.exit_code == 0 and "without a verdict" in result.stdout


def test_answers_are_scored_as_they_are_made(tmp_path):
    """Answering and scoring would stay two commands, with paths that have to be copied."""
    out = tmp_path / "out"
    options = ("--model", "tiny-llava", "--data", "scenes", "--scenes", 4, "--limit", 2, "--out", out)
    result = run("eval", "chair", *options, "--max-new-tokens", 24, "--score")
    assert result.exit_code == 0, result.stderr
    assert "CHAIRi" in result.stdout and "reverse score" not in result.stdout
    assert load_scored(out / "chair.json")[0].benchmark == "chair"


def test_what_cannot_be_scored_is_said_before_the_model_is_loaded(tmp_path, monkeypatch):
    """Hours of answering would end in a judge that nobody named, or a truth that is not there."""
    for name in ("JUDGE", "LLM"):
        monkeypatch.delenv(f"REVERSE_{name}_BASE_URL", raising=False)
    options = ("--model", tmp_path / "no-model", "--out", tmp_path / "out")
    result = run("eval", "mmhal", *options, "--data", "scenes", "--score")
    assert result.exit_code == 2 and "REVERSE_JUDGE_BASE_URL is not set" in result.stderr
    result = run("eval", "chair", "amber-d", *options, "--data", tmp_path, "--score")
    assert result.exit_code == 2 and "COCO instances" in result.stderr and "annotations.json" in result.stderr
    assert not (tmp_path / "out").exists()
