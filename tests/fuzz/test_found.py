"""What the fuzzers have found, one case each."""

import json

import pytest

from reverse.data.negatives.negative_prompt import read_reply
from reverse.evaluation.reading.answers import read_run_answers
from reverse.evaluation.reports.reporting import ReportSettings, write_report
from reverse.evaluation.runs.answers_files import AnswersFile
from reverse.evaluation.stats.bootstrap import BootstrapSettings
from reverse.files.atomic_write import write_json


def test_half_a_surrogate_in_an_answer_is_written(tmp_path):
    """UnicodeEncodeError would end a run at one row, for a text that JSON can hold."""
    row = {"question_id": 1, "text": "a dog \udc00", "config": "44136fa355b3678a"}
    with AnswersFile(tmp_path / "a.jsonl", {"config": {}, "questions": {"ids": [1]}}) as file:
        file.write(row)
    assert read_run_answers(tmp_path / "a.jsonl").rows == [row]


def test_a_deep_reply_is_no_json():
    """A RecursionError of one reply would end a pass over a million records."""
    with pytest.raises(ValueError, match="not a JSON object"):
        read_reply("[" * 100_000, [0, 1])


def test_half_a_surrogate_in_a_report_and_a_table(tmp_path):
    """One odd text would end `report`, or keep a table of scores from being written."""
    line = '{"question_id": 1, "text": "a dog \\udc00", "prompt": "What?", "phrases": []}\n'
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "chair.jsonl").write_text(line)
    for path in write_report(
        [tmp_path / "runs"], tmp_path / "out", ReportSettings(bootstrap=BootstrapSettings(rounds=5))
    ):
        assert "a dog" in path.read_text(encoding="utf-8") or path.suffix == ".md"
    write_json(tmp_path / "a.json", {"key": "\udc00"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"key": "\udc00"}
