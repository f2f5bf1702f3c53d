"""Which phrases of stored answers are wrong: the truth behind `reverse sweep` and `reverse calibrate`.

    detector = read_phrases("off.jsonl", SceneTruth())

Read are answers files (`phrases` a list of {text, p_un, …}) and the files of `reverse.evaluation.scenes`
(`phrases` a list of [text, p, wrong], already judged). A phrase is wrong when an object that it names is not
in the picture; one that names none is left out. Other truths (CHAIR, AMBER) are objects with the same method.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from reverse.evaluation.detector import Detector

__all__ = ["SceneTruth", "Truth", "phrases_of", "read_phrases", "read_rows"]

_SCENE = re.compile(r"(?<![A-Za-z0-9])(train|val|test|shift)-(\d{6,})(?!\d)")


class Truth(Protocol):
    def wrong(self, image: str, phrase: str) -> bool | None:
        """Whether a phrase about a picture is wrong; None where it names nothing that could be.

        Raises ValueError for a picture that the truth does not know.
        """
        ...


class SceneTruth:
    """The world's own truth; pictures are known by their scene's id, "test-000123", wherever it stands."""

    def __init__(self, seed: int = 0):
        self.seed = seed
        self._known: dict[str, frozenset[str]] = {}

    def wrong(self, image: str, phrase: str) -> bool | None:
        from reverse.data.scenes import find_objects

        named = find_objects(phrase)
        if not named:
            return None
        truth = self.objects(image)
        return any(mention.name not in truth for mention in named)

    def objects(self, image: str) -> frozenset[str]:
        """Names of what stands in a scene."""
        from reverse.data.scenes import make_scene

        if image not in self._known:
            match = _SCENE.search(image)
            if match is None:
                raise ValueError(
                    f"picture {image!r} is no scene: its name must hold an id such as test-000123"
                )
            self._known[image] = frozenset(make_scene(match[1], int(match[2]), self.seed).truth)
        return self._known[image]


def read_phrases(path: str | Path, truth: Truth | None = None) -> Detector:
    """Every object phrase with a p of an answers file, judged.

    Raises FileNotFoundError; ValueError for a file that is no answers file, for answers that were corrected
    while they were made, and where no phrase can be judged.
    """
    p: list[float] = []
    wrong: list[float] = []
    image: list[int] = []
    images: dict[str, int] = {}
    for number, row in read_rows(path):
        name, found = phrases_of(row, truth, f"{path}, line {number}")
        if row.get("successful_correction", row.get("resolved")) is not None:
            raise ValueError(
                f"{path}, line {number} was made with checking on, so phrases above its threshold are gone: "
                "answer again with --mode plain, which stores p of every phrase"
            )
        place = images.setdefault(name, len(images))
        for _, score, label in found:
            p.append(score)
            wrong.append(float(label))
            image.append(place)
    return Detector(np.array(p), np.array(wrong), np.array(image, int), tuple(images))


def phrases_of(
    row: Mapping[str, Any], truth: Truth | None, where: str = "a row"
) -> tuple[str, list[tuple[str, float, bool]]]:
    """A row's picture, and (text, p, wrong) of every phrase that has a p and can be judged.

    Raises ValueError for a row of another shape, or one that needs a truth that is not given.
    """
    name = str(row.get("image_id", row.get("image", row.get("id", row.get("question_id")))))
    listed = row.get("phrases")
    if not isinstance(listed, list):
        raise ValueError(f"{where} has no list of phrases: was it made by `reverse eval`?")
    found = []
    for phrase in listed:
        if isinstance(phrase, list) and len(phrase) == 3:
            found.append((str(phrase[0]), float(phrase[1]), bool(phrase[2])))
            continue
        if not isinstance(phrase, Mapping) or not isinstance(phrase.get("text"), str):
            raise ValueError(f"{where} has a phrase of another shape: {phrase!r:.60}")
        if phrase.get("p_un") is None:
            continue
        if truth is None:
            raise ValueError(f"{where} does not say which phrases are wrong: name a truth")
        judged = truth.wrong(name, phrase["text"])
        if judged is not None:
            found.append((phrase["text"], float(phrase["p_un"]), judged))
    return name, found


def read_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, row) of a file of JSON lines. Raises FileNotFoundError, ValueError naming the line."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no answers file {str(path)!r}: `reverse eval` writes one")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                torn = "" if line.endswith("\n") else " (the last line is torn: start the run again)"
                raise ValueError(f"{path}, line {number} is no JSON: {error}{torn}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number} is no JSON object: is it an answers file?")
            yield number, row
