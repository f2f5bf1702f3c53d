"""CHAIR: how much of what a caption names is not in the picture (https://arxiv.org/abs/1809.02156).

    table, metrics = score(read_answers("answers.jsonl"), "playground/data/eval/chair_mscoco")

Word for word the evaluator that published results use: tokens, tags and lemmas of NLTK, double words, the
synonyms of the 80 objects; every mention counts, repeats included; the truth of an image is its instances and
whatever its five reference captions name. Differences, each tested:

- An image that is not in the truth, or has neither an instance nor a caption there, is an error; in the
  published script everything said about it is wrong.
- No 1e-8 in denominators: without any mention CHAIRi is not defined (NaN), not 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from reverse.errors import DataError
from reverse.evaluation.reading import english_words
from reverse.evaluation.reading.chair_words import mentions
from reverse.evaluation.reading.coco_truth import PLACES, Truth, coco_truth
from reverse.evaluation.scoring.scored_rows import (
    Answer,
    all_answered,
    leave_out_longer,
    listed,
    locate,
    make_table,
    same_image,
)
from reverse.evaluation.stats.scored_tables import Metric, Table, ratio
from reverse.files.cell_values import read_id
from reverse.files.entries import read_entries

__all__ = ["METRICS", "score"]

METRICS = (
    ratio("chair_i", "wrong", "mentions", "low", title="CHAIRi"),
    ratio("chair_s", "any_wrong", "answers", "low", title="CHAIRs"),
    ratio("recall", "named", "objects", "high", title="recall"),
    ratio("length", "words", "answers", "neither", unit="words", title="length, words and punctuation"),
)
_QUESTIONS = "chair-500.jsonl"


def score(
    answers: Sequence[Answer],
    truth: str | Path,
    partial: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Table, list[Metric]]:
    """One row an answer: wrong and all mentions, objects of the image, those named, words.

    Raises ValueError for an image that is not in the truth, and, where the published list of questions lies
    beside the truth and the answers are to it, for questions without an answer.
    """
    questions = locate(truth, PLACES, [_QUESTIONS])
    entries = [entry for path in questions for entry in read_entries(path)]
    asked = {str(read_id(entry.id("question_id"))): entry.row.get("image") for entry in entries}
    ours = [answer for answer in answers if answer.question_id in asked]
    # more than half to the list: its answers, and those that are none of it a mistake
    published = 2 * len(ours) > len(answers)
    if published:
        all_answered("CHAIR", asked, answers, partial)
        for answer in answers:
            same_image(answer, asked[answer.question_id])
    answers = leave_out_longer(answers, english_words.LONGEST, "word by word")
    known = coco_truth(truth, workers, progress)
    places = _places(answers, known, truth)
    counts = np.array(
        [_count(answer.text, known.objects_at(place)) for answer, place in zip(answers, places, strict=True)],
        float,
    )
    names = ("mentions", "wrong", "any_wrong", "objects", "named", "words")
    columns = dict(zip(names, counts.T, strict=True))
    notes = {
        "questions": _QUESTIONS if published else "a list of the run's own",
        "truth": known.sources,
        "language": english_words.versions(),
        "published": _published(columns),
    }
    return make_table("chair", answers, columns, notes=notes), list(METRICS)


def _places(answers: Sequence[Answer], known: Truth, truth: str | Path) -> list[int]:
    """Where the image of each answer stands in the truth.

    Raises ValueError for images that are not there, that may be several, or that nobody has annotated.
    """
    places: list[int] = []
    unknown = []
    for answer in answers:
        try:
            places.append(known.place(answer.path or answer.image))
        except KeyError:
            unknown.append(answer.image or f"(no image_id, line {answer.line})")
        except ValueError as error:
            raise DataError(f"line {answer.line}: {error}") from None
    if unknown:
        hint = (
            "these are no answers about its images" if len(unknown) == len(answers) else "wrong annotations?"
        )
        raise DataError(f"{len(unknown)} images are not in the truth {truth}: {listed(unknown)}; {hint}")
    bare = [answer.image for answer, place in zip(answers, places, strict=True) if not known.annotated[place]]
    if bare:
        raise DataError(
            f"{len(bare)} images have neither an instance nor a caption in the truth {truth}: "
            f"{listed(bare)}; all that is said about them would be wrong: give the annotations of their set"
        )
    return places


def _count(text: str, objects: frozenset[str]) -> tuple[int, ...]:
    said, words = mentions(text)
    wrong = sum(name not in objects for _, name in said)
    named = {name for _, name in said} & objects
    return len(said), wrong, int(wrong > 0), len(objects), len(named), words


def _published(columns: dict[str, np.ndarray]) -> dict[str, str]:
    """What the published script prints: times 100, two digits, 1e-8 in two denominators."""
    total = {name: float(column.sum()) for name, column in columns.items()}
    answers = len(columns["wrong"])
    figures = {
        "CHAIRs": total["any_wrong"] / answers,
        "CHAIRi": total["wrong"] / (total["mentions"] + 1e-8),
        "Recall": total["named"] / (total["objects"] + 1e-8),
        "Len": 0.01 * total["words"] / answers,
    }
    return {name: f"{value * 100:.2f}" for name, value in figures.items()}
