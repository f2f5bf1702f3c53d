"""Judge which phrases of stored answers are wrong, for `reverse sweep` and `reverse calibrate`.

    detector = read_phrases("off.jsonl", SceneTruth())

Answers files are read (`phrases` is a list of {text, p_un, …}), and files of rows whose
phrases are judged already (`phrases` is a list of [text, p, wrong]). A phrase is
wrong if an object that it names is not in the picture; a phrase that names no object is left out. CHAIR and
AMBER judge a phrase as if it were a caption, with their own words and truth (`BenchmarkTruth`); a tagger may
read a phrase alone differently than in its sentence, so its objects may differ from those of the whole
answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Protocol

import numpy as np

from reverse.errors import DataError
from reverse.evaluation import benchmarks
from reverse.evaluation.benchmarks import ScoringOptions
from reverse.evaluation.detector.detection import Detector
from reverse.evaluation.reading.answers import (
    BenchmarkAnswer,
    benchmark_of,
    find_unanswered,
    read_rows,
    read_run,
    read_settings,
)
from reverse.evaluation.reading.file_lookup import clear_path
from reverse.evaluation.reading.markup import LONGEST
from reverse.files.cell_values import describe, file_name, read_id
from reverse.files.text_reading import replace_surrogates

__all__ = ["BenchmarkTruth", "SceneTruth", "Truth", "read_phrases", "same_picture"]

_SCENE = re.compile(r"(?<![A-Za-z0-9])(train|val|test|shift)-(\d{6,})(?!\d)")


Row = Mapping[str, Any]


class Truth(Protocol):
    """The protocol of a truth, which decides whether a phrase is wrong."""

    def judge(self, phrases: Sequence[tuple[Row, str]]) -> Sequence[bool | None]:
        """Return whether each (row of the answers, phrase) is wrong; None if it names no object.

        Raises DataError for a picture that the truth does not know.
        """
        ...


class SceneTruth:
    """The truth of the scenes. A picture's name must hold the id of its scene, such as "test-000123"."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._known: dict[str, frozenset[str]] = {}

    def judge(self, phrases: Sequence[tuple[Row, str]]) -> list[bool | None]:
        """Judge as in `Truth.judge`."""
        from reverse.data.scenes import find_objects

        judged: list[bool | None] = []
        for row, phrase in phrases:
            named = find_objects(phrase)
            truth = self.objects(_find_picture(row)) if named else frozenset()
            judged.append(any(mention.name not in truth for mention in named) if named else None)
        return judged

    def objects(self, image: str) -> frozenset[str]:
        """Return the names of the objects in a scene."""
        from reverse.data.scenes import make_scene

        if image not in self._known:
            match = _SCENE.search(image)
            if match is None:
                raise DataError(
                    f"picture {image!r} is not a scene: its name must hold an id such as test-000123"
                )
            self._known[image] = frozenset(make_scene(match[1], int(match[2]), self.seed).truth)
        return self._known[image]


class BenchmarkTruth:
    """The truth of CHAIR ("chair") or AMBER ("amber-g"), in the folder of the benchmark's published files.

    Raises DataError for another benchmark.
    """

    COLUMNS: ClassVar = {"chair": ("wrong", "mentions"), "amber-g": ("made_up", "nouns")}

    def __init__(self, folder: str | Path, benchmark: str = "chair") -> None:
        if benchmark not in self.COLUMNS:
            raise DataError(f"phrases are judged by {', '.join(self.COLUMNS)}, got {benchmark!r}")
        self.folder, self.benchmark = Path(folder), benchmark

    def judge(self, phrases: Sequence[tuple[Row, str]]) -> list[bool | None]:
        """Judge as in `Truth.judge`, by one call of the benchmark's scorer with each phrase as its own
        answer.
        """
        for row, _ in (
            phrases if self.benchmark == "amber-g" else ()
        ):  # CHAIR identifies an answer by its picture
            named = benchmark_of(row)
            if named not in (None, self.benchmark):
                raise DataError(
                    f"question {row.get('question_id')!r} is one of {named}, not of {self.benchmark}: its "
                    "ids mean other pictures there, name the truth of its own benchmark"
                )
        if not phrases:
            return []
        benchmark = benchmarks.named_one(self.benchmark)
        asked = [
            BenchmarkAnswer(
                read_id(row.get("question_id")) or str(row.get("question_id")),
                file_name(_find_picture(row)),
                str(row.get("prompt", "")),
                phrase,
                {},
                {},
                i,
                clear_path(_find_picture(row)),
            )
            for i, (row, phrase) in enumerate(phrases, 1)
        ]
        scored, _ = benchmark.score(asked, self.folder, ScoringOptions(partial=True))
        wrong, mentioned = (scored.columns[name] for name in self.COLUMNS[self.benchmark])
        return [bool(w > 0) if n > 0 else None for w, n in zip(wrong, mentioned, strict=True)]


