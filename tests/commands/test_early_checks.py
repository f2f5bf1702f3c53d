"""Statistics check what they need first, and print and write what they measured whatever follows."""

import errno
import json
from importlib.util import find_spec

import pytest
from typer.testing import CliRunner

from reverse.cli import app
from reverse.evaluation.reports import plots


def call(*words):
    return CliRunner().invoke(app, list(map(str, words)))


@pytest.fixture
def answers(tmp_path):
    """Phrases of two hundred pictures, judged already: wrong ones have the higher p."""
    rows = [
        {"id": f"{split}-{n:06d}", "text": "", "phrases": [["a dog", 0.01, 0], ["a cat", 0.9 - n / 1000, 1]]}
        for split in ("val",)
        for n in range(200)
    ]
    path = tmp_path / "off.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def no_matplotlib(monkeypatch):
    monkeypatch.setattr(plots, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))


def test_plots_are_asked_for_before_minutes_of_decoding(tmp_path, no_matplotlib, monkeypatch, answers):
    """A sweep decoded for minutes, and then asked for matplotlib."""
    monkeypatch.setattr(
        "reverse.evaluation.detector.scene_decoding.decode_at_thresholds",
        lambda *_, **__: pytest.fail("decoded"),
    )
    result = call("sweep", "--model", "tiny-llava", "--out", tmp_path / "out")
    assert result.exit_code == 2 and "plots need matplotlib: pip install" in result.stderr
    result = call("compare", answers, answers, "--out", tmp_path / "out")
    assert result.exit_code == 2 and "matplotlib" in result.stderr


def test_figures_of_a_sweep_outlive_its_plots(tmp_path, monkeypatch, answers):
    """A plot that fails would take the figures and their files with it."""

    def fail(*_):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(plots, "plot_roc", fail)
    result = call("sweep", answers, "--truth", "stored", "--out", tmp_path / "out", "--rounds", 20)
    assert result.exit_code == 2 and "AUROC" in result.stdout and "the disk is full" in result.stderr
    assert json.loads((tmp_path / "out" / "detector.json").read_text())["phrases"] == 400


def fake_decoding(*_, on_tried, **__):
    """Two thresholds are measured, then the run is stopped."""
    for threshold in (0.5, 0.25):
        on_tried(
            {"threshold": threshold, "images": 300, "observed": 0.0712, "low": 0.06, "high": 0.08, "p": 0.9,
             "must_be_below": 0.01, "kept": 0.9, "chair_i": 0.05, "unresolved": 0.0, "tokens_ratio": 1.2}
        )  # fmt: skip
    raise RuntimeError("the machine is gone")


def test_what_a_calibration_measured_is_kept(tmp_path, monkeypatch, answers):
    """Hours of decoding would print nothing of what they measured when the last threshold fails."""
    monkeypatch.setattr("reverse.evaluation.detector.decoded_risk.calibrate_decoding", fake_decoding)
    words = ("calibrate", answers, "--truth", "stored", "--resplits", 2, "--model", "tiny-llava", "--decode")
    result = call(*words, "--out", tmp_path / "new" / "out")
    assert (
        result.exit_code == 1
        and "the machine is gone" in result.stderr
        and "please report it" in result.stderr
    )
    assert "with 95% confidence" in result.stdout and result.stdout.count("0.0712") == 2
    content = json.loads((tmp_path / "new" / "out" / "calibration.json").read_text())
    assert [each["threshold"] for each in content["decoding"]] == [0.5, 0.25]
    result = call(*words, "--json")
    assert len(json.loads(result.stdout)["decoding"]) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rule", "conformal", "--decode", "--model", "tiny-llava"), "--decode tests with betting or"),
        (("--write", "--model", "tiny-llava"), "holds no config.json"),
        (("--out", "FILE"), "is a file: name a folder"),
    ],
)
def test_calibrations_that_cannot_end_do_not_begin(tmp_path, monkeypatch, answers, options, said):
    """What was asked for would turn out impossible after everything was computed."""
    monkeypatch.setattr(
        "reverse.evaluation.detector.calibration.calibrate", lambda *_: pytest.fail("calibrated")
    )
    options = [str(answers) if each == "FILE" else each for each in options]
    result = call("calibrate", answers, "--truth", "stored", *options)
    assert result.exit_code == 2 and said in result.stderr


def test_a_report_needs_a_folder_to_write(tmp_path, monkeypatch, answers):
    """Intervals of many runs would be computed for a page that has no place."""
    monkeypatch.setattr(
        "reverse.evaluation.reports.reporting.write_report", lambda *_, **__: pytest.fail("computed")
    )
    result = call("report", tmp_path, "--out", answers)
    assert result.exit_code == 2 and "is a file: name a folder" in result.stderr
