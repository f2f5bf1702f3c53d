"""The turns of a conversation: read from a record, and with several pictures split as decoding does.

    >>> split_questions(["<image>\\n<image>\\nWhich is red?", "And here? <image>"], 3)
    [(None, None, 'Which is red?'), (None, 'And here?')]

Training places pictures as `generate()` and chats do (`reverse.models.inputs.picture_places`). `<image>`
marks the place of one picture. Pictures without words between them come before the words of their question.
Without any `<image>` all pictures stand in the first question. The chat template decides whether words
between pictures stay there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reverse.data.records.record_rules import find_misplaced_images
from reverse.data.records.schema import IMAGE_TOKEN, pictures_of
from reverse.data.records.target_rules import Targets
from reverse.errors import DataError
from reverse.models.inputs.picture_places import split_at_places

__all__ = ["Content", "Turn", "list_contents", "split_questions", "turns_of", "write_messages"]

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


def turns_of(record: Mapping[str, Any]) -> list[Turn]:
    """Return the turns of a published record, without hints; `<image>` is removed from the text.

    In this format `<image>` is the place of a picture and never text. It stands once in the first question of
    a record with one picture, for several once for each in any question, or nowhere: then they come first.

    Raises:
        ValueError: questions and answers do not alternate, or `<image>` stands elsewhere, or not for each.
    """
    said = record["conversations"]
    roles = [turn["from"] for turn in said]
    if not said or roles != ["human", "gpt"] * (len(said) // 2):
        raise DataError(f"record {record.get('id')!r}: human and gpt must alternate, got {roles}")
    for fault in find_misplaced_images(record):
        raise DataError(f"record {record.get('id')!r}: {fault.message}")
    turns = [
        Turn(
            human["value"].replace(IMAGE_TOKEN, "").strip(),
            gpt["value"],
            targets=gpt.get("targets") or "all",
            given=gpt.get("given") or 0,
        )
        for human, gpt in zip(said[::2], said[1::2], strict=True)
    ]
    count = len(pictures_of(record))
    if count < 2:
        return turns
    contents = split_questions([turn["value"] for turn in said[::2]], count)
    return [replace(turn, content=content) for turn, content in zip(turns, contents, strict=True)]


def write_messages(contents: Sequence[Content], answers: Sequence[str]) -> list[dict[str, Any]]:
    """Return a conversation as the chat template takes it, without the pictures themselves."""
    messages: list[dict[str, Any]] = []
    for content, answer in zip(contents, answers, strict=True):
        parts = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in content]
        messages += [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
    return messages


def list_contents(turns: Sequence[Turn], picture: bool) -> tuple[Content, ...]:
    """Return the texts of each question, with None for a picture; a single picture comes first."""
    contents: list[Content] = [turn.content or (turn.question,) for turn in turns]
    if picture and not any(turn.content for turn in turns):
        contents[0] = (None, *contents[0])
    return tuple(contents)
