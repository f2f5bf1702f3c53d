"""Training records as items: pictures and the rows about them.

An item depends only on its index and the seed, not on the worker. `collator.Collator` makes a
batch of items.

    RecordDataset("reverse_ft.json", "playground/data", encoder, seed=0)
"""

from __future__ import annotations

import json
import logging
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from reverse.data.records.published_set import open_records
from reverse.data.records.record_rules import find_bad_targets, find_unsupported_keys
from reverse.data.records.schema import ANSWER_TYPE, pictures_of
from reverse.data.records.target_rules import weight_of_record
from reverse.errors import DataError
from reverse.tokens.spans import UN
from reverse.training.data.encoding import Encoder, Row, TrainingItem
from reverse.training.data.picture_encoding import PictureEncoder, join_pictures
from reverse.training.data.record_turns import Turn, turns_of
from reverse.training.data.training_hints import choose_hints

__all__ = ["HINT_SHARE", "RecordDataset", "may_be_hinted"]

_logger = logging.getLogger(__name__)

HINT_SHARE = 0.2  # of the positive general answers name wrong phrases, as published
_CHARACTERS = 4  # about as many as an id stands for
_LIST = re.compile(r'"images?"\s*:\s*\[')
MOST_REPLACED = (
    100  # records in a row whose pictures are damaged: more are not bad records but a wrong folder
)


