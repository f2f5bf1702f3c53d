"""The rules that decide whether an instruct record is bad. Every reader, check and encoder asks this module.

`find_shape_problem` says why a value is not a record at all: no reader takes it. `find_faults` lists what
keeps a record from being trained, whatever the model: `reverse data check` reports it and training refuses
it. What depends on the model (its own tokens in a text, how many ids fit) is checked by
`reverse.training.data.encoding`.

    >>> record = {"conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A dog</UN>"}]}
    >>> [fault.kind for fault in find_faults(record)]
    ['close_without_open']
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from reverse.data.records.schema import IMAGE_TOKEN, LONGEST_PATH, MODEL_PLACEHOLDERS, is_set, pictures_of
from reverse.data.records.target_rules import find_target_problems
from reverse.errors import DataError
from reverse.files.cell_values import describe
from reverse.files.text_reading import find_surrogate
from reverse.tokens.spans import TAGS, WELL_FORMED, find_problems

# Records for LLaMA-Factory, ms-swift and Qwen-VL hold keys that change what is taught. Training would ignore
# them, so they are refused by name, with the way to write the record without them. Other keys are left alone.
_FRAMES = "take pictures of its frames"
_PICTURES = "records have text and pictures"
_ONE = "make one record of it in `conversations`"
_PAIR = "preferences are not trained: keep the answer that is right"
_TRAINED = 'write "targets": "none" on an answer that is not to be trained'
_RECORD_REMEDIES = {
    **dict.fromkeys(("video", "videos", "video_path"), _FRAMES),
    **dict.fromkeys(("audio", "audios", "sound", "speech"), _PICTURES),
    **dict.fromkeys(("system", "system_prompt"), "write it at the head of the first question"),
    **dict.fromkeys(("tools", "functions", "tool_calls"), "write what they are into the question"),
    **dict.fromkeys(("messages", "history", "conversation"), _ONE),
    **dict.fromkeys(("chosen", "rejected", "rejected_response", "rejected_messages"), _PAIR),
}
_TURN_REMEDIES = {
    **dict.fromkeys(("image", "images"), "name the picture in the record, and its place by <image>"),
    **dict.fromkeys(("video", "videos"), _FRAMES),
    **dict.fromkeys(("audio", "audios"), _PICTURES),
    **dict.fromkeys(("tool_calls", "function_call"), "write it into the text"),
}
_WEIGHTS = ("loss", "train", "weight", "loss_weight", "loss_scale")  # of an answer: harmless if they say 1
_LABELS = ("label", "kto_tag")  # of a record: whether its answer is wanted
_BOX_MARKS = ("<bbox>", "<ref-object>")  # placeholders for what `objects` holds
_UNUSUAL_RECORD_KEYS = frozenset((*_RECORD_REMEDIES, *_LABELS, "objects", "images"))
_UNUSUAL_TURN_KEYS = frozenset((*_TURN_REMEDIES, *_WEIGHTS))
_OTHER_SHAPES = ("messages", "conversation", "query", "instruction", "prompt", "question", "text")
_TEXT_OR_NONE = (str, type(None))

_TAG = re.compile("|".join(TAGS))
_PLACEHOLDER = re.compile("|".join(map(re.escape, MODEL_PLACEHOLDERS)))
_WELL_FORMED = re.compile(WELL_FORMED)


class Fault(NamedTuple):
    """One reason why a record is not trained, with the text it is about and the place in that text.

    `kind` is that of a `reverse.tokens.spans.Problem`, or one of "tag_in_question", "misplaced_image",
    "miscounted_images", "image_in_answer", "model_placeholder", "unsupported_key", "half_surrogate_pair",
    "empty_answer", "empty_question", "bad_targets".
    """

    kind: str
    turn: int
    text: str
    offset: int
    message: str


def check_shape(record: Any, where: str = "record") -> None:
    """Raise DataError, naming the place and the remedy, unless `record` has the published shape."""
    if problem := find_shape_problem(record):
        raise DataError(f"{where}: {problem}")


def find_shape_problem(record: Any) -> str | None:
    """Say why a value does not have the published shape, and the remedy; None if it does.

    `id`, `A_type` and `hint` may be missing, and further keys may be present.
    """
    if not isinstance(record, dict):
        return f"a record is an object, got {describe(record, 80)}: see docs/data.md"
    for key in ("image", "images"):
        names = record.get(key)
        if names is None or _is_path(names) or (key == "images" and names == []):
            continue
        if not (isinstance(names, list) and names and all(map(_is_path, names))):
            return (
                f'"{key}" must be a relative path, got {describe(names, 80)}: leave it out for a text record'
            )
    turns = record.get("conversations")
    if not isinstance(turns, list) or len(turns) < 2:
        other = next((key for key in _OTHER_SHAPES if is_set(record.get(key))), None)
        remedy = f': it has "{other}", as other libraries write records; see docs/data.md' if other else ""
        return f'"conversations" must list a question and an answer, got {describe(turns, 80)}{remedy}'
    if len(turns) % 2:
        remedy = "leave one out"
        if isinstance(turns[0], dict) and turns[0].get("from") == "system":
            remedy = "write the first, of the system, at the head of the first question"
        return f"a question and an answer alternate, got {len(turns)} turns: {remedy}"
    for i, turn in enumerate(turns):
        if problem := _find_turn_problem(turn, "gpt" if i % 2 else "human"):
            return f"turn {i} {problem}"
    return None


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_PATH


def _find_turn_problem(turn: Any, speaker: str) -> str | None:
    if not isinstance(turn, dict) or turn.get("from") != speaker:
        shown = describe(turn, 80)
        return f'must be {{"from": "{speaker}", "value": …}}, got {shown}: turns alternate'
    if not isinstance(turn.get("value"), str):
        return f'must have a text as "value", got {describe(turn.get("value"), 80)}'
    for key in ("A_type", "hint"):
        if not isinstance(turn.get(key), _TEXT_OR_NONE):
            return f'must have a text or null as "{key}", got {describe(turn[key], 80)}'
    return None


def find_faults(record: Mapping[str, Any], hints: bool = True) -> Iterator[Fault]:
    """Yield all that is wrong with a record of the published shape.

    `hints`: also check the answers' hints, of which training draws a part.
    """
    if not _is_surely_faultless(record):
        yield from _find_faults_in_full(record, hints)


def _is_surely_faultless(record: Mapping[str, Any]) -> bool:
    """Whether a cheap check finds no possible fault, which holds for nearly all of millions of records.

    True implies that `_find_faults_in_full` finds nothing (tests/data/test_record_rules.py).
    """
    if has_unusual_keys(record) or next(find_target_problems(record), None) is not None:
        return False
    turns = record["conversations"]
    shows_picture = isinstance(record.get("image"), str)
    for question_turn, answer_turn in zip(turns[::2], turns[1::2], strict=True):
        question, answer, hint = question_turn["value"], answer_turn["value"], answer_turn.get("hint") or ""
        if "<" in question:
            if not (shows_picture and question.count("<") == 1 and IMAGE_TOKEN in question):
                return False
        elif not (shows_picture or question.strip()):
            return False
        if not answer.strip() or ("<" in answer and not _WELL_FORMED.fullmatch(answer)):
            return False
        if find_surrogate(question) or find_surrogate(answer) or find_surrogate(hint):
            return False
        shows_picture = False  # the picture stands in the first question only
    return True


def _find_faults_in_full(record: Mapping[str, Any], hints: bool) -> Iterator[Fault]:
    yield from find_unsupported_keys(record)
    yield from find_bad_targets(record)
    yield from find_misplaced_images(record)
    turns = record["conversations"]
    shows_first = _shows_picture_first(record)
    for k, (human, gpt) in enumerate(zip(turns[::2], turns[1::2], strict=True)):
        question, answer = human["value"], gpt["value"]
        hint = gpt.get("hint") if hints else None
        if tag := _TAG.search(question):
            message = f"turn {k} has {tag.group()} in its question: take the tag out"
            yield Fault("tag_in_question", k, question, tag.start(), message)
        for text in (question, answer):
            if found := _PLACEHOLDER.search(text):
                message = (
                    f"turn {k} holds {found.group()}, which a model's own template writes: the picture's "
                    f"place is {IMAGE_TOKEN}; it says {_text_around(text, found.start())!a}"
                )
                yield Fault("model_placeholder", k, text, found.start(), message)
        for problem in find_problems(answer):
            message = f"turn {k} has malformed tags: {problem.message}"
            yield Fault(problem.kind, k, answer, problem.offset, message)
        yield from find_text_faults(k, question, answer, [hint] if hint else [], shows_first and k == 0)


def has_unusual_keys(record: Mapping[str, Any]) -> bool:
    """Whether a record has keys that training may not know, or names its pictures in a list."""
    if not _UNUSUAL_RECORD_KEYS.isdisjoint(record) or isinstance(record.get("image"), list):
        return True
    return not all(_UNUSUAL_TURN_KEYS.isdisjoint(turn) for turn in record["conversations"])


def find_unsupported_keys(record: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield a fault for each key that asks for something that training would ignore."""
    if not has_unusual_keys(record):
        return
    turns = record["conversations"]
    found = [
        (key, record[key], remedy) for key, remedy in _RECORD_REMEDIES.items() if is_set(record.get(key))
    ]
    found += [(key, False, _PAIR) for key in _LABELS if record.get(key) is False]
    if is_set(record.get("objects")) and any(mark in turn["value"] for turn in turns for mark in _BOX_MARKS):
        found.append(("objects", record["objects"], "write the boxes into the text"))
    for turn in turns:
        found += [(key, turn[key], remedy) for key, remedy in _TURN_REMEDIES.items() if is_set(turn.get(key))]
        if turn.get("from") == "gpt":
            weights = [key for key in _WEIGHTS if turn.get(key) is not None]
            found += [(key, turn[key], _TRAINED) for key in weights if turn[key] not in (True, 1)]
    for key, value, remedy in found:
        shown = describe(value, 80)
        message = f'"{key}" is {shown}, which training does not know: {remedy}'
        yield Fault("unsupported_key", 0, f"{key}: {shown}", 0, message)


