"""`reverse score` and the reading of answers, as a user meets them."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from reverse.cli import app
from reverse.data.scenes import write_scenes
from reverse.evaluation.reading.answers import read_answers
from reverse.evaluation.runs.scoring import score_file
from reverse.evaluation.stats.scored_tables import load_scored
from tests.evaluation.scoring.making import row, write_answers


def run(*arguments):
    return CliRunner().invoke(app, ["score", *map(str, arguments)])


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Scenes and an answer about each, one wrong, one empty, with costs."""
    folder = tmp_path_factory.mktemp("scenes") / "s"
    write_scenes(folder, "test", 6)
    said = {
        c["image_id"]: c["caption"] for c in json.loads((folder / "captions.json").read_text())["annotations"]
    }
    said[0] += " A red toaster and a hair drier."
    said[1] = ""
    usage = {"kept": 20, "discarded": 10, "forwards": 30, "seconds": 0.5}
    rows = [
        row(n, text, f"test-{n:06d}.png", "Describe this image.", usage=usage, phrases=[{}, {}],
            successful_correction=n != 2)
        for n, text in said.items()
    ]  # fmt: skip
    return folder, rows


def test_scored_on_the_command_line(scenes, tmp_path):
    """The table, its intervals and costs, or the JSON would not be there."""
    folder, rows = scenes
    path = write_answers(tmp_path / "a.jsonl", rows)
    result = run(path, "--truth", folder, "--rounds", 200, "--save", tmp_path / "t.json")
    assert result.exit_code == 0, result.stderr
    for told in ("CHAIRi ↓", "CHAIRs ↓", "empty answers", "unresolved answers", "seconds an answer", " to "):
        assert told in result.stdout
    result = run(path, "--truth", folder, "--rounds", 200, "--json")
    report = json.loads(result.stdout)
    assert report["benchmark"] == "chair" and report["answers"] == 6
    value = {name: figure["value"] for name, figure in report["metrics"].items()}
    assert value["chair_s"] == pytest.approx(1 / 6) and value["empty"] == pytest.approx(1 / 6)
    assert value["unresolved"] == pytest.approx(1 / 6) and value["tokens_made"] == pytest.approx(1.5)
    assert value["seconds"] == 0.5 and value["phrases"] == 2
    assert report["metrics"]["chair_i"]["low"] <= value["chair_i"] <= report["metrics"]["chair_i"]["high"]
    table, metrics = load_scored(tmp_path / "t.json")
    assert {m.name: float(m.of(table.sums())) for m in metrics} == pytest.approx(value)


def test_no_width_is_not_a_width_of_zero(scenes, tmp_path):
    """No empty answer among six would read as "0 %, surely", with an interval from 0 to 0."""
    folder, rows = scenes
    path = write_answers(tmp_path / "a.jsonl", [r | {"text": "A dog."} for r in rows])
    (shown,) = [line for line in run(path, "--truth", folder).stdout.splitlines() if "empty" in line]
    assert "0.00 %" in shown and "–" in shown and " to " not in shown
    figures = json.loads(run(path, "--truth", folder, "--json").stdout)["metrics"]
    assert "the width is not known" in figures["empty"]["note"]
    assert (
        "note"
        not in json.loads(run(path, "--truth", folder, "--json", "--rounds", 0).stdout)["metrics"]["empty"]
    )


def test_no_rounds_no_column(scenes, tmp_path):
    """A column without a heading and without a value would stand beside the figures."""
    folder, rows = scenes
    path = write_answers(tmp_path / "a.jsonl", rows)
    widths = []
    for rounds in (20, 0):
        shown = run(path, "--truth", folder, "--rounds", rounds).stdout
        assert ("95 % interval" in shown) == bool(rounds)
        line = next(line for line in shown.splitlines() if "CHAIRs ↓" in line)
        widths.append(line.count("│"))
    assert widths == [4, 3]


