"""The report of modes: its figures against hand counts, its tables and its figure."""

import io
import json

import pytest
from rich.console import Console

from reverse.errors import DataError
from reverse.evaluation.modes.mode_report import ModeRun, make_report
from reverse.evaluation.modes.mode_tables import make_mode_tables
from reverse.evaluation.reports.plots import plot_modes
from reverse.evaluation.stats.bootstrap import BootstrapSettings
from reverse.files.json_values import replace_non_finite
from tests.evaluation.modes.recorded import answered, record, sample

FEW = BootstrapSettings(rounds=200)


@pytest.fixture(scope="module")
def report():
    before = [answered(str(i), i % 4 == 0, tokens=10, error="" if i % 4 == 0 else "count", p_un=(i % 7) / 8)
              for i in range(40)]  # fmt: skip
    after = []
    for i in range(40):
        right = i % 2 == 0
        samples = [sample(str(k), right and k > 0, 0.25 * k, tokens=12) for k in range(3)]
        after.append(
            record(str(i), *samples[:2], samples[2].model_copy(update={"accepted": True}), tokens=36)
        )
    return make_report([ModeRun("plain", tuple(before)), ModeRun("select", tuple(after))], FEW)


def test_figures_are_those_of_the_records(report):
    """A table would show another mode's figures, or another sign."""
    plain, select = report["modes"]
    assert (report["before"], report["questions"]) == ("plain", 40)
    assert plain["accuracy"][0] == 0.25 and plain["change"] is None and plain["curves"] is None
    assert select["accuracy"][0] == 0.5
    change = select["change"]
    assert [change[name][0] for name in ("before", "after", "wrong_to_right", "right_to_wrong", "net")] == [
        0.25, 0.5, 0.25, 0.0, 0.25
    ]  # fmt: skip
    assert change["net"][1] > 0
    assert select["cost"]["tokens"][0] == 36 and select["cost"]["tokens_per_right"][0] == 72
    assert select["errors"] == {
        "count": {"questions": 30, "corrected": select["errors"]["count"]["corrected"]}
    }
    assert select["errors"]["count"]["corrected"][0] == pytest.approx(1 / 3)
    curves = select["curves"]
    assert curves["sizes"] == [1, 2, 3] and curves["tokens"] == [12, 24, 36]
    assert [each[0] for each in curves["oracle"]] == pytest.approx([1 / 3, 0.5, 0.5])
    assert curves["best"][2][0] == curves["weighted"][2][0] == 0.5
    assert select["over_vote_at_equal_tokens"][0] == pytest.approx(0.5 - curves["vote"][2][0])
    assert plain["over_vote_at_equal_tokens"][0] == pytest.approx(0.25 - 1 / 3)  # one sample at least
    assert plain["on_frontier"] and select["on_frontier"]
    assert plain["auroc"]["answers"] is not None and select["auroc"]["answers"] is None


def test_tables_and_figure_hold_every_mode(report, tmp_path):
    """A mode would be missing from what people look at."""
    stream = io.StringIO()
    console = Console(file=stream, width=200)
    for table in make_mode_tables(report, "chartqa"):
        console.print(table)
    shown = stream.getvalue()
    assert "chartqa: 40 questions" in shown and "+25.0" in shown and "count" in shown
    assert all(name in shown for name in ("plain", "select", "oracle", "weighted vote"))
    written = plot_modes(report, tmp_path / "modes")
    assert [path.name for path in written] == ["modes.png", "modes.svg"]
    svg = written[1].read_text()
    assert "plain" in svg and "weighted vote, N = 1" in svg and "tokens generated a question" in svg
    before = [path.read_bytes() for path in written]
    assert before == [path.read_bytes() for path in plot_modes(report, tmp_path / "again")]


def test_a_report_without_a_right_answer_is_json():
    """NaN is not JSON, and a division by no right answer is not a figure."""
    runs = [ModeRun(name, (answered("a", False), answered("b", False))) for name in ("plain", "auto")]
    report = replace_non_finite(make_report(runs, FEW))
    assert json.loads(json.dumps(report, allow_nan=False))["modes"][0]["cost"]["tokens_per_right"] is None
    make_mode_tables(make_report(runs, FEW))


def test_a_mode_that_costs_more_and_is_no_better_is_not_on_the_frontier():
    """The figure would praise a mode that another one beats at every budget."""
    made = (("plain", 2, 10), ("auto", 3, 20), ("tree", 3, 30), ("reflect", 2, 10))
    runs = [
        ModeRun(name, tuple(answered(str(i), i < right, tokens=tokens) for i in range(4)))
        for name, right, tokens in made
    ]
    report = make_report(runs, FEW)
    assert [mode["on_frontier"] for mode in report["modes"]] == [True, True, False, True]
    assert all(mode["over_vote_at_equal_tokens"] is None for mode in report["modes"])


def test_two_runs_of_one_name_are_refused():
    """Nobody could tell the rows of the table apart."""
    run = ModeRun("plain", (answered("a", True),))
    with pytest.raises(DataError, match=r"two runs have one name \(plain, plain\)"):
        make_report([run, run], FEW)
