"""The published instruct record: its constants, and how to build one and read its pictures.

A record is `{"id", "image", "conversations": [{"from", "value", "A_type", "hint"}]}`. `A_type` and `hint`
stand on the answers ("gpt") only, and a record without a picture has no "image". Records of LLaVA lack `id`,
`A_type` and `hint`; those of other libraries name pictures in `images`. What makes a record bad stands in
`record_rules`.

    >>> make_record("1", "images/1.png", "Describe this image.", "<SPAN>A dog</CN>.")["image"]
    'images/1.png'
"""

from collections.abc import Mapping
from typing import Any

ANSWER_TYPE = "general_answer"
IMAGE_TOKEN = "<image>"
# The templates of Qwen2.5-VL write these themselves; `<image>` stands for them in every prompt and record.
MODEL_PLACEHOLDERS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
NEGATIVE = "-neg"  # suffix of the id of a record's negative; the published set repeats the id instead
LONGEST_PATH = 4096  # characters of a picture's path; Linux takes no longer one


def make_record(
    name: str,
    image: str | None,
    question: str,
    answer: str,
    answer_type: str = ANSWER_TYPE,
    hint: str | None = None,
) -> dict[str, Any]:
    """Build a record of one question and one answer; a question about a picture begins with `<image>`."""
    asked = f"{IMAGE_TOKEN}\n{question}" if image is not None else question
    record: dict[str, Any] = {"id": name}
    if image is not None:
        record["image"] = image
    record["conversations"] = [
        {"from": "human", "value": asked},
        {"from": "gpt", "value": answer, "A_type": answer_type, "hint": hint},
    ]
    return record


def is_set(value: Any) -> bool:
    """Whether a value of a record or message is set: null, false, "", `[]` and `{}` are not."""
    return (
        value is not None
        and value is not False
        and not (isinstance(value, (str, bytes, list, tuple, dict)) and not value)
    )


def pictures_of(record: Mapping[str, Any]) -> list[str]:
    """List the paths that `image` and `images` name, each a path or a list of paths, in their order.

    A list may name a picture twice; a picture that both keys name counts once.

    >>> pictures_of({"images": ["a.png", "b.png"]})
    ['a.png', 'b.png']
    """
    image = record.get("image")
    if isinstance(image, str) and "images" not in record:  # nearly all
        return [image]
    image, images = _list_paths(image), _list_paths(record.get("images"))
    if all(name in images for name in image):
        return images
    return image + [name for name in images if name not in image]


def picture_of(record: Mapping[str, Any]) -> str | None:
    """Return the path of the first picture of a record, or None if it has no picture."""
    image = record.get("image")
    if isinstance(image, str):  # nearly all
        return image
    found = pictures_of(record)
    return found[0] if found else None


def _list_paths(value: Any) -> list[str]:
    return [name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str)]
