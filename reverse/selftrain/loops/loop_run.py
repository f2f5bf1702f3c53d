"""Run the stages of a loop. After a kill the same call continues, and ends with the same files.

    run_loop(plan, "out/r3v")                      # all stages that are not done
    run_loop(plan, "out/r3v", only="train-1")      # one of them

`DIR/loop.json` is the manifest: the inputs and the outcome of each stage. It is written anew at
every change, and made from the folders of the stages, which alone decide what is done. Paths in it are
relative, so a loop may be copied to another machine and go on there. One process runs a loop at a time.

Retention: when all stages that need a stage with keep="while needed" are done, its files are deleted, unless
it is a result of the loop. If one of them is asked for again, the stage is made again.
"""

from __future__ import annotations

import gc
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reverse.errors import OutputExistsError, RequestError, ReverseError
from reverse.files.atomic_write import json_bytes, replace_file
from reverse.files.file_lock import output_lock
from reverse.progress import show_progress
from reverse.selftrain.loops.loop_manifest import MANIFEST, make_manifest
from reverse.selftrain.loops.stage import LoopPlan, Stage, StageBody, StageContext, find_keys
from reverse.selftrain.loops.stage_folders import (
    begin_work,
    discard_stage,
    empty_stage,
    finish_work,
    read_record,
    recover_work,
    remove_discarded,
)
from reverse.selftrain.loops.worker_processes import run_in_processes

__all__ = ["run_loop"]

Say = Callable[[str], None]


