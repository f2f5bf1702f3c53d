"""Questions about a picture of the reasoning world, with their right answers.

The eight kinds, of scenes and tables:

    count   How many cows are there?                                        number
    sum     How many cows and cakes are there together?                     number
    diff    What is the difference between the numbers of cows and cakes?   number
    more    Are there more cows than cakes?                                 yes, no
    most    What is there most of? A. cows B. cakes C. cups                 A, B, C
    parity  Is the number of cows even?                                     yes, no
    total   How many objects are there in all?                              number
    left    2 cows go away. How many cows are left?                         number

The options of `most` stand on lines of their own. For charts, questions ask for the heights of bars: "How
high is the red bar?"

    >>> question = make_reasoning_questions(make_reasoning_picture("test", 2))[0]
    >>> question.text, question.answer
    ('How many cows are there?', '3')
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from reverse.data.drafts.draft_record import DraftRecord, GoldAnswer
from reverse.data.scenes.object_names import make_plural
from reverse.data.scenes.reasoning.reasoning_charts import BAR_COLOURS
from reverse.data.scenes.reasoning.reasoning_pictures import (
    PictureKind,
    ReasoningPicture,
    find_places,
    make_picture_rng,
)
from reverse.data.scenes.reasoning.reasoning_scenes import COUNTED_NAMES
from reverse.errors import DataError

__all__ = [
    "QUESTION_KINDS",
    "QuestionKind",
    "ReasoningQuestion",
    "compute_answer",
    "make_reasoning_questions",
    "read_reasoning_question",
]

QuestionKind = Literal["count", "sum", "diff", "more", "most", "parity", "total", "left"]
QUESTION_KINDS: tuple[QuestionKind, ...] = get_args(QuestionKind)
OPTIONS = 3  # of a question for the most


@dataclass(frozen=True)
class ReasoningQuestion:
    """A question with its kind, the names it asks about, and the truth of its picture.

    `names`: the objects to read, in the order of the rationale's steps. `amount`: what a question of kind
    `left` takes away, else 0. `truth`: as of the picture; what it does not hold counts 0. `places`: where
    each name is (`find_places`).
    """

    id: str
    picture_kind: PictureKind
    kind: QuestionKind
    text: str
    names: tuple[str, ...]
    truth: dict[str, int]
    amount: int = 0
    places: dict[str, str] = field(default_factory=dict)

    @property
    def answer(self) -> str:
        """The right answer, as it ends a rationale."""
        return compute_answer(self, self.truth)

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts of the options A, B, C of a question of kind `most`; empty for other kinds."""
        return tuple(self.write_name(name) for name in self.names) if self.kind == "most" else ()

    @property
    def gold(self) -> GoldAnswer:
        """The right answer in the form that draft records keep."""
        if self.kind == "most":
            return GoldAnswer(kind="choice", answers=(self.answer,), choices=self.choices)
        return GoldAnswer(
            kind="yes_no" if self.kind in ("more", "parity") else "number", answers=(self.answer,)
        )

    def write_name(self, name: str) -> str:
        """Return a name as questions write it: "cows", "red"."""
        return name if self.picture_kind == "chart" else make_plural(name)


def compute_answer(question: ReasoningQuestion, reading: dict[str, int]) -> str:
    """Compute the answer from the numbers that were read; a number that was not read counts 0."""
    values = [reading.get(name, 0) for name in question.names]
    if question.kind == "count":
        return str(values[0])
    if question.kind in ("sum", "total"):
        return str(sum(values))
    if question.kind == "diff":
        return str(abs(values[0] - values[1]))
    if question.kind == "more":
        return "yes" if values[0] > values[1] else "no"
    if question.kind == "most":
        return chr(ord("A") + values.index(max(values)))
    if question.kind == "parity":
        return "yes" if values[0] % 2 == 0 else "no"
    return str(values[0] - question.amount)


def make_reasoning_questions(picture: ReasoningPicture, limit: int | None = None) -> list[ReasoningQuestion]:
    """Make at most one question of each kind, in random order; `limit` keeps only the first ones.

    A table or chart of two rows is not asked for the most; in a scene of two kinds the third option is an
    object that is not there.
    """
    rng = make_picture_rng(picture, 1)
    kinds = [QUESTION_KINDS[at] for at in rng.permutation(len(QUESTION_KINDS)).tolist()]
    if picture.kind != "scene" and len(picture.truth) < OPTIONS:
        kinds.remove("most")
    return [_make_question(picture, kind, rng) for kind in kinds[:limit]]


