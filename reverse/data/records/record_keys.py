"""Keys of records beside the published ones: pictures under other names, and what would be silently ignored.

    >>> pictures_of({"images": ["a.png", "b.png"]})
    ['a.png', 'b.png']
    >>> unseen({"video": "a.mp4", "conversations": []})
    [('video', "'a.mp4'", 'take pictures of its frames')]

Sets for LLaVA, Qwen-VL, LLaMA-Factory and ms-swift hold keys that change what is taught. A record is trained
as its keys say, or refused by the key's name; other keys (sizes, sources, notes) are left alone.
"""

from collections.abc import Mapping
from typing import Any

from reverse.data.records.schema import is_set, shorten

_FRAMES = "take pictures of its frames"
_PICTURES = "records have text and pictures"
_ONE = "make one record of it in `conversations`"
_PAIR = "preferences are not trained: keep the answer that is right"
_TRAINED = "every answer is trained: leave out those that are not to be"
# Key of a record: how a record is written without it.
_IN_RECORD = {
    **dict.fromkeys(("video", "videos", "video_path"), _FRAMES),
    **dict.fromkeys(("audio", "audios", "sound", "speech"), _PICTURES),
    **dict.fromkeys(("system", "system_prompt"), "write it at the head of the first question"),
    **dict.fromkeys(("tools", "functions", "tool_calls"), "write what they are into the question"),
    **dict.fromkeys(("messages", "history", "conversation"), _ONE),
    **dict.fromkeys(("chosen", "rejected", "rejected_response", "rejected_messages"), _PAIR),
}
_IN_TURN = {
    **dict.fromkeys(("image", "images"), "name the picture in the record, and its place by <image>"),
    **dict.fromkeys(("video", "videos"), _FRAMES),
    **dict.fromkeys(("audio", "audios"), _PICTURES),
    **dict.fromkeys(("tool_calls", "function_call"), "write it into the text"),
}
_WEIGHTS = ("loss", "train", "weight", "loss_weight", "loss_scale")  # of an answer: harmless where they say 1
_LABELS = ("label", "kto_tag")  # of a record: whether its answer is wanted
_BOX_MARKS = ("<bbox>", "<ref-object>")  # stand for what `objects` holds
_RECORD_KEYS = frozenset((*_IN_RECORD, *_LABELS, "objects"))
_TURN_KEYS = frozenset((*_IN_TURN, *_WEIGHTS))


def pictures_of(record: Mapping[str, Any]) -> list[str]:
    """The paths that `image` and `images` name, each a path or a list of paths, in their order.

    A list may name a picture twice; one that both keys name counts once.
    """
    image = record.get("image")
    if isinstance(image, str) and "images" not in record:  # nearly all
        return [image]
    image, images = _paths(image), _paths(record.get("images"))
    if all(name in images for name in image):
        return images
    return image + [name for name in images if name not in image]


def _paths(value: Any) -> list[str]:
    return [name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str)]


def picture_of(record: Mapping[str, Any]) -> str | None:
    """The first picture of a record, None where it has none; `pictures_of` names further ones."""
    image = record.get("image")
    if isinstance(image, str):  # nearly all
        return image
    found = pictures_of(record)
    return found[0] if found else None


def may_be_unseen(record: Mapping[str, Any]) -> bool:
    """Whether `unseen` need be asked, or pictures be counted: a glance for millions of records."""
    if not _RECORD_KEYS.isdisjoint(record) or isinstance(record.get("image"), list) or "images" in record:
        return True
    return not all(_TURN_KEYS.isdisjoint(turn) for turn in record["conversations"])


def unseen(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What a record asks for and training would ignore: key, value (cut short), and how to do without."""
    found: list[tuple[str, str, str]] = []
    found += [
        (key, shorten(record[key]), mend) for key, mend in _IN_RECORD.items() if is_set(record.get(key))
    ]
    found += [(key, "False", _PAIR) for key in _LABELS if record.get(key) is False]
    turns = record["conversations"]
    if is_set(record.get("objects")):
        marks = [mark for mark in _BOX_MARKS if any(mark in turn["value"] for turn in turns)]
        mend = "write the boxes into the text"
        found += [("objects", shorten(record["objects"]), mend)] if marks else []
    for turn in turns:
        if _TURN_KEYS.isdisjoint(turn):
            continue
        found += [(key, shorten(turn[key]), mend) for key, mend in _IN_TURN.items() if is_set(turn.get(key))]
        found += [
            (key, shorten(turn[key]), _TRAINED)
            for key in _WEIGHTS
            if turn.get("from") == "gpt"
            and key in turn
            and turn[key] is not None
            and turn[key] not in (True, 1)
        ]
    return found
