"""Outputs that another process writes, that nobody may write, or that a killed run left."""

import errno
import json
import os
import tempfile
import threading

import numpy as np
import pytest
from filelock import FileLock
from typer.testing import CliRunner

from reverse.cli import app
from reverse.data.records.importer import import_records
from reverse.evaluation.stats.scored_tables import Table, ratio, save_scored
from reverse.files.file_lock import output_lock


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def taken(tmp_path):
    """A folder whose lock another thread holds, as another process would."""
    out, held, done = tmp_path / "out", threading.Event(), threading.Event()

    def hold():
        with output_lock(out):
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    yield out
    done.set()
    thread.join()


@pytest.mark.parametrize(
    "words", [("compare", "a", "b"), ("sweep", "a"), ("calibrate", "a"), ("report", "a")], ids=lambda w: w[0]
)
def test_two_runs_do_not_mix_in_one_folder(taken, words):
    """Figures of one sweep would stand beside plots of another: each file alone was locked."""
    result = run(*words, "--out", taken)
    assert result.exit_code == 2 and f"error: {taken} is being written by another process" in result.stderr
    assert not taken.exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    """The error named a temporary file, or a lock, of which the user knows nothing."""

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "tmpx83h_"))

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "TemporaryFile", refuse)
        result = run("score", "a.jsonl", "--save", out / "table.json")
        assert result.exit_code == 2 and result.stderr.startswith(f"error: '{out}': this user may not")
    monkeypatch.setattr(FileLock, "acquire", refuse)
    result = run("data", "scenes", out)
    assert result.exit_code == 2 and result.stderr.startswith(f"error: '{out}': this user may not")


def test_a_long_name_of_wide_characters_has_a_lock(tmp_path):
    """A name that the disk takes would be refused for the longer name of its lock."""
    with output_lock(tmp_path / ("字" * 84)):
        assert len(os.listdir(tmp_path)) == 1


def test_an_import_goes_on_after_a_kill_at_its_first_file(tmp_path):
    """The lock of its plan is left behind then, and was taken for somebody else's file."""
    said = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi"}]
    (tmp_path / "records.json").write_text(json.dumps([{"id": "1", "conversations": said}]))
    parts = tmp_path / "out" / "parts"
    parts.mkdir(parents=True)
    for name in (".plan.json.lock", "plan.json.tmp"):
        (parts / name).touch()
    assert import_records(tmp_path / "records.json", tmp_path / "out")["records"] == 1
    assert not parts.exists()


def test_figures_of_a_judge_that_failed_are_not_compared(tmp_path):
    """`score --save` writes what there is; 0.00 without a verdict would then be a finding."""
    notes = {"judge": "m", "address": "http://j/v1", "cache": "c.jsonl", "failures": {"garbage": 3}}
    notes["first_failure"] = "answer 1: garbage: there is no JSON object in the reply"
    columns = {"score": np.zeros(4), "failed": np.array([1.0, 1.0, 1.0, 0.0]), "asked": np.ones(4)}
    table = Table("mmhal", list("abcd"), columns, None, list("abcd"), notes)
    path = tmp_path / "runs" / "failed.json"
    path.parent.mkdir()
    save_scored(path, table, [ratio("score", "score", "asked", "high")])
    result = run("compare", path, path)
    assert result.exit_code == 2 and result.stdout == ""
    assert f"error: {path}: 3 of 4 answers got no verdict from m at http://j/v1" in result.stderr
    assert "(3 garbage; answer 1: garbage: there is no JSON object in the reply)" in result.stderr
    result = run("report", path.parent, "--out", tmp_path / "report")
    assert result.exit_code == 2 and "not read is failed.json: 3 of 4 answers got no verdict" in result.stderr
