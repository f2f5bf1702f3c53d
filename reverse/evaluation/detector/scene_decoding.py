"""Decode scenes at chosen thresholds, with checking off and on.

    decode_at_thresholds(SceneDecoding("tiny-llava", count=200), [0.3, 0.1, 0.03], Path("out"))

It writes decoded.csv, and the answers below `decoded/`, so that a stopped run continues where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from reverse.data.scenes import make_scene
from reverse.errors import DataError
from reverse.evaluation.detector.sweep import write_csv

__all__ = ["SceneDecoding", "decode_at_thresholds"]

FIGURES = ("chair_i", "chair_s", "coverage", "tokens_ratio", "words", "empty", "unresolved")


@dataclass(frozen=True)
class SceneDecoding:
    """The scenes to describe, and the model that describes them."""

    model: str  # checkpoint folder, hub id or bundled name
    split: str = "test"
    count: int = 200
    batch_size: int = 16
    device: Any = None
    seed: int = 0  # of the scenes and of decoding
    is_quiet: bool = False
    loaded: Any = None  # (model, processor); None: it is loaded when it is needed

    @cached_property
    def model_and_processor(self) -> Any:
        """Return `loaded`, or load `model`. A wrong split is an error before the model is loaded."""
        from reverse.models import load

        if self.loaded is not None:
            return self.loaded
        make_scene(self.split, 0, self.seed)
        return load(self.model, device=self.device)

    def describe(self, out: Path, threshold: float | None) -> list[dict[str, Any]]:
        """Return rows of counts of every scene's answer; `threshold` None decodes with checking off."""
        from reverse.evaluation.runs.benchmark_run import Decoding
        from reverse.evaluation.runs.scene_captions import SceneSet, describe_scenes

        name = "off" if threshold is None else f"on_{threshold:g}"
        decoding = Decoding("plain") if threshold is None else Decoding(threshold=threshold)
        scenes = SceneSet(self.split, self.count, self.seed)
        return describe_scenes(
            self.model, self.model_and_processor, out, name, decoding, scenes,
            batch_size=self.batch_size, quiet=self.is_quiet,
        )  # fmt: skip


def decode_at_thresholds(
    scenes: SceneDecoding, thresholds: Sequence[float], out: Path
) -> list[dict[str, Any]]:
    """Describe scenes with checking off and at each threshold; one dictionary each, off first.

    Figures are [value, low, high] with 95 % intervals over scenes. Raises DataError for a threshold outside
    (0, 1].
    """
    from reverse.evaluation.runs.scene_captions import summarise_captions

    for threshold in thresholds:
        if not 0 < threshold <= 1:
            raise DataError(f"threshold must lie in (0, 1], got {threshold:g}: it is a probability of </UN>")
    points: list[dict[str, Any]] = []
    for at in (None, *sorted(set(thresholds), reverse=True)):
        rows = scenes.describe(out / "decoded", at)
        figures = summarise_captions(rows, scenes.seed)
        points.append(
            {"threshold": at, "answers": len(rows)}
            | {name: figures[name] for name in FIGURES}
            | {"tokens": float(np.mean([row["generated"] for row in rows]))}
        )
    columns: dict[str, list[Any]] = {}
    for point in points:
        for name, each in point.items():
            values = each if isinstance(each, list) else [each]
            for end, value in zip(("", "_low", "_high"), values, strict=False):
                columns.setdefault(name + end, []).append(value)
    write_csv(out / "decoded.csv", columns)
    return points