def test_without_costs_there_are_no_columns_of_them(scenes, tmp_path):
    """An answers file of another program could not be scored, or would cost nothing."""
    folder, rows = scenes
    plain = [{key: r[key] for key in ("question_id", "image_id", "text")} for r in rows]
    table, metrics = score_file(write_answers(tmp_path / "a.jsonl", plain), folder)
    assert not {"seconds", "kept_tokens", "unresolved", "phrases"} & set(table.columns)
    assert {"empty", "text_words"} <= {m.name for m in metrics}
    assert all(np.isfinite(column).all() for column in table.columns.values())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no answers"),
        ('{"question_id": 1, "text": "a"}\n{"question_id": 2, "te', "the last line (2) is torn"),
        ('{"question_id": 1, "te\n{"question_id": 2, "text": "a"}\n', "line 1 is not JSON"),
        ('{"question_id": 1, "text": "a"}\n{"question_id": 1, "text": "b"}\n', "answered in line 1 already"),
        ("[1, 2]\n", "not a JSON object"),
        ('{"id": 1}\n', "has no 'question_id'"),
        ('{"question_id": 1, "text": null}\n', "must be text"),
        ('{"question_id": 1, "text": "a"}\n', "(no image_id, line 1)"),
        ('{"question_id": 1, "text": "a", "image_id": "test-000099.png"}\n', "test-000099.png"),
        ('{"question_id": 1, "text": "a", "benchmark": "gqa"}\n', "no benchmark 'gqa'"),
    ],
)
def test_bad_answers_are_one_line(scenes, tmp_path, content, said):
    """A user would get a traceback, or figures of half a file."""
    folder, _ = scenes
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    result = run(path, "--truth", folder)
    assert result.exit_code == 2 and result.stderr.startswith("error:") and said in result.stderr
    assert result.stderr.count("\n") == 1


def test_what_cannot_be_told_is_asked_for(scenes, tmp_path):
    """Answers would be scored as some benchmark or other."""
    _, rows = scenes
    path = write_answers(tmp_path / "a.jsonl", rows)
    result = run(path, "--truth", tmp_path)
    assert result.exit_code == 2 and "name it with --benchmark" in result.stderr
    assert "no answers file" in run(tmp_path / "none.jsonl", "--truth", tmp_path).stderr
    assert "no truth at" in run(path, "--truth", tmp_path / "none", "--benchmark", "chair").stderr
    assert "known are chair" in run(path, "--truth", tmp_path, "--benchmark", "gqa").stderr
    result = run(path, "--truth", tmp_path, "--benchmark", "pope")
    assert result.exit_code == 2 and "pope_random.json" in result.stderr


def test_answers_that_name_another_benchmark(scenes, tmp_path):
    """POPE's answers are about the same pictures: CHAIR would score them as captions."""
    folder, rows = scenes
    path = write_answers(tmp_path / "a.jsonl", [r | {"metadata": {"benchmark": "pope"}} for r in rows])
    result = run(path, "--truth", folder, "--benchmark", "chair")
    assert result.exit_code == 2 and "line 1 is an answer to pope, not to chair" in result.stderr


def test_a_run_that_is_not_finished(scenes, tmp_path):
    """The list of a run's questions lies beside its answers; half a run would be reported as all of it."""
    folder, rows = scenes
    path = write_answers(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.run.json").write_text(json.dumps({"questions": {"ids": [*range(6), 77]}}))
    result = run(path, "--truth", folder)
    assert result.exit_code == 2 and "1 of 7 questions have no answer: 77" in result.stderr
    assert run(path, "--truth", folder, "--partial", "--rounds", 0).exit_code == 0


def test_line_separators_in_answers(tmp_path):
    """U+2028 in an answer would end its line."""
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row(1, "a\u2028b\u0085c"), ensure_ascii=False) + "\n", encoding="utf-8")
    assert [answer.text for answer in read_answers(path)] == ["a\u2028b\u0085c"]
