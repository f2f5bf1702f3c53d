"""The benchmark of robustness: figures of its parts in one file, and kills that would be noticed."""

import json
import subprocess
import sys

import pytest

from benchmarks import kills, robustness

# Writes ten numbers, one at a time, going on behind those there are; a careless one begins behind the next.
WRITER = """
import sys, time
from pathlib import Path
path, careless = Path(sys.argv[1]), int(sys.argv[2])
done = len(path.read_text().split()) if path.exists() else 0
for i in range(done + careless * bool(done), 10):
    with path.open("a") as stream:
        stream.write(f"{i} ")
    time.sleep(0.03)
"""


@pytest.mark.parametrize("careless", [0, 1])
def test_kills_are_counted_and_a_difference_is_seen(tmp_path, monkeypatch, careless):
    """A run that loses what was written before a kill would be counted as one that survived it."""

    def begin(words):
        return subprocess.Popen([sys.executable, "-S", "-c", WRITER, *words])

    monkeypatch.setattr(kills, "start", begin)
    job = kills.Job(lambda out: [str(out), str(careless)], lambda out: out.read_text())
    if careless:
        with pytest.raises(SystemExit, match="NOT the same"):
            kills.survive(job, 100, tmp_path, tell=lambda line: None)  # it ends at the first that is seen
    else:
        told = []
        assert kills.survive(job, 4, tmp_path, tell=told.append) == 4 == len(told)


def test_parts_go_into_one_file(tmp_path):
    """A part that is measured again would wipe out the claims of the others."""
    path = tmp_path / "robustness.json"
    robustness.write("kills", {"kills_survived": 60}, {"eval": 60}, path)
    robustness.write("bad", {"bad_inputs_tried": 9, "bad_inputs_unclear": 0}, {"tried": 9}, path)
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["claims"] == {"bad_inputs_tried": 9, "bad_inputs_unclear": 0, "kills_survived": 60}
    assert found["parts"]["kills"]["eval"] == 60 and found["parts"]["bad"]["date"] == found["date"]
    assert found["command"] and found["transformers"] and found["device"]
