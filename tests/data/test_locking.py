"""Two processes on one output: the second is told who the first is, and writes nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from reverse.data.records.importer import import_records
from reverse.data.records.subsets import subsample
from reverse.data.scenes import write_scenes
from reverse.data.scenes.benchmark_files import write_benchmarks
from reverse.endpoints.reply_cache import ReplyCache
from reverse.evaluation.runs.answers_files import AnswersFile
from reverse.files import atomic_write, file_lock
from reverse.files.atomic_write import atomic_write_dir
from reverse.files.file_lock import OutputInUseError, describe_owner, lock_path, output_lock
from reverse.files.resumable_parts import PartFile

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys
from contextlib import ExitStack
from reverse.files.file_lock import output_lock
with ExitStack() as stack:
    for name in sys.argv[1:]:
        stack.enter_context(output_lock(name))
    print("held", flush=True)
    sys.stdin.read()
"""
OUTPUTS = ("folder", "out.json", "out.jsonl")


def hold(*outputs):
    """A process that holds the locks of `outputs` until it is killed."""
    command = [sys.executable, "-c", HOLD, *map(str, outputs)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """(folder, process): the process holds the locks of OUTPUTS in the folder."""
    folder = tmp_path_factory.mktemp("held")
    process = hold(*(folder / name for name in OUTPUTS))
    yield folder, process
    process.kill()
    process.communicate()


def records(folder):
    path = folder / "records.json"
    said = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hi"}]
    path.write_text(json.dumps([{"id": "1", "conversations": said}]))
    return path


def answers(path):
    return AnswersFile(path, {"config": {}, "questions": {"ids": []}})


def filled(path):
    with atomic_write_dir(path) as inside:
        (inside / "a").write_text("a")


WRITERS = {
    "scenes": ("folder", lambda out, there: write_scenes(out, "test", 1)),
    "benches": ("folder", lambda out, there: write_benchmarks(out, "test", 1)),
    "import": ("folder", lambda out, there: import_records(records(there), out)),
    "checkpoint": ("folder", lambda out, there: filled(out)),
    "subsample": ("out.json", lambda out, there: subsample(records(there), out, 1)),
    "plain half": (
        "out.json",
        lambda out, there: subsample(
            records(there), there / "a.json", 1, plain=records(there), plain_out=out
        ),
    ),
    "pass": ("out.json", lambda out, there: PartFile(out, {"seed": 0})),
    "file": ("out.json", lambda out, there: atomic_write.write_json(out, {})),
    "answers": ("out.jsonl", lambda out, there: answers(out)),
    "replies": ("out.jsonl", lambda out, there: ReplyCache(out)),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_names_the_other_process(other, tmp_path, monkeypatch, writer):
    """Two runs would end well and one have replaced the other, or end in a bare "No such file"."""
    monkeypatch.setattr(atomic_write, "LOCK_WAIT", 0.0)
    folder, process = other
    before = sorted(folder.rglob("*"))
    name, write = WRITERS[writer]
    with pytest.raises(OutputInUseError) as caught:
        write(folder / name, tmp_path)
    said = str(caught.value)
    assert said.startswith(f"{folder / name} is being written by another process: {process.pid} on ")
    assert "-c" in said and "since 20" in said and said.endswith("or name another output")
    assert not (folder / name).exists()
    assert [path for path in sorted(folder.rglob("*")) if path not in before] in (
        [],
        [folder / "out.run.json"],  # what a run is, which all its processes write alike
    )


def test_a_killed_process_holds_nothing(tmp_path):
    """After a SIGKILL every later run would be refused until someone removes a file."""
    out = tmp_path / "out"
    process = hold(out)
    with pytest.raises(OutputInUseError, match=str(process.pid)), output_lock(out):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert lock_path(out).exists()
    with output_lock(out):
        assert f"{os.getpid()} on " in describe_owner(lock_path(out))
    assert list(tmp_path.iterdir()) == []


def test_a_lock_leaves_nothing_and_may_be_taken_twice(tmp_path):
    """Folders would fill with lock files, or a function that calls another lock itself out."""
    with output_lock(tmp_path / "new" / "out"), output_lock(tmp_path / "new" / "out"):
        with pytest.raises(OutputInUseError), output_lock(tmp_path / "new/out", reentrant=False):
            pass
    assert [path.name for path in tmp_path.rglob("*")] == ["new"]
    with pytest.raises(KeyError), output_lock(tmp_path / "out"):
        raise KeyError
    with output_lock(tmp_path / "out"):
        pass


def test_one_output_under_two_names(tmp_path, monkeypatch):
    """A link or a relative path would get around the lock."""
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    paths = {lock_path(name) for name in (tmp_path / "real", "real", "./real/", tmp_path / "link")}
    assert paths == {tmp_path / ".real.lock"}


def test_another_thread_is_another_writer(tmp_path):
    """Two threads of a server would write one output."""
    said = []

    def write():
        try:
            with output_lock(tmp_path / "out"):
                said.append("written")
        except OutputInUseError as error:
            said.append(str(error))

    with output_lock(tmp_path / "out"):
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert len(said) == 1 and "this process, another thread" in said[0]


def test_files_written_at_once_are_whole(tmp_path):
    """Writers of one file would share a temporary name, and the file hold parts of both."""
    path, content = tmp_path / "out.json", list(range(3000))
    errors = []

    def write(number):
        try:
            atomic_write.write_json(path, [number, *content])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and json.loads(path.read_text())[1:] == content
    assert [each.name for each in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 9000, b"{}", b'{"pid": "x"}', b"17"])
def test_an_owner_that_cannot_be_read(tmp_path, content):
    """A torn or foreign lock file would end in an error about JSON."""
    (tmp_path / "lock").write_bytes(content)
    assert describe_owner(tmp_path / "lock") == "another process"


def test_an_owner_is_shown_in_one_short_line(tmp_path):
    """Control characters of a lock file would reach the terminal."""
    owner = {"pid": 7, "host": "h\x1b[31m", "command": "x\n" * 5000, "since": "now"}
    (tmp_path / "lock").write_text(json.dumps(owner)[: 1 << 14])
    said = describe_owner(tmp_path / "lock")
    assert len(said) < 400 and said.isprintable() and said.startswith("another process: 7 on h [31m")


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    """Nothing could be written there, or two processes write and nobody knows."""

    def flock(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.warns(UserWarning, match="has no locks"), output_lock(tmp_path / "out"):
        pass


def test_a_mounted_folder_is_locked_inside(tmp_path, monkeypatch):
    """A folder whose parent folder is read-only could not be written to any more."""
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(file_lock.os, "access", lambda path, mode: Path(path) != tmp_path)
    assert lock_path(tmp_path / "out") == tmp_path / "out" / ".lock"
    assert write_scenes(tmp_path / "out", "test", 1)["count"] == 1
    assert not (tmp_path / ".out.lock").exists()