class RecordDataset(Dataset[TrainingItem]):
    """Records of an imported set, a JSON list or JSONL; each record, with all its turns, is one row.

    The records are mapped, not loaded (`reverse.data.records.published_set`); a JSON file is read through
    once, to find where they stand, and of 1.3M records an import (`reverse data import`) opens at once. A
    positive general answer carries its record's `hint` with probability `hint_share`; the draw depends on
    seed and index.

    Args:
        path: an imported folder, a folder of scenes, or a JSON file.
        image_root: what the records' images are relative to.
        encoder: makes the rows.
        hint_share: probability of a hint; 0: no hints.
        seed: of the draws.
        limit: number of records, from the first; None: all.
        keep_broken: what is not a record of a JSON file is an error when it is drawn, not at once.
        weight: multiplies the loss of all records, in addition to their own `weight`.

    `replace_damaged`: train the next record in the place of one with a picture that cannot be decoded, with a
    warning, instead of raising; which one it is depends on the index alone.
    """

    def __init__(
        self,
        path: str | Path,
        image_root: str | Path,
        encoder: Encoder,
        *,
        hint_share: float = HINT_SHARE,
        seed: int = 0,
        limit: int | None = None,
        keep_broken: bool = False,
        weight: float = 1.0,
    ):
        self.path = Path(path)
        self.image_root = Path(image_root)
        self.encoder = encoder
        self.pictures = PictureEncoder(encoder.processor)
        self.hint_share = hint_share
        self.seed = seed
        self.weight = weight
        self.replace_damaged = False
        self._reported: set[int] = set()  # records whose picture is damaged
        self.records = open_records(self.path, keep_broken=keep_broken)
        count = len(self.records)
        self.kept = np.arange(count if limit is None else min(limit, count))  # (items,), numbers of records

    def __len__(self) -> int:
        return len(self.kept)

    def leave_out(self, numbers: Sequence[int]) -> None:
        """Leave these records out. The others keep their indices, and so their random draws."""
        self.kept = np.setdiff1d(self.kept, np.array(numbers, dtype=np.int64))

    def __getitem__(self, index: int) -> TrainingItem:
        """Return the item of a record; with `replace_damaged`, that of the next one whose pictures can be
        decoded.

        Raises ValueError naming the record, and its picture if that is damaged.
        """
        index = range(len(self))[index]
        for step in range(min(MOST_REPLACED, len(self))):
            number = int(self.kept[(index + step) % len(self)])
            record = self.record(number)
            names = pictures_of(record)
            if not names:
                return TrainingItem((self._row(number, record, None),), None)
            try:
                pictures = [self._open(number, name) for name in names]
            except ValueError as error:
                if not self.replace_damaged:
                    raise
                if number not in self._reported:
                    self._reported.add(number)
                    _logger.warning("%s; the next record is trained in its place", error)
                continue
            encoded = [self.pictures(picture) for picture in pictures]
            row = self._row(number, record, [tokens for _, tokens in encoded])
            shown = [inputs for inputs, _ in encoded[: row.pictures]]  # without those of turns that are cut
            return TrainingItem((row,), join_pictures(shown) if shown else None)
        raise DataError(
            f"{self.path}, record {self.kept[index]} and those after it: none of {MOST_REPLACED} pictures in "
            f"a row can be decoded: is {self.image_root} the right folder?"
        )

    def _open(self, number: int, name: str) -> Any:
        """Decode the picture of a record."""
        from reverse.data.pictures.opening import open_image, resolve_image

        try:
            return open_image(resolve_image(self.image_root, name))
        except (ValueError, OSError) as error:
            raise DataError(
                f"{self.path}, record {number}: {error} (`reverse data check --images` finds all such "
                "pictures, data.skip_bad=true trains the next record in its place)"
            ) from error

    def row(self, index: int, image_tokens: int) -> Row:
        """Return ids and labels of a record without opening its pictures, each of which takes `image_tokens`
        ids.
        """
        index = int(self.kept[index])
        record = self.record(index)
        return self._row(index, record, [image_tokens] * len(pictures_of(record)))

    def _row(self, index: int, record: Mapping[str, Any], image_tokens: Sequence[int] | None) -> Row:
        try:
            row = self.encoder.row(self.turns(index, record), image_tokens)
        except ValueError as error:
            # It is shown on terminals, which take no half of a surrogate pair.
            said = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")
            raise DataError(f"{self.path}, record {index}: {error}; the record: {said[:600]}") from error
        weight = weight_of_record(record) * self.weight
        return row if weight == 1 else replace(row, weight=weight)

    def lengths(self) -> npt.NDArray[np.int64]:
        """Estimate the length of each record in characters, (records,) int64; negative without a picture.

        The first picture is not counted, because nearly all records have one; each further one counts its
        ids."""
        texts = map(self.records.text, self.kept.tolist())
        keys = ('"image"', '"images"')
        each = _CHARACTERS * self.pictures.usual()
        return np.array(
            [len(t) + each * _further(t) if any(k in t for k in keys) else -len(t) for t in texts],
            dtype=np.int64,
        )

    def record(self, number: int) -> dict[str, Any]:
        """Return record `number` as it stands in the file."""
        return self.records[number]

    def turns(self, number: int, record: Mapping[str, Any]) -> list[Turn]:
        """Return the turns of record `number`, with the hints that are drawn for it.

        Raises ValueError for a key that training would ignore.
        """
        for fault in chain(find_unsupported_keys(record), find_bad_targets(record)):
            raise DataError(fault.message)
        rng, turns = random.Random(f"{self.seed} record {number}"), []
        for turn, said in zip(turns_of(record), record["conversations"][1::2], strict=True):
            # A hint stands behind the question's last word: pictures alone have none.
            wordless = turn.content and not turn.question
            if may_be_hinted(said) and rng.random() < self.hint_share and not wordless:
                turn = replace(turn, hints=choose_hints(rng, turn.answer, own=[said["hint"]]))
            turns.append(turn)
        return turns


def _further(text: str) -> int:
    """Count the pictures of a record after the first one; only lists of pictures are parsed."""
    if not _LIST.search(text):
        return 0
    try:
        return max(0, len(pictures_of(json.loads(text))) - 1)
    except (ValueError, AttributeError):  # broken: it is refused when it is drawn
        return 0


def may_be_hinted(answer: Mapping[str, Any]) -> bool:
    """Whether hints may be drawn for an answer: a general one with a hint and without a wrong phrase."""
    return answer.get("A_type") == ANSWER_TYPE and bool(answer.get("hint")) and UN not in answer["value"]
