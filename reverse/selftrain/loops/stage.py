"""The parts of a loop: stages, their bodies, and the keys that decide whether a stage is done.

    Stage("sample-1", "answer", {"n": 3}, inputs={"questions": "questions", "model": "train-0"}, seed=0)

A body is a function of the folders of its inputs, its settings and its seed; it writes into a folder of its
own. A key is a hash of the body's name, the settings, the seed and the keys of the inputs. So a stage with
the same key has the same result, wherever the loop lies and whatever became of its inputs since.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from reverse.errors import RequestError
from reverse.evaluation.runs.benchmark_run import ProcessPlace
from reverse.progress import ProgressCallback

__all__ = ["LoopPlan", "Stage", "StageBody", "StageContext", "draw_seed", "find_keys"]

FORMAT = 1  # of what stages write; part of every key
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
Keep = Literal["always", "while needed"]


def _ignore_progress(done: float, total: float | None = None, note: str = "") -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Stage:
    """One step of a loop.

    Args:
        name: of its folder.
        body: name of the function that does it.
        settings: JSON values that decide the result.
        inputs: maps a role, such as "model", to the stage whose folder has this role.
        seed: random seed.
        keep: "while needed" deletes its files, but for JSON at the top, when no later stage needs them.
        outside: paths beyond the loop's folder. They may differ between machines, so they are not a part of
            the key; `settings` holds a hash of the files that are read.
    """

    name: str
    body: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    keep: Keep = "always"
    outside: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LoopPlan:
    """All stages of a loop; the inputs of a stage stand before it. `results` are kept at the end. Raises
    RequestError for names that are not folder names, are repeated, or are used before their stage.
    """

    system: str
    stages: tuple[Stage, ...]
    results: tuple[str, ...] = ()
    recipe: str = ""  # YAML, written into the loop's folder

    def __post_init__(self) -> None:
        known: set[str] = set()
        for stage in self.stages:
            if not _NAME.fullmatch(stage.name) or stage.name in known:
                raise RequestError(
                    f"the name of a stage must consist of lower-case letters, digits and -, and occur "
                    f"once, got {stage.name!r}"
                )
            missing = set(stage.inputs.values()) - known
            if missing:
                raise RequestError(
                    f"stage {stage.name} needs {', '.join(sorted(missing))}, which comes later"
                )
            known.add(stage.name)

    def stage(self, name: str) -> Stage:
        """Return the stage of a name. Raises RequestError for an unknown one."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        known = ", ".join(stage.name for stage in self.stages)
        raise RequestError(f"there is no stage {name!r:.80}: this loop has {known}")

    def users(self, name: str) -> list[Stage]:
        """Return the stages that use a stage as input."""
        return [stage for stage in self.stages if name in stage.inputs.values()]


@dataclass(frozen=True)
class StageContext:
    """The arguments of a body.

    `inputs` are the folders of the input stages by role, `out` is the folder to write to. Files that an
    earlier run of the same stage left in `out` are kept, so a body may resume from them. `place` is the rank
    and the number of processes.
    """

    name: str
    inputs: Mapping[str, Path]
    outside: Mapping[str, str]
    settings: Mapping[str, Any]
    seed: int
    out: Path
    place: ProcessPlace = field(default_factory=ProcessPlace)
    progress: ProgressCallback = _ignore_progress
    quiet: bool = False


@dataclass(frozen=True)
class StageBody:
    """The functions that do a stage.

    Args:
        run: does the work; of a parallel body in every process.
        join: called in one process when `run` has ended everywhere; returns figures (JSON) of the stage.
        is_parallel: whether several processes share the work.
        is_movable: False: files of a killed run cannot be used in another folder.
        check: called before the first stage of a loop begins, with the stage and the number of processes.
            Raises a ReverseError for what the stage would refuse hours later, such as a package that is not
            installed or settings that exclude each other.
    """

    join: Callable[[StageContext], dict[str, Any]]
    run: Callable[[StageContext], None] | None = None
    is_parallel: bool = False
    is_movable: bool = True
    check: Callable[[Stage, int], None] | None = None


def draw_seed(seed: int, name: str) -> int:
    """Draw the seed of a stage, below 2**31."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4], "big") >> 1


def find_keys(stages: Sequence[Stage]) -> dict[str, str]:
    """Compute the key of each stage: 16 hexadecimal digits."""
    keys: dict[str, str] = {}
    for stage in stages:
        content = {
            "format": FORMAT,
            "body": stage.body,
            "settings": dict(stage.settings),
            "seed": stage.seed,
            "inputs": {role: keys[name] for role, name in stage.inputs.items()},
        }
        data = json.dumps(content, sort_keys=True, ensure_ascii=True, allow_nan=False)
        keys[stage.name] = hashlib.sha256(data.encode()).hexdigest()[:16]
    return keys
