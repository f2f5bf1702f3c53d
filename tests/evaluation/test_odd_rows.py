"""Answers files with one odd row, whatever it holds: reports and scores go on, and name what is left out."""

import json

import pytest
from typer.testing import CliRunner

from reverse.cli import app
from reverse.evaluation.detector.phrase_truth import read_phrases
from reverse.evaluation.reading.answers import read_answers, read_run_answers
from reverse.evaluation.reading.markup import LONGEST
from reverse.evaluation.reports.reporting import ReportSettings, write_report
from reverse.evaluation.runs.scoring import score_file
from reverse.evaluation.stats.bootstrap import BootstrapSettings
from reverse.evaluation.stats.scored_tables import load_scored, save_scored
from reverse.files.cell_values import describe, read_id, read_number

FEW = BootstrapSettings(rounds=50)
DEEP = "[" * 300 + "]" * 300
# Values that stand in place of one of a good row's; True: the row can be used all the same.
ODD = {
    "long id": ('"question_id"', json.dumps("x" * 5000), False),
    "huge id": ('"question_id"', "9" * 5000, False),
    "large id": ('"question_id"', "9" * 4000, False),
    "id of a list": ('"question_id"', '["a"]', False),
    "infinite id": ('"question_id"', "Infinity", False),
    "half a surrogate as id": ('"question_id"', '"\\ud83d"', False),
    "no text": ('"text"', "null", False),
    "text of a number": ('"text"', "NaN", False),
    "endless text": ('"text"', json.dumps("Yes " * LONGEST), False),
    "half a surrogate": ('"text"', '"Yes \\ud83d"', True),
    "half a surrogate asked": ('"prompt"', '"Is it 3?\\ud83d"', True),
    "nested": ('"phrases"', DEEP, False),
    "no metadata": ('"metadata"', "7", True),
    "infinite tokens": ('"usage"', '{"kept": 1e999, "discarded": 0}', True),
    "tokens of no number": ('"usage"', '{"kept": NaN, "discarded": null}', True),
    "huge tokens": ('"usage"', '{"kept": ' + "9" * 400 + ', "discarded": 0}', True),
    "seconds of a text": ('"timing"', '{"seconds": "long"}', True),
    "phrases of anything": ('"phrases"', '[7, null, {"start": 1e999, "p_un": NaN}, ["a", 1e999], []]', True),
    "attempts of anything": (
        '"attempts"', '[{"phrase": 1, "p_un": ' + "9" * 400 + ', "temperature": NaN}, 3]', True,
    ),
    "picture of a long name": ('"image_id"', json.dumps("x" * 5000), False),
    "picture with a zero byte": ('"image_id"', '"\\u0000/3.jpg"', True),
    "picture of a list": ('"image_id"', "[3]", False),
}  # fmt: skip


def good(n):
    return {
        "question_id": n, "image_id": f"{n}.jpg", "prompt": f"Is it {n}?", "text": ("No", "Yes")[n % 2],
        "metadata": {"category": "random"}, "usage": {"kept": 4, "discarded": 2}, "timing": {"seconds": 0.5},
        "phrases": [{"text": "Yes", "start": 0, "end": 3, "p_un": 0.1}], "attempts": [],
        "successful_correction": True, "extra": 0,
    }  # fmt: skip


@pytest.fixture
def answers(tmp_path):
    """Writes twelve answers to POPE, the fourth with an odd value; labels lie beside them."""
    labels = [
        {"question_id": n, "image": f"{n}.jpg", "text": f"Is it {n}?", "label": ("no", "yes")[n % 2]}
        for n in range(12)
    ]
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "coco_pope_random.json").write_text("".join(json.dumps(each) + "\n" for each in labels))

    def write(key='"extra"', value="0"):
        lines = [json.dumps(good(n)) for n in range(12)]
        at = lines[3].index(f"{key}: ") + len(f"{key}: ")
        kept = json.dumps(good(3)[key.strip('"')])
        assert lines[3].startswith(kept, at)
        lines[3] = lines[3][:at] + value + lines[3][at + len(kept) :]
        (folder / "pope.jsonl").write_text("\n".join(lines) + "\n")
        return folder / "pope.jsonl"

    return write


