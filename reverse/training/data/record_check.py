"""Find the records that cannot be trained, and those with turns that do not fit, before training.

    bad, cut = inspect_records(dataset)      # [Bad(17, "no such picture: …"), …], {number: turns left out}

Nearly all records pass a fast check: they keep the rules of `reverse.data.records.record_rules`, and their
texts are so short that all turns fit even if each byte were an id. Longer texts are tokenised. If the largest
possible picture leaves no room for them, its size is read from the picture's header. The other records are
encoded as in training, which says what is wrong and how many turns do not fit. So the fast check must never
pass a record that the encoder refuses or cuts; it need not know the reason. Pictures are checked for
existence, not decoded.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from reverse.data.pictures.opening import find_missing_images, read_image_size, resolve_image
from reverse.data.records.record_rules import find_faults, has_unusual_keys
from reverse.data.records.schema import IMAGE_TOKEN, picture_of, pictures_of
from reverse.tokens.spans import SPAN, TAGS
from reverse.training.data.encoding import MARK, Encoder, Row, Turn
from reverse.training.data.training_sets import RecordDataset, may_be_hinted

__all__ = ["Bad", "FastRecordCheck", "find_bad", "inspect_records"]

BATCH = 512  # long records that are tokenised in one call
_HINT_IDS = 48  # ids that a hint takes beside its phrase, at a byte an id
_JOINT_IDS = 4  # ids that a text may take more where it stands between others


class Bad(NamedTuple):
    """A record that cannot be trained: its index in the file, and the reason."""

    number: int
    reason: str


def find_bad(dataset: RecordDataset, first: int = 0, end: int | None = None) -> list[Bad]:
    """Return the records of items `first` to `end` that cannot be trained, in order."""
    return inspect_records(dataset, first, end)[0]


def inspect_records(
    dataset: RecordDataset,
    first: int = 0,
    end: int | None = None,
    progress: Callable[[float, float], None] = lambda done, total: None,
) -> tuple[list[Bad], dict[int, int]]:
    """Return bad records of items `first` to `end`, and for the others the number of turns that do not fit,
    by index.
    """
    check = FastRecordCheck(dataset)
    places: dict[str, int] = {}  # number of each different picture
    pictures, owners = array("q"), array("q")  # numbers of shown pictures, and of the records that show them
    numbers = dataset.kept[first:end].tolist()
    bad: dict[int, str] = {}
    cut: dict[int, int] = {}
    long: list[tuple[int, Mapping[str, Any]]] = []

    def encode(number: int, record: Mapping[str, Any]) -> None:
        reason, turns = check.encode(number, record)
        if reason is not None:
            bad[number] = reason
        elif turns:
            cut[number] = turns

    def tokenise_long() -> None:
        for (number, record), ids in zip(long, check.count_ids([record for _, record in long]), strict=True):
            if not check.fits(ids, picture_of(record)):
                encode(number, record)
        long.clear()

    for done, number in enumerate(numbers):
        if done % BATCH == 0:
            progress(done, len(numbers))
        if number in dataset.records.broken:
            bad[number] = dataset.records.broken[number]
            continue
        record = dataset.record(number)
        for name in pictures_of(record):
            pictures.append(places.setdefault(name, len(places)))
            owners.append(number)
        needed = check.bound_ids(record)
        if needed is None:
            encode(number, record)
        elif not check.fits(needed, picture_of(record)):
            long.append((number, record))
        if len(long) >= BATCH:
            tokenise_long()
    tokenise_long()
    missing, refused = find_missing_images(dataset.image_root, places)
    lost = {name: f"no such picture: {dataset.image_root / name}" for name in missing} | refused
    why = {places[name]: reason for name, reason in lost.items()}
    for k in np.flatnonzero(np.isin(pictures, list(why))).tolist() if why else []:
        bad.setdefault(owners[k], why[pictures[k]])
    for number in bad.keys() & cut.keys():  # its picture is not there
        del cut[number]
    return [Bad(number, _escape(bad[number])) for number in sorted(bad)], cut


class FastRecordCheck:
    """Separates records that are certainly good from those that must be encoded, and encodes the latter."""

    def __init__(self, dataset: RecordDataset):
        # Without a cache: what is encoded here is odd, and would fill the one that training lives on.
        encoder = dataset.encoder
        self.dataset = dataset
        self.encoder = Encoder(encoder.processor, max_length=encoder.max_length, cache=0)
        self.most = dataset.pictures.most()
        self.has_tags = set(TAGS) <= encoder.tokenizer.get_added_vocab().keys()
        self._picture_ids = lru_cache(maxsize=4 * BATCH)(self._count_picture_ids)
        longest = encoder.max_length
        # Ids of the template; those of the two letters are counted twice.
        two = [len(Encoder(encoder.processor).row([Turn("a", "a")] * k, None).ids) + 16 for k in (1, 2)]
        template, self.later = two[0], two[1] - two[0] + 4  # of the first turn, of each after it
        self.room = None if longest is None else longest - template

    def bound_ids(self, record: Mapping[str, Any]) -> int | None:
        """Return an upper bound of a record's ids of text; None if encoding may fail for another reason."""
        said = record["conversations"]
        needed = (len(said) // 2 - 1) * self.later
        if has_unusual_keys(record) or next(find_faults(record), None) is not None:
            return None
        if not self.has_tags and any(turn.get("targets") == "closing" for turn in said):
            return None
        for k in range(0, len(said), 2):
            question, answer = said[k]["value"], said[k + 1]["value"]
            hint = said[k + 1].get("hint") or ""
            if question.count("<") != question.count(IMAGE_TOKEN):
                return None
            # Tokenizers may merge newlines and signs with the template's last ones.
            if not (answer[0].isalnum() or answer.startswith(SPAN)):
                return None
            if not question.isascii() and MARK[0] in question:
                return None
            asked = question.replace(IMAGE_TOKEN, "")
            asked = f"{asked}\n{hint.lower()}" if hint else asked
            if self.encoder.not_in_question.search(asked) or self.encoder.not_in_answer.search(answer):
                return None
            needed += _bound_ids(question) + _bound_ids(answer)
            if hint and may_be_hinted(said[k + 1]):
                needed += _bound_ids(hint) + _HINT_IDS
        return needed

    def fits(self, ids: int, image: str | None) -> bool:
        """Whether this many ids of text fit beside the picture, whose size is read only if it matters."""
        if self.room is None or ids <= self.room - (self.most if image is not None else 0):
            return True
        if image is None or not self.dataset.pictures.keeps_size:
            return False
        try:
            return ids <= self.room - self._picture_ids(image)
        except (ValueError, OSError):
            return False

    def count_ids(self, records: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return an upper bound of the ids of each record's texts, which are tokenised separately in one
        call.
        """
        texts: list[str] = []
        added, ends = [], []
        for record in records:
            said = record["conversations"]
            hints = [turn["hint"] for turn in said[1::2] if turn.get("hint") and may_be_hinted(turn)]
            texts += [turn["value"] for turn in said] + hints
            ends.append(len(texts))
            added.append((len(said) // 2 - 1) * self.later + len(hints) * _HINT_IDS)
        if not texts:
            return []
        tokenizer = self.encoder.tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        ids: Any  # counted only: made into no lists where that can be spared
        if backend is not None:
            ids = backend.encode_batch_fast(texts, add_special_tokens=False)
        else:
            ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        lengths = [len(each) + _JOINT_IDS for each in ids]
        begins = [0, *ends[:-1]]
        return [more + sum(lengths[a:b]) for more, a, b in zip(added, begins, ends, strict=True)]

    def encode(self, number: int, record: Mapping[str, Any]) -> tuple[str | None, int]:
        """Return why this record cannot be trained (or None), and how many of its turns do not fit."""
        for fault in find_faults(record, hints=False):  # the encoder checks those that are drawn
            return fault.message, 0
        try:
            return None, self._row(self.dataset.turns(number, record), pictures_of(record)).cut
        except FileNotFoundError:
            return None, 0  # the picture's absence is found with the others'
        except (ValueError, OSError) as error:
            return str(error), 0

    def _row(self, turns: list[Turn], images: Sequence[str]) -> Row:
        """Return the row as in training; the pictures' sizes are read only if they matter."""
        most = [self.most] * len(images)
        if not (images and self.dataset.pictures.keeps_size):
            return self.encoder.row(turns, most)
        if self.room is None or self.room > self.most:
            try:
                row = self.encoder.row(turns, most)
                if not row.cut:
                    return row
            except ValueError:  # if it is not for the length, it comes again
                pass
        return self.encoder.row(turns, [self._picture_ids(image) for image in images])

    def _count_picture_ids(self, image: str) -> int:
        return self.dataset.pictures.count(*read_image_size(resolve_image(self.dataset.image_root, image)))


def _bound_ids(text: str) -> int:
    """Return an upper bound of a text's ids: one per byte.

    (Normalisation may double characters beyond ASCII.)
    """
    if text.isascii():
        return len(text)
    size = len(text.encode("utf-8", "replace"))
    return size + 2 * (size - len(text))  # of two bytes or more each, so half of them at least are surplus


def _escape(reason: str) -> str:
    """Make `reason` printable: a picture's name may hold half of a surrogate pair."""
    return reason if reason.isascii() else reason.encode("utf-8", "backslashreplace").decode("utf-8")
