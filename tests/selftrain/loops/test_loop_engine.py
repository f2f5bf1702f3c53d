"""The engine of loops, on stages that take no model."""

import contextlib
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reverse.errors import DataError, MissingPackageError, OutputExistsError, RequestError
from reverse.files.file_lock import OutputInUseError, output_lock
from reverse.selftrain.loops.loop_manifest import read_manifest
from reverse.selftrain.loops.loop_run import run_loop
from reverse.selftrain.loops.stage import LoopPlan, Stage, StageBody, find_keys
from tests.selftrain.loops.fake_stages import BODIES, Killed, files_of, kill_at, make_plan

SHAPE = [([], True), ([0], False), ([1], False), ([0, 2], True), ([2], False)]
SHAPES = st.lists(st.tuples(st.lists(st.integers(0, 5), max_size=3), st.booleans()), min_size=1, max_size=6)


@pytest.fixture(autouse=True)
def without_fsync(monkeypatch):
    """Kills are no power cuts: what was written is there. No model is to be freed either."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr("reverse.selftrain.loops.loop_run.release_memory", lambda: None)


def run(plan, root, **options):
    return run_loop(plan, root, BODIES, quiet=True, **options)


def status_of(root):
    return {stage["name"]: stage["status"] for stage in read_manifest(root)["stages"]}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SHAPES, st.lists(st.integers(1, 300), max_size=6))
def test_killed_loops_end_with_the_same_files(shape, kills):
    """A loop would mix half of a stage with another run of it, or keep what it should not."""
    plan = make_plan(shape)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run(plan, root / "whole")
        for number in kills:
            try:
                with kill_at(number):
                    run(plan, root / "killed")
            except Killed:
                pass
        run(plan, root / "killed")
        assert files_of(root / "killed") == files_of(root / "whole")


def test_kills_at_every_change_of_files_are_survived(tmp_path):
    """A moment between two writes that belong together would never be hit by chance."""
    plan = make_plan(SHAPE[:3], parts=1)
    run(plan, tmp_path / "whole")
    wanted = files_of(tmp_path / "whole")
    for number in range(1, 5000):
        root = tmp_path / "killed"
        shutil.rmtree(root, ignore_errors=True)
        try:
            with kill_at(number):
                run(plan, root)
            break
        except Killed:
            run(plan, root)
            assert files_of(root) == wanted, number
    assert number > 60


def test_files_that_no_stage_needs_are_deleted(tmp_path):
    """Checkpoints of 14 GB would fill the disk, one an iteration; drafts and results would be lost."""
    manifest = run(make_plan(SHAPE), tmp_path / "loop")
    assert [stage["status"] for stage in manifest["stages"]] == ["done", "removed", "removed", "done", "done"]
    assert sorted(path.name for path in (tmp_path / "loop/s-1").iterdir()) == ["all.json", "stage.json"]
    assert (tmp_path / "loop/s-4/pool/numbers.txt").exists() and (tmp_path / "loop/s-0/pool").exists()
    assert set(manifest["stages"][1]["outputs"]) == {"all.json", "pool/numbers.txt"}


def test_a_deleted_input_is_made_again(tmp_path):
    """A loop that is made longer could not begin: the files of its inputs are deleted."""
    plan = make_plan(SHAPE)
    run(plan, tmp_path / "loop")
    before = files_of(tmp_path / "loop")
    with pytest.raises(RequestError, match="which is not there: run it first with --stage s-2"):
        run(plan, tmp_path / "loop", only="s-3", redo=True)
    assert files_of(tmp_path / "loop") == before
    run(plan, tmp_path / "loop", only="s-1")
    assert status_of(tmp_path / "loop")["s-1"] == "done"
    run(plan, tmp_path / "loop", only="s-2")
    run(plan, tmp_path / "loop", only="s-3", redo=True)
    run(plan, tmp_path / "loop")
    assert files_of(tmp_path / "loop") == before
    shutil.rmtree(tmp_path / "loop/s-3")
    run(plan, tmp_path / "loop")
    assert files_of(tmp_path / "loop") == before


def test_single_stages_run_alone_and_in_order(tmp_path):
    """Whoever tries one stage would start hours of others, or get a result of inputs that are not there."""
    plan = make_plan(SHAPE)
    with pytest.raises(RequestError, match="s-1 needs s-0"):
        run(plan, tmp_path / "loop", only="s-1")
    run(plan, tmp_path / "loop", only="s-0")
    run(plan, tmp_path / "loop", only="s-1")
    assert list(status_of(tmp_path / "loop").values()) == ["done", "done", "pending", "pending", "pending"]
    with pytest.raises(RequestError, match="there is no stage 's-9': this loop has s-0, s-1"):
        run(plan, tmp_path / "loop", only="s-9")


def test_other_settings_are_refused_or_made_again(tmp_path):
    """A loop would go on with stages that other settings made, and nobody could tell afterwards."""
    root = tmp_path / "loop"
    run(make_plan(SHAPE), root)
    with pytest.raises(OutputExistsError, match=r"s-0, .*parts: 3 there, 4 now.*--redo"):
        run(make_plan(SHAPE, parts=4), root)
    run(make_plan(SHAPE, parts=4), root, redo=True)
    run(make_plan(SHAPE, parts=4), tmp_path / "other")
    assert files_of(root) == files_of(tmp_path / "other")


def test_loops_go_on_elsewhere(tmp_path):
    """Absolute paths would tie a loop to the machine that it began on."""
    plan = make_plan(SHAPE)
    run(plan, tmp_path / "whole")
    with pytest.raises(Killed), kill_at(60):
        run(plan, tmp_path / "first")
    shutil.move(tmp_path / "first", tmp_path / "second")
    run(plan, tmp_path / "second")
    assert files_of(tmp_path / "second") == files_of(tmp_path / "whole")
    assert str(tmp_path) not in json.dumps(files_of(tmp_path / "second"))


def test_what_cannot_move_begins_anew_elsewhere(tmp_path):
    """A half trained checkpoint names files of the old place."""
    seen = []

    def note(context):
        seen.append(sorted(path.name for path in context.out.iterdir() if path.name != "work.json"))
        (context.out / "half").write_text("")
        if len(seen) < 3:
            raise Killed

    def join(context):
        (context.out / "half").unlink()
        return {}

    plan = LoopPlan("fake", (Stage("one", "note"),))
    bodies = {"note": StageBody(join, note, is_movable=False)}
    for name in ("a", "a", "b"):
        if name == "b":
            shutil.move(tmp_path / "a", tmp_path / "b")
        with contextlib.suppress(Killed):
            run_loop(plan, tmp_path / name, bodies, quiet=True)
    assert seen == [[], ["half"], []]


def test_failures_are_written_down(tmp_path):
    """`status` would say that a stage is running which has failed hours ago."""

    def fail(context):
        raise DataError("the file is bad: mend it")

    plan = LoopPlan("fake", (Stage("one", "fail"),))
    with pytest.raises(DataError):
        run_loop(plan, tmp_path / "loop", {"fail": StageBody(fail)}, quiet=True)
    (stage,) = read_manifest(tmp_path / "loop")["stages"]
    assert (stage["status"], stage["error"]) == ("failed", "DataError: the file is bad: mend it")


def test_what_cannot_run_is_refused_before_the_first_stage(tmp_path):
    """A missing package would end a loop after hours of training."""
    plan = make_plan(SHAPE[:3])
    checked = []

    def check(stage, processes):
        checked.append((stage.name, processes))
        if stage.name == "s-2":
            raise MissingPackageError("trl is not installed")

    bodies = {"numbers": replace(BODIES["numbers"], check=check)}
    with pytest.raises(MissingPackageError, match="stage s-2: trl is not installed"):
        run_loop(plan, tmp_path / "loop", bodies, quiet=True, processes=2)
    assert checked == [("s-0", 2), ("s-1", 2), ("s-2", 2)] and not (tmp_path / "loop").exists()
    run_loop(plan, tmp_path / "loop", bodies, quiet=True, only="s-0")
    run(plan, tmp_path / "loop")
    run_loop(plan, tmp_path / "loop", bodies, quiet=True)  # what is done is not refused


def test_one_process_runs_a_loop(tmp_path):
    """Two would write into each other's stages."""
    with output_lock(tmp_path / "loop"):
        with pytest.raises(OutputInUseError):
            run(make_plan(SHAPE), tmp_path / "loop")


def test_foreign_folders_stay(tmp_path):
    """A folder of the user that has a stage's name would be taken for one, or deleted."""
    (tmp_path / "loop/s-0").mkdir(parents=True)
    (tmp_path / "loop/s-0/notes.txt").write_text("mine")
    with pytest.raises(DataError, match="no stage of a loop"):
        run(make_plan(SHAPE), tmp_path / "loop", redo=True)
    assert (tmp_path / "loop/s-0/notes.txt").read_text() == "mine"


def test_keys_follow_what_decides_the_result():
    """A stage would be taken for done although something before it has changed."""
    keys = find_keys(make_plan(SHAPE).stages)
    assert find_keys(make_plan(SHAPE).stages) == keys and len(set(keys.values())) == len(keys)
    others = find_keys(make_plan(SHAPE, parts=4).stages)
    assert not set(others.values()) & set(keys.values())
    with pytest.raises(RequestError, match="comes later"):
        LoopPlan("fake", (Stage("one", "numbers", inputs={"a": "two"}), Stage("two", "numbers")))
    with pytest.raises(RequestError, match="name of a stage"):
        LoopPlan("fake", (Stage("../one", "numbers"),))
