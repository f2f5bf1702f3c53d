"""Place pictures in a prompt: `<image>` marks the place for every family, in decoding and in training.

A single picture comes before the words, wherever `<image>` stands: models are trained that way here. Several
keep their places if words stand between them (a chat template may still put them first, as LLaVA's does). A
picture alone is followed by an empty text, because a template writes something after a text (LLaVA's writes a
space). So the end of the user's turn, where hints go, is the same for every question. The tokens that a
family's template writes for a picture are not allowed in prompts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from reverse.data.records.schema import IMAGE_TOKEN, MODEL_PLACEHOLDERS
from reverse.errors import RequestError
from reverse.files.text_reading import find_surrogate

Part = Mapping[str, Any]


def check_text(text: str, where: str) -> None:
    """Raise RequestError for half of a surrogate pair, or a placeholder that a family's template writes."""
    if half := find_surrogate(text):
        near = text[max(0, half.start() - 20) : half.start() + 20]
        raise RequestError(
            f"{where} holds half of a surrogate pair ({half.group()!a}) at character {half.start()}, near "
            f"{near!a}: it was cut within a character, take that half out"
        )
    for token in MODEL_PLACEHOLDERS:
        if token in text:
            raise RequestError(
                f"{where} holds {token!r}, which a model's own template writes: mark a picture's place with "
                f"{IMAGE_TOKEN!r}, or leave it out and the picture comes first"
            )


def split_at_places(text: str, count: int, where: str) -> list[dict[str, Any]]:
    """Split a text at `<image>` into content parts, with `{"type": "image"}` at the places of `count`
    pictures.

    Raises RequestError if `<image>` stands there another number of times.
    """
    found = text.count(IMAGE_TOKEN)
    if found != count:
        raise RequestError(
            f"{where} has {found} image placeholders for {count} pictures: give a picture for each, or take "
            f"{IMAGE_TOKEN!r} out of the prompt, and every picture is placed before the text"
        )
    pieces = text.split(IMAGE_TOKEN)
    if count == 1 or sum(bool(piece.strip()) for piece in pieces) <= 1:  # no words between pictures
        return [{"type": "image"}] * count + [{"type": "text", "text": "".join(pieces).strip()}]
    parts: list[dict[str, Any]] = []
    for k, piece in enumerate(pieces):
        parts += [{"type": "image"}] if k else []
        parts += [{"type": "text", "text": piece}] if piece.strip() else []
    return parts


def place_pictures(parts: Sequence[Part], role: str, where: str) -> list[Part]:
    """Return the parts of a message with a picture part in place of every `<image>` in its texts.

    A message that has parts for its pictures needs no `<image>`: as many as there are pictures are removed.

    Raises RequestError if `<image>` stands in another turn than the user's, or another number of times.
    """
    marks = sum(part["text"].count(IMAGE_TOKEN) for part in parts if part["type"] == "text")
    if not marks:
        return _with_words(parts, role)
    if role != "user":
        raise RequestError(
            f"{where} holds {IMAGE_TOKEN!r} in the {role}'s turn: it stands for a picture, which only the "
            "user shows; take it out"
        )
    pictures = [part for part in parts if part["type"] != "text"]
    if pictures and len(pictures) != marks:
        raise RequestError(
            f"{where} has {marks} image placeholders ({IMAGE_TOKEN!r}) beside {len(pictures)} parts with a "
            "picture: take them out of the text, the parts are the places"
        )
    if not pictures and sum(IMAGE_TOKEN in part["text"] for part in parts) == 1:
        placed: list[Part] = []
        for part in parts:
            text = part["text"]
            placed += split_at_places(text, marks, where) if IMAGE_TOKEN in text else [part]
        return placed
    kept = [part if part["type"] != "text" else _without_marks(part) for part in parts]
    kept = [part for part in kept if part["type"] != "text" or part["text"]]
    return _with_words(kept if pictures else [{"type": "image"}] * marks + kept, role)


def _without_marks(part: Part) -> Part:
    return {"type": "text", "text": part["text"].replace(IMAGE_TOKEN, "").strip()}


def _with_words(parts: Sequence[Part], role: str) -> list[Part]:
    """Return a user's parts, followed by an empty text if all of them are pictures."""
    if role == "user" and all(part["type"] != "text" for part in parts):
        return [*parts, {"type": "text", "text": ""}]
    return list(parts)
