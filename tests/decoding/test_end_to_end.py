"""The benchmark from JPEG files to text, rehearsed on a CPU."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def end_to_end(monkeypatch):
    """The benchmark's module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("end_to_end", BENCHMARKS / "end_to_end.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "end_to_end", module)
    spec.loader.exec_module(module)
    return module


def test_the_rehearsal_writes_every_claim(end_to_end, tmp_path):
    """A mistake would show after minutes on a GPU, or as a claim that nobody measured."""
    report = end_to_end.main(["--tiny", "--device", "cpu", "--out", str(tmp_path)])
    (file,) = tmp_path.glob("end_to_end_*.json")
    assert json.loads(file.read_text("utf-8")) == report
    for name in ("tiny-llava", "tiny-qwen"):
        figures, claims = report["models"][name], report["claims"]
        assert claims[f"e2e_efficiency_{name}"] == figures["sequences4"]["efficiency"] > 0
        assert 0 < claims[f"e2e_over_decode_{name}"] < 1
        assert figures["sequences8"]["requests"] == 16
        assert figures["sequences4"]["calls"]["add"] >= 2 and figures["stages"]["encode"] > 0
