"""Bad files for everything that reads one: answers, scored tables, records, recipes, truths of benchmarks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.bad_inputs.judging import Entry
from tests.bad_inputs.world import FILE_KINDS, World

# name; command, with {file} for the bad one; what a good one is; suffix; kinds that are right to accept
READERS: tuple[tuple[str, str, str, str, frozenset[str]], ...] = (
    ("score", "score {file} --truth {scenes} --partial --rounds 10", "pope", ".jsonl", frozenset()),
    (
        "score-chair",
        "score {file} --truth {scenes} --benchmark chair --rounds 10",
        "chair",
        ".jsonl",
        frozenset(),
    ),
    ("compare", "compare {scored} {file} --rounds 10", "scored", ".json", frozenset()),
    ("sweep", "sweep {file} --out {new} --rounds 10", "chair", ".jsonl", frozenset()),
    ("calibrate", "calibrate {file} --resplits 2", "chair", ".jsonl", frozenset()),
    ("import", "data import {file} {new}", "records", ".json", frozenset({"list"})),
    ("subsample", "data subsample {file} {new}.json --n 1", "records", ".json", frozenset()),
    ("view", "data view {file} --images {scenes}", "records", ".json", frozenset()),
    ("tag", "data tag {file} {new}.json", "records", ".json", frozenset({"list", "empty", "blank", "bom"})),
    (
        "negatives",
        "data negatives {file} {new}.json",
        "records",
        ".json",
        frozenset({"list", "empty", "blank", "bom"}),
    ),
    (
        "records",
        "train {recipe} --quiet --set output={new} --set data.records={file}",
        "records",
        ".json",
        frozenset(),
    ),
    ("train", "train {file} --show", "recipe", ".yaml", frozenset()),
    ("image", "generate tiny-llava --image {file} --max-new-tokens 2", "kitchen", ".png", frozenset()),
)
CHECKED = ("check", "data check {file}", "records", ".json")
# The truth of a benchmark: the file that is made bad, and the answers that are scored with it.
TRUTHS: tuple[tuple[str, str, str], ...] = (
    ("pope", "pope/coco_pope/coco_pope_random.json", "pope"),
    ("chair", "chair_mscoco/coco/annotations/instances_val2014.json", "chair"),
    ("chair", "chair_mscoco/coco/annotations/captions_val2014.json", "chair"),
    ("amber-d", "amber/metadata/annotations.json", "amber-d"),
    ("mme-hall", "MME/mme.jsonl", "mme-hall"),
)
QUESTIONS: tuple[tuple[str, str], ...] = (
    ("chair", "chair_mscoco/chair-500.jsonl"),
    ("amber-g", "amber/questions/query_generative.jsonl"),
    ("mmhal", "mmhal/response_template.json"),
    ("haloquest", "haloquest/haloquest-eval.jsonl"),
)
TRUTH_KINDS = (
    "missing",
    "folder",
    "empty",
    "null",
    "number",
    "list",
    "object",
    "list_of_null",
    "binary",
    "deep",
    "truncated",
    "latin1",
    "prose",
)
# A cut or an odd byte inside a text is not damage where the format has no end, or no letter of another kind.
HARMLESS = {("train", "truncated"), ("import", "bom"), ("import", "empty"), ("import", "blank")}


def entries() -> Iterator[Entry]:
    for name, words, good, suffix, accepted in READERS:
        for kind in FILE_KINDS:
            expected: Any = "either" if kind in accepted or (name, kind) in HARMLESS else "refused"
            if name == "image" and kind in ("truncated", "latin1", "utf16", "zeros") and kind != "truncated":
                continue  # a text's damage
            trial = partial(read, words, good, suffix, kind)
            values = (f"-{kind}{suffix}", "the recipe lacks model")
            yield Entry(f"{name}: {kind}{suffix}", trial, values, expected)
    name, words, good, suffix = CHECKED
    for kind in FILE_KINDS:
        expected = "refused" if kind in ("missing", "folder", "loop") else "report"
        yield Entry(
            f"{name}: {kind}{suffix}",
            partial(read, words, good, suffix, kind),
            (f"-{kind}{suffix}",),
            expected,
        )
    for bench, file, answers in TRUTHS:
        for kind in TRUTH_KINDS:
            values = (Path(file).name, "truth")
            # the scenes' own files stand in for one that is not there
            expected = "either" if bench == "chair" and kind in ("missing", "folder") else "refused"
            trial = partial(score_with, bench, file, answers, kind)
            yield Entry(f"truth {file}: {kind}", trial, values, expected)
    for bench, file in QUESTIONS:
        for kind in TRUTH_KINDS:
            yield Entry(
                f"questions {file}: {kind}", partial(ask_with, bench, file, kind), (Path(file).name, bench)
            )


def read(words: str, good: str, suffix: str, kind: str, world: World) -> Any:
    content = Path(world[good]).read_bytes() if suffix != ".png" or kind == "truncated" else b""
    world["file"] = str(world.bad(kind, suffix, content))
    return world.run(words)


def bad_folder(file: str, kind: str, world: World) -> Path:
    """A copy of the scenes' benchmark files, one of them bad."""
    world.count += 1
    root = world.root / f"truth{world.count}"
    good = Path(world["scenes"])
    shutil.copytree(good, root, ignore=shutil.ignore_patterns("images", "*.cache*"))
    (root / "images").symlink_to(good / "images")
    path = root / file
    content = path.read_bytes()
    path.unlink()
    made = world.bad(kind, path.suffix, content)
    if made.exists():
        made.rename(path)
    return root


def score_with(bench: str, file: str, answers: str, kind: str, world: World) -> Any:
    root = bad_folder(file, kind, world)
    name = bench.removesuffix("-hall")
    words = f"--truth {root} --benchmark {name} --rounds 10 --partial"
    return world.run(f"score {world['answers']}/{answers}.jsonl {words}")


def ask_with(bench: str, file: str, kind: str, world: World) -> Any:
    root = bad_folder(file, kind, world)
    return world.run(f"eval {bench} --model tiny-llava --data {root} --out {{new}} --limit 1")