def read_phrases(path: str | Path, truth: Truth | None = None) -> Detector:
    """Read every object phrase with a p of an answers file and judge it.

    Raises MissingFileError; DataError for a file that is not an answers file, for answers that were corrected
    while they were made or given twice, for a run that is not finished, and if no phrase can be judged.
    """
    run = read_run(path)
    _check_was_plain(path, run)
    images: dict[str, int] = {}
    seen: dict[tuple[str, ...], int] = {}
    found: list[tuple[int, float, bool | None]] = []
    unjudged: list[tuple[Row, str]] = []
    places: list[int] = []
    for number, row in read_rows(path):
        where = f"{path}, line {number}"
        if _was_corrected(row):
            raise DataError(f"{where} was made with checking on{_CORRECTED}")
        given = row.get("question_id", row.get("id", number))
        key = read_id(given) or describe(given), _find_picture(row), str(row.get("prompt", ""))
        if key in seen:
            raise DataError(
                f"{where}: {key[0]!r} is answered in line {seen[key]} already and would count twice: "
                "one run a file"
            )
        seen[key] = number
        place = images.setdefault(_find_picture(row), len(images))
        for text, p, label in _read_row_phrases(row, where):
            if label is None:
                if truth is None:
                    raise DataError(f"{where} does not say which phrases are wrong: name a truth")
                unjudged.append((row, text))
                places.append(len(found))
            found.append((place, p, label))
    if not seen:
        raise DataError(
            f"{path} holds no answers: name a file of `reverse eval --mode plain`, with one answer per line"
        )
    missing = find_unanswered(run, {key[0] for key in seen})
    if missing:
        raise DataError(
            f"{path} is of a run that is not finished, {len(missing)} questions have no answer (first: "
            f"{missing[0]}): run the same `reverse eval` command again to continue"
        )
    if truth is not None:
        for at, judged in zip(places, truth.judge(unjudged), strict=True):
            found[at] = (*found[at][:2], judged)
    kept = [each for each in found if each[2] is not None]
    return Detector(
        np.array([p for _, p, _ in kept]),
        np.array([float(bool(wrong)) for _, _, wrong in kept]),
        np.array([place for place, _, _ in kept], int),
        tuple(images),
    )


_CORRECTED = (
    ", so suspect phrases are gone from it: answer again with --mode plain, which stores p of every phrase"
)


def _check_was_plain(path: str | Path, run: Row | None) -> None:
    """Raise DataError if the run or settings beside the answers name another mode than "plain"."""
    made_with = (run["config"] if run is not None else read_settings(path)) or {}
    if made_with.get("mode", "plain") != "plain":
        raise DataError(f"{path} was not made with checking off (mode {made_with['mode']!r}){_CORRECTED}")


def _was_corrected(row: Row) -> bool:
    """Whether a row was made with checking on: it holds an outcome or rejected phrases."""
    outcomes = (row.get("successful_correction"), row.get("resolved"))
    traces = (row.get("attempts"), row.get("generation_history"), row.get("unresolved"))
    return any(value is not None for value in outcomes) or any(traces)


def _read_row_phrases(row: Row, where: str) -> Iterator[tuple[str, float, bool | None]]:
    """Return (text, p, wrong or None) of every phrase with a p. Raises DataError for another shape."""
    listed = row.get("phrases")
    if not isinstance(listed, list):
        raise DataError(f"{where} has no list of phrases: was it made by `reverse eval`?")
    for phrase in listed:
        text = phrase[0] if isinstance(phrase, list) and phrase else phrase
        text = text.get("text") if isinstance(text, Mapping) else text
        if isinstance(text, str) and len(text) > LONGEST:
            raise DataError(f"{where} has a phrase of {len(text):,} characters: at most {LONGEST:,} are read")
        if isinstance(phrase, list) and len(phrase) == 3 and isinstance(phrase[1], (int, float)):
            yield replace_surrogates(str(phrase[0])), _check_probability(phrase[1], where), bool(phrase[2])
        elif isinstance(phrase, Mapping) and isinstance(phrase.get("text"), str) and _has_valid_p(phrase):
            if phrase.get("p_un") is not None:
                yield replace_surrogates(phrase["text"]), _check_probability(phrase["p_un"], where), None
        else:
            raise DataError(f"{where} has a phrase of another shape: {describe(phrase)}")


def _check_probability(value: Any, where: str) -> float:
    """Return the value as float. Raises DataError unless it lies in [0, 1]; NaN does not."""
    if not 0 <= value <= 1:
        raise DataError(
            f"{where} has a phrase with p {describe(value, 30)} outside [0, 1]: p(</UN>) is a probability"
        )
    return float(value)


def _has_valid_p(phrase: Mapping[str, Any]) -> bool:
    p = phrase.get("p_un")
    return p is None or isinstance(p, (int, float))


def same_picture(image: str) -> str:
    """Return the name that identifies a picture in any folder: a scene's id, else the file name."""
    match = _SCENE.search(image)
    return match[0] if match else PurePosixPath(image).name


def _find_picture(row: Row) -> str:
    return str(row.get("image_id", row.get("image", row.get("id", row.get("question_id")))))