@pytest.mark.parametrize("kind", ODD)
def test_one_odd_row_stops_neither_score_nor_report(kind, answers, tmp_path):
    """One row of twelve thousand would cost all figures, or be left out without a word."""
    key, value, usable = ODD[kind]
    path = answers(key, value)
    table, _ = score_file(path, tmp_path, "pope")
    assert table.columns["right"].sum() == len(table.clusters) == (12 if usable else 11)
    assert table.notes.get("skipped_rows", 0) == (0 if usable else 1)
    if not usable:
        assert table.notes["skipped"][0].startswith("line 4") and len(table.notes["skipped"][0]) < 200
    save_scored(tmp_path / "run" / "pope.json", table, [])
    assert len(load_scored(tmp_path / "run" / "pope.json")[0].clusters) == len(table.clusters)
    write_report(
        [path.parent], tmp_path / "out", ReportSettings(images=tmp_path, bootstrap=FEW, lmms_eval=True)
    )
    page = (tmp_path / "out" / "report.md").read_text()
    assert (
        f"| run pope | {11 if kind in ('no text', 'text of a number', 'nested', 'huge id') else 12} |" in page
    )


def test_what_is_left_out_is_said(answers, tmp_path):
    """Nobody would know that a figure is of fewer answers than were made."""
    path = answers('"text"', "null")
    result = CliRunner().invoke(app, ["score", str(path), "--truth", str(tmp_path), "--rounds", "0"])
    assert result.exit_code == 0 and "1 rows are left out: line 4: the answer must be text" in result.stderr
    write_report([path.parent], tmp_path / "out", ReportSettings(bootstrap=FEW))
    assert (
        "pope.jsonl: 1 rows are left out: line 4 has no text" in (tmp_path / "out" / "report.md").read_text()
    )
    path = answers('"timing"', '{"seconds": NaN}')
    table, _ = score_file(path, tmp_path, "pope")
    assert table.notes["left_out"] == {"seconds": "line 4 has nan, which is not a number"}
    assert "seconds" not in table.columns and table.columns["made_tokens"].sum() == 72
    write_report([path.parent], tmp_path / "out", ReportSettings(bootstrap=FEW))
    told = "1 rows have no number of seconds, first line 4"
    assert told in (tmp_path / "out" / "report.md").read_text().replace("\\", "")


def test_a_row_that_is_left_out_does_not_hide_questions(answers, tmp_path):
    """A skipped row stands for one question; others that have no answer would pass as skipped too."""
    path = answers('"text"', "null")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], ""]))
    with pytest.raises(ValueError, match="2 of 12 questions have no answer"):
        score_file(path, tmp_path, "pope")
    path.with_suffix(".run.json").write_text(json.dumps({"questions": {"ids": list(range(12))}}))
    with pytest.raises(ValueError, match="not finished, 2 of 12 questions have no answer"):
        score_file(path, tmp_path, "pope")


def test_many_odd_rows_are_another_file(tmp_path):
    """A file of something else would be scored by the few rows that look like answers."""
    rows = [good(n) for n in range(10)] + [{"question_id": 99, "text": None}, {"question_id": 98}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    with pytest.raises(ValueError, match=r"2 of 12 rows cannot be used: line 11: .*; line 12 has no 'text'"):
        read_answers(path)


@pytest.mark.parametrize("p", ["NaN", "Infinity", "-0.1", "9" * 400])
def test_p_that_is_no_probability(p, tmp_path):
    """A threshold would be promised from phrases that no threshold can sort."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"image_id": "test-000001", "phrases": [{"text": "a dog", "p_un": ' + p + "}]}\n")
    with pytest.raises(ValueError, match=r"line 1 has a phrase with p .* outside \[0, 1\]"):
        read_phrases(path)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "9" * 400, '"x"', "null", "[1]"])
def test_scored_files_hold_finite_numbers(value, answers, tmp_path):
    """A comparison would be made of what is not a number."""
    table, metrics = score_file(answers(), tmp_path, "pope")
    save_scored(tmp_path / "t.json", table, metrics)
    text = (tmp_path / "t.json").read_text().replace('"right": [\n   1', f'"right": [\n   {value}', 1)
    assert value in text
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ValueError, match=r"t\.json"):
        load_scored(tmp_path / "t.json")


def test_values_of_any_kind():
    """A helper that raises would end what it is there to keep going."""
    for value in (None, True, "1", [1], {}, float("nan"), float("inf"), 10**400, -(10**400), 1e16):
        assert read_number(value) is None
        assert len(describe(value)) <= 60
    assert read_number(3) == 3.0 and read_id(10**400) == str(10**400) and read_id(-1) == "-1"
    nested = []
    for _ in range(5000):
        nested = [nested]
    assert len(describe(nested)) <= 60 and read_id(10**600) is None


@pytest.mark.parametrize("identity", ["[[0]]", "null", "NaN", json.dumps("x" * 5000)])
def test_a_run_goes_on_with_ids_alone(identity, tmp_path):
    """The record of a run would hold what no reader takes, and could not be read again."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"question_id": ' + identity + ', "text": "a"}\n')
    with pytest.raises(ValueError, match=r"line 1 is not an answer: its question_id is .* not an id: remove"):
        read_run_answers(path)
