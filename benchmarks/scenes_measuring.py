"""What trained models answer about scenes: thresholds chosen on val, every contender on test and on shift.

Used by `scenes_training.py`. A piece is what one contender of one run answered about one split, counted scene
by scene; it is a line of `pieces.jsonl`, written when it is there, and never measured again. All of it is
decoded in float32, so that an answer is the same in any batch, on any device but for its rounding.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.training_claims import (
    CORRECTING,
    CORRECTING_YES_NO,
    STRICT_COVERAGE,
    choose_thresholds,
    columns,
    merge,
    points,
)
from reverse.files.atomic_write import write_json
from reverse.files.json_values import replace_non_finite

THRESHOLDS = (0.5, 0.3, 0.2, 0.14, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01)
SPLITS = ("test", "shift")


@dataclass(frozen=True)
class Run:
    """A tagged model, `folder/tags`, and its twin, `folder/twin`, where there is one."""

    family: str
    seed: int
    variant: str
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.family}-{self.seed}-{self.variant}"

    @property
    def twin(self) -> bool:
        return (self.folder / "twin").is_dir()

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS if self.variant == "main" else ("test",)


class Pieces:
    """`pieces.jsonl`: what was measured, and what was trained (lines with a `kind`)."""

    def __init__(self, path: Path):
        self.path, self.lock = path, threading.Lock()
        self.lines = read_pieces([path])

    def find(self, **place: Any) -> dict[str, Any] | None:
        with self.lock:
            return next((p for p in self.lines if all(p.get(k) == v for k, v in place.items())), None)

    def append(self, line: dict[str, Any]) -> None:
        with self.lock, self.path.open("a", encoding="utf-8") as file:
            self.lines.append(line)
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


class Measuring:
    """Processes that measure, and what they found."""

    def __init__(self, pieces: Pieces, devices: list[str], options: argparse.Namespace, say: Any):
        self.pieces, self.devices, self.options, self.say = pieces, devices, options, say
        self.pool: ProcessPoolExecutor | None = None
        self.lock = threading.Lock()
        self.asked: dict[str, Future[dict[str, Any]]] = {}

    def warm(self) -> None:
        """Start the processes: importing and opening a GPU takes ten seconds."""
        with self.lock:
            if self.pool is not None:
                return
            spawn = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(
                self.options.judges,
                mp_context=spawn,
                initializer=_open,
                initargs=(spawn.Value("i", 0), self.devices),
            )
            for _ in range(self.options.judges):
                self.pool.submit(time.sleep, 0.5)

    def measure(self, run: Run) -> dict[str, float | None]:
        """All rows of a run; its thresholds, as chosen on val."""
        self.warm()
        plain = ["off", "twin"] if run.twin else ["off"]
        others = [*plain, *(["yesno_twin", "yesno_on"] if run.variant == "main" else [])]
        waited = self._goal(run)
        asked = [self._ask(run, row, split) for split in run.splits for row in others]
        goal = waited()["columns"]
        chosen = choose_thresholds(self._sweep(run, goal), goal)
        self.say(f"{run.name} thresholds {chosen}")
        rows = {"on": chosen["default"], "strict": chosen["strict"]}
        places = [(row, split) for split in run.splits for row in rows]
        if run.variant == "main":
            rows["library"] = chosen["default"]
            places.append(("library", "test"))
        asked += [self._ask(run, row, split, rows[row]) for row, split in places]
        for future in asked:
            piece = future()
            shown = {name: round(value, 4) for name, value in points(piece["columns"]).items()}
            self.say(f"{run.name} {piece['split']} {piece['row']} {shown} ({piece['seconds']} s)")
        self.say(f"{run.name} is whole")
        return chosen

    def _goal(self, run: Run) -> Callable[[], dict[str, Any]]:
        """Whose coverage on val is to be kept: that of the seed's twin, also by an ablation, which is held
        against it later; where there is none, that of the model itself with checking off.
        """
        main = replace(run, variant="main", folder=run.folder.with_name(f"{run.family}-{run.seed}-main"))
        count = self.options.val_count
        found = self.pieces.find(run=main.name, row="twin", split="val", count=count)
        if found is not None:
            return lambda: found
        return self._ask(main, "twin", "val") if main.twin else self._ask(run, "off", "val")

    def _sweep(self, run: Run, goal: Any) -> dict[float, Any]:
        """Columns on val at falling thresholds, until more coverage is lost than even the strict one may."""
        found: dict[float, Any] = {}
        least = STRICT_COVERAGE * points(goal)["coverage"]
        ahead = max(1, self.options.judges // 4)  # asked for at a time
        for at in range(0, len(THRESHOLDS), ahead):
            sweep = {t: self._ask(run, "on", "val", t) for t in THRESHOLDS[at : at + ahead]}
            found |= {t: future()["columns"] for t, future in sweep.items()}
            if min(points(each)["coverage"] for each in found.values()) < least:
                break
        return found

    def mark(self, run: Run, threshold: float) -> tuple[float, float]:
        """How good a threshold is on val, less is better: coverage that is missing, then CHAIRi."""
        found = self.pieces.find(run=run.name, row="on", split="val", threshold=threshold)
        twin = self.pieces.find(run=run.name, row="twin", split="val")
        assert found is not None and twin is not None
        ours, other = points(found["columns"]), points(twin["columns"])
        return round(max(0.0, other["coverage"] - 0.005 - ours["coverage"]), 4), ours["chair_i"]

    def _ask(
        self, run: Run, row: str, split: str, threshold: float | None = None
    ) -> Callable[[], dict[str, Any]]:
        """A function that waits for the piece; one that is there is not measured again."""
        options = self.options
        task = {
            "run": run.name, "family": run.family, "seed": run.seed, "variant": run.variant, "row": row,
            "split": split, "threshold": threshold,
            "count": options.val_count if split == "val" else options.count,
        }  # fmt: skip
        found = self.pieces.find(**task)
        if found is not None:
            return lambda: found
        folder = run.folder / ("twin" if "twin" in row else "tags")
        with self.lock:
            assert self.pool is not None
            key = json.dumps(task)
            if key not in self.asked:  # several runs may ask for one twin
                self.asked[key] = self.pool.submit(_judge, task, str(folder), options.max_sequences)
                self.asked[key].add_done_callback(self._keep)
            return self.asked[key].result

    def _keep(self, done: Future[Any]) -> None:
        if not done.cancelled():
            if done.exception() is not None:
                self.say(f"measuring failed: {done.exception()}")
            else:
                self.pieces.append(done.result())


# ---------------------------------------------------------------------- in other processes
_device = "cpu"


def end_with_parent() -> None:
    """A process whose parent was killed would go on, or wait for work for ever."""

    def follow() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _open(counter: Any, devices: list[str]) -> None:
    """A measuring process's device, opened before it is needed."""
    global _device
    end_with_parent()
    import torch
    from transformers.utils import logging

    import reverse.api  # noqa: F401

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    with counter.get_lock():
        _device = devices[counter.value % len(devices)]
        counter.value += 1
    if _device != "cpu":
        torch.cuda.set_device(_device)
        with contextlib.suppress(torch.OutOfMemoryError):  # trainings that end may still fill it
            torch.zeros(1, device=_device)


