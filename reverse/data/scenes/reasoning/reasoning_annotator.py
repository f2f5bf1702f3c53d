"""Texts about a picture: true rationales, those of the prejudiced annotator, captions, and pointing.

The annotator writes the typical count of an object (`find_typical_count`) where the true one is off by one,
with a probability that depends on theme and object (`find_stubbornness`); an absent object counts 0. In
tables he reads well, but one in four of his sums slips by one or by ten. He reads bars without error. He
never changes the truth, which is part of the picture and the question.

    >>> picture = make_reasoning_picture("test", 2)
    >>> write_rationale(make_reasoning_questions(picture)[0], picture.truth)
    'Step 1: there are 3 cows. Answer: 3'
    >>> write_pointing(picture, "cow")
    ('Point at the cows.', 'cows at 11 42 43.')
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from reverse.data.scenes.object_names import make_plural
from reverse.data.scenes.reasoning.reasoning_pictures import (
    NOWHERE,
    ReasoningPicture,
    find_places,
    make_picture_rng,
)
from reverse.data.scenes.reasoning.reasoning_questions import (
    QUESTION_KINDS,
    ReasoningQuestion,
    compute_answer,
)
from reverse.data.scenes.reasoning.reasoning_scenes import find_stubbornness, find_typical_count

__all__ = [
    "Annotation",
    "annotate",
    "describe_as_annotator",
    "read_as_annotator",
    "write_places",
    "write_pointing",
    "write_rationale",
    "write_reasoning_caption",
    "write_step",
]

SLIP_SHARE = 0.25  # of the annotator's sums over tables
SLIPS = (1, -1, 10, -10)


@dataclass(frozen=True)
class Annotation:
    """A rationale, the numbers that were read for it, and the error of its sum."""

    text: str
    reading: dict[str, int]
    slip: int = 0


def annotate(
    picture: ReasoningPicture, question: ReasoningQuestion, rng: np.random.Generator | int | None = None
) -> Annotation:
    """Write the annotator's rationale. Without `rng` it depends on picture and question alone."""
    if rng is None:
        rng = make_picture_rng(picture, 10 + QUESTION_KINDS.index(question.kind))
    rng = np.random.default_rng(rng)
    reading = read_as_annotator(picture, question.names, rng)
    slip = 0
    if picture.kind == "table" and question.kind in ("sum", "total") and rng.random() < SLIP_SHARE:
        total = sum(reading[name] for name in question.names)
        slips = [slip for slip in SLIPS if total + slip > 0]
        slip = slips[int(rng.random() * len(slips))]
    return Annotation(write_rationale(question, reading, slip), reading, slip)


def describe_as_annotator(picture: ReasoningPicture, rng: np.random.Generator | int | None = None) -> str:
    """Write the annotator's caption, with the numbers that he reads."""
    rng = make_picture_rng(picture, 2) if rng is None else np.random.default_rng(rng)
    return write_reasoning_caption(picture, read_as_annotator(picture, tuple(picture.truth), rng))


def read_as_annotator(
    picture: ReasoningPicture, names: tuple[str, ...], rng: np.random.Generator
) -> dict[str, int]:
    """Return the numbers that the annotator reads for some names."""
    reading = {}
    for name in names:
        value = picture.truth.get(name, 0)
        if picture.kind == "scene":
            typical = find_typical_count(picture.theme, name)
            if abs(value - typical) == 1 and rng.random() < find_stubbornness(picture.theme, name):
                value = typical
        reading[name] = value
    return reading


def write_rationale(
    question: ReasoningQuestion, reading: Mapping[str, int], slip: int = 0, *, points: bool = False
) -> str:
    """Write the steps and the answer of somebody who read these numbers.

    Args:
        slip: number that is added to the result of a sum.
        points: before each number is read, point at its source, always truly: "Step 1: cows at 41 43".
    """
    values = [reading.get(name, 0) for name in question.names]
    steps = []
    for name, value in zip(question.names, values, strict=True):
        if points:
            steps.append(write_places(question.picture_kind, name, question.places.get(name, NOWHERE)))
        steps.append(write_step(question.picture_kind, name, value))
    answer = compute_answer(question, dict(reading))
    if question.kind in ("sum", "total"):
        answer = str(int(answer) + slip)
        steps.append(f"{' + '.join(map(str, values))} = {answer}")
    elif question.kind == "diff":
        steps.append(f"{max(values)} - {min(values)} = {answer}")
    elif question.kind == "left":
        steps.append(f"{values[0]} - {question.amount} = {answer}")
    elif question.kind == "more":
        sign = ">" if values[0] > values[1] else "<" if values[0] < values[1] else "="
        steps.append(f"{values[0]} {sign} {values[1]}")
    elif question.kind == "most":
        steps.append(f"the most is {max(values)}")
    elif question.kind == "parity":
        steps.append(f"{values[0]} is {'even' if values[0] % 2 == 0 else 'odd'}")
    numbered = [f"Step {number}: {step}." for number, step in enumerate(steps, 1)]
    return " ".join([*numbered, f"Answer: {answer}"])


def write_step(picture_kind: str, name: str, value: int) -> str:
    """Write a step that reads one number: "there are 4 cows", "the red bar is 7"."""
    if picture_kind == "chart":
        return f"the {name} bar is {value}"
    return f"there is 1 {name}" if value == 1 else f"there are {value} {make_plural(name)}"


def write_places(picture_kind: str, name: str, places: str) -> str:
    """Write a step that points: "cows at 41 43 45 54", "cows at row 2", "red bar at 3"."""
    return f"{name} bar at {places}" if picture_kind == "chart" else f"{make_plural(name)} at {places}"


def write_reasoning_caption(picture: ReasoningPicture, reading: Mapping[str, int] | None = None) -> str:
    """Write a sentence for each name: "There are 4 cows.

    There is 1 cake."; names without a reading get the true number.
    """
    values = picture.truth if reading is None else reading
    sentences = (write_step(picture.kind, name, values[name]) for name in picture.truth)
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def write_pointing(picture: ReasoningPicture, name: str) -> tuple[str, str]:
    """Return a request to point at something, and its true answer.

    In scenes the answer names cells of a grid of five by five by row and column, from 1 at the top left; in
    tables the row, in charts the bar; "none" if there is none.
    """
    answer = write_places(picture.kind, name, find_places(picture, name))
    return f"Point at the {answer.split(' at ')[0]}.", f"{answer}."
