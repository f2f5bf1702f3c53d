"""The fuzzers for as long as one likes.

    python -m tests.fuzz --cases 1000000 --seed 0 --workers 2 --state /tmp/fuzz.jsonl
    python -m tests.fuzz --target pictures --seed 0 --case 1234      # one case again, with its traceback

With --state every finished piece of work is kept as a line, and the same command goes on behind it. Ctrl-C
reports what there is. Exit code 1 where a case failed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.running import Found, attempt, make_case, run_case

PIECE = 250  # cases of one piece of work
EVERY = 15.0  # seconds between two lines
KEPT = 3  # findings kept of one kind at one place


@dataclass
class Summary:
    """What a run has found so far."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    found: list[dict[str, Any]] = field(default_factory=list)
    failed: int = 0

    @property
    def cases(self) -> int:
        return sum(sum(counts.values()) for counts in self.outcomes.values())

    def add(self, line: dict[str, Any]) -> None:
        self.outcomes.setdefault(line["target"], Counter()).update(line["outcomes"])
        self.failed += line["outcomes"].get("failed", 0)
        for one in line["found"]:
            like = [o for o in self.found if (o["target"], o["where"]) == (one["target"], one["where"])]
            if len(like) < KEPT:
                self.found.append(one)

    def to_dict(self) -> dict[str, Any]:
        return {
            "cases": self.cases,
            "failed": self.failed,
            "targets": {name: dict(counts) for name, counts in sorted(self.outcomes.items())},
            "found": self.found,
        }


def pieces(names: list[str], cases: int, seed: int) -> Iterator[tuple[str, int, int, int]]:
    """(target, seed, first case, how many) of a run, targets by turns, in proportion to their shares."""
    from tests.fuzz.targets import TARGETS

    whole = sum(TARGETS[name].share for name in names)
    wanted = {name: round(cases * TARGETS[name].share / whole) for name in names}
    wanted[names[0]] += cases - sum(wanted.values())
    queues = {
        name: [(at, min(PIECE, count - at)) for at in range(0, count, PIECE)]
        for name, count in wanted.items()
    }
    longest = max(map(len, queues.values()), default=0)
    for turn in range(longest):
        for name, queue in queues.items():
            for at, count in queue[turn * len(queue) // longest : (turn + 1) * len(queue) // longest]:
                yield name, seed, at, count


def work(piece: tuple[str, int, int, int]) -> dict[str, Any]:
    """Run one piece in a worker."""
    from tests.fuzz.targets import TARGETS

    name, seed, first, count = piece
    outcomes: Counter[str] = Counter()
    found: list[dict[str, Any]] = []
    for number in range(first, first + count):
        kinds = {(one["error"].split(":")[0], one["where"]) for one in found}
        result = run_case(TARGETS[name], seed, number, shrink=len(kinds) < KEPT)
        if isinstance(result, Found):
            outcomes["failed"] += 1
            if (result.error.split(":")[0], result.where) not in kinds:
                found.append(result.to_dict())
        else:
            outcomes[result] += 1
    return {"target": name, "seed": seed, "first": first, "outcomes": dict(outcomes), "found": found}


def prepare_worker() -> None:
    """One thread, lowest priority, no messages of C libraries, no more than 8 GB."""
    import resource
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(5)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))
    import torch

    torch.set_num_threads(1)


def fuzz(
    names: list[str], cases: int, seed: int, workers: int, state: Path | None = None, quiet: bool = False
) -> Summary:
    """Run `cases` in all; those of `state` are not run again."""
    summary, done = Summary(), set()
    for line in _lines(state):
        if line["seed"] == seed and line["target"] in names:
            summary.add(line)
            done.add((line["target"], line["first"], sum(line["outcomes"].values())))
    waiting = [p for p in pieces(names, cases, seed) if (p[0], p[2], p[3]) not in done]
    stream = state.open("a", encoding="utf-8") if state is not None else None
    try:
        for line in _results(waiting, workers):
            summary.add(line)
            if stream is not None:
                stream.write(json.dumps(line) + "\n")
                stream.flush()
            if not quiet:
                _tell(summary, cases, line)
    except KeyboardInterrupt:
        print(f"stopped after {summary.cases} cases", file=sys.stderr)
    finally:
        if stream is not None:
            stream.close()
    return summary


def _results(waiting: list[tuple[str, int, int, int]], workers: int) -> Iterator[dict[str, Any]]:
    """Pieces as they finish. A worker that dies is a finding of the piece it was at."""
    if not workers:  # in this process
        yield from map(work, waiting)
        return
    context = multiprocessing.get_context("spawn")
    while waiting:
        with ProcessPoolExecutor(workers, mp_context=context, initializer=prepare_worker) as pool:
            running: dict[Future[dict[str, Any]], tuple[str, int, int, int]] = {}
            try:
                while waiting or running:
                    while waiting and len(running) < workers:
                        piece = waiting.pop(0)
                        running[pool.submit(work, piece)] = piece
                    for ended in wait(running, return_when=FIRST_COMPLETED).done:
                        line = ended.result()
                        del running[ended]
                        yield line
            except BrokenProcessPool:
                for name, seed, first, count in running.values():
                    dead = Found(
                        name, seed, first, f"a process died in cases {first} to {first + count - 1}", "?", "?"
                    )
                    yield {
                        "target": name,
                        "seed": seed,
                        "first": first,
                        "outcomes": {"failed": 1},
                        "found": [dead.to_dict()],
                    }
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


_started = _last = time.monotonic()


def _tell(summary: Summary, cases: int, line: dict[str, Any]) -> None:
    global _last
    for one in line["found"]:
        print(f"failed: {Found(**one)}", file=sys.stderr, flush=True)
    now = time.monotonic()
    if now - _last > EVERY:
        _last = now
        rate = summary.cases / (now - _started)
        left = (cases - summary.cases) / rate if rate else 0
        print(
            f"{summary.cases:,} of {cases:,} cases, {summary.failed} failed, {rate:.0f} a second, "
            f"{left / 60:.0f} minutes left",
            file=sys.stderr,
            flush=True,
        )


def _lines(state: Path | None) -> Iterator[dict[str, Any]]:
    if state is None or not state.is_file():
        return
    for line in state.read_text(encoding="utf-8").split("\n"):
        if line.endswith("}"):
            yield json.loads(line)


def main() -> None:
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--target", action="append", choices=[*TARGETS], help="repeat it; by default all")
    parser.add_argument("--state", type=Path, help="file of finished pieces, to go on with")
    parser.add_argument("--case", type=int, help="run this case of one --target alone, with its traceback")
    given = parser.parse_args()
    names = given.target or list(TARGETS)
    if given.case is not None:
        target = TARGETS[names[0]]
        case = make_case(target, given.seed, given.case)
        print(repr(case)[:5000])
        outcome, error = attempt(target, case)
        if error is not None:
            raise error
        print(outcome)
        return
    summary = fuzz(names, given.cases, given.seed, given.workers, given.state)
    print(json.dumps(summary.to_dict(), indent=1))
    raise SystemExit(1 if summary.failed else 0)