def run_loop(
    plan: LoopPlan,
    root: str | Path,
    bodies: Mapping[str, StageBody],
    *,
    only: str | None = None,
    redo: bool = False,
    processes: int = 1,
    quiet: bool = False,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Run the stages that are not done yet, and return the manifest.

    Args:
        bodies: functions by the names that stages use.
        only: run this stage alone; its inputs must be done.
        redo: make stages again whose settings or inputs have changed; with `only`, that stage in any case.
        processes: that share the work of a parallel stage, one for each GPU.
        say: called with a line for each stage.

    Raises:
        OutputInUseError: another process runs this loop.
        OutputExistsError: stages were made with other settings (and `redo` is not set), or the folder holds
            something else.
        RequestError: an unknown stage, or one whose inputs are missing.
        ReverseError: a stage that is not done cannot run here, see `StageBody.check`; nothing is begun then.
    """
    run = _LoopRun(plan, Path(root), bodies, find_keys(plan.stages), processes, quiet, say)
    if only is not None:
        plan.stage(only)
    run.check_stages(only)
    with output_lock(root, reentrant=False):
        run.root.mkdir(parents=True, exist_ok=True)
        run.prepare(redo, only)
        if only is None:
            run.make_all()
        elif redo or not run.is_done(only):
            run.make(plan.stage(only))
        return run.write_manifest()


@dataclass
class _LoopRun:
    """One call of `run_loop`."""

    plan: LoopPlan
    root: Path
    bodies: Mapping[str, StageBody]
    keys: Mapping[str, str]
    processes: int
    quiet: bool
    say: Say
    needed: Counter[str] = field(default_factory=Counter)  # stages whose files somebody is about to read

    def check_stages(self, only: str | None) -> None:
        """Check that the stages that are not done can run here."""
        for stage in self.plan.stages:
            check = self.bodies[stage.body].check
            is_asked = only is None or stage.name == only
            if check is None or not is_asked or read_record(self.root, stage.name) is not None:
                continue
            try:
                check(stage, self.processes)
            except ReverseError as error:
                raise type(error)(f"stage {stage.name}: {error}") from error

    def prepare(self, redo: bool, only: str | None) -> None:
        """Check or discard existing stages, and write the manifest."""
        changed = [stage.name for stage in self.plan.stages if self._is_other(stage.name)]
        if changed and not redo:
            raise OutputExistsError(
                f"{self.root}: {', '.join(changed)} {'was' if len(changed) == 1 else 'were'} made with other "
                f"settings or inputs ({self._describe_change(changed[0])}): name another folder, or make "
                "them again with --redo"
            )
        if only is not None and (redo or not self.is_done(only)):
            self._require_inputs(self.plan.stage(only), changed)
        for name in changed:
            discard_stage(self.root, name)
        if redo and only is not None and only not in changed:
            discard_stage(self.root, only)
        for stage in self.plan.stages:  # a kill came while one was thrown away
            remove_discarded(self.root, stage.name)
        if self.plan.recipe:
            with replace_file(self.root / "recipe.yaml") as stream:
                stream.write(self.plan.recipe.encode())
        if only is not None:
            self.needed.update([only, *self.plan.stage(only).inputs.values()])
        self.retain()  # a kill may have come between
        self.write_manifest()

    def make_all(self) -> None:
        """Make every stage that is not done, and the inputs of these that were deleted."""
        for stage in self.plan.stages:
            record = read_record(self.root, stage.name)
            if record is None:
                self.make(stage)

    def make(self, stage: Stage) -> None:
        """Make one stage, after those of its inputs whose files are missing."""
        self.needed.update([stage.name, *stage.inputs.values()])
        for name in dict.fromkeys(stage.inputs.values()):
            if self.is_done(name):
                continue
            self.make(self.plan.stage(name))
        if read_record(self.root, stage.name) is not None:  # emptied: it is made again
            discard_stage(self.root, stage.name)
        key = self.keys[stage.name]
        if not recover_work(self.root, stage, key):
            self._do(stage, key)
        self.needed.subtract([stage.name, *stage.inputs.values()])
        self.retain()
        self.write_manifest()

    def _do(self, stage: Stage, key: str) -> None:
        body = self.bodies[stage.body]
        out = begin_work(self.root, stage, key, is_movable=body.is_movable)
        self.write_manifest(running=stage.name)
        self.say(f"{stage.name}: begins")
        inputs = {role: self.root / name for role, name in stage.inputs.items()}
        began = time.monotonic()
        try:
            with show_progress(stage.name, shown=not self.quiet, transient=True) as progress:
                context = StageContext(
                    stage.name, inputs, stage.outside, stage.settings, stage.seed, out, progress=progress,
                    quiet=self.quiet,
                )  # fmt: skip
                if body.run is not None:
                    if body.is_parallel and self.processes > 1:
                        run_in_processes(stage.body, context, self.processes)
                    else:
                        body.run(context)
                figures = body.join(context)
        except Exception as error:
            self.write_manifest(failed=(stage.name, f"{type(error).__name__}: {error}"))
            raise
        finally:
            release_memory()
        seconds = time.monotonic() - began
        input_keys = {role: self.keys[name] for role, name in stage.inputs.items()}
        finish_work(self.root, stage, key, input_keys, figures, seconds)
        self.say(f"{stage.name}: done in {seconds:.1f} s")

    def is_done(self, name: str) -> bool:
        """Whether the files of a stage exist."""
        record = read_record(self.root, name)
        return record is not None and record.state == "done"

    def retain(self) -> None:
        """Delete the files of stages that no other stage needs any more."""
        for stage in self.plan.stages:
            record = read_record(self.root, stage.name)
            if record is None or stage.keep == "always" or stage.name in self.plan.results:
                continue
            users = self.plan.users(stage.name)
            if (
                self.needed[stage.name] <= 0
                and users
                and all(read_record(self.root, user.name) is not None for user in users)
            ):
                empty_stage(self.root, stage.name)

    def write_manifest(
        self, running: str | None = None, failed: tuple[str, str] | None = None
    ) -> dict[str, Any]:
        """Write `loop.json` and return it."""
        manifest = make_manifest(self.plan, self.root, self.keys, running=running, failed=failed)
        with replace_file(self.root / MANIFEST) as stream:
            stream.write(json_bytes(manifest, indent=1) + b"\n")
        return manifest

    def _require_inputs(self, stage: Stage, changed: Sequence[str]) -> None:
        for name in dict.fromkeys(stage.inputs.values()):
            if name in changed or not self.is_done(name):
                raise RequestError(
                    f"stage {stage.name} needs {name}, which is not there: run it first with --stage {name}"
                )

    def _is_other(self, name: str) -> bool:
        record = read_record(self.root, name)
        return record is not None and record.key != self.keys[name]

    def _describe_change(self, name: str) -> str:
        """Describe the difference of the first stage that was made with other settings or inputs."""
        record = read_record(self.root, name)
        assert record is not None
        stage, before = self.plan.stage(name), record.content
        for key, value in stage.settings.items():
            was = before.get("settings", {}).get(key)
            if was != value:
                return f"{key}: {was!r:.60} there, {value!r:.60} now"
        return "its seed" if before.get("seed") != stage.seed else "what it is made from"


def release_memory() -> None:
    """Free the memory of a stage, also on GPUs."""
    gc.collect()
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
