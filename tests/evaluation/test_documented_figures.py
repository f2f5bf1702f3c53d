"""README and docs/statistics.md quote the same measurement: each figure is the one of the JSON file."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROWS = {  # of docs/statistics.md: which rows of the measurement
    "checking off": "off",
    "**resampling, the library's defaults**": "library",
    "**resampling, the benchmark's settings**": "on",
    "best of 2, likelihood": "best_likelihood",
    "best of 2, p(`</CN>`)": "best_confidence",
    "VCD (two forwards a token)": "vcd",
}
MODELS = ("tiny-llava", "tiny-qwen")


@pytest.fixture(scope="module")
def measured():
    content = json.loads((ROOT / "benchmarks/results/evaluation.json").read_text())
    return {model: content["models"][model]["table"] for model in MODELS}


def share(figures):
    """A share with its interval, in percent."""
    value, low, high = (f"{100 * x:.1f}" for x in figures)
    return f"{value} ({low}–{high})"


def cells(path, name):
    """The cells of the table rows that begin with a name, without emphasis; one list a row."""
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    found = [
        [cell.strip(" *") for cell in line.split("|")[2:-1]]
        for line in lines
        if line.startswith(f"| {name} |")
    ]
    assert found, f"{path} has no row {name!r}"
    return found


@pytest.mark.parametrize("name", ROWS)
def test_the_table_of_baselines(name, measured):
    """The same scenes had other figures in the README, and nobody could say why."""
    wanted = []
    for model in MODELS:
        row = measured[model][ROWS[name]]
        wanted += [share(row["chair_i"]), f"{100 * row['coverage'][0]:.1f}", f"{row['tokens'][0]:.0f}"]
    assert cells("docs/statistics.md", name)[0] == wanted


@pytest.mark.parametrize("model", MODELS)
def test_the_figures_of_the_readme(model, measured):
    """They are called those of the library's defaults, and must be."""
    for shown, name in ((f"{model}, checking off", "off"), (f"**{model}, checking on**", "library")):
        row = measured[model][name]
        found = cells("README.md", shown)[0]
        assert found[:3] == [share(row[each]) for each in ("chair_i", "chair_s", "coverage")]
        assert found[-1] == f"{row['tokens'][0]:.0f}"
