"""Split the questions of a record with several pictures as decoding does.

    >>> split_questions(["<image>\\n<image>\\nWhich is red?", "And here? <image>"], 3)
    [(None, None, 'Which is red?'), (None, 'And here?')]

Training places pictures as `generate()` and chats do (`reverse.models.inputs.picture_places`). `<image>`
marks the place of one picture. Pictures without words between them come before the words of their question.
Without any `<image>` all pictures stand in the first question. The chat template decides whether words
between pictures stay there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reverse.data.records.schema import IMAGE_TOKEN
from reverse.data.records.target_rules import Targets
from reverse.errors import DataError
from reverse.models.inputs.picture_places import split_at_places

__all__ = ["Content", "split_questions"]

Content = tuple[str | None, ...]  # the texts of a question, and None for each picture


@dataclass(frozen=True, slots=True)
class Turn:
    """A question, its answer, and the phrases named as wrong after the question.

    `content`: of a record with several pictures, the question in parts, None for each (`split_questions`).
    `targets`: which ids of the answer are trained. `given`: number of its first characters that are input
    only.
    """

    question: str
    answer: str
    hints: tuple[str, ...] = ()
    content: Content = ()
    targets: Targets = "all"
    given: int = 0


def split_questions(questions: Sequence[str], count: int) -> list[Content]:
    """Return the content of each question of a conversation about `count` pictures, stripped of blanks.

    Raises:
        ValueError: the questions contain `<image>`, but not `count` times.
    """
    questions = [question.strip() for question in questions]
    places = [question.count(IMAGE_TOKEN) for question in questions]
    if not any(places):
        questions = [f"{IMAGE_TOKEN * count}{questions[0]}", *questions[1:]]
        places[0] = count
    if sum(places) != count:
        raise DataError(f"{IMAGE_TOKEN} stands {sum(places)} times in the questions about {count} pictures")
    contents: list[Content] = []
    for k, (question, here) in enumerate(zip(questions, places, strict=True)):
        parts = split_at_places(question, here, f"turn {k}") if here else [{"type": "text", "text": question}]
        contents.append(tuple(part.get("text") for part in parts))
    return contents
