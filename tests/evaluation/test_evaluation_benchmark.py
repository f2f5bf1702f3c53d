"""The benchmark of contenders on scenes, from end to end on a handful of them."""

import json
import sys

from benchmarks import evaluation


def test_every_contender_is_answered_compared_and_claimed(tmp_path, monkeypatch):
    """A full run would fail after hours, or lose the claims that other measurements made."""
    results = tmp_path / "evaluation.json"
    results.write_text(json.dumps({"claims": {"kills_survived": 20}, "device": "before"}))
    words = ["--count", "3", "--calibration", "3", "--batch-size", "3", "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["evaluation.py", *map(str, words), "--results", str(results)])
    evaluation.main()
    merged = json.loads(results.read_text())
    assert merged["claims"]["kills_survived"] == 20 and merged["device"] != "before"
    report = merged["models"]["tiny-llava"]
    assert set(report["table"]) == {"off", "on", "library", "best_likelihood", "best_confidence", "vcd"}
    assert set(report["claims"]) >= {
        "resampling_over_best_of_n", "auroc", "ece", "calibrated_risk_promised", "calibrated_risk_observed",
        "coverage_of_intervals",
    }  # fmt: skip
    on, best = (report["table"][name]["tokens"][0] for name in ("on", "best_likelihood"))
    assert report["n"] >= 2 and best >= on
    assert report["on_minus"]["vcd"]["chair_i"]["metric"] == "chair_i"
    lines = (tmp_path / "out" / "test" / "vcd.jsonl").read_text()
    evaluation.main()  # nothing is answered again
    assert (tmp_path / "out" / "test" / "vcd.jsonl").read_text() == lines
