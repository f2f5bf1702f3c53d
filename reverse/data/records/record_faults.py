"""What keeps a record from being trained, whatever the model: `data check` reports it, training refuses it.

    >>> record = {"conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A dog</UN>"}]}
    >>> [fault.kind for fault in faults(record)]
    ['close_without_open']

What the model decides, its tokens and how many fit, `reverse.training.data.encoding` finds. That a record
has the
published shape (`reverse.data.records.schema.validate`) is taken for granted.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from reverse.data.records.record_keys import may_be_unseen, pictures_of, unseen
from reverse.data.records.schema import IMAGE_TOKEN, MODEL_PLACEHOLDERS, half_pair, shorten
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
    """All that is wrong with a record; `hints`: look at its hints too, which are drawn now and then."""
    yield from unsupported_keys(record)
    yield from misplaced_images(record)
    said = record["conversations"]
    comes_first = shows_first(record)
    for k, (human, gpt) in enumerate(zip(said[::2], said[1::2], strict=True)):
        question, answer = human["value"], gpt["value"]
        hint = gpt.get("hint") if hints else None
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
        yield from unsayable(k, question, answer, [hint] if hint else [], comes_first and k == 0)


def unsupported_keys(record: Mapping[str, Any]) -> Iterator[Fault]:
    """Keys that ask for what training would ignore."""
    for key, value, mend in unseen(record) if may_be_unseen(record) else ():
        message = f'"{key}" is {value}, which training does not know: {mend}'
        yield Fault("unsupported_key", 0, f"{key}: {value}", 0, message)


def shows_first(record: Mapping[str, Any]) -> bool:
    """Whether pictures stand in the first question, `<image>` written there or not."""
    count = len(pictures_of(record))
    if count < 2:
        return count == 1
    questions = [turn["value"] for turn in record["conversations"][::2]]
    return IMAGE_TOKEN in questions[0] or not any(IMAGE_TOKEN in question for question in questions)


def misplaced_images(record: Mapping[str, Any]) -> Iterator[Fault]:
    """`<image>` where no picture can stand, or another number of them than of pictures.

    It is the place of a picture and never text. One picture stands in the first question; several stand in
    any question, or all of them first where no question says so.
    """
    pictures = pictures_of(record)
    said = [turn["value"] for turn in record["conversations"]]
    places = [text.count(IMAGE_TOKEN) for text in said]
    asked = sum(places[::2])
    if len(pictures) > 1 and asked not in (0, len(pictures)):
        k = max(k for k, count in enumerate(places[::2]) if count)
        at = said[2 * k].rfind(IMAGE_TOKEN)
        message = (
            f"{IMAGE_TOKEN} stands {asked} times in the questions of a record with {len(pictures)} pictures, "
            f"{shorten(pictures)}: write it once for each, in their order, or nowhere and all come first; "
            f"turn {k} says {_around(said[2 * k], at)!r}"
        )
        yield Fault("miscounted_images", k, said[2 * k], at, message)
    for i, (text, count) in enumerate(zip(said, places, strict=True)):
        k, at = i // 2, text.rfind(IMAGE_TOKEN) if count else -1
        if i % 2 and count:
            message = (
                f"{IMAGE_TOKEN} stands for the picture and cannot be part of an answer, got turn {k}: "
                f"{_around(text, at)!r}"
            )
            yield Fault("image_in_answer", k, text, at, message)
        elif not i % 2 and len(pictures) < 2 and count > (len(pictures) if k == 0 else 0):
            message = (
                f"one {IMAGE_TOKEN} may stand in the first question of a record with an image, got turn {k}: "
                f"{_around(text, at)!r}"
            )
            yield Fault("misplaced_image", k, text, at, message)


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