def read_reasoning_question(record: DraftRecord) -> ReasoningQuestion:
    """Rebuild the question of a draft record of this world, with the truth that steps are checked against.

    Raises DataError if the record does not say what was asked.
    """
    source: Any = record.source.get("reasoning")
    try:
        if source["picture"] not in get_args(PictureKind) or source["kind"] not in QUESTION_KINDS:
            raise ValueError(f"picture {source['picture']!r:.40}, kind {source['kind']!r:.40}")
        return ReasoningQuestion(
            record.id,
            source["picture"],
            source["kind"],
            record.question,
            tuple(str(name) for name in source["names"]),
            {str(name): int(value) for name, value in source["truth"].items()},
            int(source["amount"]),
            {str(name): str(places) for name, places in source["places"].items()},
        )
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise DataError(
            f"record {record.id!r:.80} holds no question of the reasoning world ({error}): "
            "give records that `reverse data reasoning` wrote"
        ) from None


def _make_question(
    picture: ReasoningPicture, kind: QuestionKind, rng: np.random.Generator
) -> ReasoningQuestion:
    present = list(picture.truth)
    shuffled = [present[at] for at in rng.permutation(len(present)).tolist()]
    amount = 0
    if kind in ("sum", "diff", "more"):
        names = tuple(shuffled[:2])
    elif kind == "total":
        names = tuple(present)
    elif kind == "most":
        names = _draw_options(picture, shuffled, rng)
    else:
        names = (shuffled[0],)
    if kind == "left":
        # Less than all, so that one who counts one too few can take it away, too.
        amount = 1 + int(rng.random() * max(1, picture.truth[names[0]] - 1))
    write = _ask_about_bars if picture.kind == "chart" else _ask_about_objects
    question = ReasoningQuestion(
        f"{picture.id}-{kind}", picture.kind, kind, "", names, dict(picture.truth), amount,
        {name: find_places(picture, name) for name in names},
    )  # fmt: skip
    text = write(question)
    if kind == "most":
        text += "".join(
            f"\n{letter}. {option}" for letter, option in zip("ABC", question.choices, strict=True)
        )
    return replace(question, text=text)


def _draw_options(
    picture: ReasoningPicture, shuffled: list[str], rng: np.random.Generator
) -> tuple[str, ...]:
    """Draw three options in random order, of which one is strictly the most."""
    ranked = sorted(shuffled, key=lambda name: -picture.truth[name])
    best = ranked[0]
    others = [name for name in ranked[1:] if picture.truth[name] < picture.truth[best]]
    absent = [
        name
        for name in (BAR_COLOURS if picture.kind == "chart" else COUNTED_NAMES)
        if name not in picture.truth
    ]
    while len(others) < OPTIONS - 1:
        others.append(absent.pop(int(rng.random() * len(absent))))
    options = [best, *others[: OPTIONS - 1]]
    return tuple(options[at] for at in rng.permutation(OPTIONS).tolist())


def _ask_about_objects(question: ReasoningQuestion) -> str:
    names = [make_plural(name) for name in question.names]
    if question.kind == "left":
        name, amount = question.names[0], question.amount
        away = f"{amount} {names[0]} go away." if amount > 1 else f"1 {name} goes away."
        return f"{away} How many {names[0]} are left?"
    return {
        "count": "How many {0} are there?",
        "sum": "How many {0} and {1} are there together?",
        "diff": "What is the difference between the numbers of {0} and {1}?",
        "more": "Are there more {0} than {1}?",
        "most": "What is there most of?",
        "parity": "Is the number of {0} even?",
        "total": "How many objects are there in all?",
    }[question.kind].format(*names)


def _ask_about_bars(question: ReasoningQuestion) -> str:
    if question.kind == "left":
        return f"The {question.names[0]} bar shrinks by {question.amount}. How high is it then?"
    return {
        "count": "How high is the {0} bar?",
        "sum": "How high are the {0} and the {1} bar together?",
        "diff": "What is the difference between the {0} and the {1} bar?",
        "more": "Is the {0} bar higher than the {1} bar?",
        "most": "Which bar is highest?",
        "parity": "Is the height of the {0} bar even?",
        "total": "How high are all bars together?",
    }[question.kind].format(*question.names)