def _judge(task: dict[str, Any], folder: str, max_sequences: int) -> dict[str, Any]:
    """The piece of one contender: what it answers about one split, counted."""
    from reverse.data.scenes import make_scene
    from reverse.evaluation.runs.scene_captions import PROMPT, count_caption
    from reverse.models import load

    began = time.time()
    row, twin = task["row"], "twin" in task["row"]
    settings: dict[str, Any] = {"backend": "hf"}  # float32: the same answers in any batch
    if row in ("on", "strict"):
        settings |= CORRECTING
    elif row == "yesno_on":
        settings |= CORRECTING_YES_NO
    mode = "plain" if twin or row == "off" else "resample"
    settings_of_call = {"mode": mode, "threshold": task["threshold"], **settings}
    loaded = load(folder, dtype="float32", device=_device, require_tokens=not twin)
    scenes = [make_scene(task["split"], k) for k in range(task["count"])]
    if row.startswith("yesno"):
        counts = _count_yes_no(loaded, scenes, max_sequences, settings_of_call)
        found: dict[str, Any] = {name: [each[name] for each in counts] for name in ("right", "asked")}
        examples: list[str] = []
    else:
        prompts = [PROMPT] * len(scenes)
        results = _answer(loaded, scenes, prompts, 128, max_sequences, settings_of_call)
        rows = [count_caption(scene, _row(result)) for scene, result in zip(scenes, results, strict=True)]
        found = columns(rows, phrases=row == "off")
        examples = [result.text for result in results[:3]]
    made_with = {**settings, "mode": mode}
    return {
        **task, "settings": made_with, "columns": found, "examples": examples,
        "seconds": round(time.time() - began, 1), "device": _device,
    }  # fmt: skip


