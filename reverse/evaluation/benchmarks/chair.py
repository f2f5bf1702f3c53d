"""CHAIR (https://arxiv.org/abs/1809.02156): the share of objects that a caption names and the picture does
not hold.

Word for word the evaluator that published results use: tokens, tags and lemmas of NLTK, double words, the
synonyms of the 80 objects. Every mention counts, repeats included. The truth of an image is its instances and
what its five reference captions name. Differences from that script, each tested:

- An image that is not in the truth, or has neither an instance nor a caption there, is an error; in the
  published script everything said about it is wrong.
- There is no 1e-8 in denominators: without any mention CHAIRi is not defined (NaN), not 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from reverse.errors import DataError
from reverse.evaluation.benchmarks.benchmark import (
    COCO_IMAGES,
    DEFAULT_SCORING,
    Benchmark,
    PublishedFile,
    QuestionRow,
    ScoringOptions,
    make_row,
)
from reverse.evaluation.reading import english_words
from reverse.evaluation.reading.answers import BenchmarkAnswer, leave_out_longer
from reverse.evaluation.reading.chair_words import find_mentions
from reverse.evaluation.reading.coco_truth import PLACES, CocoTruth, read_coco_truth
from reverse.evaluation.reading.file_lookup import find_files
from reverse.evaluation.scoring.answer_table import (
    list_names,
    make_table,
    refuse_incomplete,
    refuse_other_picture,
)
from reverse.evaluation.stats.scored_tables import Metric, Table, ratio
from reverse.files.cell_values import read_id
from reverse.files.entries import read_entries

__all__ = ["CHAIR", "METRICS", "score"]

METRICS = (
    ratio("chair_i", "wrong", "mentions", "low", title="CHAIRi"),
    ratio("chair_s", "any_wrong", "answers", "low", title="CHAIRs"),
    ratio("recall", "named", "objects", "high", title="recall"),
    ratio("length", "words", "answers", "neither", unit="words", title="length, words and punctuation"),
)
_QUESTIONS = "chair-500.jsonl"


def read_questions(files: Mapping[str, Path]) -> Iterator[QuestionRow]:
    """Read chair-500.jsonl: question_id, image, text."""
    return map(make_row, read_entries(files["questions"]))


def score(
    answers: Sequence[BenchmarkAnswer], truth: str | Path, options: ScoringOptions = DEFAULT_SCORING
) -> tuple[Table, list[Metric]]:
    """Score captions, one row per answer: wrong and all mentions, objects of the image, objects named, words.

    Raises DataError for an image that is not in the truth. If the published list of questions lies beside the
    truth and the answers are to it, questions without an answer are refused too.
    """
    questions = find_files(truth, PLACES, [_QUESTIONS])
    entries = [entry for path in questions for entry in read_entries(path)]
    asked = {str(read_id(entry.id("question_id"))): entry.row.get("image") for entry in entries}
    ours = [answer for answer in answers if answer.question_id in asked]
    # If more than half answer the list, the others are a mistake.
    published = 2 * len(ours) > len(answers)
    if published:
        refuse_incomplete("CHAIR", asked, answers, options.partial)
        for answer in answers:
            refuse_other_picture(answer, asked[answer.question_id])
    answers = leave_out_longer(answers, english_words.LONGEST)
    known = read_coco_truth(truth, options.workers, options.progress)
    places = _find_places(answers, known, truth)
    counts = np.array(
        [_count(answer.text, known.objects_at(place)) for answer, place in zip(answers, places, strict=True)],
        float,
    )
    names = ("mentions", "wrong", "any_wrong", "objects", "named", "words")
    columns = dict(zip(names, counts.T, strict=True))
    notes = {
        "questions": _QUESTIONS if published else "a list of the run's own",
        "truth": known.sources,
        "language": english_words.describe_versions(),
        "published": _published(columns),
    }
    return make_table("chair", answers, columns, notes=notes), list(METRICS)


def _find_places(answers: Sequence[BenchmarkAnswer], known: CocoTruth, truth: str | Path) -> list[int]:
    """Return the index of each answer's image in the truth.

    Raises DataError for images that are not there, that may be several, or that nobody has annotated.
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
            "these are not answers about its images" if len(unknown) == len(answers) else "wrong annotations?"
        )
        raise DataError(f"{len(unknown)} images are not in the truth {truth}: {list_names(unknown)}; {hint}")
    bare = [answer.image for answer, place in zip(answers, places, strict=True) if not known.annotated[place]]
    if bare:
        raise DataError(
            f"{len(bare)} images have neither an instance nor a caption in the truth {truth}: "
            f"{list_names(bare)}; all that is said about them would be wrong: give the annotations of "
            "their set"
        )
    return places


def _count(text: str, objects: frozenset[str]) -> tuple[int, ...]:
    said, words = find_mentions(text)
    wrong = sum(name not in objects for _, name in said)
    named = {name for _, name in said} & objects
    return len(said), wrong, int(wrong > 0), len(objects), len(named), words


def _published(columns: dict[str, np.ndarray]) -> dict[str, str]:
    """Compute what the published script prints: times 100, two digits, 1e-8 in two denominators."""
    total = {name: float(column.sum()) for name, column in columns.items()}
    answers = len(columns["wrong"])
    figures = {
        "CHAIRs": total["any_wrong"] / answers,
        "CHAIRi": total["wrong"] / (total["mentions"] + 1e-8),
        "Recall": total["named"] / (total["objects"] + 1e-8),
        "Len": 0.01 * total["words"] / answers,
    }
    return {name: f"{value * 100:.2f}" for name, value in figures.items()}


_SOURCE = "COCO 2014 (cocodataset.org)"


def _annotations(name: str) -> PublishedFile:
    places = tuple(f"{folder}/annotations/{name}_val2014.json" for folder in ("chair_mscoco/coco", "coco"))
    return PublishedFile(
        places, f"COCO {name}, the truth", f"{_SOURCE}, annotations_trainval2014.zip", "score"
    )


CHAIR = Benchmark(
    name="chair",
    title="CHAIR-MSCOCO",
    aliases=("chair-mscoco",),
    kind="caption",
    files={
        "questions": PublishedFile(
            (f"chair_mscoco/{_QUESTIONS}",),
            "500 questions",
            "evaluation bundle of the published REVERSE code",
        ),
        "instances": _annotations("instances"),
        "captions": _annotations("captions"),
    },
    images=COCO_IMAGES,
    images_source=f"{_SOURCE}, val2014.zip",
    read_questions=read_questions,
    score=score,
    holds_truth=lambda truth, _: bool(find_files(truth, PLACES, ["instances*.json"])),
    needs="words",
    count=500,
)
