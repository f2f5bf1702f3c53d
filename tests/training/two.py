"""Two processes of one program, as torchrun starts them."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.warm_python import start_python

ROOT = Path(__file__).resolve().parents[2]
MOST_SECONDS = 240


def on_two(*program, **environment):
    """What became of a script, or of `-m` and a module with its arguments, in two processes.

    The processes have the environment of torchrun. If one fails, the other is ended, as torchrun does it.
    After `MOST_SECONDS` both print where they are and are killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"} | environment
    common |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        processes = [
            start_python(*program, stdout=out, stderr=err, RANK=rank, LOCAL_RANK=rank, **common)
            for rank in "01"
        ]
        ends = time.monotonic() + MOST_SECONDS
        try:
            while any(each.exitcode is None for each in processes) and time.monotonic() < ends:
                if any(each.exitcode for each in processes):
                    break
                time.sleep(0.05)
            is_late = time.monotonic() >= ends
            for each in processes:
                if each.exitcode is None:
                    os.kill(each.pid, signal.SIGABRT if is_late else signal.SIGTERM)
                each.join(10)
        finally:
            for each in processes:
                each.kill()
                each.join()
        said, errors = out.read_text(), err.read_text()
    assert not is_late, f"{program} took more than {MOST_SECONDS} s:\n{said}\n{errors}"
    code = next((each.exitcode for each in processes if each.exitcode), 0)
    return subprocess.CompletedProcess(program, code, said, errors)


def on_torchrun(*program, **environment):
    """The same, started by torchrun itself, whose store the processes use."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    env |= environment
    words = [*command, *map(str, program)]
    # To kill torchrun alone would not end the call: its children hold the pipes.
    with subprocess.Popen(
        words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            said, errors = process.communicate(timeout=MOST_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGABRT)  # the fault handler prints the stacks
            try:
                said, errors = process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                said, errors = process.communicate()
            raise AssertionError(f"{words} took more than {MOST_SECONDS} s:\n{said}\n{errors}") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(words, process.returncode, said, errors)