def find_bad_targets(record: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield a fault for each `targets`, `given` or `weight` that cannot be trained."""
    for turn, text, message in find_target_problems(record):
        yield Fault("bad_targets", turn, text, 0, message)


def _shows_picture_first(record: Mapping[str, Any]) -> bool:
    """Whether pictures stand in the first question, with or without `<image>` written there."""
    count = len(pictures_of(record))
    if count < 2:
        return count == 1
    questions = [turn["value"] for turn in record["conversations"][::2]]
    return IMAGE_TOKEN in questions[0] or not any(IMAGE_TOKEN in question for question in questions)


def find_misplaced_images(record: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield a fault for each `<image>` where no picture can stand, and for a wrong number of them.

    `<image>` is the place of a picture and never text. One picture stands in the first question; several
    stand in any question, or all of them in the first if no question says so.
    """
    pictures = pictures_of(record)
    texts = [turn["value"] for turn in record["conversations"]]
    places = [text.count(IMAGE_TOKEN) for text in texts]
    asked = sum(places[::2])
    if len(pictures) > 1 and asked not in (0, len(pictures)):
        k = max(k for k, count in enumerate(places[::2]) if count)
        at = texts[2 * k].rfind(IMAGE_TOKEN)
        message = (
            f"{IMAGE_TOKEN} stands {asked} times in the questions of a record with {len(pictures)} pictures, "
            f"{describe(pictures, 80)}: write it once for each, in their order, or nowhere and all come "
            f"first; turn {k} says {_text_around(texts[2 * k], at)!r}"
        )
        yield Fault("miscounted_images", k, texts[2 * k], at, message)
    for i, (text, count) in enumerate(zip(texts, places, strict=True)):
        k, at = i // 2, text.rfind(IMAGE_TOKEN)
        if i % 2 and count:
            message = (
                f"{IMAGE_TOKEN} stands for the picture and cannot be part of an answer, got turn {k}: "
                f"{_text_around(text, at)!r}"
            )
            yield Fault("image_in_answer", k, text, at, message)
        elif not i % 2 and len(pictures) < 2 and count > (len(pictures) if k == 0 else 0):
            message = (
                f"one {IMAGE_TOKEN} may stand in the first question of a record with an image, got turn {k}: "
                f"{_text_around(text, at)!r}"
            )
            yield Fault("misplaced_image", k, text, at, message)


def find_text_faults(
    k: int, question: str, answer: str, hints: Sequence[str], shows_picture: bool
) -> Iterator[Fault]:
    """Yield a fault for each text of turn `k` that is empty or that no tokenizer takes.

    A blank answer would teach the model to say nothing. A question may be blank if it shows a picture.
    """
    for name, text in (("question", question), ("answer", answer), *(("hint", hint) for hint in hints)):
        if surrogate := find_surrogate(text):
            message = (
                f"turn {k} holds half of a surrogate pair in its {name}: mend it; it says "
                f"{_text_around(text, surrogate.start())!a}"
            )
            yield Fault("half_surrogate_pair", k, text, surrogate.start(), message)
    if not answer.strip():
        message = f"turn {k} has a blank answer: leave it out; it asks {question[:80]!r}"
        yield Fault("empty_answer", k, answer, 0, message)
    if not (question.strip() or shows_picture):
        message = f"turn {k} has a blank question: leave it out; its answer is {answer[:80]!r}"
        yield Fault("empty_question", k, question, 0, message)


def _text_around(text: str, at: int) -> str:
    return text[max(0, at - 40) : at + 40]