def _answer(
    loaded: Any,
    scenes: list[Any],
    prompts: list[str],
    max_new_tokens: int,
    max_sequences: int,
    settings: dict[str, Any],
) -> list[Any]:
    """What a model says to the prompts about the scenes, in their order."""
    from reverse.api import generate
    from reverse.evaluation.runs.scene_captions import ScenePicture

    return generate(
        *loaded,
        images=[ScenePicture(scene.split, scene.index, scene.seed).read() for scene in scenes],
        prompt=prompts,
        max_new_tokens=max_new_tokens,
        batch_size=max_sequences,
        seed=0,
        **settings,
    )


def _row(result: Any) -> dict[str, Any]:
    """What `count_caption` reads of a row of an answers file."""
    return {
        "text": result.text,
        "resolved": result.resolved,
        "usage": {"kept": result.usage.kept, "discarded": result.usage.discarded},
        "attempts": result.trace,
        "phrases": [{"text": phrase.text, "p_un": phrase.p_un} for phrase in result.phrases],
    }


def _count_yes_no(
    loaded: Any, scenes: list[Any], max_sequences: int, settings: dict[str, Any]
) -> list[dict[str, int]]:
    """How many of each scene's two yes/no questions (one true, one false) are answered right."""
    from reverse.data.scenes import make_questions
    from reverse.tokens import remove_tags

    asked = [
        (scene, question)
        for scene in scenes
        for question in make_questions(scene)
        if question.kind == "yes_no"
    ]
    prompts = [question.question for _, question in asked]
    results = _answer(loaded, [scene for scene, _ in asked], prompts, 16, max_sequences, settings)
    counts: dict[str, dict[str, int]] = {scene.id: {"right": 0, "asked": 0} for scene in scenes}
    for (scene, question), result in zip(asked, results, strict=True):
        said = result.text.strip().lower().rstrip(".")
        counts[scene.id]["asked"] += 1
        counts[scene.id]["right"] += said == remove_tags(question.answer).lower()
    return list(counts.values())


# ---------------------------------------------------------------------- files
def read_pieces(paths: list[Any]) -> list[dict[str, Any]]:
    """Every whole line of the files; a last line that was cut off is left out."""
    found = []
    for path in map(Path, paths):
        if path.exists():
            for line in path.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    found.append(json.loads(line))
    return found


def write_results(path: Path, lines: list[dict[str, Any]], command: str, gpus: str = "") -> dict[str, Any]:
    """Merge the pieces into the file of results, and print the claims."""
    from reverse.evaluation.runs.environment import describe_environment

    pieces = [line for line in lines if "columns" in line]
    kinds = sorted({str(piece.get("device", "")).split(":")[0] for piece in pieces})
    trained = [line for line in lines if line.get("kind") == "training"]
    report: dict[str, Any] = describe_environment("cpu")
    report["measured_on"] = f"{' and '.join(kinds)}, float32"
    if trained:
        report["device"] = f"{gpus} {trained[-1]['device']}".strip()
        report["training_versions"] = trained[-1]["versions"]
    report |= {
        "command": command,
        "scenes": {
            split: max((p["count"] for p in pieces if p["split"] == split), default=0)
            for split in ("val", *SPLITS)
        },
        "settings": {
            "on, strict": CORRECTING,
            "yes/no": CORRECTING_YES_NO,
            "library": "the library's defaults",
        },
        **merge(pieces),
        "training": [{k: v for k, v in line.items() if k not in ("kind", "versions")} for line in trained],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, replace_non_finite(report))
    for family, splits in report["claims"].items():
        for split, claims in splits.items():
            print(family, split, {name: [round(x, 4) for x in value] for name, value in claims.items()})
    for family, variants in report["ablations"].items():
        for variant, line in variants.items():
            names = ("auroc", "chair_i_drop", "coverage_change")
            print(family, variant, {name: [round(x, 4) for x in line[name]] for name in names})
    return report
