"""Scenes as benchmarks: all files of the published benchmarks, in their formats and places.

    write_benchmarks("playground/data/scenes-eval", count=500)

    ROOT/images/test-000000.png …                      shared by all (a scenes export, with its manifest)
    ROOT/chair_mscoco/chair-500.jsonl, …/coco/annotations/{instances,captions}_val2014.json
    ROOT/amber/questions/query_{generative,discriminative}.jsonl
    ROOT/amber/metadata/{annotations,relation}.json, safe_words.txt, metrics.txt
    ROOT/pope/llava_pope_test.jsonl, coco_pope/, aokvqa/, gqa/
    ROOT/MME/mme.jsonl          the rows of the published parquet files (question_id, image, question, answer,
                                category) as JSON lines, pictures by name
    ROOT/mmhal/response_template.json, ROOT/haloquest/haloquest-eval.jsonl
    ROOT/benches.json           arguments and SHA-256 of everything; written last

Differences from the published sets: the questions have the wording of the scenes world (MME's end with the
published request, by which its scorer finds a question); a COCO name of two words is one noun in AMBER
("glass" for wine glass; a hot dog counts as a dog), since AMBER reads nouns.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reverse.data.scenes.benchmark_questions import (
    make_amber_questions,
    make_haloquest_question,
    make_mme_questions,
    make_mmhal_question,
)
from reverse.data.scenes.object_names import COCO_IDS, make_plural
from reverse.data.scenes.published_formats import write_scenes
from reverse.data.scenes.scene import Scene, make_scene
from reverse.data.scenes.scene_questions import ask_presence
from reverse.data.scenes.themes import COLOURS, OBJECT_NAMES, THEME_NAMES, THEMES
from reverse.errors import DataError
from reverse.files.atomic_write import atomic_write
from reverse.files.file_lock import output_lock

__all__ = ["BENCHMARKS_FORMAT", "make_pope_questions", "write_benchmarks"]

BENCHMARKS_FORMAT = 2  # raise it whenever the same arguments give other files
POPE_PER_IMAGE = 3  # present objects asked for, and as many absent ones (POPE)
POPE_SETTINGS = ("random", "popular", "adversarial")
POPE_SETS = {
    "coco": "coco_pope/coco_pope_{}.json",
    "aokvqa": "aokvqa/aokvqa_pope_seem_{}.json",
    "gqa": "gqa/gqa_pope_seem_{}.json",
}
DESCRIBE = "Describe this image."
MME_REQUEST = "Please answer yes or no."  # ends every published question of MME
# AMBER's counters, all zero: the published scorer reads them from a file.
_AMBER_COUNTERS = ("qa_correct", "qa_no", "qa_ans_no")
_AMBER_PARTS = ("", "as_", "an_", "aa_", "asso_", "ha_")


def write_benchmarks(
    out: str | Path,
    split: str = "test",
    count: int = 500,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write `count` scenes of a split under `out` with the files of all benchmarks, and return the manifest.

    A finished folder is left as it is; a killed run that is called again goes on. Raises DataError as
    `write_scenes`, and if `out` holds benchmarks made with other arguments.
    """
    out = Path(out)
    with output_lock(out):
        scenes_manifest = write_scenes(out, split, count, seed, workers, progress)
        plan = {key: scenes_manifest[key] for key in ("world", "split", "count", "seed", "side")}
        plan = {"benches": BENCHMARKS_FORMAT} | plan
        manifest = out / "benches.json"
        if manifest.exists():
            written = json.loads(manifest.read_text(encoding="utf-8"))
            other = {key: written.get(key) for key in plan if written.get(key) != plan[key]}
            if other:
                raise DataError(f"{manifest} was made with {other}, not {plan}: choose another directory")
            return written
        scenes = [make_scene(split, index, seed) for index in range(count)]
        files = _make_files(out, scenes, seed)
        content = plan | {"sha256": {name: _write_file(out / name, data) for name, data in files.items()}}
        _write_file(manifest, _encode_json(content))
        return content


def make_pope_questions(scenes: Sequence[Scene], setting: str, seed: int) -> list[dict[str, Any]]:
    """Make POPE's questions about scenes with at least three kinds of objects (arXiv 2305.10355, §4).

    For each of three present objects one absent object: drawn evenly ("random"), the most frequent of the
    set ("popular"), or the one that occurs most often with the present one ("adversarial").
    """
    frequency = Counter(name for scene in scenes for name in scene.truth)
    popular = sorted(OBJECT_NAMES, key=lambda name: (-frequency[name], COCO_IDS[name]))
    partners: dict[str, Counter[str]] = {name: Counter() for name in OBJECT_NAMES}
    for scene in scenes:
        for name in scene.truth:
            partners[name].update(other for other in scene.truth if other != name)
    rows: list[dict[str, Any]] = []
    for scene in scenes:
        if len(scene.truth) < POPE_PER_IMAGE:
            continue
        # The same generator for the three settings: they ask for the same objects that are there.
        rng = np.random.default_rng([scene.seed, scene.index, 20, seed])
        present = rng.permutation(sorted(scene.truth))[:POPE_PER_IMAGE]
        used = set(scene.truth)
        for name in map(str, present):
            if setting == "random":
                ranked = [str(n) for n in rng.permutation(OBJECT_NAMES)]
            elif setting == "popular":
                ranked = popular
            else:
                beside = partners[name]
                ranked = sorted(OBJECT_NAMES, key=lambda n: (-beside[n], popular.index(n)))
            absent = next(n for n in ranked if n not in used)
            used.add(absent)
            image = f"{scene.id}.png"
            for asked, label in ((name, "yes"), (absent, "no")):
                rows.append({"image": image, "text": ask_presence(asked), "label": label})
    return [{"question_id": number} | row for number, row in enumerate(rows, 1)]


