"""Choose the ids that are trained: the answers, except the inside of phrases that close with `</UN>`.

A negative answer ends in a wrong phrase, `There are <SPAN>two cups</UN>`. The model is to learn that such a
phrase closes with `</UN>`, never to say it: the ids strictly between the tags are inputs only
(indicator 0 in Eq. 1 of https://arxiv.org/abs/2504.13169). `<SPAN>`, `</UN>` and the end of the text stay
targets. Known difference from the released code: there a `</UN>` without an open `<SPAN>` masks every
label before it; here it masks nothing, and `join` refuses the sample.

    >>> span_mask([7, 1, 8, 9, 3, 2], span_id=1, cn_id=4, un_id=3)   # 1 opens, 3 is </UN>
    array([ True,  True, False, False,  True,  True])

A turn may choose its targets (`reverse.data.records.target_rules`). `"content"` leaves out closing tags and
`"none"` everything. With `"closing"` only closing tags are targets, and every one of them is fed as `</CN>`,
whatever its label: when a model judges its own text, no verdict stands before it (and at test time only
accepted phrases do).

    >>> part = LabelledPart([1, 8, 3, 2], True, "closing")
    >>> ids, labels = join([part], span_id=1, cn_id=4, un_id=3)
    >>> ids.tolist(), labels.tolist()
    ([1, 8, 4, 2], [-100, -100, 3, -100])

The places of answers are known from the way a sample is joined (`join`), never guessed from its ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reverse.data.records.target_rules import Targets
from reverse.errors import DataError

__all__ = ["IGNORE", "LabelledPart", "join", "span_mask"]

IGNORE = -100  # no target, as torch's cross entropy and transformers have it

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LabelledPart:
    """Ids of one part of a sample; `target`: the assistant wrote it (its end of turn included).

    `targets`: which of its ids are trained. `given`: number of its first ids that are input only.
    """

    ids: Sequence[int] | Ids
    target: bool
    targets: Targets = "all"
    given: int = 0


def span_mask(ids: Sequence[int] | Ids, *, span_id: int, cn_id: int, un_id: int) -> Mask:
    """Return True for each id of an answer that is a target; shape as `ids`, (length,) or (..., length).

    It is False exactly for ids strictly between a `<SPAN>` and the `</UN>` that closes it. A `<SPAN>` inside
    an open phrase replaces the one before it, as `reverse.tokens.parse` reads it.
    """
    ids = np.asarray(ids, dtype=np.int64)
    if ids.size == 0:
        return np.ones(ids.shape, dtype=bool)
    length = ids.shape[-1]
    places = np.arange(length)
    tag = (ids == span_id) | (ids == cn_id) | (ids == un_id)
    before = np.maximum.accumulate(np.where(tag, places, -1), axis=-1)  # the last tag at or before each place
    after = np.where(tag, places, length)
    after = np.minimum.accumulate(after[..., ::-1], axis=-1)[..., ::-1]  # the next tag at or after it
    opened = np.take_along_axis(ids, np.maximum(before, 0), axis=-1) == span_id
    closed = np.take_along_axis(ids, np.minimum(after, length - 1), axis=-1) == un_id
    # Without a tag on one side `before` or `after` is clipped to an end of the row, which is not a tag then.
    return tag | ~(opened & closed)


def join(segments: Sequence[LabelledPart], *, span_id: int, cn_id: int, un_id: int) -> tuple[Ids, Ids]:
    """Join the parts of one sample: (ids, labels), both int64 of shape (length,).

    Labels are the ids of targets, and `IGNORE` elsewhere. A phrase never reaches over the end of its segment.

    Raises:
        ValueError: no id is a target, so that the sample would teach nothing, or a `</UN>` closes no phrase.
    """
    ids = [np.asarray(segment.ids, dtype=np.int64) for segment in segments]
    labels = []
    for k, (segment, piece) in enumerate(zip(segments, ids, strict=True)):
        if segment.target and (segment.targets != "all" or segment.given):
            ids[k], chosen = _choose_targets(segment, piece, span_id, cn_id, un_id)
            labels.append(chosen)
        elif not segment.target:
            labels.append(np.full_like(piece, IGNORE))
        elif not (piece == un_id).any():  # nothing is masked: most answers, and the mask is not cheap
            labels.append(piece)
        else:
            _check_closed(piece, span_id, cn_id, un_id)
            mask = span_mask(piece, span_id=span_id, cn_id=cn_id, un_id=un_id)
            labels.append(np.where(mask, piece, IGNORE))
    joined = np.concatenate(labels) if labels else np.empty(0, dtype=np.int64)
    if not (joined != IGNORE).any():
        raise DataError(
            f"none of the sample's {joined.size} ids is a target: a sample needs an answer from the assistant"
        )
    return np.concatenate(ids), joined


def _choose_targets(part: LabelledPart, ids: Ids, span_id: int, cn_id: int, un_id: int) -> tuple[Ids, Ids]:
    """Return input ids and labels, both (length,), of an answer that chooses its targets."""
    _check_closed(ids, span_id, cn_id, un_id)
    closing = (ids == cn_id) | (ids == un_id)
    if part.targets == "none":
        chosen = np.zeros_like(closing)
    elif part.targets == "closing":
        chosen = closing.copy()
    else:
        chosen = span_mask(ids, span_id=span_id, cn_id=cn_id, un_id=un_id)
        if part.targets == "content":
            chosen &= ~closing
    chosen[: part.given] = False
    fed = np.where(closing, cn_id, ids) if part.targets == "closing" else ids
    return fed, np.where(chosen, ids, IGNORE)


def _check_closed(ids: Ids, span_id: int, cn_id: int, un_id: int) -> None:
    tags = ids[(ids == span_id) | (ids == cn_id) | (ids == un_id)]
    wrong = tags == un_id
    if wrong.any() and (wrong[:1].any() or (tags[:-1][wrong[1:]] != span_id).any()):
        raise DataError(
            "a </UN> closes no open <SPAN>: it is not known which words are wrong; write "
            "<SPAN>the wrong phrase</UN>"
        )
