"""Numbers that resampling cannot be done with: refused with the value, not by NumPy."""

import json

import pytest

from reverse.data.records.set_check import check_set
from reverse.evaluation.reports.reporting import ReportSettings, write_report
from reverse.evaluation.stats.bootstrap import (
    MAX_ROUNDS,
    BootstrapSettings,
    check_rounds,
    draw_counts,
    make_generator,
)


@pytest.mark.parametrize("rounds", [0, -1, MAX_ROUNDS + 1, 10**23])
def test_rounds_out_of_range(rounds):
    """`Maximum allowed dimension exceeded` says neither which number nor what to give instead."""
    with pytest.raises(ValueError, match=f"rounds must lie between 1 and 1,000,000, got {rounds}: 2000 is"):
        BootstrapSettings(rounds=rounds)
    with pytest.raises(ValueError, match=f"bins .*got {rounds}: 15 is usual"):
        check_rounds("bins", rounds, "15 is usual")


def test_negative_seed():
    """`expected non-negative integer` does not say of what."""
    with pytest.raises(ValueError, match="seed must be at least 0, got -1: try 0"):
        draw_counts(3, 2, -1)
    assert make_generator(10**23).random() == make_generator(10**23).random()


def report_settings(**bootstrap):
    return ReportSettings(bootstrap=BootstrapSettings(**bootstrap))


def test_a_report_checks_what_it_is_told(tmp_path):
    """A misspelt method, or pictures that are nowhere, would be noticed by nobody."""
    (tmp_path / "runs").mkdir()
    with pytest.raises(ValueError, match="bca or percentile, got 'bcaa'"):
        write_report([tmp_path / "runs"], tmp_path / "out", report_settings(method="bcaa"))
    with pytest.raises(ValueError, match="rounds must lie between 1 and 1,000,000, got 0"):
        write_report([tmp_path / "runs"], tmp_path / "out", report_settings(rounds=0))
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        write_report([tmp_path / "runs"], tmp_path / "out", report_settings(seed=-1))
    with pytest.raises(ValueError, match=r"no folder of pictures .*nowhere: name one"):
        write_report([tmp_path / "runs"], tmp_path / "out", ReportSettings(images=tmp_path / "nowhere"))


def test_a_sample_below_zero(tmp_path):
    """Tokens would be counted of no record, and nobody be told."""
    with pytest.raises(ValueError, match="token_sample must be at least 0, got -1"):
        check_set(write_records(tmp_path), token_sample=-1)


def write_records(folder):
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A dog."}]
    path = folder / "records.json"
    path.write_text(json.dumps([{"id": "1", "conversations": turns}]))
    return path