def _make_files(out: Path, scenes: Sequence[Scene], seed: int) -> dict[str, bytes]:
    """Yield the files of all benchmarks by their path under the root."""
    described = [
        {"question_id": number, "image": f"{scene.id}.png", "text": DESCRIBE}
        for number, scene in enumerate(scenes)
    ]
    annotations = "chair_mscoco/coco/annotations"
    files = {
        "chair_mscoco/chair-500.jsonl": _encode_lines(described),
        f"{annotations}/instances_val2014.json": (out / "instances.json").read_bytes(),
        f"{annotations}/captions_val2014.json": (out / "captions.json").read_bytes(),
    }
    files |= _make_amber_files(scenes)
    files |= _make_pope_files(scenes, seed)
    mme = [row for scene in scenes for row in make_mme_questions(scene)]
    files["MME/mme.jsonl"] = _encode_lines(
        [row | {"question": f"{row['question']} {MME_REQUEST}"} for row in mme]
    )
    files["mmhal/response_template.json"] = _encode_json([make_mmhal_question(scene) for scene in scenes])
    files["haloquest/haloquest-eval.jsonl"] = _encode_lines(
        [make_haloquest_question(scene) for scene in scenes]
    )
    return files


def _make_amber_files(scenes: Sequence[Scene]) -> dict[str, bytes]:
    """Make queries and annotations; query n has annotation n of the list, as published."""
    generative, discriminative, annotations = [], [], []
    for number, scene in enumerate(scenes, 1):
        generative.append({"id": number, "image": f"{scene.id}.png", "query": DESCRIBE})
        truth = sorted({find_amber_noun(name) for name in scene.truth})
        expected = {find_amber_noun(name) for name in THEMES[scene.theme].objects}
        annotations.append(
            {"id": number, "type": "generative", "truth": truth, "hallu": sorted(expected - set(truth))}
        )
    for scene in scenes:
        for kind, query, answer in make_amber_questions(scene):
            number = len(annotations) + 1
            discriminative.append({"id": number, "image": f"{scene.id}.png", "query": query})
            annotations.append({"id": number, "type": kind, "truth": answer})
    words = sorted({find_amber_noun(name) for name in OBJECT_NAMES})
    relation = {
        word: sorted(
            {make_plural(name).split()[-1] for name in OBJECT_NAMES if find_amber_noun(name) == word} - {word}
        )
        for word in words
    }
    scenery = {"picture", "image", "ground", "left", "right", "top", "bottom", "middle", "pair", "pairs"}
    scenery |= {word for theme in THEME_NAMES for word in theme.split()} | set(COLOURS)
    names = [part + name for part in _AMBER_PARTS for name in _AMBER_COUNTERS]
    names += ["chair", "safe_cover", "hallu_cover", "non_hallu"]
    counters = [f"{name}_{kind}" for name in names for kind in ("score", "num")]
    metrics = "".join(f"{name}={'0.001' if name.endswith('num') else '0'}\n" for name in counters)
    return {
        "amber/questions/query_generative.jsonl": _encode_lines(generative),
        "amber/questions/query_discriminative.jsonl": _encode_lines(discriminative),
        "amber/metadata/annotations.json": _encode_json(annotations),
        "amber/metadata/relation.json": _encode_json(relation),
        "amber/metadata/safe_words.txt": "".join(f"{w}\n" for w in sorted(scenery - set(words))).encode(),
        "amber/metadata/metrics.txt": metrics.encode(),
    }


def find_amber_noun(name: str) -> str:
    """Return the noun that AMBER reads in a COCO name."""
    return name.split()[-1]


def _make_pope_files(scenes: Sequence[Scene], seed: int) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    llava: list[dict[str, Any]] = []
    for number, (name, place) in enumerate(POPE_SETS.items()):
        for setting in POPE_SETTINGS:
            rows = make_pope_questions(scenes, setting, seed + number)
            files["pope/" + place.format(setting)] = _encode_lines(rows)
            if name == "coco":
                llava += [{"image": row["image"], "text": row["text"], "category": setting} for row in rows]
    numbered = [{"question_id": number} | row for number, row in enumerate(llava)]
    return {"pope/llava_pope_test.jsonl": _encode_lines(numbered)} | files


def _write_file(path: Path, data: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as stream:
        stream.write(data)
    return hashlib.sha256(data).hexdigest()


def _encode_json(content: Any) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()


def _encode_lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
