"""Bad inputs, fuzzers, kills and doubled sizes: what the library does with what nobody should give it.

    python benchmarks/robustness.py                              # CPU, an hour on two cores
    python benchmarks/robustness.py --parts bad                  # minutes; parts: bad, fuzz, kills, doubling
    python benchmarks/robustness.py --parts fuzz --cases 20000   # goes on where it was stopped (--state)

Each part puts its figures into the results file as soon as it is done, with what it was run on.

bad: every entry of `tests/bad_inputs` is tried in this process; unclear is a traceback, a hang, a bad input
that is accepted, or a message without the value and what to do instead. fuzz: `tests/fuzz`. kills:
`benchmarks/kills.py`. doubling: `benchmarks/doubling.py`, CPU time over size from 64 kB to 1 MB.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

PARTS = ("bad", "fuzz", "kills", "doubling")
RESULTS = ROOT / "benchmarks" / "results" / "robustness.json"


def try_bad_inputs(shown: int = 30) -> dict[str, Any]:
    """Try every entry; counts by outcome, and what is unclear."""
    import reverse
    from tests.bad_inputs.judging import all_entries, judge
    from tests.bad_inputs.world import World

    root = Path(tempfile.mkdtemp(prefix="bad-inputs-"))
    world = World(root)
    original, reverse.load = reverse.load, world.load
    unclear: list[dict[str, str]] = []
    counts: Counter[str] = Counter()
    entries = all_entries()
    last = time.monotonic()
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            for number, entry in enumerate(entries, 1):
                verdict = judge(entry, world)
                counts[entry.expected] += 1
                if verdict.unclear:
                    unclear.append(
                        {"entry": entry.name, "unclear": verdict.unclear, "said": verdict.message[:300]}
                    )
                    print(f"unclear: {entry.name}: {verdict.unclear}", flush=True)
                if time.monotonic() - last > 30:
                    last = time.monotonic()
                    print(f"bad inputs: {number} of {len(entries)}, {len(unclear)} unclear", flush=True)
    finally:
        reverse.load = original
        shutil.rmtree(root, ignore_errors=True)
    return {
        "tried": len(entries),
        "expected": dict(counts),
        "unclear": len(unclear),
        "examples": unclear[:shown],
    }


def run_part(part: str, given: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """The claims of a part, and its details."""
    if part == "bad":
        found = try_bad_inputs()
        return {"bad_inputs_tried": found["tried"], "bad_inputs_unclear": found["unclear"]}, found
    if part == "fuzz":
        from tests.fuzz.long_run import fuzz
        from tests.fuzz.targets import TARGETS

        summary = fuzz(list(TARGETS), given.cases, given.seed, given.workers, given.state)
        return {"fuzz_cases": summary.cases, "fuzz_crashes": summary.failed}, summary.to_dict() | {
            "seed": given.seed
        }
    if part == "kills":
        from benchmarks.kills import measure as kill

        survived = kill(Path(given.out), tell=lambda line: print(line, flush=True))
        return {"kills_survived": sum(survived.values())}, survived
    from benchmarks.doubling import measure as double

    state = given.state and given.state.with_name(f"{given.state.name}.doubling")
    found = double(say=lambda line: print(line, flush=True), state=state)
    return {"doubling_exponent_max": max_exponent(found)}, found


def max_exponent(found: dict[str, Any]) -> float:
    """The highest slope of what `doubling.measure` gives."""
    return float(found["doubling_exponent_max"])


def write(part: str, claims: dict[str, Any], details: dict[str, Any], path: Path) -> None:
    """Put the figures of a part into the results, with the versions and the date it was run with."""
    from reverse.evaluation.runs.environment import describe_environment
    from reverse.files.atomic_write import write_json

    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    made = describe_environment("cpu")
    order = ("bad_inputs_tried", "bad_inputs_unclear", "fuzz_cases", "fuzz_crashes", "kills_survived",
             "doubling_exponent_max")  # fmt: skip
    known = {**content.get("claims", {}), **claims}
    parts = {**content.get("parts", {}), part: {"date": made["date"], **details}}
    content = {
        **made,
        "command": "python benchmarks/robustness.py",
        "claims": {name: known[name] for name in order if name in known},
        "parts": {name: parts[name] for name in PARTS if name in parts},
    }
    write_json(path, content)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--cases", type=int, default=1_000_000, help="of the fuzzers, together")
    parser.add_argument("--seed", type=int, default=0, help="of the fuzzers")
    parser.add_argument("--workers", type=int, default=2, help="processes of the fuzzers")
    parser.add_argument(
        "--state", type=Path, help="file of what the fuzzers finished; readers: STATE.doubling"
    )
    parser.add_argument(
        "--out", default=str(Path(tempfile.gettempdir()) / "kills"), help="folder of the kills"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    chosen = given.parts.split(",")
    if unknown := sorted(set(chosen) - set(PARTS)):
        parser.error(f"no part {', '.join(unknown)}: there are {', '.join(PARTS)}")
    import torch

    torch.set_num_threads(1)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    failed = False
    for part in chosen:
        claims, details = run_part(part, given)
        write(part, claims, details, given.results)
        print(f"{part}: {json.dumps(claims)}", flush=True)
        failed = failed or any(claims.get(name) for name in ("bad_inputs_unclear", "fuzz_crashes"))
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
