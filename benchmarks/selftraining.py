"""Loops of self-training, tiny and on a CPU, killed with SIGKILL again and again.

    PYTHONPATH=. python benchmarks/selftraining.py kills --out /tmp/loops                 # 20 kills a loop
    PYTHONPATH=. python benchmarks/selftraining.py kills --out /tmp/loops --system r3v --kills 5

A kill falls at a random moment between the start of a loop and its end. The loop is started again as it was;
where it ends by itself, its folder is compared with that of an unbroken run, and it begins anew. What must be
the same: all files, weights byte for byte, but for measured seconds and how often a stage was begun. The
kills that were survived go to `claims.kills_survived` in benchmarks/results/selftraining.json, and the stages
that they fell in to `parts.kills`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reverse.files.atomic_write import write_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results/selftraining.json"
COMMAND = "PYTHONPATH=. python benchmarks/selftraining.py kills --out /tmp/loops"
MORE: dict[str, dict[str, Any]] = {  # settings of tiny loops beside those that all have
    "srpo": {
        "mix": 8,
        "share_right": 0.9,
        "grpo_optim.steps": 4,
        "log.save_steps": 2,  # of GRPO too
        "grpo_optim.global_batch": 2,
        "grpo_optim.batch": 4,
    },
}
TIMES = (
    "seconds", "startup_seconds", "steps_per_second", "rows_per_second", "step_time", "begun", "outputs",
    "timing",
)  # fmt: skip


def remove_times(value: Any) -> Any:
    """A JSON value without what a clock decides, and without hashes of files that hold it."""
    if isinstance(value, dict):
        return {key: remove_times(each) for key, each in value.items() if key not in TIMES}
    return [remove_times(each) for each in value] if isinstance(value, list) else value


def files_of_loop(root: Path) -> dict[str, str]:
    """Every file of a loop: texts of JSON without times, hashes of everything else."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if not path.is_file() or name == "recipe.yaml":  # holds the folder's own name
            continue
        if path.suffix == ".json":
            found[name] = json.dumps(remove_times(json.loads(path.read_text())))
        elif path.suffix == ".jsonl":
            lines = path.read_text().splitlines()
            found[name] = "\n".join(json.dumps(remove_times(json.loads(line))) for line in lines)
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def start(words: list[str]) -> subprocess.Popen[bytes]:
    """A command in a process of its own, on one thread."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "REVERSE_PROCESSES": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "reverse", "selftrain", *words],
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(words: list[str]) -> float:
    """Run a loop to its end; its seconds."""
    begun = time.monotonic()
    child = start(words)
    _, errors = child.communicate()
    if child.returncode:
        raise SystemExit(f"exit code {child.returncode}: {' '.join(words)}\n{errors.decode()[-2000:]}")
    return time.monotonic() - begun


def survive(
    words: Callable[[Path], list[str]],
    kills: int,
    folder: Path,
    seed: int = 0,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Kill a loop so often; return the kills that were survived, by the stage that was running.

    Raises SystemExit where files differ.
    """
    whole = folder / "whole"
    unbroken = seconds = finish(words(whole))
    tell(f"unbroken: {seconds:.0f} s")
    wanted = files_of_loop(whole)
    draw = random.Random(seed)
    stages: Counter[str] = Counter()
    done = turn = 0
    while done < kills:
        broken, turn = folder / f"broken{turn}", turn + 1
        while done < kills:
            began, is_new = time.monotonic(), not broken.exists()
            child = start(words(broken))
            try:
                child.wait(seconds * draw.uniform(0.1, 1.0))
                if is_new and child.returncode == 0:  # the loop runs faster than when it was timed
                    seconds = min(seconds, time.monotonic() - began)
                break  # it came to its end
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
            if child.wait() == -signal.SIGKILL:
                done += 1
                stages[find_running(broken)] += 1
                tell(f"kill {done} of {kills}, in {find_running(broken)}")
        finish(words(broken))
        found = files_of_loop(broken)
        if found != wanted:
            differ = [name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)]
            raise SystemExit(f"{broken} is NOT the same as {whole} after {done} kills: {sorted(differ)[:10]}")
        shutil.rmtree(broken)
    return {"kills": done, "seconds_unbroken": round(unbroken, 1), "stages": dict(sorted(stages.items()))}


def find_running(root: Path) -> str:
    """The stage that a killed loop had begun and not ended, or "between stages"."""
    path = root / "loop.json"
    stages = json.loads(path.read_text())["stages"] if path.exists() else []
    return next((stage["name"] for stage in stages if stage["status"] == "running"), "between stages")


def run_kills(systems: list[str], kills: int, folder: Path) -> dict[str, dict[str, Any]]:
    """The kills that each loop survived."""
    from tests.selftrain.loops.tiny_world import tiny_settings, write_tiny_world

    if not (folder / "world").exists():
        write_tiny_world(folder / "world")
    survived: dict[str, dict[str, Any]] = {}
    for system in systems:
        place = folder / system
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)

        def words(out: Path, system: str = system) -> list[str]:
            more = {"log.save_steps": 10, **MORE.get(system, {})}
            settings = tiny_settings(folder / "world", out, **more)
            given = [each for key in settings for each in ("--set", key)]
            return [system, f"{system}_tiny", "--quiet", *given]

        survived[system] = survive(
            words, kills, place, tell=lambda line, s=system: print(f"{s}: {line}", flush=True)
        )
        _record(system, survived[system])
    return survived


def _record(system: str, figures: dict[str, Any]) -> None:
    """Add the figures of one loop to the results; those of other loops stay."""
    from reverse.evaluation.runs.environment import describe_environment

    made = describe_environment("cpu") | {"command": COMMAND}
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {**made, "claims": {}, "parts": {}}
    claims, parts = results.setdefault("claims", {}), results.setdefault("parts", {})
    loops = parts.get("kills", {}).get("loops", {})
    loops[system] = {**made, **figures}
    parts["kills"] = {"loops": loops}
    claims["kills_survived"] = {name: each["kills"] for name, each in loops.items()}
    write_json(RESULTS, results)


def main() -> None:
    from reverse.selftrain.loops.loop_systems import SYSTEMS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=["kills"])
    parser.add_argument("--out", type=Path, required=True, help="folder for what is made and thrown away")
    parser.add_argument("--system", choices=sorted(SYSTEMS), action="append", help="default: all")
    parser.add_argument("--kills", type=int, default=20, help="of each loop")
    given = parser.parse_args()
    print(json.dumps(run_kills(given.system or list(SYSTEMS), given.kills, given.out.resolve())))


if __name__ == "__main__":
    main()
