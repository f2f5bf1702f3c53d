"""What keeps a record from being trained, whatever the model: `data check` reports it, training refuses it.

    >>> record = {"conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A dog</UN>"}]}
    >>> [fault.kind for fault in faults(record)]
    ['close_without_open']

What the model decides, its tokens and how many fit, `reverse.training.encoding` finds. That a record has the
published shape (`reverse.data.records.validate`) is taken for granted.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from reverse.data.record_keys import may_be_unseen, pictures_of, unseen
from reverse.data.records import IMAGE_TOKEN, MODEL_PLACEHOLDERS, half_pair, shorten
from reverse.tokens.spans import TAGS, problems

ANY_TAG = "|".join(TAGS)
_TAG = re.compile(ANY_TAG)
# What no question may hold; the pattern is read by `re` and RE2.
NOT_ASKED = "|".join((ANY_TAG, *map(re.escape, MODEL_PLACEHOLDERS)))
_PLACEHOLDER = re.compile("|".join(map(re.escape, MODEL_PLACEHOLDERS)))


class Fault(NamedTuple):
    """One reason, with the question, answer or hint that it is about and the place in it.

    `kind` is that of a `reverse.tokens.spans.Problem`, or one of "tag_in_question", "misplaced_image",
    "miscounted_images", "image_in_answer", "model_placeholder", "unsupported_key", "half_surrogate_pair",
    "empty_answer", "empty_question".
    """

    kind: str
    turn: int
    text: str
    offset: int
    message: str


def faults(record: Mapping[str, Any], hints: bool = True) -> Iterator[Fault]:
    """All that is wrong with a record, turn by turn; `hints`: look at its hints too, drawn now and then."""
    several = len(pictures_of(record)) > 1
    said = record["conversations"]
    for key, value, mend in unseen(record) if may_be_unseen(record) else ():
        message = f'"{key}" is {value}, which training does not know: {mend}'
        yield Fault("unsupported_key", 0, f"{key}: {value}", 0, message)
    yield from miscounted_images(record)
    comes_first = shows_first(record)
    for k, (human, gpt) in enumerate(zip(said[::2], said[1::2], strict=True)):
        question, answer = human["value"], gpt["value"]
        hint = gpt.get("hint") if hints else None
        about_picture = comes_first and k == 0
        if tag := _TAG.search(question):
            message = f"turn {k} has {tag.group()} in its question"
            yield Fault("tag_in_question", k, question, tag.start(), message)
        for text in (question, answer):
            if found := _PLACEHOLDER.search(text):
                message = (
                    f"turn {k} holds {found.group()}, which a model's own template writes: the picture's "
                    f"place is {IMAGE_TOKEN}; it says {_around(text, found.start())!a}"
                )
                yield Fault("model_placeholder", k, text, found.start(), message)
        for problem in problems(answer):
            message = f"turn {k} has malformed tags: {problem.message}"
            yield Fault(problem.kind, k, answer, problem.offset, message)
        yield from misplaced_images(k, question, answer, about_picture, several)
        yield from unsayable(k, question, answer, [hint] if hint else [], about_picture)


def shows_first(record: Mapping[str, Any]) -> bool:
    """Whether pictures stand in the first question, `<image>` written there or not."""
    count = len(pictures_of(record))
    if count < 2:
        return count == 1
    questions = [turn["value"] for turn in record["conversations"][::2]]
    return IMAGE_TOKEN in questions[0] or not any(IMAGE_TOKEN in question for question in questions)


def miscounted_images(record: Mapping[str, Any]) -> Iterator[Fault]:
    """Of a record with several pictures: another number of `<image>` than of pictures."""
    pictures = pictures_of(record)
    if len(pictures) < 2:
        return
    questions = [turn["value"] for turn in record["conversations"][::2]]
    places = [question.count(IMAGE_TOKEN) for question in questions]
    if sum(places) in (0, len(pictures)):
        return
    k = max(k for k, count in enumerate(places) if count)
    at = questions[k].rfind(IMAGE_TOKEN)
    message = (
        f"{IMAGE_TOKEN} stands {sum(places)} times in the questions of a record with {len(pictures)} "
        f"pictures, {shorten(pictures)}: write it once for each, in their order, or nowhere and all come "
        f"first; turn {k} says {_around(questions[k], at)!r}"
    )
    yield Fault("miscounted_images", k, questions[k], at, message)


def misplaced_images(
    k: int, question: str, answer: str, about_picture: bool, several: bool = False
) -> Iterator[Fault]:
    """`<image>` where no picture can stand: it is the place of one, and never text.

    `several`: the record has several pictures, which may stand in any question (`miscounted_images`).
    """
    if not several and question.count(IMAGE_TOKEN) > int(about_picture):
        at = question.rfind(IMAGE_TOKEN)
        message = (
            f"one {IMAGE_TOKEN} may stand in the first question of a record with an image, got turn {k}: "
            f"{_around(question, at)!r}"
        )
        yield Fault("misplaced_image", k, question, at, message)
    if (at := answer.rfind(IMAGE_TOKEN)) >= 0:
        message = (
            f"{IMAGE_TOKEN} stands for the picture and cannot be part of an answer, got turn {k}: "
            f"{_around(answer, at)!r}"
        )
        yield Fault("image_in_answer", k, answer, at, message)


def unsayable(
    k: int, question: str, answer: str, hints: Sequence[str], about_picture: bool
) -> Iterator[Fault]:
    """What says nothing, for a blank answer would teach silence, or is no text; a picture may stand alone."""
    for name, text in (("question", question), ("answer", answer), *(("hint", hint) for hint in hints)):
        if half := half_pair(text):
            message = (
                f"turn {k} holds half of a surrogate pair in its {name}: mend it; it says "
                f"{_around(text, half.start())!a}"
            )
            yield Fault("half_surrogate_pair", k, text, half.start(), message)
    if not answer.strip():
        message = f"turn {k} has a blank answer: leave it out; it asks {question[:80]!r}"
        yield Fault("empty_answer", k, answer, 0, message)
    if not (question.strip() or about_picture):
        message = f"turn {k} has a blank question: leave it out; its answer is {answer[:80]!r}"
        yield Fault("empty_question", k, question, 0, message)


def _around(text: str, at: int) -> str:
    return text[max(0, at - 40) : at + 40]
