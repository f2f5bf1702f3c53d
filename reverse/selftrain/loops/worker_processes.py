"""Share a stage among processes, one for each GPU, as torchrun would.

`python -m reverse.selftrain.loops.worker_processes SPEC` is one of them. RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR and MASTER_PORT tell which; evaluation and training read them. On Linux the processes end with
the one that started them, also when it is killed: nobody goes on writing behind its back.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from reverse.errors import BackendError, ReverseError
from reverse.evaluation.runs.benchmark_run import find_place
from reverse.files.atomic_write import write_json
from reverse.files.text_reading import read_json
from reverse.selftrain.loops.stage import StageContext

__all__ = ["run_in_processes"]

SPEC = ".worker.json"  # a hidden name: left-overs of a kill are deleted with the others
_PR_SET_PDEATHSIG = 1


def run_in_processes(body: str, context: StageContext, count: int) -> None:
    """Run a parallel body in `count` processes and wait for all. Raises BackendError if one fails."""
    spec = context.out / SPEC
    write_json(
        spec,
        {
            "body": body,
            "parent": os.getpid(),
            "name": context.name,
            "inputs": {role: str(path) for role, path in context.inputs.items()},
            "outside": dict(context.outside),
            "settings": dict(context.settings),
            "seed": context.seed,
            "out": str(context.out),
        },
    )
    port = _find_port()
    started = [_start(spec, rank, count, port) for rank in range(count)]
    try:
        while any(process.poll() is None for process in started):
            failed = [i for i, process in enumerate(started) if process.poll() not in (None, 0)]
            if failed:
                break
            time.sleep(0.1)
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
            process.wait()
    codes = {rank: process.returncode for rank, process in enumerate(started) if process.returncode}
    spec.unlink(missing_ok=True)
    if codes:
        rank = next((rank for rank, code in codes.items() if code > 0), min(codes))
        raise BackendError(
            f"process {rank} of {count} of stage {context.name} ended with code {codes[rank]}: its message "
            "stands above"
        )


def _start(spec: Path, rank: int, count: int, port: int) -> subprocess.Popen[bytes]:
    env = os.environ | {
        "RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    return subprocess.Popen([sys.executable, "-m", __name__, str(spec)], env=env)


def _find_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _end_with_parent(parent: int) -> None:
    """Let the system end this process when its parent ends, if the system can do that."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before
        os._exit(1)


def _work(spec: dict[str, Any]) -> None:
    from reverse.progress import show_progress
    from reverse.selftrain.loops.stage_bodies import BODIES

    place = find_place()
    context = StageContext(
        spec["name"],
        {role: Path(path) for role, path in spec["inputs"].items()},
        spec["outside"],
        spec["settings"],
        spec["seed"],
        Path(spec["out"]),
        place,
    )
    run = BODIES[spec["body"]].run
    assert run is not None
    with show_progress(spec["name"], shown=place.rank == 0, transient=True) as progress:
        run(replace(context, progress=progress))


if __name__ == "__main__":
    given = read_json(sys.argv[1])
    _end_with_parent(given["parent"])
    try:
        _work(given)
    except ReverseError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
