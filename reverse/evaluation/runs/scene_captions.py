"""Let a model describe scenes, and count what it makes up: `reverse sweep --decode` and `reverse calibrate`.

    rows = describe_scenes("tiny-llava", loaded, Path("out"), "on", Decoding(threshold=0.1))
    figures = summarise_captions(rows)

The scenes are a benchmark that is made in memory, and `reverse.evaluation.runs.benchmark_run` asks it:
answers are kept in `out/NAME.jsonl`, and a stopped run goes on. An object phrase is wrong if its object is
not in the picture (the world's own truth). All scenes are decoded with one seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu

from reverse.data.scenes import Scene, find_objects, make_scene, render_scene
from reverse.data.scenes.scene import WORLD_VERSION
from reverse.errors import DataError
from reverse.evaluation.benchmarks import Benchmark
from reverse.evaluation.benchmarks.benchmark import QuestionRow
from reverse.evaluation.reading.answers import read_run_answers
from reverse.evaluation.runs.benchmark_run import Ask, Decoding, EvalConfig, run
from reverse.evaluation.stats.bootstrap import estimate_ratio
from reverse.models.checkpoints.fingerprint import checkpoint_fingerprint
from reverse.progress import show_progress

__all__ = [
    "PROMPT",
    "ScenePicture",
    "SceneSet",
    "compute_auroc",
    "count_caption",
    "describe_scenes",
    "make_scenes_benchmark",
    "summarise_captions",
]

PROMPT = "Describe this image."


@dataclass(frozen=True)
class SceneSet:
    """The first `count` scenes of a split."""

    split: str = "test"
    count: int = 500
    seed: int = 0


@dataclass(frozen=True)
class ScenePicture:
    """The picture of a scene. It is drawn when it is needed."""

    split: str
    index: int
    seed: int = 0

    def read(self) -> Any:
        """The picture as a PIL image."""
        from PIL import Image

        return Image.fromarray(render_scene(make_scene(self.split, self.index, self.seed)))


def make_scenes_benchmark(scenes: SceneSet) -> Benchmark:
    """Make a benchmark, without files, of descriptions of some scenes; `count_caption` counts its answers."""

    def read_questions(files: Mapping[str, Path]) -> Iterator[QuestionRow]:
        for index in range(scenes.count):
            name = f"{scenes.split}-{index:06d}"
            picture = ScenePicture(scenes.split, index, scenes.seed)
            yield {"id": name, "image": name, "prompt": PROMPT, "source": picture}

    def score(*_: Any) -> Any:
        raise DataError("descriptions of scenes are counted by count_caption: score a benchmark instead")

    return Benchmark(
        name="scenes",
        title="scenes",
        kind="caption",
        files={},
        images=(),
        images_source="made in memory",
        read_questions=read_questions,
        score=score,
        in_all=False,
        max_new_tokens=128,
        generated_from=f"world {WORLD_VERSION}, {scenes.split}, seed {scenes.seed}",
    )


def describe_scenes(
    model: str,
    loaded: tuple[Any, Any],
    out: Path,
    name: str,
    decoding: Decoding,
    scenes: SceneSet = SceneSet(),
    *,
    batch_size: int = 16,
    quiet: bool = True,
    ask: Ask | None = None,
) -> list[dict[str, Any]]:
    """Let the model describe scenes; return the counts of `count_caption`. Answers are kept in
    `out/NAME.jsonl`.

    Args:
        model: path or bundled name of what was loaded.
        name: name of these settings of decoding.
        ask: function that answers questions in place of `generate_many()`.

    Raises DataError if the file holds answers made with other settings or another checkpoint.
    """
    config = EvalConfig(
        replace(decoding, seed=scenes.seed, seed_per_question=False),
        model_id=Path(model).name or model,
        checkpoint=checkpoint_fingerprint(model),
        max_sequences=batch_size,
        window=batch_size,
        name=name,
    )
    with show_progress(name, scenes.count, shown=not quiet) as progress:
        outcome = run(make_scenes_benchmark(scenes), loaded, out, out, config, progress=progress, ask=ask)
    rows = read_run_answers(outcome.path).rows[: scenes.count]
    return [count_caption(make_scene(scenes.split, i, scenes.seed), row) for i, row in enumerate(rows)]


def count_caption(scene: Scene, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the counts of one row of an answers file that describes a scene.

    `phrases` are the object phrases that have a p, as [text, p, 1 if wrong].
    """
    text, usage, truth = row["text"], row["usage"], scene.truth
    mentioned = [mention.name for mention in find_objects(text)]
    return {
        "id": scene.id,
        "text": text,
        "mentions": len(mentioned),
        "wrong": sum(name not in truth for name in mentioned),
        "objects": len(truth),
        "named": len(set(mentioned) & set(truth)),
        "words": len(text.split()),
        "empty": int(not text.strip()),
        "unresolved": int(row["resolved"] is False),
        "resolved": row["resolved"],  # None: checking off
        "kept": usage["kept"],
        "generated": usage["kept"] + usage["discarded"],
        "attempts": len(row["attempts"]),
        "phrases": [
            [phrase["text"], phrase["p_un"], int(any(m.name not in truth for m in found))]
            for phrase in row["phrases"]
            if phrase["p_un"] is not None and (found := find_objects(phrase["text"]))
        ],
    }


def summarise_captions(rows: Sequence[dict[str, Any]], seed: int = 0) -> dict[str, Any]:
    """Return CHAIRi, CHAIRs, coverage and others as [value, low, high] (95 %, over scenes), and the AUROC of
    p.
    """

    def column(name: str) -> np.ndarray:
        return np.array([row[name] for row in rows], dtype=float)

    ones = np.ones(len(rows))
    ratios = {
        "chair_i": (column("wrong"), column("mentions")),
        "chair_s": ((column("wrong") > 0).astype(float), ones),
        "coverage": (column("named"), column("objects")),
        "words": (column("words"), ones),
        "empty": (column("empty"), ones),
        "unresolved": (column("unresolved"), ones),
        "tokens_ratio": (column("generated"), column("kept")),
    }
    figures: dict[str, Any] = {name: list(estimate_ratio(*pair, seed=seed)) for name, pair in ratios.items()}
    figures["answers"] = len(rows)
    figures["auroc"] = compute_auroc(rows)
    return figures


def compute_auroc(rows: Iterable[dict[str, Any]]) -> float | None:
    """Return the probability that a wrong object phrase has a higher p than a right one; None without both
    kinds.
    """
    phrases = [(p, wrong) for row in rows for _, p, wrong in row["phrases"]]
    wrong = [p for p, label in phrases if label]
    right = [p for p, label in phrases if not label]
    if not wrong or not right:
        return None
    return float(mannwhitneyu(wrong, right).statistic / (len(wrong) * len(right)))
