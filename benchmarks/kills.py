"""`reverse eval` with the bundled model, killed with SIGKILL again and again, against an unbroken run.

    python benchmarks/kills.py --out /tmp/kills --results benchmarks/results/evaluation.json   # CPU, minutes

A kill falls at a random moment after the run has begun to write, or while it starts. Rows must be those of
the unbroken run, in the same order: all of each but its timings.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from reverse.data.files import write_json
from reverse.evaluation.answers import without_timing
from reverse.evaluation.reading import read_answers


def start(given: argparse.Namespace, out: Path) -> subprocess.Popen[bytes]:
    words = ["eval", "pope", "--model", given.model, "--data", "scenes", "--limit", str(given.limit)]
    words += ["--slots", "8", "--window", "16", "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-m", "reverse", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def answers(out: Path) -> Path | None:
    return next(iter(out.glob("pope*.jsonl")), None)


def written(out: Path) -> int:
    path = answers(out)
    return path.read_bytes().count(b"\n") if path is not None else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="tiny-llava")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--limit", type=int, default=60, help="scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="file of claims to merge into")
    given = parser.parse_args()
    shutil.rmtree(given.out, ignore_errors=True)
    draw = random.Random(given.seed)
    broken, reached = given.out / "broken", [0]
    for kill in range(given.kills):
        child = start(given, broken)
        if draw.random() < 0.85:  # else: while it starts
            end = time.monotonic() + 120
            while written(broken) <= reached[-1] and time.monotonic() < end and child.poll() is None:
                time.sleep(0.01)
        time.sleep(draw.random() * 0.5)
        child.send_signal(signal.SIGKILL)
        if child.wait() != -signal.SIGKILL:
            raise SystemExit(f"it ended before kill {kill}: raise --limit, now {given.limit}")
        reached.append(written(broken))
        print(f"kill {kill + 1}: {reached[-1]} answers", flush=True)
    for out in (broken, given.out / "whole"):
        if start(given, out).wait() != 0:
            raise SystemExit(f"the run into {out} failed")
    rows = []
    for out in (broken, given.out / "whole"):
        path = answers(out)
        assert path is not None
        rows.append([json.dumps(without_timing(row)) for row in read_answers(path, complete=True).rows])
    same = rows[0] == rows[1]
    print(f"{given.kills} kills, {len(rows[0])} rows, {'the same' if same else 'NOT the same'}")
    if not same:
        raise SystemExit(1)
    if given.results:
        found = json.loads(given.results.read_text(encoding="utf-8")) if given.results.exists() else {}
        found["claims"] = {**found.get("claims", {}), "kills_survived": given.kills}
        write_json(given.results, found)


if __name__ == "__main__":
    main()
